//! A supervisor becomes another build of itself: its process, its workers and their sockets go on.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use nix::sys::signal::Signal;
use overspill::MemberState;
use tempfile::TempDir;
use world::{at, wait_until};

use crate::option;
use crate::run::{Run, WORKER, connect, members, pids, send};
use crate::unchanged::{all_answer, ask, kill};
use crate::versions::Version;

const CALLED: &str = "10.0.0.1:80";

fn worker<'a>(words: &[&'a str]) -> Vec<&'a str> {
    let command = ["python3", "-c", include_str!("kept.py"), CALLED];
    command.into_iter().chain(words.iter().copied()).collect()
}

fn serving(workers: usize, options: &str, words: &[&str]) -> Run {
    let run = Run::start(&format!("--name web -n {workers} {options}"), &worker(words));
    for _ in 0..workers {
        run.line(" listens on ");
    }
    run
}

/// The file that a process runs.
fn program(pid: u32) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/exe")).unwrap()
}

/// Clients that come one after the other; none may be lost.
struct Clients {
    over: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    fn begin(each: impl Fn() + Send + Clone + 'static) -> Self {
        let (over, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..2).map(|_| {
            let (over, served, each) = (Arc::clone(&over), Arc::clone(&served), each.clone());
            // The namespace that it is called in is the thread's that starts it.
            thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    each();
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let threads = threads.collect();
        Self { over, served, threads }
    }

    fn go_on(&self) {
        let before = self.served.load(Ordering::Relaxed);
        wait_until("more are served", || self.served.load(Ordering::Relaxed) > before + 50);
    }

    fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|client| client.join().unwrap());
    }
}

/// Has the supervisor of `web` become the build.
#[track_caller]
fn hand_over(build: &Version) {
    let said = build.run("upgrade").done();
    assert!(said.contains("supervisor of web: ") && said.contains(" goes on with "), "{said}");
}

#[test]
fn to_another_build_and_back_under_load() {
    world::enter();
    let folder = TempDir::new().unwrap();
    let other = Version::copied_to(folder.path());
    let run = serving(3, "", &[]);
    let (supervisor, workers) = (run.supervisor.id(), pids("web"));
    let clients = Clients::begin(|| {
        ask(at(CALLED));
    });
    for build in [&other, &Version::this(), &other] {
        clients.go_on();
        hand_over(build);
        assert_eq!(program(supervisor), build.path());
        assert_eq!(pids("web"), workers, "the workers go on");
    }
    let said = other.run("upgrade").done();
    assert!(said.contains("supervisor of web: is this build already"), "{said}");
    clients.go_on();
    clients.end();
    // It keeps them as before.
    kill(workers[1]);
    run.line("next start now");
    run.line(" listens on ");
    all_answer(3, || ask(at(CALLED)));
    other.run("restart web").done();
    assert!(workers.iter().all(|worker| !pids("web").contains(worker)));
    run.ends_at(Signal::SIGTERM);
}

/// They are the supervisor's own, and have to be at the numbers that workers know.
#[test]
fn with_the_sockets_that_it_hands_to_workers() {
    world::enter();
    let folder = TempDir::new().unwrap();
    let other = Version::copied_to(folder.path());
    let options = format!("--name web -n 2 --listen {CALLED} --listen 10.0.0.1:81 --words");
    let run = Run::start(&options, &WORKER);
    run.line("service web:81");
    let workers = pids("web");
    let clients = Clients::begin(|| {
        crate::run::ask(CALLED);
    });
    for build in [&other, &Version::this()] {
        hand_over(build);
        clients.go_on();
    }
    assert_eq!(pids("web"), workers);
    clients.end();
    for worker in &workers {
        send(*worker, Signal::SIGKILL);
        run.line("next start now");
    }
    wait_until("both are started again", || {
        pids("web:81").iter().all(|pid| !workers.contains(pid))
    });
    for address in [CALLED, "10.0.0.1:81"] {
        crate::run::ask(address);
    }
    run.ends_at(Signal::SIGTERM);
}

/// What waits in the queue of a worker that has closed its socket, and has no successor yet, is in
/// the supervisor's copy alone.
#[test]
fn with_the_queue_of_a_worker_that_has_ended() {
    world::enter();
    let folder = TempDir::new().unwrap();
    let other = Version::copied_to(folder.path());
    let slow = folder.path().join("slow");
    let run = serving(1, "--ready 5", &[&format!("slow={}", slow.display())]);
    let worker = pids("web")[0];
    send(worker, Signal::SIGSTOP);
    let mut waiting = connect(CALLED);
    waiting.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    fs::write(&slow, "").unwrap();
    kill(worker);
    run.line("next start now");
    hand_over(&other);
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    run.ends_at(Signal::SIGTERM);
}

/// Sockets that joined by the option are members because they were given.
#[test]
fn with_members_by_the_socket_option() {
    world::enter();
    let folder = TempDir::new().unwrap();
    let other = Version::copied_to(folder.path());
    let run = option::start(
        "",
        "
made = [listening((f'10.0.0.{n}', 80)) for n in (1, 2)]
# One that others can't share joins by the option alone.
tell(join(80, [made[1], made[0]]))
serve(made)
",
    );
    assert!(run.line("told:").ends_with("told: ok"));
    let before = option::addresses("web");
    assert_eq!(before, ["10.0.0.2:80", "10.0.0.1:80"]);
    hand_over(&other);
    // Longer than a place is kept that nobody holds.
    let looked = std::time::Instant::now();
    wait_until("it has looked for long enough", || looked.elapsed().as_secs() >= 4);
    assert_eq!(option::addresses("web"), before);
    assert!(members("web").iter().all(|it| it.state == MemberState::Active));
    run.ends_at(Signal::SIGTERM);
}

/// A build that can't go on gives the process back.
#[test]
fn what_cannot_go_on_gives_back() {
    world::enter();
    let run = serving(2, "", &[]);
    let (supervisor, workers) = (run.supervisor.id(), pids("web"));
    let failing = Version::of_other_connections();
    let line = failing.run("upgrade");
    assert_eq!(line.code, Some(1), "{line:?}");
    assert!(line.stderr.contains("the other build cannot take over: "), "{line:?}");
    assert_eq!(program(supervisor), Version::this().path());
    assert_eq!(pids("web"), workers);
    Version::this().run("upgrade").done();
    kill(workers[0]);
    run.line("next start now");
    run.line(" listens on ");
    all_answer(2, || ask(at(CALLED)));
    run.ends_at(Signal::SIGTERM);
}

/// What can't change while workers run stays; a file that is wrong is seen before.
#[test]
fn with_another_configuration() {
    world::enter();
    let folder = TempDir::new().unwrap();
    let other = Version::copied_to(folder.path());
    let file = folder.path().join("web.toml");
    let write = |keys: &str| {
        let command = serde_json::to_string(&worker(&[])).unwrap();
        fs::write(&file, format!("{keys}\ncommand = {command}\n")).unwrap();
    };
    write("workers = 2");
    let run = Run::start_from(&[], &file);
    run.line(" listens on ");
    run.line(" listens on ");
    let (supervisor, workers) = (run.supervisor.id(), pids("web"));
    for (keys, why) in
        [("workers = 2\nuser = \"nobody-here\"", "no user nobody-here"), ("wrkers = 2", "wrkers")]
    {
        write(keys);
        let line = other.run("upgrade");
        assert_eq!(line.code, Some(1), "{line:?}");
        assert!(line.stderr.contains(why), "{line:?}");
        assert_eq!(program(supervisor), Version::this().path());
    }
    write("workers = 3");
    hand_over(&other);
    run.line("workers changed in the file: left as before");
    assert_eq!(pids("web"), workers);
    all_answer(2, || ask(at(CALLED)));
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn what_is_no_other_build_is_refused() {
    world::enter();
    let run = serving(1, "", &[]);
    let supervisor = run.supervisor.id();
    let name = "web".parse().unwrap();
    let ask_for = |path: &str| {
        let client = overspill_supervisor::control::Client::connect(&name).unwrap().unwrap();
        let request = overspill_supervisor::control::Request::HandOver(path.into());
        client.ask(&request, |_| Ok::<(), overspill_supervisor::Error>(())).unwrap_err().to_string()
    };
    for (path, why) in [
        ("/bin/true", "it is no build of overspill that can"),
        ("/nowhere", "No such file or directory"),
        ("/etc/passwd", "Permission denied"),
        ("true", "it is no absolute path"),
    ] {
        let line = ask_for(path);
        assert!(line.contains("cannot hand-over web: ") && line.contains(why), "{path}: {line}");
    }
    assert_eq!(program(supervisor), Version::this().path());
    run.ends_at(Signal::SIGTERM);
}

/// The package replaces the file; a reload comes before anybody asks for a hand-over.
#[test]
fn at_a_reload_where_the_program_s_file_is_another_one() {
    world::enter();
    let folder = TempDir::new().unwrap();
    let own = Version::copied_to(folder.path());
    let run = Run::start_by(&own, "--name web -n 2", &worker(&[]));
    run.line(" listens on ");
    run.line(" listens on ");
    let (supervisor, workers) = (run.supervisor.id(), pids("web"));
    let newer = TempDir::new_in(folder.path()).unwrap();
    let newer = Version::copied_to(newer.path());
    fs::rename(newer.path(), own.path()).unwrap();
    assert!(program(supervisor).to_str().unwrap().ends_with(" (deleted)"));
    run.signal(Signal::SIGHUP);
    run.line("goes on with 2 workers");
    run.line("done, 2 workers replaced");
    assert_eq!(program(supervisor), own.path());
    assert!(workers.iter().all(|worker| !pids("web").contains(worker)));
    all_answer(2, || ask(at(CALLED)));
    run.ends_at(Signal::SIGTERM);
}

/// Whenever it is killed on the way, the next one takes over.
#[test]
fn killed_at_any_moment_of_it() {
    world::enter();
    let folder = TempDir::new().unwrap();
    let builds = [Version::copied_to(folder.path()), Version::this()];
    let mut run = serving(2, "", &[]);
    for turn in 0..8 {
        let build = builds[turn % 2].clone();
        // From before the other build is asked until long after it goes on.
        let asker = thread::spawn(move || build.run("upgrade"));
        thread::sleep(std::time::Duration::from_millis(40 * u64::try_from(turn).unwrap()));
        run.supervisor.kill().unwrap();
        run.supervisor.wait().unwrap();
        let _ = asker.join().unwrap();
        let next = Run::start("--name web -n 2", &worker(&[]));
        next.line("done, 2 workers replaced");
        run = next;
        all_answer(2, || ask(at(CALLED)));
    }
    run.ends_at(Signal::SIGTERM);
}

/// A signal that comes on the way is not lost.
#[test]
fn ended_at_any_moment_of_it() {
    world::enter();
    let folder = TempDir::new().unwrap();
    let other = Version::copied_to(folder.path());
    for turn in 0..6 {
        let run = serving(1, "", &[]);
        let build = other.clone();
        let asker = thread::spawn(move || build.run("upgrade"));
        thread::sleep(std::time::Duration::from_millis(60 * turn));
        run.ends_at(Signal::SIGTERM);
        let _ = asker.join().unwrap();
    }
}
