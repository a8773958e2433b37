//! What the workers note in a file that outlives them.
//!
//! One byte for each process (whether it listens, whether it is in `accept()`), one for each
//! process (what it is to do with its next request), and one for each client (whether it was
//! accepted). The workers have it mapped into their memory: a note is one store.

use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use tempfile::NamedTempFile;

const PIDS: u64 = 1 << 22;
const CLIENTS: u64 = 1 << 20;
const ACCEPTS: u8 = 2;

/// What a worker is to do with its next request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Order {
    /// Work on it for 300 ms.
    Block = 1,
    /// Never come to an end with it.
    Loop = 2,
    /// Close its listening socket then, and end a while later.
    Close = 3,
}

#[derive(Debug)]
pub(crate) struct Record(NamedTempFile);

impl Record {
    pub(crate) fn new() -> io::Result<Self> {
        let file = NamedTempFile::new()?;
        file.as_file().set_len(2 * PIDS + CLIENTS)?;
        Ok(Self(file))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    fn byte(&self, at: u64) -> io::Result<u8> {
        let mut byte = [0];
        self.0.as_file().read_exact_at(&mut byte, at)?;
        Ok(byte[0])
    }

    /// Whether a process is a worker that has begun to listen.
    pub(crate) fn listens(&self, pid: u32) -> io::Result<bool> {
        Ok(self.byte(pid.into())? != 0)
    }

    pub(crate) fn order(&self, pid: u32, order: Order) -> io::Result<()> {
        self.0.as_file().write_all_at(&[order as u8], PIDS + u64::from(pid))
    }

    pub(crate) fn accepted(&self, client: u32) -> io::Result<bool> {
        Ok(self.byte(2 * PIDS + u64::from(client))? != 0)
    }

    /// How many workers ended between `accept()` and their note of it, or within `accept()`.
    pub(crate) fn ended_in_accept(&self) -> io::Result<usize> {
        let mut states = vec![0; usize::try_from(PIDS).expect("it is small")];
        self.0.as_file().read_exact_at(&mut states, 0)?;
        Ok(states.into_iter().filter(|&state| state == ACCEPTS).count())
    }
}
