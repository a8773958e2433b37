//! `overspill top` in a real terminal: tmux has it, types the keys, and tells what is to be
//! seen.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overspill::{MemberId, MemberState, Namespace, Policy, Service, Status};
use tempfile::TempDir;
use world::{at, deadline, wait_until};

use crate::server::{Server, add_namespace};
use crate::tool::{Ran, command, overspill};

const TOP: &str = concat!(env!("CARGO_BIN_EXE_overspill"), " top --interval 0.2");

/// A terminal with one window. Its end takes with it what runs there; it ends with the test,
/// whatever becomes of that.
struct Terminal {
    server: Child,
    folder: TempDir,
}

impl Terminal {
    /// One of that size in which this command line runs; how it ended is to be seen then.
    fn open((columns, lines): (u16, u16), environment: &[&str], line: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut server = Command::new("setpriv");
        server.args(["--pdeathsig", "KILL", "tmux", "-D", "-f", "/dev/null", "-S"]);
        server.arg(folder.path().join("socket"));
        // What those have set who run this test is not its business.
        server.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        server.env("LC_ALL", "C.UTF-8").env("SHELL", "/bin/sh");
        server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let terminal = Self { server: server.spawn().unwrap(), folder };
        wait_until("tmux listens", || {
            terminal
                .tmux(&["list-sessions"])
                .code
                .is_some_and(|_| terminal.folder.path().join("socket").exists())
        });
        let [columns, lines] = [columns, lines].map(|number| number.to_string());
        let mut arguments = vec!["new-session", "-d", "-x", &columns, "-y", &lines];
        for variable in environment {
            arguments.extend(["-e", variable]);
        }
        let line = format!("{line}; echo status $?; read x");
        arguments.push(&line);
        terminal.tmux(&arguments).done();
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> Ran {
        let mut command = Command::new("tmux");
        command.args(["-u", "-S"]).arg(self.folder.path().join("socket")).args(arguments);
        Ran::from(command.env("LC_ALL", "C.UTF-8").output().unwrap())
    }

    /// Presses keys, by the names that tmux has for them.
    fn press(&self, keys: &str) {
        let arguments: Vec<&str> = ["send-keys"].into_iter().chain(keys.split(' ')).collect();
        self.tmux(&arguments).done();
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"]).done()
    }

    /// Waits for what is to be seen.
    #[track_caller]
    fn shows(&self, what: &str) -> String {
        self.shows_that(what, |screen| screen.contains(what))
    }

    /// It has to be seen twice: one look may find a screen that is half drawn.
    #[track_caller]
    fn shows_that(&self, what: &str, condition: impl Fn(&str) -> bool) -> String {
        let mut screen = String::new();
        wait_until(&format!("the screen shows {what}"), || {
            condition(&self.screen()) && {
                screen = self.screen();
                condition(&screen)
            }
        });
        screen
    }

    fn resize(&self, columns: u16, lines: u16) {
        let [columns, lines] = [columns, lines].map(|number| number.to_string());
        self.tmux(&["resize-window", "-x", &columns, "-y", &lines]).done();
    }

    /// What tmux knows of the window.
    fn tells(&self, format: &str) -> String {
        self.tmux(&["display-message", "-p", format]).done().trim_end().to_owned()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if thread::panicking() {
            let seen = self.tmux(&["capture-pane", "-p"]);
            println!("the last screen:\n{}{}", seen.stdout, seen.stderr);
        }
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The words of the row of the service, or of the member, with that name.
fn row<'a>(screen: &'a str, name: &str) -> Vec<&'a str> {
    let rows = screen.lines().map(|line| line.trim_start_matches('>').split_whitespace());
    let mut rows = rows.map(Iterator::collect::<Vec<_>>);
    rows.find(|row| row.len() > 3 && row[0] == name).unwrap_or_default()
}

/// The place of a row on the screen.
fn line_of(screen: &str, name: &str) -> usize {
    let is_it = |line: &str| line.trim_start_matches('>').split_whitespace().next() == Some(name);
    screen.lines().position(is_it).unwrap_or(usize::MAX)
}

/// A service `web` of three members, under load. The first never accepts, and its queue is
/// full: clients that call it are redirected to the second, which others call as well.
struct Web {
    service: Service,
    listeners: Vec<TcpListener>,
    waiting: Vec<TcpStream>,
    /// No more clients are to come.
    enough: Arc<AtomicBool>,
    clients: JoinHandle<u32>,
    servers: Vec<JoinHandle<u32>>,
}

impl Web {
    fn start() -> Self {
        let addresses = [at("10.0.0.1:80"), at("10.0.0.2:80"), at("10.0.0.3:80")];
        let made = Service::builder("web").backlog(5);
        let (service, listeners) = made.listen(addresses).unwrap();
        let waiting = (0..6).map(|_| TcpStream::connect(addresses[0]).unwrap()).collect();
        let full = || service.status().unwrap().members[0].queued == 6;
        wait_until("the queue is full", full);
        // Clients say nothing; who says something is the last.
        let accept = |listener: &TcpListener| {
            let listener = listener.try_clone().unwrap();
            thread::spawn(move || {
                let mut served = 0;
                while listener.accept().unwrap().0.read(&mut [0]).unwrap() == 0 {
                    served += 1;
                }
                served
            })
        };
        let servers = listeners[1..].iter().map(accept).collect();
        let enough = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&enough);
        let clients = thread::spawn(move || {
            let mut served = 0;
            while !told.load(Ordering::SeqCst) {
                let address = addresses[served as usize % 2];
                // Whoever gets no answer is a client that something was done to.
                TcpStream::connect_timeout(&address, deadline()).unwrap();
                served += 1;
                thread::sleep(Duration::from_millis(2));
            }
            served
        });
        Self { service, listeners, waiting, enough, clients, servers }
    }

    fn status(&self) -> Status {
        self.service.status().unwrap()
    }

    fn state_of(&self, member: usize) -> MemberState {
        self.status().members[member].state
    }

    /// Ends the load: every client was served.
    fn end(self) {
        self.enough.store(true, Ordering::SeqCst);
        let clients = self.clients.join().unwrap();
        self.service.remove().unwrap();
        for listener in &self.listeners[1..] {
            let mut last = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            last.write_all(b"!").unwrap();
        }
        let served: u32 = self.servers.into_iter().map(|server| server.join().unwrap()).sum();
        assert_eq!(served, clients);
        drop(self.waiting);
    }
}

fn number(text: &str) -> f64 {
    text.parse().unwrap_or(0.0)
}

#[test]
fn services_are_shown_with_their_queues_and_requests() {
    world::enter();
    let web = Web::start();
    let api = Service::builder("api").policy(Policy::LeastLoaded).backlog(5);
    let (_, _held) = api.listen([at("10.0.0.9:81")]).unwrap();
    let terminal = Terminal::open((80, 24), &[], TOP);
    let screen = terminal.shows_that("redirected requests", |screen| {
        row(screen, "web").get(6).is_some_and(|&redirected| number(redirected) > 0.0)
    });
    assert!(screen.starts_with("overspill top  netns ") && screen.contains("2 services"));
    assert_eq!(row(&screen, "web")[1..3], ["next-available", "3/3"]);
    assert_eq!(row(&screen, "api")[1..5], ["least-loaded", "1/1", "0/6", "0"]);
    assert!(screen.contains("> api ") || screen.contains(">api "), "the first is chosen");
    assert!(screen.contains("api  port 81, least-loaded, on-full drop, redirect on"), "{screen}");

    terminal.press("Down");
    // A queue that is emptied may be full at times, for a moment.
    let screen = terminal.shows_that("the members of web", |screen| {
        let room = |member| row(screen, member).get(4).is_some_and(|bar| bar.contains('·'));
        screen.contains("web  port 80, next-available") && room("1") && room("2")
    });
    let [full, takes, idle] = ["0", "1", "2"].map(|member| row(&screen, member));
    assert_eq!(full[2..4], ["10.0.0.1", "active"]);
    assert!(full[4].chars().all(|sign| sign == '█') && full[5] == "6/6", "{full:?}");
    assert!(takes[5].ends_with("/6") && idle[5].ends_with("/6"), "{screen}");
    // IN/s of the one, OUT/s of the other, and what the first held all the time.
    let requests = |screen: &str, member, from_end: usize| {
        let row = row(screen, member);
        row.len().checked_sub(from_end).map_or(0.0, |at| number(row[at]))
    };
    let screen = terminal.shows_that("where they were redirected to", |screen| {
        requests(screen, "0", 1) > 0.0
            && requests(screen, "1", 2) > 0.0
            && requests(screen, "1", 3) > 0.0
            && row(screen, "0").get(6).is_some_and(|lately| lately.ends_with("██"))
    });
    assert!(requests(&screen, "2", 3) == 0.0, "{screen}");
    terminal.press("q");
    terminal.shows("status 0");
    web.end();
}

#[test]
fn rows_are_sorted_and_stay_chosen() {
    world::enter();
    let web = Web::start();
    let (_, _held) = Service::builder("api").listen([at("10.0.0.9:81")]).unwrap();
    let terminal = Terminal::open((80, 24), &[], &format!("{TOP} web"));
    let screen = terminal.shows(">web");
    assert!(screen.contains("▾SERVICE") && screen.contains("▾MEMBER"), "{screen}");
    assert!(line_of(&screen, "api") < line_of(&screen, "web"));
    terminal.press("o");
    let screen = terminal.shows("▴SERVICE");
    assert!(line_of(&screen, "web") < line_of(&screen, "api"), "{screen}");
    assert!(screen.contains(">web"));
    // By MEMBERS: the service with more of them comes first.
    terminal.press("o s s");
    let screen = terminal.shows("▾MEMBERS");
    assert!(line_of(&screen, "web") < line_of(&screen, "api"), "{screen}");
    // The members by their queues, turned: the full one last, and chosen all the time.
    terminal.press("Tab s s s s o");
    let screen = terminal.shows("▴QUEUE");
    let lines = ["2", "0"].map(|member| line_of(&screen, member));
    assert!(lines[0] < lines[1], "{screen}");
    assert!(screen.contains(">     0"), "{screen}");
    web.end();
}

#[test]
fn a_member_is_drained_and_resumed_by_keys() {
    world::enter();
    let web = Web::start();
    let terminal = Terminal::open((80, 24), &[], TOP);
    terminal.shows(">web");
    terminal.press("Tab j");
    terminal.shows(">     1");
    terminal.press("d");
    terminal.shows("Drain member 1 of web?");
    terminal.press("n");
    terminal.shows("nothing was changed");
    assert_eq!(web.state_of(1), MemberState::Active);
    terminal.press("d");
    terminal.shows("Drain member 1 of web?");
    terminal.press("y");
    terminal.shows("member 1 of web drains");
    assert_eq!(web.state_of(1), MemberState::Draining);
    terminal.shows_that("its state", |screen| row(screen, "1").get(3) == Some(&"draining"));
    terminal.press("r");
    terminal.shows("Resume member 1 of web?");
    terminal.press("y");
    terminal.shows("member 1 of web gets requests again");
    assert_eq!(web.state_of(1), MemberState::Active);
    terminal.shows_that("its state", |screen| row(screen, "1").get(3) == Some(&"active"));
    web.end();
}

#[test]
fn the_policy_is_changed_after_a_question() {
    world::enter();
    let web = Web::start();
    let terminal = Terminal::open((80, 24), &[], TOP);
    terminal.shows(">web");
    for (answer, policy) in [("n", Policy::NextAvailable), ("y", Policy::ShortestQueue)] {
        terminal.press("p");
        let screen = terminal.shows("policy of web");
        assert!(Policy::ALL.iter().all(|policy| screen.contains(policy.name())), "{screen}");
        terminal.press("Down Enter");
        terminal.shows("Change the policy of web from next-available to shortest-queue?");
        terminal.press(answer);
        match answer {
            "n" => terminal.shows("nothing was changed"),
            _ => terminal.shows("web  port 80, shortest-queue"),
        };
        assert_eq!(web.status().policy, policy);
    }
    web.end();
}

#[test]
fn it_follows_the_size_of_the_terminal() {
    world::enter();
    let web = Web::start();
    let terminal = Terminal::open((80, 24), &[], TOP);
    terminal.shows("OUT/s");
    terminal.resize(40, 12);
    let screen = terminal.shows_that("a small screen", |screen| {
        !screen.contains("OUT/s") && row(screen, "0").get(3) == Some(&"6/6")
    });
    assert!(screen.contains("active") && screen.contains("? help"), "{screen}");
    assert!(screen.lines().all(|line| line.chars().count() <= 40), "{screen}");
    terminal.resize(20, 5);
    terminal.shows("too small: 32x8");
    terminal.resize(120, 40);
    let screen = terminal.shows_that("a large screen", |screen| {
        screen.lines().next().is_some_and(|line| line.len() > 100)
    });
    assert!(screen.contains("OUT/s") && screen.contains("▾SERVICE"), "{screen}");
    assert_eq!(line_of(&screen, "arrows"), 39, "the keys are at the bottom");
    web.end();
}

/// Whether a captured screen has colours: those that its escape sequences set.
fn is_coloured(captured: &str) -> bool {
    let sequences = captured.split("\x1b[").skip(1);
    let mut codes =
        sequences.filter_map(|rest| rest.split_once('m')).flat_map(|it| it.0.split(';'));
    codes.any(|code| matches!(code.parse(), Ok(30..=38 | 40..=48 | 90..=97 | 100..=107)))
}

#[test]
fn colours_are_left_out_where_they_are_not_wanted() {
    world::enter();
    let web = Web::start();
    let plain = format!("{TOP} --no-color");
    let cases: [(&[&str], &str, bool); 5] = [
        (&[], TOP, true),
        (&["NO_COLOR=1"], TOP, false),
        (&[], &plain, false),
        (&[], &format!("env TERM=dumb {TOP}"), false),
        (&[], &format!("env TERM=vt220 {TOP}"), false),
    ];
    for (environment, line, coloured) in cases {
        let terminal = Terminal::open((80, 24), environment, line);
        terminal.shows_that("a member", |screen| row(screen, "0").get(5) == Some(&"6/6"));
        let captured = terminal.tmux(&["capture-pane", "-p", "-e"]).done();
        assert!(captured.contains("\x1b["), "the chosen row is marked all the same: {captured}");
        assert_eq!(is_coloured(&captured), coloured, "{environment:?} {line}: {captured}");
    }
    let terminal = Terminal::open((80, 24), &["LC_ALL=C"], TOP);
    let screen = terminal.shows_that("a member", |screen| row(screen, "0").get(5) == Some(&"6/6"));
    assert!(screen.is_ascii() && screen.contains("####"), "{screen}");
    web.end();
}

/// The running command, a descendant of the shell in the terminal.
fn find(terminal: &Terminal) -> Pid {
    fn below(pid: &str) -> Option<i32> {
        let of = |what: &str| fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap_or_default();
        match of("comm").trim_end() {
            "overspill" => pid.parse().ok(),
            _ => of(&format!("task/{pid}/children")).split_whitespace().find_map(below),
        }
    }
    let shell = terminal.tells("#{pane_pid}");
    Pid::from_raw(below(&shell).expect("it runs"))
}

#[test]
fn the_terminal_is_given_back() {
    world::enter();
    let web = Web::start();
    let settings = |folder: &TempDir, name: &str| -> (PathBuf, String) {
        let path = folder.path().join(name);
        (path.clone(), format!("stty -g > {}", path.display()))
    };
    let keys = ["q", "Escape", "C-c"];
    let signals = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];
    let ways = keys.map(Ok).into_iter().chain(signals.map(Err));
    for (number, way) in ways.enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let (before, note_before) = settings(&folder, "before");
        let (after, note_after) = settings(&folder, "after");
        let script = format!("echo first; {note_before}; {TOP}; echo ended $?; {note_after}");
        let terminal = Terminal::open((80, 24), &[], &script);
        terminal.shows(">web");
        assert_eq!(terminal.tells("#{alternate_on} #{cursor_flag}"), "1 0");
        match way {
            Ok(key) => terminal.press(key),
            Err(signal) => kill(find(&terminal), signal).unwrap(),
        }
        let screen = terminal.shows("ended 0");
        assert_eq!(screen.lines().next(), Some("first"), "{number}: {screen}");
        wait_until("the settings are noted", || after.exists());
        assert_eq!(terminal.tells("#{alternate_on} #{cursor_flag}"), "0 1");
        let noted = || [&before, &after].map(|path| fs::read_to_string(path).unwrap());
        wait_until("the settings are the same", || noted()[0] == noted()[1]);
    }
    web.end();
}

#[test]
fn it_is_stopped_and_goes_on() {
    world::enter();
    let web = Web::start();
    let terminal = Terminal::open((80, 24), &["PS1=ready "], "bash --norc -i");
    terminal.shows("ready");
    terminal.press(&format!("{} Enter", TOP.replace(' ', " Space ")));
    terminal.shows(">web");
    terminal.press("C-z");
    terminal.shows("Stopped");
    assert_eq!(terminal.tells("#{alternate_on} #{cursor_flag}"), "0 1");
    // The keys are the shell's meanwhile.
    terminal.press("echo Space a$((20+3))b Enter");
    terminal.shows("a23b");
    terminal.press("fg Enter");
    terminal.shows(">web");
    terminal.press("Tab j");
    terminal.shows(">     1");
    // Stopped from outside, it draws itself again, too.
    let top = find(&terminal);
    kill(top, Signal::SIGSTOP).unwrap();
    terminal.shows("Stopped");
    terminal.press("fg Enter");
    terminal.shows_that("all of it again", |screen| {
        screen.contains(">     1") && !screen.contains("Stopped")
    });
    terminal.press("q");
    terminal.shows_that("the shell again", |screen| screen.trim_end().ends_with("ready"));
    web.end();
}

#[test]
fn services_come_and_go() {
    world::enter();
    let terminal = Terminal::open((80, 24), &[], TOP);
    terminal.shows("no services yet");
    let (web, _held) = Service::builder("web").listen([at("10.0.0.1:80")]).unwrap();
    terminal.shows(">web");
    let (api, _held_too) = Service::builder("api").listen([at("10.0.0.9:81")]).unwrap();
    let screen = terminal.shows("2 services");
    assert!(screen.contains(">web") && screen.contains("\n api"), "{screen}");
    web.remove().unwrap();
    let screen = terminal.shows("1 service");
    assert!(screen.contains(">api") && !screen.contains("web"), "{screen}");
    api.remove().unwrap();
    terminal.shows("no services yet");
}

#[test]
fn what_fails_is_told_and_the_screen_goes_on() {
    world::enter();
    let addresses = [at("10.0.0.1:80"), at("10.0.0.2:80")];
    let (web, _held) = Service::builder("web").listen(addresses).unwrap();
    let terminal = Terminal::open((80, 24), &[], TOP);
    terminal.shows(">web");
    // The member is gone by the time of the answer.
    terminal.press("Tab j d");
    terminal.shows("Drain member 1 of web?");
    web.leave(MemberId(1)).unwrap();
    terminal.press("y");
    terminal.shows("has no member 1");
    terminal.shows("1 member");
    // One of the pinned maps can't be opened.
    let inode = Namespace::current().unwrap().inode();
    let map = format!("/sys/fs/bpf/overspill/{inode}/rows");
    let none = None::<&str>;
    mount(Some("/dev/null"), &*map, none, MsFlags::MS_BIND, none).unwrap();
    let screen = terminal.shows("no new figures: ");
    assert!(screen.contains(">web"), "what was read before stays: {screen}");
    umount(&*map).unwrap();
    terminal.shows_that("figures again", |screen| !screen.contains("no new figures"));
    terminal.press("q");
    terminal.shows("status 0");
    web.remove().unwrap();
}

/// What lies in the state's folder.
fn pins() -> Vec<(String, u64)> {
    let inode = Namespace::current().unwrap().inode();
    let folder = fs::read_dir(format!("/sys/fs/bpf/overspill/{inode}")).unwrap();
    let pin = |entry: fs::DirEntry| {
        (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().ino())
    };
    let mut pins: Vec<_> = folder.map(|entry| pin(entry.unwrap())).collect();
    pins.sort();
    pins
}

#[test]
fn it_comes_and_goes_without_touching_anything() {
    world::enter();
    let web = Web::start();
    let rules = |status: &Status| {
        let states: Vec<_> = status.members.iter().map(|it| (it.member, it.state)).collect();
        (status.policy, status.on_full, status.redirect, status.spread, states)
    };
    let before = (pins(), rules(&web.status()));
    for _ in 0..5 {
        let terminal = Terminal::open((80, 24), &[], TOP);
        terminal.shows(">web");
        // In the middle of a question, too.
        terminal.press("d");
        terminal.shows("Drain member 0 of web?");
        kill(find(&terminal), Signal::SIGKILL).unwrap();
    }
    assert_eq!((pins(), rules(&web.status())), before);
    web.end();
}

#[test]
fn it_goes_on_while_a_change_waits() {
    world::enter();
    let web = Web::start();
    let terminal = Terminal::open((80, 24), &[], TOP);
    terminal.shows(">web");
    // Another writer is at work.
    let lock = fs::File::open("/sys/fs/bpf/overspill").unwrap();
    lock.lock().unwrap();
    terminal.press("d y");
    terminal.shows("draining member 0 of web ...");
    terminal.press("Down p Down Enter");
    terminal.shows("wait: draining member 0 of web ...");
    terminal.shows_that("requests go on being counted", |screen| {
        row(screen, "web").get(6).is_some_and(|&redirected| number(redirected) > 0.0)
    });
    assert_eq!(web.state_of(0), MemberState::Active);
    lock.unlock().unwrap();
    terminal.shows("member 0 of web drains");
    assert_eq!(web.state_of(0), MemberState::Draining);
    web.end();
}

#[test]
fn another_network_namespace() {
    world::enter();
    add_namespace("blue");
    world::ip("-n blue link set lo up");
    let server = Server::start_in("/run/netns/blue", "tcp=127.0.0.1:80 tcp=127.0.0.2:80");
    overspill(&format!("share web --pid {} --port 80", server.pid())).done();
    let terminal = Terminal::open((80, 24), &[], &format!("{TOP} --netns blue"));
    terminal.shows(">web");
    terminal.press("d y");
    terminal.shows("member 0 of web drains");
    let blue = Namespace::at("/run/netns/blue").unwrap();
    let web = Service::open_in("web", &blue).unwrap();
    assert_eq!(web.status().unwrap().members[0].state, MemberState::Draining);
}

#[test]
fn what_can_t_be_shown_is_told_at_once() {
    world::enter();
    let (_, _held) = Service::builder("web").listen([at("10.0.0.1:80")]).unwrap();
    let line = Ran::from(command("top").stdin(Stdio::null()).output().unwrap()).failed();
    assert!(line.contains("input is no terminal") && line.contains("overspill ls"), "{line}");
    let terminal = Terminal::open((80, 24), &[], &format!("{TOP} wed"));
    let screen = terminal.shows("status 1");
    assert!(screen.contains("overspill: there is no service wed"), "{screen}");
    assert!(screen.contains("web"), "the nearest is named: {screen}");
    let terminal = Terminal::open((80, 24), &[], &format!("{TOP} | cat"));
    terminal.shows("output is no terminal");
}
