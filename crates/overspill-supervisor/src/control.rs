//! The control socket: both ends of it. By it a supervisor takes requests while it runs,
//! and holds the name that it runs under: there is one supervisor of a name.
//!
//! It is an abstract Unix socket: as services do, it lives in the network namespace, and
//! it is gone with its supervisor, however that ends. What is said is lines of text: a
//! request, then what is done about it, line by line, `progress: WHAT`, and at last `done`
//! or `failed: WHY`. The client skips lines of other kinds, which a later version may send.
//!
//! A keeper (`overspill allow`) has one as well, of a name with a number of its own, as several
//! may keep one service: it shows who keeps it.
//!
//! Anybody can connect to such a socket, and make one of any name. So each end looks who
//! the other is, and has to do with root and its own user alone; each conversation has a
//! thread, all of them are few, and no client is waited for without end.

use std::fmt::{self, Display};
use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr, UnixCredentials, getsockopt,
    setsockopt, sockopt,
};
use nix::sys::time::TimeVal;
use nix::unistd::geteuid;
use overspill::Name;
use procfs::process::{Process, StatFlags, Status};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::sockopt::socket_cookie;

use crate::error::{Error, Result};
use crate::threads::start_thread;

/// All names of control sockets begin with it.
const PREFIX: &str = "overspill/";
/// It follows the name in those of keepers; a number comes behind it.
const KEEPER: &str = "/allow/";
/// How many clients are served at once.
const MOST_CLIENTS: usize = 16;
/// No request is longer, in bytes: it may name a program.
const LONGEST: usize = 4096 + 64;
/// How long a client may take to say what it wants, or to take a line of the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to look for whoever holds a name: it may be about to begin, or about to end.
const LOOKING: Duration = Duration::from_secs(2);
/// How long to wait for a place in the queue of a supervisor that takes no clients.
const CONNECTING: TimeVal = TimeVal::new(2, 0);
/// The pause before something that has failed is tried again.
const PAUSE: Duration = Duration::from_millis(20);

/// What a supervisor can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Replace the workers, one after another.
    Restart,
    /// Become this program, another build of overspill, without ending a worker.
    HandOver(PathBuf),
}

impl Request {
    const NAMES: [&str; 2] = ["restart", "hand-over"];

    fn name(&self) -> &'static str {
        match self {
            Self::Restart => Self::NAMES[0],
            Self::HandOver(_) => Self::NAMES[1],
        }
    }
}

impl Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restart => f.write_str(self.name()),
            Self::HandOver(program) => write!(f, "{} {}", self.name(), program.display()),
        }
    }
}

impl FromStr for Request {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        match line.split_once(' ') {
            None if line == Self::NAMES[0] => Ok(Self::Restart),
            Some((name, program)) if name == Self::NAMES[1] => {
                let program = Path::new(program);
                program.is_absolute().then(|| Self::HandOver(program.to_owned())).ok_or_else(|| {
                    format!("cannot hand over to {}: it is no absolute path", program.display())
                })
            }
            _ => {
                let known = Self::NAMES.join(", ");
                Err(format!("there is no request {line:?} (known requests: {known})"))
            }
        }
    }
}

/// A line of the answer.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Progress(String),
    Done,
    Failed(String),
}

impl Answer {
    fn parse(line: &str) -> Option<Self> {
        match line.split_once(": ") {
            None => (line == "done").then_some(Self::Done),
            Some(("progress", what)) => Some(Self::Progress(what.to_owned())),
            Some(("failed", why)) => Some(Self::Failed(why.to_owned())),
            Some(_) => None,
        }
    }

    fn send(&self, mut stream: &UnixStream) -> io::Result<()> {
        let text = match self {
            Self::Progress(what) => format!("progress: {what}"),
            Self::Done => "done".to_owned(),
            Self::Failed(why) => format!("failed: {why}"),
        };
        // It stays one line, whatever it tells of.
        stream.write_all(format!("{}\n", text.replace(char::is_control, "?")).as_bytes())
    }
}

/// How the supervisor answers a request. It never waits for the client; and a client whose
/// answer is dropped is told that the supervisor has ended.
pub(crate) struct Reply {
    answers: Sender<Answer>,
    /// The client, for a program that this process becomes meanwhile.
    client: Option<OwnedFd>,
}

impl Reply {
    /// To a client whose connection this program has from the one that the process was before.
    pub(crate) fn resume(client: &OwnedFd) -> Result<Self> {
        let failed = |error| Error::system("go on with a client", error);
        let stream = UnixStream::from(client.try_clone().map_err(failed)?);
        let (answers, said) = channel();
        start_thread(move || pass_on(&said, &stream))?;
        Ok(Self { answers, client: Some(client.try_clone().map_err(failed)?) })
    }

    /// The connection to the client, if it can be had.
    pub(crate) fn client(&self) -> Option<&OwnedFd> {
        self.client.as_ref()
    }

    /// Tells of a step.
    pub(crate) fn progress(&self, what: impl Display) {
        // Here as below: a client that has left is not told any more.
        let _ = self.answers.send(Answer::Progress(what.to_string()));
    }

    /// Tells that all is done.
    pub(crate) fn done(self) {
        let _ = self.answers.send(Answer::Done);
    }

    /// Tells why it was not done.
    pub(crate) fn failed(self, why: impl Display) {
        let _ = self.answers.send(Answer::Failed(why.to_string()));
    }
}

/// The supervisor's end. The name is held until the process ends, or it is dropped.
#[derive(Debug)]
pub(crate) struct Control {
    listener: UnixListener,
}

impl Control {
    /// Takes the name. The first descriptors that are handed to workers, `reserved` of them,
    /// are left free.
    pub(crate) fn bind(name: &Name, reserved: usize) -> Result<Self> {
        let start = Instant::now();
        let mut seen_alive = false;
        loop {
            match listen(|_| Ok(address(name)), reserved) {
                Ok(listener) => return Ok(Self { listener }),
                Err(Errno::EADDRINUSE) => {}
                Err(error) => return Err(not_made(name, error)),
            }
            match connect(&address(name)).and_then(|stream| peer(&stream)) {
                // A holder that was just killed may still look alive the first time.
                Ok(holder) if !is_ending(holder) && seen_alive => {
                    return Err(taken(name, holder));
                }
                Ok(holder) if start.elapsed() < LOOKING => {
                    seen_alive = !is_ending(holder);
                    thread::sleep(PAUSE);
                }
                Ok(holder) => return Err(taken(name, holder)),
                Err(_) if start.elapsed() < LOOKING => thread::sleep(PAUSE),
                Err(error) => {
                    return Err(Error::NameHeld { name: name.clone(), source: error.into() });
                }
            }
        }
    }

    /// Goes on with the name that the process has held when it was another program.
    pub(crate) fn inherit(name: &Name, listener: &OwnedFd, reserved: usize) -> Result<Self> {
        let listener = aside(listener, reserved).map_err(|error| not_made(name, error))?;
        Ok(Self { listener: listener.into() })
    }

    /// Another descriptor of the socket, for the program that the process becomes.
    pub(crate) fn socket(&self) -> Result<OwnedFd> {
        let copy = self.listener.as_fd().try_clone_to_owned();
        copy.map_err(|error| Error::system("duplicate the control socket", error))
    }

    /// Shows that this process is a keeper of the service.
    pub(crate) fn bind_keeper(name: &Name) -> Result<Self> {
        let address = |socket: &OwnedFd| {
            let own = socket_cookie(socket).map_err(errno)?;
            abstract_address(&format!("{PREFIX}{name}{KEEPER}{own}"))
        };
        let listener = listen(address, 0).map_err(|error| not_made(name, error))?;
        Ok(Self { listener })
    }

    /// Hands each request on, from now on.
    pub(crate) fn serve(
        self,
        hand_on: impl Fn(Request, Reply) + Send + Sync + 'static,
    ) -> Result<()> {
        start_thread(move || self.serve_all(&Arc::new(hand_on)))
    }

    fn serve_all(&self, hand_on: &Arc<impl Fn(Request, Reply) + Send + Sync + 'static>) {
        // Each conversation has one of it.
        let places = Arc::new(());
        loop {
            let Ok((client, _)) = self.listener.accept() else {
                // Too many open files, most likely: at once it would fail again.
                thread::sleep(PAUSE);
                continue;
            };
            let place = Arc::clone(&places);
            if let Err(why) = admit(&client, Arc::strong_count(&places) - 1) {
                let _ = Answer::Failed(why).send(&client);
                continue;
            }
            let hand_on = Arc::clone(hand_on);
            // Where no thread can be had, the client finds that nobody speaks to it.
            let _ = start_thread(move || {
                converse(&client, &*hand_on);
                drop(place);
            });
        }
    }
}

/// Whether a client is served, as the last of that many.
fn admit(client: &UnixStream, clients: usize) -> Result<(), String> {
    let failed = |error: &dyn Display| format!("cannot look who asks: {error}");
    client.set_write_timeout(Some(PATIENCE)).map_err(|error| failed(&error))?;
    let own = geteuid();
    if !trusted(peer(client).map_err(|error| failed(&error))?) {
        let who = if own.is_root() { "root".to_owned() } else { format!("root and user {own}") };
        return Err(format!("its supervisor listens to {who} alone; ask as such"));
    }
    if clients > MOST_CLIENTS {
        return Err(format!("its supervisor listens to {MOST_CLIENTS} clients already; try later"));
    }
    Ok(())
}

fn converse(client: &UnixStream, hand_on: &impl Fn(Request, Reply)) {
    let (sender, answers) = channel();
    let reply = Reply { answers: sender, client: client.as_fd().try_clone_to_owned().ok() };
    match read_request(client, PATIENCE).and_then(|line| line.parse()) {
        Ok(request) => hand_on(request, reply),
        Err(why) => reply.failed(why),
    }
    pass_on(&answers, client);
}

/// Sends a client what is said to it, until all is done.
fn pass_on(answers: &Receiver<Answer>, client: &UnixStream) {
    loop {
        let ended = || Answer::Failed("the supervisor has ended".to_owned());
        let answer = answers.recv().unwrap_or_else(|_| ended());
        if answer.send(client).is_err() || !matches!(answer, Answer::Progress(_)) {
            break;
        }
    }
}

/// The first line, in bounds of length and, for all of it, of time.
fn read_request(mut client: &UnixStream, patience: Duration) -> Result<String, String> {
    let deadline = Instant::now() + patience;
    let late = || format!("no request came within {} s", patience.as_secs_f64());
    let unread = |error: io::Error| match error.kind() {
        ErrorKind::WouldBlock => late(),
        _ => format!("cannot read the request: {error}"),
    };
    let mut line = Vec::new();
    let mut part = [0; LONGEST];
    while line.len() <= LONGEST {
        if let Some(end) = line.iter().position(|&byte| byte == b'\n') {
            return Ok(String::from_utf8_lossy(&line[..end]).trim_end().to_owned());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late());
        }
        client.set_read_timeout(Some(left)).map_err(unread)?;
        match client.read(&mut part) {
            Ok(0) => return Err("the request is not a whole line".to_owned()),
            Ok(count) => line.extend_from_slice(&part[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(unread(error)),
        }
    }
    Err(format!("the request is longer than {LONGEST} bytes"))
}

/// The client's end: a conversation with the supervisor of a name.
#[derive(Debug)]
pub struct Client {
    name: Name,
    stream: UnixStream,
}

impl Client {
    /// With the one of this network namespace, if it has one.
    pub fn connect(name: &Name) -> Result<Option<Self>> {
        let failed =
            |error: Errno| Error::system(format!("connect to the supervisor of {name}"), error);
        let stream = match connect(&address(name)) {
            Ok(stream) => stream,
            Err(Errno::ECONNREFUSED) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let holder = peer(&stream).map_err(failed)?;
        if !trusted(holder) {
            return Err(Error::NotTrusted { name: name.clone(), holder: describe(holder) });
        }
        Ok(Some(Self { name: name.clone(), stream }))
    }

    /// Asks, and returns when it is done.
    ///
    /// # Errors
    ///
    /// When the supervisor says why it can't, or hangs up; and those of `progress`, which is
    /// called with each line that it says meanwhile.
    pub fn ask<E: From<Error>>(
        self,
        request: &Request,
        progress: impl Fn(&str) -> Result<(), E>,
    ) -> Result<(), E> {
        let Self { name, stream } = self;
        let failed = |why: &str| {
            let (request, name) = (request.name(), name.clone());
            Err(Error::Refused { request, name, why: why.to_owned() }.into())
        };
        // A supervisor that refuses has not waited for the request: its answer says why.
        let _ = (&stream).write_all(format!("{request}\n").as_bytes());
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            match Answer::parse(&line) {
                Some(Answer::Progress(what)) => progress(&what)?,
                Some(Answer::Done) => return Ok(()),
                Some(Answer::Failed(why)) => return failed(&why),
                None => {}
            }
        }
        failed("its supervisor ended, or hung up, without an answer; look at what it told")
    }
}

/// The supervisor that keeps a service of this network namespace: its name, and its process where
/// that can be seen from here. Nothing where nobody keeps it, or nobody that can be trusted.
#[must_use]
pub fn keeper(service: &Name) -> Option<(Name, Option<u32>)> {
    bases(service).find_map(|name| {
        let Holder { pid } = Holder::of(&address(&name))?;
        Some((name, pid))
    })
}

/// The names under which a supervisor may have made a service of this name.
pub(crate) fn bases(service: &Name) -> impl Iterator<Item = Name> + use<> {
    let base = service.without_port();
    let base = base.as_str();
    let bases = [Some(base), base.strip_suffix("-ipv6"), base.strip_suffix("-ipv4")];
    bases.map(|base| base?.parse().ok()).into_iter().flatten()
}

/// Who listens on a control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder {
    /// Nothing of a process in another PID namespace.
    pub(crate) pid: Option<u32>,
}

impl Holder {
    /// Nothing where nobody listens, or nobody that can be trusted.
    fn of(address: &UnixAddr) -> Option<Self> {
        let holder = peer(&connect(address).ok()?).ok().filter(|holder| trusted(*holder))?;
        Some(Self { pid: u32::try_from(holder.pid()).ok().filter(|&pid| pid != 0) })
    }
}

/// The names whose supervisors run in this network namespace.
#[must_use]
pub fn names() -> Vec<Name> {
    ends().into_iter().filter(|end| !end.keeps).map(|end| end.name).collect()
}

/// A control socket that somebody listens on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct End {
    pub(crate) name: Name,
    /// It is a keeper's.
    pub(crate) keeps: bool,
    inode: u64,
    address: String,
}

impl End {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_whitespace().skip(3);
        // The flag of sockets that listen; those of conversations have the same address.
        if fields.next() != Some("00010000") {
            return None;
        }
        let inode = fields.nth(2)?.parse().ok()?;
        let address = fields.next()?.strip_prefix('@')?;
        let name = address.strip_prefix(PREFIX)?;
        let kept = name.split_once(KEEPER).map(|(name, _)| name);
        let (name, keeps) = (kept.unwrap_or(name).parse().ok()?, kept.is_some());
        Some(Self { name, keeps, inode, address: address.to_owned() })
    }

    /// As [`Holder::of`].
    pub(crate) fn holder(&self) -> Option<Holder> {
        Holder::of(&abstract_address(&self.address).ok()?)
    }
}

/// The control sockets of this network namespace.
pub(crate) fn ends() -> Vec<End> {
    // It serves hints and what is shown alone: where it can't be read there are none.
    let sockets = std::fs::read_to_string("/proc/thread-self/net/unix").unwrap_or_default();
    sockets.lines().filter_map(End::parse).collect()
}

fn address(name: &Name) -> UnixAddr {
    abstract_address(&format!("{PREFIX}{name}")).expect("names are short")
}

fn abstract_address(text: &str) -> nix::Result<UnixAddr> {
    UnixAddr::new_abstract(text.as_bytes())
}

fn socket() -> nix::Result<OwnedFd> {
    socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
}

/// A duplicate that leaves the first descriptors free, beside stdin, stdout and stderr.
fn aside(socket: impl AsFd, reserved: usize) -> nix::Result<OwnedFd> {
    let free = RawFd::try_from(3 + reserved).or(Err(Errno::EMFILE))?;
    fcntl_dupfd_cloexec(socket, free).map_err(errno)
}

fn listen(
    address: impl Fn(&OwnedFd) -> nix::Result<UnixAddr>,
    reserved: usize,
) -> nix::Result<UnixListener> {
    let socket = aside(socket()?, reserved)?;
    socket::bind(socket.as_raw_fd(), &address(&socket)?)?;
    socket::listen(&socket, Backlog::MAXCONN)?;
    Ok(socket.into())
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

/// Connects, and does not wait long where the queue is full.
fn connect(address: &UnixAddr) -> nix::Result<UnixStream> {
    let socket = socket()?;
    setsockopt(&socket, sockopt::SendTimeout, &CONNECTING)?;
    socket::connect(socket.as_raw_fd(), address)?;
    Ok(socket.into())
}

/// Who has connected, or, on the client's end, who listens.
fn peer(stream: &UnixStream) -> nix::Result<UnixCredentials> {
    getsockopt(stream, sockopt::PeerCredentials)
}

/// Both ends have to do with these alone.
fn trusted(peer: UnixCredentials) -> bool {
    peer.uid() == 0 || peer.uid() == geteuid().as_raw()
}

/// Whether a process was killed, or ends by itself: what it holds is free in a moment.
fn is_ending(holder: UnixCredentials) -> bool {
    if holder.pid() == 0 {
        // It can't be seen from here.
        return false;
    }
    let Ok(process) = Process::new(holder.pid()) else { return true };
    let Ok(stat) = process.stat() else { return true };
    let exits = StatFlags::from_bits_truncate(stat.flags).contains(StatFlags::PF_EXITING);
    let killed = 1 << (Signal::SIGKILL as i32 - 1);
    let waits = |status: Status| (status.sigpnd | status.shdpnd) & killed != 0;
    exits || stat.state == 'Z' || process.status().is_ok_and(waits)
}

fn taken(name: &Name, holder: UnixCredentials) -> Error {
    let pid = Some(holder.pid()).filter(|&pid| pid != 0);
    Error::NameTaken { name: name.clone(), holder: describe(holder), pid }
}

fn describe(process: UnixCredentials) -> String {
    let pid = match process.pid() {
        // The kernel's word for one that can't be seen from here.
        0 => "in another PID namespace".to_owned(),
        pid => format!("pid {pid}"),
    };
    if trusted(process) { pid } else { format!("{pid}, of user {}", process.uid()) }
}

fn not_made(name: &Name, error: Errno) -> Error {
    let remedy = match error {
        // EINVAL is the answer to a number beyond the limit.
        Errno::EMFILE | Errno::EINVAL => "; raise the limit of open files (ulimit -n)",
        _ => "",
    };
    Error::helped(format!("make the control socket of {name}"), error, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::cell::RefCell;

    /// What a client is answered that says this, and then no more.
    fn answered(said: &[u8]) -> String {
        let (client, supervisor) = UnixStream::pair().unwrap();
        (&client).write_all(said).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        converse(&supervisor, &|request, reply: Reply| {
            reply.progress(format_args!("{request} begins\nand goes on"));
            reply.done();
        });
        drop(supervisor);
        let mut answer = String::new();
        // What the supervisor did not read breaks the conversation off, after its answer.
        let _ = (&client).read_to_string(&mut answer);
        answer
    }

    #[test]
    fn a_request_is_one_line() {
        let done = "progress: restart begins?and goes on\ndone\n";
        assert_eq!(answered(b"restart\n"), done);
        assert_eq!(answered(b"restart\r\nand more"), done);
        let known = "(known requests: restart, hand-over)";
        for (said, why) in [
            (&b"stop\n"[..], format!("there is no request \"stop\" {known}")),
            (b"\n", format!("there is no request \"\" {known}")),
            (
                b"\x1b[2J\xff\0\n",
                format!("there is no request \"\\u{{1b}}[2J\u{fffd}\\0\" {known}"),
            ),
            (b"", "the request is not a whole line".to_owned()),
            (b"restart", "the request is not a whole line".to_owned()),
            (&[b'x'; 5000], "the request is longer than 4160 bytes".to_owned()),
            (b"hand-over bin\n", "cannot hand over to bin: it is no absolute path".to_owned()),
        ] {
            assert_eq!(answered(said), format!("failed: {why}\n"), "{said:?}");
        }
    }

    #[test]
    fn no_request_is_waited_for_without_end() {
        let (client, supervisor) = UnixStream::pair().unwrap();
        let patience = Duration::from_millis(50);
        let late = Err("no request came within 0.05 s".to_owned());
        assert_eq!(read_request(&supervisor, patience), late);
        // Nor is one that comes in little pieces.
        let pieces = thread::spawn(move || {
            while (&client).write_all(b"x").is_ok() {
                thread::sleep(patience / 10);
            }
        });
        assert!(read_request(&supervisor, patience).is_err());
        drop(supervisor);
        pieces.join().unwrap();
    }

    #[test]
    fn answers_are_read_as_they_are_written() {
        for answer in [
            Answer::Progress("failed: no".to_owned()),
            Answer::Progress(String::new()),
            Answer::Done,
            Answer::Failed("done".to_owned()),
        ] {
            let (client, supervisor) = UnixStream::pair().unwrap();
            answer.send(&supervisor).unwrap();
            let line = BufReader::new(client).lines().next().unwrap().unwrap();
            assert_eq!(Answer::parse(&line), Some(answer));
        }
        assert_eq!(Answer::parse("note: of a later version"), None);
        assert_eq!(Answer::parse("done and more"), None);
    }

    /// A name that no other test has.
    fn name(text: &str) -> Name {
        format!("{text}-{}", std::process::id()).parse().unwrap()
    }

    /// What a client is told by a supervisor that answers in this way.
    fn told(
        name: &Name,
        answer: impl Fn(Reply) + Send + Sync + 'static,
    ) -> (Vec<String>, Result<()>) {
        let control = Control::bind(name, 0).unwrap();
        control.serve(move |_, reply| answer(reply)).unwrap();
        let lines = RefCell::new(Vec::new());
        let client = Client::connect(name).unwrap().expect("it runs");
        let outcome = client.ask(&Request::Restart, |line| {
            lines.borrow_mut().push(line.to_owned());
            Ok(())
        });
        (lines.into_inner(), outcome)
    }

    #[test]
    fn a_client_is_told_of_each_step_and_of_the_end() {
        let (lines, outcome) = told(&name("done"), |reply| {
            reply.progress("one");
            reply.progress("two");
            reply.done();
        });
        assert_eq!(lines, ["one", "two"]);
        outcome.unwrap();
        let failing = name("failing");
        let (_, outcome) = told(&failing, |reply| reply.failed("no worker starts"));
        let line = outcome.unwrap_err().to_string();
        assert_eq!(line, format!("cannot restart {failing}: no worker starts"));
    }

    #[test]
    fn a_client_whose_answer_is_dropped_is_told_so() {
        let (lines, outcome) = told(&name("dropping"), |reply| reply.progress("one"));
        assert_eq!(lines, ["one"]);
        let line = outcome.unwrap_err().to_string();
        assert!(line.ends_with(": the supervisor has ended"), "{line}");
    }

    #[test]
    fn a_client_that_is_hung_up_on_fails() {
        let (stream, supervisor) = UnixStream::pair().unwrap();
        Answer::Progress("one".to_owned()).send(&supervisor).unwrap();
        drop(supervisor);
        let client = Client { name: name("gone"), stream };
        let line = client.ask(&Request::Restart, |_| Ok::<(), Error>(())).unwrap_err().to_string();
        assert!(line.contains("without an answer"), "{line}");
    }

    #[test]
    fn a_name_is_held_once_and_known() {
        let name = name("held");
        assert!(Client::connect(&name).unwrap().is_none());
        let control = Control::bind(&name, 40).unwrap();
        assert!(control.listener.as_raw_fd() >= 43, "the first ones are left free");
        let line = Control::bind(&name, 0).unwrap_err().to_string();
        let pid = std::process::id();
        assert!(line.contains(&format!("{name} already runs (pid {pid});")), "{line}");
        assert!(line.ends_with(&format!("kill {pid}")), "{line}");
        assert!(names().contains(&name));
        drop(control);
        assert!(!names().contains(&name));
        Control::bind(&name, 0).unwrap();
    }

    #[test]
    fn a_service_has_several_keepers() {
        let name = name("kept");
        let own = || ends().into_iter().filter(|it| it.keeps && it.name == name);
        let keepers = [(); 2].map(|()| Control::bind_keeper(&name).unwrap());
        assert_eq!(own().count(), 2);
        assert!(own().all(|it| it.holder() == Some(Holder { pid: Some(std::process::id()) })));
        assert!(!names().contains(&name) && keeper(&name).is_none());
        drop(keepers);
        assert_eq!(own().count(), 0);
    }

    #[test]
    fn the_names_are_those_of_sockets_that_listen() {
        let sockets = "\
Num       RefCount Protocol Flags    Type St Inode Path
00000000: 00000002 00000000 00010000 0001 01 21 @overspill/web
00000000: 00000003 00000000 00000000 0001 03 22 @overspill/web
00000000: 00000002 00000000 00010000 0001 01 23 @overspill/no name
00000000: 00000002 00000000 00010000 0001 01 24 @overspill/../a
00000000: 00000002 00000000 00010000 0001 01 25 overspill/file
00000000: 00000002 00000000 00010000 0001 01 26 @other
00000000: 00000003 00000000 00000000 0001 03 27
00000000: 00000002 00000000 00010000 0001 01 28 @overspill/api
00000000: 00000002 00000000 00010000 0001 01 29 @overspill/api/allow/77
00000000: 00000002 00000000 00010000 0001 01 30 @overspill/api/other/77
";
        let ends: Vec<End> = sockets.lines().filter_map(End::parse).collect();
        let found: Vec<_> = ends.iter().map(|it| (it.name.as_str(), it.keeps)).collect();
        assert_eq!(found, [("web", false), ("no", false), ("api", false), ("api", true)]);
        assert_eq!((ends[3].inode, ends[3].address.as_str()), (29, "overspill/api/allow/77"));
    }
}
