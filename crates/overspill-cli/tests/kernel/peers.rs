//! `overspill allow`: control groups that come and go, and servers as they are in use.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use overspill::{MemberState, MemberStatus, Name, Namespace, Service};
use tempfile::TempDir;
use world::wait_until;

use crate::allow::{Group, Process, SERVE, Unit, answer, command_in, start_in};
use crate::run::{Run, assert_no_state, connect, send};
use crate::tool::overspill;
use crate::versions::Version;

/// Listens on port 80 of both families, apart, as Debian's nginx and redis do. The argument 6 is
/// for IPv6 first, ipv4 for that alone, and shares for `SO_REUSEPORT`. Answers with its process id.
const TWINS: &str = "
families = [(socket.AF_INET, '0.0.0.0'), (socket.AF_INET6, '::')]
if 'ipv4' in sys.argv:
    families.pop()
made = []
for family, host in reversed(families) if '6' in sys.argv else families:
    it = socket.socket(family)
    if 'shares' in sys.argv:
        it.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        it.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    it.bind((host, 80))
    it.listen(16)
    made.append(it)
serve_pid(made)
";

fn allow(arguments: &str) -> Run {
    allow_by(&Version::this(), arguments)
}

/// By a build of overspill.
fn allow_by(version: &Version, arguments: &str) -> Run {
    let mut command = Command::new("env");
    command.arg("--default-signal").arg(version.path()).args(["allow", "web"]);
    command.args(arguments.split(' '));
    Run::watch(command)
}

/// The names of all services.
fn services() -> Vec<String> {
    let all = Service::all(&Namespace::current().unwrap()).unwrap();
    all.iter().map(Service::name).map(Name::as_str).map(str::to_owned).collect()
}

/// Its members; none where there is no such service at the moment.
fn members(service: &str) -> Vec<MemberStatus> {
    let status = Service::open(service).and_then(|service| service.status());
    status.map(|status| status.members).unwrap_or_default()
}

fn pids(service: &str) -> Vec<u32> {
    members(service).iter().map(|member| member.pid).collect()
}

fn wait_pids(service: &str, expected: &[u32]) {
    wait_until(&format!("{service} has its members"), || pids(service) == expected);
}

fn unit_name(what: &str) -> String {
    format!("overspill-{what}-{}", std::process::id())
}

#[test]
fn families_apart_are_two_services_of_all_peers() {
    for order in ["4", "6"] {
        world::enter();
        let (one, two) = (Group::new(), Group::new());
        let mut blue = one.start(TWINS, &[order]);
        let groups = format!("--cgroup {} --cgroup {} --port 80", one.path(), two.path());
        let keeper = allow(&groups);
        wait_pids("web", &[blue.pid()]);
        let green = two.start(TWINS, &[order]);
        for service in ["web", "web-ipv6"] {
            wait_pids(service, &[blue.pid(), green.pid()]);
        }
        assert_eq!(services(), ["web", "web-ipv6"]);
        blue.kill();
        for address in ["127.0.0.1:80", "[::1]:80"] {
            for _ in 0..10 {
                assert_eq!(answer(connect(address)), green.pid(), "{address}");
            }
        }
        // Started again, it finds both.
        keeper.ends_with(Signal::SIGTERM);
        let red = one.start(TWINS, &[order, "shares"]);
        let keeper = allow(&groups);
        for service in ["web", "web-ipv6"] {
            wait_until("it has joined", || pids(service).contains(&red.pid()));
        }
        assert_eq!(services(), ["web", "web-ipv6"]);
        keeper.ends_with(Signal::SIGTERM);
        overspill("rm web-ipv6").done();
        overspill("rm web").done();
        assert_no_state();
    }
}

#[test]
fn with_several_ports_the_families_of_each_are_apart() {
    world::enter();
    let group = Group::new();
    let keeper = allow(&format!("--cgroup {} --port 80 --port 81", group.path()));
    keeper.line("peers may join");
    let twins = group.start(TWINS, &[]);
    let other = group.start(&SERVE.replace("80", "81"), &["10.0.0.1"]);
    wait_pids("web:80", &[twins.pid()]);
    wait_pids("web-ipv6:80", &[twins.pid()]);
    wait_pids("web:81", &[other.pid()]);
    keeper.ends_with(Signal::SIGTERM);
}

/// Two keepers that begin at the same moment agree on who is called what.
#[test]
fn keepers_of_one_name_agree() {
    world::enter();
    let groups = [Group::new(), Group::new()];
    let twins = groups.each_ref().map(|group| group.start(TWINS, &["shares"]));
    let keepers: Vec<Run> =
        groups.iter().map(|group| allow(&format!("--cgroup {} --port 80", group.path()))).collect();
    for service in ["web", "web-ipv6"] {
        wait_until("both are members", || {
            services() == ["web", "web-ipv6"]
                && twins.iter().all(|it| pids(service).contains(&it.pid()))
        });
        assert_eq!(members(service).len(), 2);
    }
    for keeper in keepers {
        keeper.ends_with(Signal::SIGTERM);
    }
}

#[test]
fn a_unit_may_be_started_after_it() {
    world::enter();
    let [blue, green] = ["blue", "green"].map(unit_name);
    let keeper = allow(&format!("--unit {blue} --unit {green}.service --port 80"));
    for unit in [blue.clone(), format!("{green}.service")] {
        let line = keeper.line(&format!("unit {unit} is not running in system.slice"));
        assert!(line.ends_with("; waiting for it"), "{line}");
    }
    keeper.line("peers may join");
    let first = Unit::new(&format!("{blue}.service"));
    keeper.line(&format!("unit {blue} is there: its processes may join"));
    let mut server = start_in(&first.path(), SERVE, &["10.0.0.1"]);
    wait_pids("web", &[server.pid()]);
    let second = Unit::new(&format!("{green}.service"));
    keeper.line(&format!("unit {green}.service is there"));
    let other = start_in(&second.path(), SERVE, &["10.0.0.1"]);
    wait_pids("web", &[server.pid(), other.pid()]);

    // It is stopped, and started again: another control group by the same name.
    server.kill();
    drop(first);
    keeper.line(&format!("unit {blue} is not running in system.slice"));
    for _ in 0..10 {
        assert_eq!(answer(connect("10.0.0.1:80")), other.pid());
    }
    let again = Unit::new(&format!("{blue}.service"));
    keeper.line(&format!("unit {blue} is there"));
    let server = start_in(&again.path(), SERVE, &["10.0.0.1"]);
    wait_pids("web", &[server.pid(), other.pid()]);
    keeper.ends_with(Signal::SIGTERM);
    drop((server, other));
    overspill("rm web").done();
}

#[test]
fn a_control_group_may_be_made_after_it() {
    world::enter();
    let path = {
        let gone = Group::new();
        gone.path()
    };
    let keeper = allow(&format!("--cgroup {path} --port 80"));
    keeper.line(&format!("control group {path} does not exist; waiting for it"));
    fs::create_dir(&path).unwrap();
    keeper.line(&format!("control group {path} is there: its processes may join"));
    let mut servers = [0, 1].map(|_| start_in(&path, SERVE, &["10.0.0.1"]));
    wait_pids("web", &servers.each_ref().map(Process::pid));
    servers.iter_mut().for_each(Process::kill);
    fs::remove_dir(&path).unwrap();
    keeper.ends_with(Signal::SIGTERM);
}

#[test]
fn a_unit_of_another_name_is_offered() {
    world::enter();
    let name = unit_name("there");
    let there = Unit::new(&format!("{name}.service"));
    let keeper = allow(&format!("--unit {name}x --port 80"));
    keeper.line(&format!(
        "unit {name}x is not running in system.slice (there is {name}); waiting for it"
    ));
    keeper.ends_with(Signal::SIGTERM);
    drop(there);
}

/// A server that was bound before the hooks came has no `SO_REUSEPORT` by itself.
#[test]
fn a_port_that_was_bound_before_is_shared() {
    world::enter();
    let (one, two) = (Group::new(), Group::new());
    let mut blue = one.server(&["10.0.0.1"]);
    let keeper = allow(&format!("--cgroup {} --cgroup {} --port 80", one.path(), two.path()));
    wait_pids("web", &[blue.pid()]);
    let green = two.server(&["10.0.0.1"]);
    wait_pids("web", &[blue.pid(), green.pid()]);
    // What waits at it is moved, as from any other.
    crate::run::freeze(blue.pid());
    let clients: Vec<TcpStream> = (0..20).map(|_| connect("10.0.0.1:80")).collect();
    blue.kill();
    for client in clients {
        assert_eq!(answer(client), green.pid());
    }
    let lines = keeper.ends_with(Signal::SIGTERM);
    assert!(!lines.iter().any(|line| line.contains("cannot")), "{lines:#?}");
}

/// A server with a master process, in a control group of its own.
struct Master {
    process: Process,
    folder: TempDir,
}

impl Master {
    /// `FOLDER` stands for a folder of its own in the command for a shell, which has the file
    /// `conf`.
    fn start(group: &Group, conf: &str, script: &str) -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("conf"), fill(conf, folder.path())).unwrap();
        let script = format!("PATH=$PATH:/usr/sbin; exec {}", fill(script, folder.path()));
        let mut command = command_in(&group.path(), "sh");
        let child = command.args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap();
        Self { process: Process(child), folder }
    }

    fn reload(&self, conf: &str, signal: Signal) {
        fs::write(self.folder.path().join("conf"), fill(conf, self.folder.path())).unwrap();
        send(self.process.pid(), signal);
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        // Its workers end with it.
        send(self.process.pid(), Signal::SIGTERM);
        let _ = self.process.0.wait();
    }
}

fn fill(text: &str, folder: &Path) -> String {
    text.replace("FOLDER", folder.to_str().unwrap())
}

fn nginx(group: &Group, conf: &str) -> Master {
    Master::start(group, conf, "nginx -e stderr -c FOLDER/conf")
}

/// What an HTTP server answers.
fn get(address: &str) -> String {
    let mut stream = connect(address);
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.rsplit("\r\n\r\n").next().unwrap().to_owned()
}

/// Every member is open, and there are so many.
fn wait_open(service: &str, count: usize) {
    wait_until(&format!("{service} has {count} members, all of them open"), || {
        let members = members(service);
        members.len() == count && members.iter().all(|it| it.state != MemberState::Gone)
    });
}

#[test]
fn nginx_as_debian_has_it() {
    world::enter();
    let conf = "daemon off; pid FOLDER/pid; error_log stderr; worker_processes 2;\nevents {}\n\
                http {\n  access_log off;\n  server { listen 80 default_server; \
                listen [::]:80 default_server; location / { return 200 FOLDER; } }\n}\n";
    let groups = [Group::new(), Group::new()];
    let paths = groups.each_ref().map(Group::path);
    let keeper = allow(&format!("--cgroup {} --cgroup {} --port 80", paths[0], paths[1]));
    keeper.line("peers may join");
    let mut servers = groups.each_ref().map(|group| nginx(group, conf)).into_iter();
    for service in ["web", "web-ipv6"] {
        wait_open(service, 2);
    }
    drop(servers.next());
    let other = servers.next().unwrap();
    for address in ["127.0.0.1:80", "[::1]:80"] {
        for _ in 0..10 {
            assert_eq!(get(address), other.folder.path().to_str().unwrap());
        }
    }
    keeper.ends_with(Signal::SIGTERM);
}

#[test]
fn nginx_reloads_with_fewer_and_more_workers() {
    world::enter();
    let conf = |workers: usize| {
        format!(
            "daemon off; pid FOLDER/pid; error_log stderr; worker_processes {workers};\n\
             events {{}}\nhttp {{\n  access_log off;\n  server {{ listen 10.0.0.1:80 reuseport; \
             listen [fd00::1]:80 reuseport; location / {{ return 200 {workers}; }} }}\n}}\n"
        )
    };
    let group = Group::new();
    let keeper = allow(&format!("--cgroup {} --port 80", group.path()));
    keeper.line("peers may join");
    let server = nginx(&group, &conf(4));
    wait_open("web", 4);
    for workers in [2, 4, 1, 3] {
        server.reload(&conf(workers), Signal::SIGHUP);
        for service in ["web", "web-ipv6"] {
            wait_open(service, workers);
        }
        for address in ["10.0.0.1:80", "[fd00::1]:80"] {
            wait_until("the old workers have left", || {
                (0..20).all(|_| get(address) == workers.to_string())
            });
        }
    }
    // An address that is taken out of the file is served no more.
    server.reload(&conf(2).replace("listen [fd00::1]:80 reuseport;", ""), Signal::SIGHUP);
    wait_open("web", 2);
    wait_until("IPv6 is gone", || services() == ["web"]);
    wait_until("it is refused", || TcpStream::connect("[fd00::1]:80").is_err());
    keeper.ends_with(Signal::SIGTERM);
}

/// The processes that a master has, or has yet to bury.
fn workers(server: &Master) -> Vec<u32> {
    let children = format!("/proc/{0}/task/{0}/children", server.process.pid());
    let children = fs::read_to_string(children).unwrap();
    children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn haproxy_is_reloaded() {
    world::enter();
    let conf = |word: &str| {
        format!(
            "global\n  stats socket FOLDER/socket mode 600 level admin expose-fd listeners\n\
             defaults\n  mode http\n  timeout client 10s\n  timeout server 10s\n  \
             timeout connect 10s\nfrontend web\n  bind 10.0.0.1:80 shards 2\n  \
             http-request return status 200 content-type text/plain string {word}\n"
        )
    };
    let group = Group::new();
    let keeper = allow(&format!("--cgroup {} --port 80", group.path()));
    keeper.line("peers may join");
    let server = Master::start(&group, &conf("first"), "haproxy -W -f FOLDER/conf");
    wait_open("web", 2);
    for word in ["second", "third"] {
        let old = workers(&server);
        server.reload(&conf(word), Signal::SIGUSR2);
        wait_until("the new worker serves alone", || (0..20).all(|_| get("10.0.0.1:80") == word));
        // Until its master has buried that one, it misses the next signal.
        wait_until("the old worker has ended", || {
            let now = workers(&server);
            now.len() == 1 && now != old
        });
        wait_open("web", 2);
    }
    keeper.ends_with(Signal::SIGTERM);
}

#[test]
fn share_makes_a_service_for_each_family() {
    world::enter();
    let group = Group::new();
    let [blue, green] = [0, 1].map(|_| group.start(TWINS, &["shares"]));
    let told =
        overspill(&format!("share web --pid {} --port 80 --on-full reset", blue.pid())).done();
    assert_eq!(told, "web: 1 member on port 80\nweb-ipv6: 1 member on port 80\n");
    let told = overspill(&format!("share web --pid {} --port 80 --join", green.pid())).done();
    assert_eq!(
        told,
        "web: 2 members on port 80, 1 of them new\nweb-ipv6: 2 members on port 80, 1 of them new\n"
    );
    for service in ["web", "web-ipv6"] {
        assert_eq!(pids(service), [blue.pid(), green.pid()]);
        let status = Service::open(service).unwrap().status().unwrap();
        assert_eq!(status.on_full, overspill::OnFull::Reset);
    }
    // What is in both is in neither where one of them fails.
    let told = overspill("rm web").done();
    assert_eq!(told, "web-ipv6 stays; remove it with overspill rm web-ipv6\n");
    let share = format!("share web --pid {},{} --port 80", blue.pid(), green.pid());
    let line = overspill(&share).failed();
    assert!(line.contains("web-ipv6"), "{line}");
    assert_eq!(services(), ["web-ipv6"]);
    overspill("rm web-ipv6").done();
    assert_no_state();

    // A twin that is not there yet is made by the rules of the service.
    let first = group.start(TWINS, &["shares", "ipv4"]);
    let pid = first.pid();
    overspill(&format!("share web --pid {pid} --port 80 --policy round-robin")).done();
    let told = overspill(&format!("share web --pid {} --port 80 --join", blue.pid())).done();
    assert_eq!(told, "web: 2 members on port 80, 1 of them new\nweb-ipv6: 1 member on port 80\n");
    let twin = Service::open("web-ipv6").unwrap().status().unwrap();
    assert_eq!(twin.policy, overspill::Policy::RoundRobin);
    overspill("rm web-ipv6").done();
    assert_eq!(overspill("rm web").done(), "");
}

/// The state is another build's while `allow` keeps its members: they are served on, and who comes
/// meanwhile joins when the state is this build's again, or by a keeper of that build.
#[test]
fn peers_are_kept_over_an_upgrade() {
    let (this, other) = (Version::this(), Version::of_other_layout());
    world::enter();
    let (one, two) = (Group::new(), Group::new());
    let arguments = format!("--cgroup {} --cgroup {} --port 80", one.path(), two.path());
    let keeper = allow(&arguments);
    keeper.line("peers may join");
    let mut blue = one.server(&["10.0.0.1"]);
    let green = two.server(&["10.0.0.1"]);
    wait_until("both have joined", || services() == ["web"] && members("web").len() == 2);
    let serves = |expected: &[u32]| {
        for _ in 0..20 {
            let served = answer(connect("10.0.0.1:80"));
            assert!(expected.contains(&served), "{served} of {expected:?}");
        }
    };
    other.run("upgrade").done();
    serves(&[blue.pid(), green.pid()]);
    // Its successor can't take its place yet: the kernel's own hash gives it what it gives it.
    blue.kill();
    let red = one.server(&["10.0.0.1"]);
    keeper.line("it is tried again");
    serves(&[red.pid(), green.pid()]);
    this.run("upgrade").done();
    wait_until("it has joined", || pids("web").contains(&red.pid()));
    wait_open("web", 2);
    serves(&[red.pid(), green.pid()]);

    // The package's way: the state first, its keeper when the operator likes.
    other.run("upgrade").done();
    keeper.ends_with(Signal::SIGTERM);
    let keeper = allow_by(&other, &arguments);
    keeper.line("peers may join");
    let late = two.server(&["10.0.0.1"]);
    keeper.line(&format!("process {} listens on 10.0.0.1:80", late.pid()));
    serves(&[red.pid(), green.pid(), late.pid()]);
    keeper.ends_with(Signal::SIGTERM);
    other.run("rm web").done();
    assert_no_state();
}

/// Ends it as a failure of the machine would.
fn kill_keeper(keeper: Run) {
    keeper.signal(Signal::SIGKILL);
    let _ = keeper.end();
}

#[test]
fn a_killed_keeper_is_started_again() {
    world::enter();
    let group = Group::new();
    let arguments = format!("--cgroup {} --port 80", group.path());
    let keeper = allow(&arguments);
    keeper.line("peers may join");
    let [mut blue, mut green] = [0, 1].map(|_| group.server(&["10.0.0.1"]));
    wait_open("web", 2);
    kill_keeper(keeper);
    // Nobody looks: one ends, and one that shares the port by itself comes.
    blue.kill();
    let mut red = group.start(TWINS, &["shares"]);
    let keeper = allow(&arguments);
    wait_until("who has ended is no member, who has come is one", || {
        services() == ["web", "web-ipv6"] && pids("web").len() == 2 && {
            let mut now = pids("web");
            now.sort_unstable();
            let mut expected = [green.pid(), red.pid()];
            expected.sort_unstable();
            now == expected
        }
    });
    wait_open("web", 2);
    kill_keeper(keeper);
    // All end while nobody looks: what was made for them goes.
    green.kill();
    red.kill();
    let keeper = allow(&arguments);
    wait_until("nothing is left", || services().is_empty());
    let late = group.server(&["10.0.0.1"]);
    wait_pids("web", &[late.pid()]);
    keeper.ends_with(Signal::SIGTERM);
}

/// Opens, closes and opens its socket again, forks, and becomes another program, as fast as it can;
/// then serves.
const RESTLESS: &str = "
for turn in range(200):
    made = listening(('10.0.0.1', 80))
    if turn % 3 == 0:
        made.close()
    elif turn % 3 == 1:
        if os.fork() == 0:
            os._exit(0)
        os.wait()
    else:
        child = os.fork()
        if child == 0:
            os.execvp('true', ['true'])
        os.waitpid(child, 0)
made = listening(('10.0.0.1', 80))
serve_pid([made])
";

#[test]
fn restless_peers_leave_nothing_behind() {
    world::enter();
    let groups = [Group::new(), Group::new()];
    // Two keepers of one name, each of both groups.
    let paths = groups.each_ref().map(Group::path);
    let arguments = format!("--cgroup {} --cgroup {} --port 80", paths[0], paths[1]);
    let keepers = [allow(&arguments), allow(&arguments)];
    for keeper in &keepers {
        keeper.line("peers may join");
    }
    let mut servers = groups.each_ref().map(|group| group.start(RESTLESS, &[]));
    wait_open("web", 2);
    let descriptors =
        |run: &Run| fs::read_dir(format!("/proc/{}/fd", run.supervisor.id())).unwrap().count();
    let threads =
        |run: &Run| fs::read_dir(format!("/proc/{}/task", run.supervisor.id())).unwrap().count();
    let before: Vec<_> = keepers.iter().map(|it| (descriptors(it), threads(it))).collect();
    for _ in 0..5 {
        servers[0].kill();
        servers[0] = groups[0].start(RESTLESS, &[]);
    }
    wait_open("web", 2);
    wait_until("both are members", || {
        servers.iter().all(|server| pids("web").contains(&server.pid()))
    });
    for _ in 0..20 {
        let served = answer(connect("10.0.0.1:80"));
        assert!(servers.iter().any(|server| server.pid() == served));
    }
    // A keeper that has just begun has not opened all that it looks with. One that kept something
    // of each of the hundreds of sockets would hold hundreds more.
    wait_until("the keepers hold no more than before", || {
        let now = keepers.iter().map(|it| (descriptors(it), threads(it)));
        now.zip(&before).all(|(now, before)| now.0 <= before.0 + 32 && now.1 <= before.1)
    });
    for keeper in keepers {
        keeper.ends_with(Signal::SIGTERM);
    }
}

/// A unit that systemd starts again and again.
#[test]
fn a_unit_in_a_restart_loop_costs_nothing_that_stays() {
    world::enter();
    let name = unit_name("loop");
    let keeper = allow(&format!("--unit {name} --port 80"));
    keeper.line("peers may join");
    let serves = |turns: usize| {
        for turn in 0..turns {
            let unit = Unit::new(&format!("{name}.service"));
            let mut server = start_in(&unit.path(), SERVE, &["10.0.0.1"]);
            if turn % 2 == 0 {
                wait_until("it is a member", || {
                    services() == ["web"] && pids("web").contains(&server.pid())
                });
            }
            server.kill();
        }
        let unit = Unit::new(&format!("{name}.service"));
        let servers = [0, 1].map(|_| {
            let server = start_in(&unit.path(), SERVE, &["10.0.0.1"]);
            // It may have been faster than the hooks: then it shares the port from now on.
            wait_until("it is a member", || pids("web").contains(&server.pid()));
            server
        });
        wait_until("they are members, and no others", || {
            services() == ["web"]
                && pids("web").len() == 2
                && servers.iter().all(|it| pids("web").contains(&it.pid()))
        });
        for _ in 0..20 {
            let served = answer(connect("10.0.0.1:80"));
            assert!(servers.iter().any(|server| server.pid() == served));
        }
        drop(servers);
        drop(unit);
    };
    let count = |what: &str| {
        fs::read_dir(format!("/proc/{}/{what}", keeper.supervisor.id())).unwrap().count()
    };
    serves(1);
    keeper.line(&format!("unit {name} is not running"));
    let before = (count("fd"), count("task"));
    serves(20);
    wait_until("no more is held", || {
        println!("{:?} {before:?}", (count("fd"), count("task")));
        count("fd") <= before.0 && count("task") <= before.1
    });
    keeper.ends_with(Signal::SIGTERM);
}
