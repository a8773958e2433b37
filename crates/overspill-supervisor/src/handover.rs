//! Handing over to another build of overspill without ending the process.
//!
//! `execve(2)` replaces the program and keeps the process: its number, its children and the
//! descriptors that are not closed on exec. So the workers keep their parent, the control socket
//! and the kept sockets stay open, and systemd sees the same main process. What the next build
//! has to know beside the descriptors is a text in a memfd. A process that is killed on the way
//! leaves what any killed supervisor leaves: the next run takes over.
//!
//! The text is a contract between builds. `descriptor KIND NUMBER ARGUMENTS` is something to be
//! inherited, `fact KIND ARGUMENTS` something to be known, in an order that has a meaning within a
//! kind. A build skips facts of kinds that it does not know, and closes such descriptors.

use std::convert::Infallible;
use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fmt::{Display, Write as _};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::execve;
use rustix::io::{FdFlags, fcntl_setfd};

use crate::error::{Error, Result};
use crate::notify;

/// What a build prints that can be handed over to, asked with the hidden command of that name
/// ([`try_out`]).
pub const CONTRACT: &str = "overspill hand-over 1";
/// The hidden command: it parses the arguments behind it, and prints [`CONTRACT`].
pub const COMMAND: &str = "hand-over";

/// Where the text is said to be: the number of the memfd's descriptor.
pub(crate) const VARIABLE: &str = "OVERSPILL_HAND_OVER";
/// The kind of the fact which process the text is for.
const PROCESS: &str = "process";
/// The kind of the descriptor of the program that this process was before.
const BEFORE: &str = "before";
/// The kind of the fact why the next program could not go on.
const REFUSED: &str = "refused";
const WRITTEN: &str = "a String takes everything";
/// How long a build may take to say that it can be handed over to.
const PATIENCE: Duration = Duration::from_secs(10);

/// The program that has taken the place of this one's file since it was started.
pub(crate) fn replacement() -> Option<PathBuf> {
    let own = std::fs::read_link("/proc/self/exe").ok()?;
    // The kernel says so of a file that has no name any more (`d_path`, fs/d_path.c).
    let path = own.as_os_str().as_bytes().strip_suffix(b" (deleted)")?;
    Some(PathBuf::from(OsStr::from_bytes(path))).filter(|path| path.exists())
}

/// Whether this process runs that file.
pub(crate) fn is_this(program: &Path) -> bool {
    let identity = |path: &Path| path.metadata().map(|file| (file.dev(), file.ino())).ok();
    let own = identity(Path::new("/proc/self/exe"));
    own.is_some() && own == identity(program)
}

/// Asks a program whether this process can become it, with the same arguments.
///
/// # Errors
///
/// Why not, as one line.
pub(crate) fn try_out(program: &Path) -> Result<(), String> {
    let shown = program.display();
    let cannot = |error: io::Error| format!("cannot run {shown}: {error}");
    let mut child = Command::new(program)
        .arg0("overspill")
        .arg(COMMAND)
        .args(env::args_os().skip(1))
        .env_remove(notify::VARIABLE)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // What it starts ends with it.
        .process_group(0)
        .spawn()
        .map_err(cannot)?;
    let until = Instant::now() + PATIENCE;
    while child.try_wait().map_err(cannot)?.is_none() {
        if Instant::now() >= until {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("{shown} does not answer within {} s", PATIENCE.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().map_err(cannot)?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match said(&output.stdout) {
        said if output.status.success() && said == CONTRACT => Ok(()),
        _ if said(&output.stderr).is_empty() => {
            Err(format!("{shown} cannot take over: it is no build of overspill that can"))
        }
        _ => {
            let why = said(&output.stderr).replace('\n', "; ");
            let why = why.strip_prefix("overspill: ").unwrap_or(&why);
            Err(format!("{shown} refuses this supervisor's arguments: {why}"))
        }
    }
}

/// What a process leaves to the program that it becomes.
#[derive(Debug)]
pub(crate) struct Will<'a> {
    text: String,
    descriptors: Vec<BorrowedFd<'a>>,
}

impl<'a> Will<'a> {
    pub(crate) fn new() -> Self {
        let mut will = Self { text: String::new(), descriptors: Vec::new() };
        // A text that somebody else gets by its environment is not theirs.
        will.fact(PROCESS, std::process::id());
        will
    }

    /// Leaves a descriptor.
    pub(crate) fn descriptor(&mut self, kind: &str, own: BorrowedFd<'a>, arguments: impl Display) {
        let number = own.as_raw_fd();
        writeln!(self.text, "descriptor {kind} {number} {arguments}").expect(WRITTEN);
        self.descriptors.push(own);
    }

    pub(crate) fn fact(&mut self, kind: &str, arguments: impl Display) {
        writeln!(self.text, "fact {kind} {arguments}").expect(WRITTEN);
    }

    /// Becomes the program, with this process's arguments. Returns only why it could not.
    pub(crate) fn become_program(self, program: &Path) -> io::Error {
        self.try_to_become(program).unwrap_or_else(|error| error)
    }

    fn try_to_become(self, program: &Path) -> io::Result<io::Error> {
        let own = File::open("/proc/self/exe")?;
        let Self { mut text, descriptors } = self;
        writeln!(text, "descriptor {BEFORE} {}", own.as_raw_fd()).expect(WRITTEN);
        let mut memory = File::from(memfd_create(c"overspill", MFdFlags::MFD_CLOEXEC)?);
        memory.write_all(text.as_bytes())?;
        let descriptors: Vec<_> = descriptors.into_iter().chain([own.as_fd()]).collect();
        Ok(execute(program, &memory, &descriptors))
    }
}

/// Replaces the program, with these descriptors left open.
fn execute(program: &Path, text: &File, descriptors: &[BorrowedFd<'_>]) -> io::Error {
    let own = text.as_fd();
    let all = || descriptors.iter().chain([&own]);
    let opened = all().try_for_each(|it| fcntl_setfd(it, FdFlags::empty()));
    let error = match opened {
        Ok(()) => replace_program(program, text).unwrap_err(),
        Err(error) => error.into(),
    };
    for descriptor in all() {
        let _ = fcntl_setfd(descriptor, FdFlags::CLOEXEC);
    }
    error
}

/// Unlike [`std::os::unix::process::CommandExt::exec`] it leaves signals blocked that are: one
/// that comes just now is the next program's.
fn replace_program(program: &Path, text: &File) -> io::Result<Infallible> {
    let number = text.as_raw_fd().to_string();
    let passed = env::vars_os().filter(|(name, _)| name != VARIABLE);
    let own = (OsString::from(VARIABLE), OsString::from(number));
    let environment = passed.chain([own]).map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        CString::new(name.as_bytes())
    });
    let arguments = env::args_os().map(|it| CString::new(it.as_bytes()));
    let program = CString::new(program.as_os_str().as_bytes())?;
    let arguments = arguments.collect::<Result<Vec<_>, _>>()?;
    let environment = environment.collect::<Result<Vec<_>, _>>()?;
    Ok(execve(&program, &arguments, &environment)?)
}

/// What this process has from the program that it was.
#[derive(Debug)]
pub(crate) struct Estate {
    text: File,
    descriptors: Vec<(String, OwnedFd, Vec<String>)>,
    facts: Vec<(String, Vec<String>)>,
}

impl Estate {
    /// Takes it, where there is one.
    pub(crate) fn take() -> Result<Option<Self>> {
        let Some(number) = env::var_os(VARIABLE) else { return Ok(None) };
        let failed = |why: String| Error::NotInherited { variable: VARIABLE, why };
        let number = number.to_str().and_then(|number| number.parse().ok());
        let number = number.ok_or_else(|| failed("it has no number of a descriptor".to_owned()))?;
        let text = overspill::inherited(number).map_err(|error| failed(error.to_string()))?;
        let mut text = File::from(text);
        let mut read = String::new();
        let all = text.rewind().and_then(|()| text.read_to_string(&mut read));
        all.map_err(|error| failed(error.to_string()))?;
        let estate = Self::parse(text, &read).map_err(failed)?;
        let own = estate.fact(PROCESS).and_then(|words| words.first()?.parse().ok());
        if own != Some(std::process::id()) {
            return Err(failed("it is another process's".to_owned()));
        }
        Ok(Some(estate))
    }

    fn parse(text: File, lines: &str) -> Result<Self, String> {
        let mut estate = Self { text, descriptors: Vec::new(), facts: Vec::new() };
        for line in lines.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            let wrong = || format!("it has the line {line:?}");
            match (words.next().as_deref(), words.next()) {
                (Some("descriptor"), Some(kind)) => {
                    let number = words.next().and_then(|number| number.parse().ok());
                    let own = overspill::inherited(number.ok_or_else(wrong)?);
                    let own = own.map_err(|error| error.to_string())?;
                    estate.descriptors.push((kind, own, words.collect()));
                }
                (Some("fact"), Some(kind)) => estate.facts.push((kind, words.collect())),
                _ => return Err(wrong()),
            }
        }
        Ok(estate)
    }

    /// The descriptors of a kind, with their arguments.
    pub(crate) fn all(&self, kind: &str) -> impl Iterator<Item = (&OwnedFd, &[String])> {
        let own = self.descriptors.iter().filter(move |(own, ..)| own == kind);
        own.map(|(_, descriptor, arguments)| (descriptor, &arguments[..]))
    }

    /// The first descriptor of a kind.
    pub(crate) fn descriptor(&self, kind: &str) -> Option<&OwnedFd> {
        self.all(kind).next().map(|(descriptor, _)| descriptor)
    }

    /// Gives the descriptors of a kind away.
    pub(crate) fn give(&mut self, kind: &str) -> Vec<OwnedFd> {
        let own = self.descriptors.extract_if(.., |(own, ..)| own == kind);
        own.map(|(_, descriptor, _)| descriptor).collect()
    }

    /// The facts of a kind.
    pub(crate) fn facts(&self, kind: &str) -> impl Iterator<Item = &[String]> {
        self.facts.iter().filter(move |(own, _)| own == kind).map(|(_, words)| &words[..])
    }

    /// The first fact of a kind.
    pub(crate) fn fact(&self, kind: &str) -> Option<&[String]> {
        self.facts(kind).next()
    }

    /// Why the program that this process was to become gave it back.
    pub(crate) fn refused(&self) -> Option<String> {
        self.fact(REFUSED).map(|words| words.join(" "))
    }

    /// Becomes the program again that this process was before, which is told why. Returns only
    /// why that failed as well.
    pub(crate) fn give_back(mut self, why: &Error) -> io::Error {
        let Some(before) = self.descriptor(BEFORE) else {
            return io::Error::other("the program before is not known");
        };
        let before = PathBuf::from(format!("/proc/self/fd/{}", before.as_raw_fd()));
        let line = format!("fact {REFUSED} {}\n", why.to_string().replace(char::is_control, " "));
        if let Err(error) = self.text.write_all(line.as_bytes()) {
            return error;
        }
        let descriptors: Vec<_> = self.descriptors.iter().map(|(_, own, _)| own.as_fd()).collect();
        execute(&before, &self.text, &descriptors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd as _;

    fn estate(lines: &str) -> Result<Estate, String> {
        Estate::parse(File::open("/dev/null").unwrap(), lines)
    }

    #[test]
    fn what_is_left_is_inherited() {
        let (reader, writer) = io::pipe().unwrap();
        let mut will = Will::new();
        will.descriptor("copy", reader.as_fd(), "7 3");
        will.descriptor("control", writer.as_fd(), "");
        will.fact("service", "web:81");
        // As `execute` does it.
        will.descriptors.iter().for_each(|it| fcntl_setfd(it, FdFlags::empty()).unwrap());
        let text = will.text.clone();
        let numbers = [reader.into_raw_fd(), writer.into_raw_fd()];
        let mut inherited = estate(&text).unwrap();
        let (copy, arguments) = inherited.all("copy").next().unwrap();
        assert_eq!((copy.as_raw_fd(), arguments), (numbers[0], &["7".into(), "3".into()][..]));
        assert_eq!(inherited.descriptor("control").unwrap().as_raw_fd(), numbers[1]);
        assert_eq!(inherited.fact("service").unwrap(), ["web:81"]);
        assert_eq!(inherited.fact("process").unwrap(), [std::process::id().to_string()]);
        assert_eq!(inherited.give("copy").len(), 1);
        assert!(inherited.descriptor("copy").is_none());
        assert!(estate(&text).is_err(), "it is taken once");
    }

    #[test]
    fn what_is_no_estate_is_refused() {
        assert!(estate("descriptor copy\n").is_err());
        assert!(estate("descriptor copy x 1\n").is_err());
        assert!(estate("descriptor copy 1000000\n").is_err());
        assert!(estate("legacy 1\n").is_err());
        let known = estate("fact service web\nfact later 1 2\nfact service web:81\n").unwrap();
        let services: Vec<_> = known.facts("service").map(|words| words[0].as_str()).collect();
        assert_eq!(services, ["web", "web:81"]);
        assert!(known.fact("process").is_none());
    }
}
