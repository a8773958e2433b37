//! One writer at a time.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::folder::{ASIDE, attached_to, namespace_of, remove_folder, root};
use super::{pin, swap};
use crate::error::{Error, Result};

/// How long one writer may be seen to hold the lock until it is taken for stopped. A change
/// takes milliseconds; where the kernel is to verify the programs first, or the machine is
/// emulated, a second or two.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a waiting writer tries to get the lock, and how many times between two looks
/// at who has it. `flock(2)` knows no deadline, so it is not waited for inside the kernel.
const LOOK: Duration = Duration::from_millis(5);
const LOOKS: u32 = 200;

/// The right to change states, over all namespaces: a lock on `BPFFS/overspill`.
///
/// Its end removes the folder if nothing is left in it.
pub(crate) struct Lock {
    root: PathBuf,
    file: File,
}

impl Lock {
    /// Waits for the lock, then removes or completes what a killed writer left.
    ///
    /// [`Error::Locked`] if one writer holds it for the whole [`PATIENCE`]. If writers take turns,
    /// it waits without a limit.
    pub(crate) fn acquire() -> Result<Self> {
        let root = root()?;
        let failed = |operation| {
            let object = root.display().to_string();
            move |error| Error::system(operation, object, error)
        };
        loop {
            match DirBuilder::new().mode(0o700).create(&root) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("make the folder")(error));
                }
                _ => {}
            }
            let file = match File::open(&root) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed("open")(error)),
            };
            take_turn(&file, &root)?;
            // Whoever had the lock before may have removed the folder at its end.
            if is_same(&file, &root) {
                check_owner(&file, &root)?;
                let lock = Self { root, file };
                lock.sweep()?;
                return Ok(lock);
            }
        }
    }

    /// The folder of all states.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    fn sweep(&self) -> Result<()> {
        for folder in leftovers(&self.root)? {
            match namespace_of(&folder) {
                Some(inode) => {
                    let main = self.root.join(inode.to_string());
                    swap::recover(&main, inode, &folder).map_err(|error| Error::Unfinished {
                        path: main,
                        source: Box::new(error),
                    })?;
                }
                None => remove_folder(&folder)?,
            }
        }
        Ok(())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Fails while a namespace has a state: then it is to stay.
        let _ = fs::remove_dir(&self.root);
        // A child that another thread has forked meanwhile holds a copy of the descriptor,
        // and with it the lock, as long as it executes nothing.
        let _ = self.file.unlock();
    }
}

/// Takes the lock as soon as no other writer has it.
fn take_turn(file: &File, root: &Path) -> Result<()> {
    let mut suspect: Option<(Option<u32>, Instant)> = None;
    loop {
        for _ in 0..LOOKS {
            match file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) => thread::sleep(LOOK),
                Err(TryLockError::Error(error)) => {
                    return Err(Error::system("lock", root.display().to_string(), error));
                }
            }
        }
        let holder = holder(file);
        match suspect {
            Some((known, since)) if known == holder && since.elapsed() >= PATIENCE => {
                return Err(locked(root, holder, since.elapsed()));
            }
            Some((known, _)) if known == holder => {}
            _ => suspect = Some((holder, Instant::now())),
        }
    }
}

fn locked(root: &Path, pid: Option<u32>, waited: Duration) -> Error {
    let command = pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).ok());
    Error::Locked {
        path: root.to_owned(),
        pid,
        command: command.unwrap_or_default().trim_end().to_owned(),
        seconds: waited.as_secs(),
    }
}

/// The process that has locked a file, unless it lives in a pid namespace that can't be seen
/// into from here.
fn holder(file: &File) -> Option<u32> {
    let file = file.metadata().ok()?;
    let (major, minor) = (rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()));
    let name = format!("{major:02x}:{minor:02x}:{}", file.ino());
    holder_in(&fs::read_to_string("/proc/locks").ok()?, &name)
}

/// `proc_locks(5)`: NUMBER, "FLOCK", mode, kind of access, pid, file, and a range. Who waits
/// has an arrow behind the number.
fn holder_in(locks: &str, name: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields.as_slice() {
            [_, "FLOCK", _, _, pid, file, ..] if *file == name => pid.parse().ok(),
            _ => None,
        }
    })
}

/// Where anybody may make folders in the file system, another user could have made this
/// one, to move away or to hold up what is made in it.
fn check_owner(root: &File, path: &Path) -> Result<()> {
    let owner = root
        .metadata()
        .map_err(|error| Error::system("read", path.display().to_string(), error))?
        .uid();
    if owner == 0 || owner == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(Error::OtherOwner { path: path.to_owned(), owner })
}

fn is_same(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => open.ino() == named.ino() && open.dev() == named.dev(),
        _ => false,
    }
}

/// The folders that no state lives in: half made, or of a namespace that ended. While a
/// writer is at work, the one that it makes is among them.
pub(crate) fn leftovers(root: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error| Error::system("read", root.display().to_string(), error);
    let mut leftovers = Vec::new();
    for entry in fs::read_dir(root).map_err(failed)? {
        let folder = entry.map_err(failed)?.path();
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let alive = match name.parse::<u64>() {
            // What is neither a state nor begun as one is somebody else's.
            Err(_) => !name.starts_with(ASIDE),
            Ok(inode) => match attached_to(&folder.join(pin::LINK)) {
                Ok(attached) => attached == inode,
                Err(Error::Damaged { .. }) => true,
                // No link: its maker or its remover was killed on the way.
                Err(_) => folder.join(pin::LINK).exists(),
            },
        };
        if !alive {
            leftovers.push(folder);
        }
    }
    Ok(leftovers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_told_from_those_who_wait() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 00:2d:7 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 12 00:2e:7 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 13 00:2d:7 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 14 00:2d:7 0 EOF\n";
        assert_eq!(holder_in(locks, "00:2d:7"), Some(13));
        assert_eq!(holder_in(locks, "00:2d:8"), None);
        let own = tempfile::tempfile().unwrap();
        assert_eq!(holder(&own), None);
        own.lock().unwrap();
        assert_eq!(holder(&own), Some(std::process::id()));
    }
}
