//! The words of members: numbers of the user's own, for dispatchers.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::datapath::Datapath;
use crate::error::{Error, Result};
use crate::namespace::Namespace;
use crate::sys::{Shared, own_descriptor};

/// A member's entry: its socket's cookie, and the word (`struct ov_word`).
const ENTRY: usize = 2;

/// The words of all members in a network namespace, in memory shared with the kernel.
///
/// A member's word is 0 when it joins. Dispatchers read it as `candidate->word`; nothing
/// else in overspill does.
///
/// ```no_run
/// # fn main() -> overspill::Result<()> {
/// # let listener = std::net::TcpListener::bind("192.0.2.1:80").unwrap();
/// let words = overspill::Words::inherited()?.expect("started by overspill run --words");
/// let word = words.of(&listener)?;
/// word.store(17); // no system call
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Words {
    memory: Arc<Shared>,
    descriptor: Arc<OwnedFd>,
}

/// The word of one member ([`Words::of`]).
#[derive(Debug, Clone)]
pub struct Word {
    memory: Arc<Shared>,
    entry: usize,
    cookie: u64,
}

impl Words {
    /// The environment variable by which `overspill run --words` tells its workers the
    /// number of the descriptor that they have got.
    pub const VARIABLE: &str = "OVERSPILL_WORDS";

    /// Those of a network namespace, or `None` while it has no service. With the last
    /// service they end, and what is stored after that goes nowhere.
    ///
    /// # Errors
    ///
    /// As those of looking at a service: it takes the same privilege.
    pub fn open(namespace: &Namespace) -> Result<Option<Self>> {
        let Some(datapath) = Datapath::open(namespace)? else { return Ok(None) };
        let descriptor = datapath
            .words()
            .try_clone_to_owned()
            .map_err(|error| Error::system("open", "the map words", error))?;
        Self::map(descriptor, datapath.slots() as usize).map(Some)
    }

    /// Those that the process was started with by `overspill run --words`, or `None` where
    /// it was not. It takes no privilege.
    ///
    /// # Errors
    ///
    /// [`Error::System`]: the descriptor is not what the environment says.
    pub fn inherited() -> Result<Option<Self>> {
        let Ok(number) = std::env::var(Self::VARIABLE) else { return Ok(None) };
        let failed = |error| Error::system("use", format!("{}={number}", Self::VARIABLE), error);
        let number: i32 =
            number.parse().map_err(|_| failed(io::Error::from(io::ErrorKind::InvalidInput)))?;
        let descriptor = own_descriptor(number).map_err(failed)?;
        let members = entries(descriptor.as_fd()).map_err(failed)?;
        Self::map(descriptor, members).map(Some)
    }

    fn map(descriptor: OwnedFd, members: usize) -> Result<Self> {
        let memory = Shared::map(descriptor.as_fd(), members * ENTRY)
            .map_err(|error| Error::system("map", "the map words", error))?;
        Ok(Self { memory: memory.into(), descriptor: descriptor.into() })
    }

    /// The word of the member that a socket is.
    ///
    /// # Errors
    ///
    /// [`Error::NotAMember`].
    pub fn of(&self, socket: &impl AsFd) -> Result<Word> {
        let socket = socket.as_fd();
        let name = || format!("descriptor {}", socket.as_raw_fd());
        let cookie = rustix::net::sockopt::socket_cookie(socket)
            .map_err(|error| Error::system("read the cookie of", name(), error))?;
        let entries = self.memory.words().chunks_exact(ENTRY);
        let entry = entries.map(|entry| entry[0].load(Ordering::Relaxed));
        let entry = entry.zip(0..).find_map(|(own, entry)| (own == cookie).then_some(entry));
        match entry {
            Some(entry) => Ok(Word { memory: self.memory.clone(), entry, cookie }),
            None => Err(Error::NotAMember { socket: name() }),
        }
    }
}

impl AsFd for Words {
    /// Of the map, to be handed to a process that is to write words.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Word {
    /// Writes it, without a system call. False, and nothing is written, when the socket is
    /// no member any more.
    // To go on without the answer is the usual way.
    #[allow(clippy::must_use_candidate)]
    pub fn store(&self, word: u64) -> bool {
        let own = self.is_own();
        if own {
            self.memory.words()[self.entry * ENTRY + 1].store(word, Ordering::Relaxed);
        }
        own
    }

    /// What it is; `None` when the socket is no member any more.
    #[must_use]
    pub fn load(&self) -> Option<u64> {
        let word = self.memory.words()[self.entry * ENTRY + 1].load(Ordering::Relaxed);
        self.is_own().then_some(word)
    }

    fn is_own(&self) -> bool {
        self.memory.words()[self.entry * ENTRY].load(Ordering::Relaxed) == self.cookie
    }
}

/// How many entries a map has: to ask the kernel by bpf(2) would take privilege on some.
fn entries(map: BorrowedFd<'_>) -> io::Result<usize> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    text.lines()
        .find_map(|line| line.strip_prefix("max_entries:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::other("it is not a BPF map"))
}
