//! Which worker a member is, which process accepts there, and who supervises the service: all that
//! shows it says the same.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use jiff::{SpanRelativeTo, Timestamp};
use nix::sys::signal::Signal;
use overspill::{MemberId, Service};
use serde_json::Value;
use world::{at, wait_until};

use crate::allow::{Allow, Group};
use crate::run::{Run, connect, freeze, pids, send};
use crate::server::Server;
use crate::tool::{self, cells, overspill};
use crate::unchanged::{all_answer, ask, kill};

const CALLED: &str = "10.0.0.1:80";
/// Until one is seen to hang, and then tried again: it takes clients, one after another.
const LONG: Duration = Duration::from_secs(60);

/// Workers that listen on these addresses, when each is a member.
fn serving(workers: usize, options: &str, addresses: &str) -> Run {
    let command = ["python3", "-c", include_str!("kept.py"), addresses];
    let run = Run::start(&format!("--name web -n {workers} {options}"), &command);
    for _ in 0..workers * addresses.split(',').count() {
        run.line(" listens on ");
    }
    run
}

fn json(arguments: &str) -> Value {
    serde_json::from_str(&overspill(arguments).done()).unwrap()
}

fn show(service: &str) -> Value {
    json(&format!("show {service} --json"))
}

/// The numbers of the workers, and their processes, in the order of the members.
fn workers(service: &Value) -> Vec<(Option<u64>, u32)> {
    let pid = |member: &Value| member["pid"].as_u64().unwrap().try_into().unwrap();
    let members = service["members"].as_array().unwrap();
    members.iter().map(|member| (member["worker"].as_u64(), pid(member))).collect()
}

/// The numbers alone.
fn numbers(service: &Value) -> Vec<Option<u64>> {
    workers(service).into_iter().map(|(worker, _)| worker).collect()
}

/// A process's own number, as it was told.
fn own_number(pid: u32) -> u64 {
    let environment = std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    let own = environment.split('\0').find_map(|it| it.strip_prefix("OVERSPILL_WORKER="));
    own.unwrap().parse().unwrap()
}

#[track_caller]
fn is_supervised(service: &Value, command: &str, pid: u32) {
    let by = &service["supervisor"];
    assert_eq!(
        (&by["command"], &by["name"], &by["pid"]),
        (&command.into(), &"web".into(), &pid.into())
    );
    let since: Timestamp = by["since"].as_str().unwrap().parse().unwrap();
    let age = since.until(Timestamp::now()).unwrap();
    let age = age.total((jiff::Unit::Second, SpanRelativeTo::days_are_24_hours())).unwrap();
    assert!((-2.0..600.0).contains(&age), "{by}");
}

/// Where a member stands in the list that has this worker.
fn place(service: &Value, worker: u64) -> usize {
    numbers(service).iter().position(|&it| it == Some(worker)).unwrap()
}

/// Each worker's number is the one that its process was told.
#[track_caller]
fn are_numbered(service: &Value, count: u64) {
    let workers = workers(service);
    assert!(workers.iter().all(|&(worker, pid)| worker == Some(own_number(pid))), "{workers:?}");
    let numbers: BTreeSet<u64> = workers.iter().filter_map(|it| it.0).collect();
    assert_eq!(numbers, (0..count).collect());
}

#[test]
fn all_that_shows_a_worker_says_the_same() {
    world::enter();
    let run = serving(4, "", CALLED);
    let supervisor = run.supervisor.id();
    let service = show("web");
    is_supervised(&service, "run", supervisor);
    are_numbered(&service, 4);
    let text = overspill("show web").done();
    let line = format!("\nsupervised by overspill run --name web (pid {supervisor}) since 20");
    assert!(text.contains(&line), "{text}");
    let table = cells(text.split("\n\n").nth(1).unwrap());
    assert_eq!(table[0][..4], ["MEMBER", "WORKER", "ADDRESS", "PID"]);
    for ((number, row), (worker, pid)) in table[1..].iter().enumerate().zip(workers(&service)) {
        let expected = format!("{number} {} {CALLED} {pid}", worker.unwrap());
        assert_eq!(row[..4].join(" "), expected);
    }
    let listed = overspill("ls").done();
    assert!(listed.trim_end().ends_with(&format!("run {supervisor}")), "{listed}");
    let mut all = json("ls --all --json");
    let netns = all[0].as_object_mut().unwrap().remove("netns");
    assert_eq!(netns, Some(overspill::Namespace::current().unwrap().inode().into()));
    assert_eq!(all[0], json("ls --json")[0]);
    is_supervised(&all[0], "run", supervisor);
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn a_successor_is_the_same_worker() {
    world::enter();
    let run = serving(3, "", CALLED);
    let service = show("web");
    let before = pids("web");
    let killed = place(&service, 2);
    kill(before[killed]);
    run.line(&format!("worker 2 (pid {})", before[killed]));
    wait_until("it is succeeded", || pids("web")[killed] != before[killed]);
    run.line(&format!(
        "worker 2 (pid {}) listens on {CALLED}: member {killed}",
        pids("web")[killed]
    ));
    assert_eq!(numbers(&show("web")), numbers(&service));
    overspill("restart web").done();
    let after = show("web");
    assert_eq!(numbers(&after), numbers(&service));
    are_numbered(&after, 3);
    assert_eq!(after["supervisor"], service["supervisor"]);
    assert!(pids("web").iter().all(|pid| !before.contains(pid)));
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn who_drains_the_member_drains_the_worker() {
    world::enter();
    let run = serving(4, "", CALLED);
    let third = place(&show("web"), 3);
    overspill(&format!("drain web {third}")).done();
    let member = show("web")["members"][third].clone();
    assert_eq!((&member["state"], &member["worker"]), (&"draining".into(), &3.into()));
    let pid = member["pid"].as_u64().unwrap().try_into().unwrap();
    kill(pid);
    run.line(&format!("worker 3 (pid {pid})"));
    run.ends_at(Signal::SIGTERM);
}

/// A member's number is not given again.
#[test]
fn a_worker_with_another_number_than_its_member_is_told_with_both() {
    world::enter();
    let run = serving(2, "", CALLED);
    overspill("rm web 0 --force").done();
    let sorted = || {
        let mut members = Service::open("web").unwrap().status().unwrap().members;
        members.sort_by_key(|it| it.member);
        members.into_iter().map(|it| it.member.0).collect::<Vec<_>>()
    };
    wait_until("it is a member again", || sorted() == [1, 2]);
    let service = show("web");
    let members = service["members"].as_array().unwrap();
    let anew = members.iter().find(|it| it["member"] == 2).unwrap();
    let pid = anew["pid"].as_u64().unwrap().try_into().unwrap();
    let worker = own_number(pid);
    assert_eq!(anew["worker"], worker);
    freeze(pid);
    with_clients(|| {
        run.line_within(LONG, &format!("worker {worker} hangs (service web, member 2, "))
    });
    send(pid, Signal::SIGCONT);
    with_clients(|| {
        run.line_within(LONG, &format!("worker {worker} accepts again (service web, member 2)"))
    });
    run.ends_at(Signal::SIGTERM);
}

/// Waits while clients come and are answered. With one at a time, nobody would be served while that
/// one waits at a worker that has stopped: then little tells that it hangs.
fn with_clients(wait: impl FnOnce() -> String) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let start = Instant::now();
                while !over.load(Ordering::Relaxed) && start.elapsed() < LONG {
                    ask(at(CALLED));
                }
            });
        }
        wait();
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn both_ports_of_a_worker_have_its_number() {
    world::enter();
    let run = serving(3, "", "10.0.0.1:80,10.0.0.1:81");
    for service in ["web:80", "web:81"] {
        let service = show(service);
        is_supervised(&service, "run", run.supervisor.id());
        are_numbered(&service, 3);
    }
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn workers_that_are_handed_their_sockets_are_known() {
    world::enter();
    let run = Run::serving("--name web -n 2 --listen 10.0.0.1:80 --listen 10.0.0.2:80");
    let known = || {
        let service = show("web");
        is_supervised(&service, "run", run.supervisor.id());
        let workers = workers(&service);
        assert!(workers.iter().all(|&(worker, pid)| worker == Some(own_number(pid))));
        assert_eq!(numbers(&service), [0, 1, 0, 1].map(Some));
    };
    wait_until("they are noted", || !pids("web").contains(&run.supervisor.id()));
    known();
    let before = pids("web")[1];
    send(before, Signal::SIGKILL);
    wait_until("it is succeeded at both addresses", || !pids("web").contains(&before));
    known();
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn who_has_no_supervisor_has_none() {
    world::enter();
    let server = Server::start("tcp=10.0.0.1:80");
    overspill(&format!("share web --pid {} --port 80", server.pid())).done();
    // A supervisor of that name whose service it is not.
    let command = ["python3", "-c", include_str!("kept.py"), "10.0.0.2:81"];
    let run = Run::start("--name web -n 1 --redirect off", &command);
    run.line(" listens on ");
    let service = show("web");
    assert_eq!((&service["supervisor"], numbers(&service)), (&Value::Null, vec![None]));
    let text = overspill("show web").done();
    assert!(!text.contains("supervised") && !text.contains("WORKER"), "{text}");
    assert!(!overspill("ls").done().contains("SUPERVISOR"));
    run.ends_with(Signal::SIGTERM);
}

/// It is the process that lives, not the one that has made the control groups.
#[test]
fn a_supervisor_that_was_killed_supervises_no_more() {
    world::enter();
    let mut killed = serving(2, "", CALLED);
    killed.supervisor.kill().unwrap();
    killed.supervisor.wait().unwrap();
    let service = show("web");
    assert_eq!(service["supervisor"], Value::Null);
    are_numbered(&service, 2);
    let command = ["python3", "-c", include_str!("kept.py"), CALLED];
    let run = Run::start("--name web -n 2", &command);
    run.line("taking over 2 workers");
    wait_until("it supervises", || show("web")["supervisor"]["pid"] == run.supervisor.id());
    run.line("done, 2 workers replaced");
    are_numbered(&show("web"), 2);
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn allow_is_shown_while_it_runs() {
    world::enter();
    let group = Group::new();
    let server = group.server(&["10.0.0.1"]);
    let arguments = format!("--cgroup {} --port 80", group.path());
    let first = Allow::start(&arguments);
    wait_until("it is a member", || Service::open("web").is_ok());
    let is_by = |allow: &Allow| is_supervised(&show("web"), "allow", allow.pid());
    is_by(&first);
    assert_eq!(workers(&show("web")), [(None, server.pid())]);
    let text = overspill("show web").done();
    let line = format!("\nsupervised by overspill allow web (pid {}) since 20", first.pid());
    assert!(text.contains(&line), "{text}");
    let second = Allow::start(&arguments);
    is_by(&first);
    let refused = overspill("restart web").failed();
    assert!(refused.contains("has no supervisor"), "{refused}");
    first.end();
    is_by(&second);
    second.end();
    assert_eq!(show("web")["supervisor"], Value::Null);
    overspill("rm web").done();
}

/// Who has answered.
fn answer() -> u32 {
    let mut answer = String::new();
    connect(CALLED).read_to_string(&mut answer).unwrap();
    answer.parse().unwrap()
}

fn forking(children: &str, who: &str) -> Run {
    let command = ["python3", "-c", include_str!("prefork.py"), CALLED, children, who];
    let run = Run::start("--name web -n 2", &command);
    for _ in 0..2 {
        run.line(" listens on ");
    }
    run
}

/// Whether it is the child of a worker's first process, not that itself.
fn is_child(pid: u32, run: &Run) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:\t"));
    parent.is_some_and(|parent| parent.parse() != Ok(run.supervisor.id()))
}

/// The processes of a worker that has not ended, its first one among them.
fn family(pid: u32) -> BTreeSet<u32> {
    overspill::Cgroup::of_process(pid).unwrap().processes().unwrap().into_iter().collect()
}

#[test]
fn of_a_server_that_forks_the_process_that_accepts_is_shown() {
    world::enter();
    let run = forking("2", "children");
    wait_until("children are noted", || {
        let pids = pids("web");
        pids.len() == 2 && pids.into_iter().all(|pid| is_child(pid, &run))
    });
    let children = pids("web");
    let service = show("web");
    are_numbered(&service, 2);
    let answered: BTreeSet<u32> = (0..64).map(|_| answer()).collect();
    let holders: BTreeSet<u32> = children.iter().flat_map(|&pid| family(pid)).collect();
    assert!(answered.is_subset(&holders), "{answered:?} {holders:?}");
    assert!(answered.into_iter().all(|pid| is_child(pid, &run)));
    // It stays, until it ends: then its sibling is the one.
    send(children[0], Signal::SIGKILL);
    wait_until("its sibling is noted", || pids("web")[0] != children[0]);
    wait_until("it is one", || is_child(pids("web")[0], &run));
    assert_eq!(pids("web")[1], children[1]);
    run.ends_at(Signal::SIGTERM);
}

/// Children that wait hold the socket as well.
#[test]
fn a_server_that_accepts_itself_is_shown_itself() {
    world::enter();
    let run = forking("2", "parent");
    // One later on of a server whose children accept says that they would have been seen.
    let other = Run::start(
        "--name other -n 1",
        &["python3", "-c", include_str!("prefork.py"), "10.0.0.1:81", "1", "children"],
    );
    other.line(" listens on ");
    let before = pids("other");
    wait_until("the other's child is noted", || pids("other") != before);
    assert!(pids("web").into_iter().all(|pid| !is_child(pid, &run)));
    assert!(pids("web").contains(&answer()));
    other.ends_with(Signal::SIGTERM);
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn gunicorns_children_are_shown() {
    world::enter();
    let folder = tempfile::TempDir::new().unwrap();
    let app = "import os\n\ndef app(environ, start):\n    start('200 OK', [])\n    return [b'%d' % os.getpid()]\n";
    std::fs::write(folder.path().join("hello.py"), app).unwrap();
    let folder = folder.path().to_str().unwrap();
    let command = ["gunicorn", "--workers", "2", "--bind", CALLED, "--chdir", folder, "hello:app"];
    let run = Run::start("--name web -n 1", &command);
    run.line(" listens on ");
    let master = pids("web")[0];
    wait_until("a child is noted", || pids("web")[0] != master);
    let shown = usize::try_from(pids("web")[0]).unwrap();
    wait_until("it answers", || ask(at(CALLED)) == shown);
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn what_can_t_be_seen_is_left_out() {
    world::enter();
    let run = serving(2, "", CALLED);
    // In a PID namespace of its own nobody can be seen.
    let output = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", env!("CARGO_BIN_EXE_overspill")])
        .args(["show", "web", "--json"])
        .output()
        .unwrap();
    let service: Value = serde_json::from_str(&tool::Ran::from(output).done()).unwrap();
    let by = service["supervisor"].as_object().unwrap();
    assert_eq!(
        by.iter().map(|(key, _)| key.as_str()).collect::<BTreeSet<_>>(),
        ["command", "name"].into()
    );
    assert_eq!(numbers(&service), [None, None]);
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn other_network_namespaces_are_looked_into() {
    world::enter();
    let run = serving(2, "", CALLED);
    let netns = overspill::Namespace::current().unwrap().inode();
    for arguments in ["ls --all --json".to_owned(), format!("ls --netns {netns} --json")] {
        let mut command = Command::new("unshare");
        command.arg("--net").arg(env!("CARGO_BIN_EXE_overspill")).args(arguments.split(' '));
        let listed = tool::Ran::from(command.output().unwrap()).done();
        let listed: Value = serde_json::from_str(&listed).unwrap();
        is_supervised(&listed[0], "run", run.supervisor.id());
        are_numbered(&listed[0], 2);
    }
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn metrics_name_workers_and_supervisors() {
    world::enter();
    let run = serving(2, "", CALLED);
    let server = Server::start("tcp=10.0.0.1:81");
    overspill(&format!("share other --pid {} --port 81", server.pid())).done();
    let text = overspill("metrics --once").done();
    let netns = overspill::Namespace::current().unwrap().inode();
    let info = |service: &str, member: usize, address: &str, worker: &str, pid: u32| {
        format!(
            "overspill_member_info{{netns=\"{netns}\",service=\"{service}\",member=\"{member}\",\
             address=\"{address}\",worker=\"{worker}\",pid=\"{pid}\"}} 1"
        )
    };
    let pids = pids("web");
    let mut expected: BTreeSet<String> = (0..2)
        .map(|it| info("web", it, CALLED, &own_number(pids[it]).to_string(), pids[it]))
        .collect();
    expected.insert(info("other", 0, "10.0.0.1:81", "", server.pid()));
    let infos = text.lines().filter(|line| line.starts_with("overspill_member_info{"));
    assert_eq!(infos.map(str::to_owned).collect::<BTreeSet<_>>(), expected);
    let name = "overspill_service_supervisor_start_time_seconds";
    let supervisors: Vec<&str> =
        text.lines().filter(|line| line.starts_with(&format!("{name}{{"))).collect();
    let [line] = supervisors[..] else { panic!("{supervisors:?}") };
    let labels = format!(
        "{name}{{netns=\"{netns}\",service=\"web\",command=\"run\",name=\"web\",pid=\"{}\"}} ",
        run.supervisor.id()
    );
    let since: f64 =
        line.strip_prefix(&labels).unwrap_or_else(|| panic!("{line}")).parse().unwrap();
    let shown: Timestamp = show("web")["supervisor"]["since"].as_str().unwrap().parse().unwrap();
    let shown = shown.as_duration().as_secs_f64();
    assert!((since - shown).abs() < 0.01, "{since} {shown}");
    drop(server);
    run.ends_with(Signal::SIGTERM);
}

#[test]
fn trace_names_the_worker() {
    world::enter();
    let run = serving(2, "", CALLED);
    overspill("rm web 0 --force").done();
    let find = |id| {
        let members = Service::open("web").unwrap().status().unwrap().members;
        members.iter().find(|it| it.member == MemberId(id)).map(|it| it.pid)
    };
    wait_until("it is a member again", || find(2).is_some());
    let workers = [1, 2].map(|id| (id, own_number(find(id).unwrap())));
    let trace = |arguments: &str| {
        let mut trace = tool::command(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(trace.stdout.take().unwrap()).lines().map_while(Result::ok);
        (trace, lines)
    };
    let (mut text, mut lines) = trace("trace web -n 8");
    let headings = lines.next().unwrap();
    assert!(headings.ends_with(" WORKER"), "{headings}");
    // When it writes its headings it traces, and so does the other by its first line.
    let (mut json, objects) = trace("trace web -n 8 --json");
    let objects = thread::spawn(move || objects.collect::<Vec<_>>());
    while !objects.is_finished() {
        all_answer(2, || ask(at(CALLED)));
    }
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [.., chosen, worker] = words[..] else { panic!("{line}") };
        assert!(
            chosen.starts_with("2:") && worker == "0" || chosen.starts_with("1:") && worker == "1",
            "{line}"
        );
    }
    for line in objects.join().unwrap() {
        let event: Value = serde_json::from_str(&line).unwrap();
        let chosen = &event["chosen"];
        let is_it = |&&(id, own): &&(u32, u64)| chosen["member"] == id && chosen["worker"] == own;
        assert!(workers.iter().any(|it| is_it(&it)), "{line}");
    }
    text.wait().unwrap();
    json.wait().unwrap();
    run.ends_at(Signal::SIGTERM);
}
