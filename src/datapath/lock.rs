//! One writer at a time.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::{attached_to, pin, root};
use crate::error::{Error, Result};

/// How the name of a folder begins in which a state is being made.
pub(super) const ASIDE: &str = "new-";

/// The right to change states, over all namespaces: a lock on `BPFFS/overspill`.
///
/// Its end removes the folder if nothing is left in it.
pub(crate) struct Lock {
    root: PathBuf,
    file: File,
}

impl Lock {
    /// Waits for it, and sweeps away what a writer that was killed left half made.
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
            file.lock().map_err(failed("lock"))?;
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

    /// Removes folders that no state lives in: half made, or of a namespace that ended.
    fn sweep(&self) -> Result<()> {
        let object = self.root.display().to_string();
        let entries = fs::read_dir(&self.root).map_err(|e| Error::system("read", &*object, e))?;
        for entry in entries {
            let folder = entry.map_err(|e| Error::system("read", &*object, e))?.path();
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
                remove_folder(&folder)?;
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

/// Removes a namespace's folder: the link first, so that nothing redirects while the
/// rest goes.
pub(super) fn remove_folder(folder: &Path) -> Result<()> {
    let failed = |path: &Path, error| Error::system("remove", path.display().to_string(), error);
    let link = folder.join(pin::LINK);
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&link, error)),
        _ => {}
    }
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|error| failed(folder, error))?,
    };
    for entry in entries {
        let path = entry.map_err(|error| failed(folder, error))?.path();
        fs::remove_file(&path).map_err(|error| failed(&path, error))?;
    }
    fs::remove_dir(folder).map_err(|error| failed(folder, error))
}
