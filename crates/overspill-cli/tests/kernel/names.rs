//! The names of the services of one run: they stay valid, whatever ports come and go.

use nix::sys::signal::Signal;
use overspill::{MemberState, Service};
use world::{at, wait_until};

use crate::run::{self, Run, WORKER, members, pids, send};
use crate::tool::overspill;
use crate::unchanged::{all_answer, ask, python, services};

const CALLED: &str = "10.0.0.1:80";
const SECOND: &str = "10.0.0.1:81";

/// Starts two workers, and waits until each of so many sockets is a member.
fn serving(command: &[&str], sockets: usize) -> Run {
    let run = Run::start("--name web -n 2", command);
    for _ in 0..2 * sockets {
        run.line(" listens on ");
    }
    run
}

fn kill_supervisor(run: &mut Run) {
    run.supervisor.kill().unwrap();
    run.supervisor.wait().unwrap();
}

#[test]
fn a_second_port_leaves_the_name_of_the_first() {
    world::enter();
    let script = "require('http').createServer((request, response) => \
                  response.end(process.env.OVERSPILL_WORKER)).listen(80, '10.0.0.1')";
    let run = serving(&["node", "-e", script], 1);
    assert_eq!(services(), ["web"]);
    // To node, the wish for a debugger on port 9229.
    for pid in pids("web") {
        send(pid, Signal::SIGUSR1);
    }
    for _ in 0..2 {
        run.line(" listens on 127.0.0.1:9229: member ");
    }
    assert_eq!(services(), ["web", "web:9229"]);
    for name in ["web", "web:80", "web:9229"] {
        overspill(&format!("show {name}")).done();
    }
    let shown = overspill("show web:80").done();
    assert!(shown.starts_with("web: 2 members on port 80\n"), "{shown}");
    overspill("drain web:80 1").done();
    assert_eq!(members("web")[1].state, MemberState::Draining);
    overspill("resume web 1").done();
    let line = overspill("show web:81").failed();
    assert!(line.contains("web:81"), "{line}");
    all_answer(2, || ask(at(CALLED)));
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn a_service_that_is_made_anew_has_its_name_again() {
    world::enter();
    let addresses = ["127.0.0.1:80", "[::1]:80", "127.0.0.1:81", "[::1]:81"];
    let run = serving(&python(&addresses), 4);
    let names = ["web", "web-ipv6", "web-ipv6:81", "web:81"];
    assert_eq!(services(), names);
    for name in names {
        let line = overspill(&format!("rm {name}")).failed();
        assert!(line.contains("is kept by overspill run --name web "), "{line}");
        overspill(&format!("rm {name} --force")).done();
        wait_until("it is made anew", || {
            services() == names && Service::open(name).unwrap().status().unwrap().members.len() == 2
        });
    }
    for address in addresses {
        all_answer(2, || ask(at(address)));
    }
    run.ends_at(Signal::SIGTERM);
}

/// Another build put the first port into the name as well, once there was a second one.
#[test]
fn who_takes_over_gives_the_first_port_s_service_its_name() {
    world::enter();
    let addresses = ["127.0.0.1:81", "127.0.0.1:80", "[::1]:81"];
    let mut killed = serving(&python(&addresses), 3);
    kill_supervisor(&mut killed);
    for name in ["web", "web-ipv6"] {
        Service::open(name).unwrap().rename(&format!("{name}:81")).unwrap();
    }
    let run = Run::start("--name web -n 2", &python(&addresses));
    run.line("done, 2 workers replaced");
    wait_until("they have their names", || services() == ["web", "web-ipv6", "web:80"]);
    assert_eq!(Service::open("web").unwrap().status().unwrap().port, 81);
    for address in addresses {
        all_answer(2, || ask(at(address)));
    }
    run.ends_at(Signal::SIGTERM);
}

/// Kills a supervisor, and its workers, so that its services are left.
fn kill_all(mut run: Run) {
    let orphans = pids("web");
    kill_supervisor(&mut run);
    for pid in orphans {
        send(pid, Signal::SIGKILL);
    }
    wait_until("all members are gone", || {
        let gone = |name: &String| members(name).iter().all(|it| it.state == MemberState::Gone);
        services().iter().all(gone)
    });
}

/// They are in the way of the new ones by their ports.
#[test]
fn services_that_were_left_with_other_names_are_removed() {
    world::enter();
    let options = |first, second| format!("--name web -n 2 --listen {first} --listen {second}");
    let killed = Run::serving(&options(CALLED, SECOND));
    assert_eq!(services(), ["web", "web:81"]);
    kill_all(killed);
    Service::open("web").unwrap().rename("web:80").unwrap();
    let run = Run::start(&options(CALLED, SECOND), &WORKER);
    run.line("service web:80 exists, but all its members are gone");
    run.line("service web: 2 workers");
    assert_eq!(services(), ["web", "web:81"]);
    kill_all(run);
    // In the other order of ports they have each other's names.
    let run = Run::start(&options(SECOND, CALLED), &WORKER);
    run.line("service web:80: 2 workers");
    assert_eq!(services(), ["web", "web:80"]);
    for address in [CALLED, SECOND] {
        run::ask(address);
    }
    run.ends_at(Signal::SIGTERM);
}
