//! Control groups (cgroup v2): what a server and all that it starts belong to.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::mounts;

/// A control group, by its folder in the cgroup2 file system.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The calling process's.
    ///
    /// # Errors
    ///
    /// [`Error::NoCgroup2`] where no cgroup2 file system is mounted that has it.
    pub fn own() -> Result<Self> {
        Self::of_process(std::process::id())
    }

    /// That of a process.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchProcess`]; [`Error::NoCgroup2`] as in [`Cgroup::own`].
    pub fn of_process(pid: u32) -> Result<Self> {
        let file = format!("/proc/{pid}/cgroup");
        let text = fs::read_to_string(&file).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::NoSuchProcess { pid },
            _ => Error::system("read", file, error),
        })?;
        // cgroups(7): the line of version 2 has number 0 and no controllers.
        let own = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let folders = mounts::points("cgroup2")?.into_iter().map(|point| point.join(own));
        first_of(folders).ok_or(Error::NoCgroup2)
    }

    /// The one with this folder, or with this path below a cgroup2 mount, if it is there.
    ///
    /// # Errors
    ///
    /// The mounts cannot be read.
    pub fn find(path: &Path) -> Result<Option<Self>> {
        Ok(first_of(Self::candidates(path)?))
    }

    /// The folders that [`Cgroup::find`] takes the first of.
    ///
    /// # Errors
    ///
    /// The mounts cannot be read.
    pub fn candidates(path: &Path) -> Result<Vec<PathBuf>> {
        let below = path.strip_prefix("/").unwrap_or(path);
        let mut folders = vec![path.to_owned()];
        folders.extend(mounts::points("cgroup2")?.into_iter().map(|point| point.join(below)));
        Ok(folders)
    }

    /// All with a name of that kind, wherever they are.
    ///
    /// # Errors
    ///
    /// The mounts cannot be read.
    pub fn all_named(is_it: impl Fn(&str) -> bool) -> Result<Vec<Self>> {
        let mut folders: Vec<Self> = mounts::points("cgroup2")?.into_iter().map(Self::at).collect();
        let mut found: Vec<Self> = Vec::new();
        while let Some(folder) = folders.pop() {
            // One that is removed meanwhile has none.
            for child in folder.children().unwrap_or_default() {
                if is_it(child.name()) {
                    found.push(child);
                } else {
                    folders.push(child);
                }
            }
        }
        // A file system that is mounted twice has each twice.
        let inode = |it: &Self| fs::metadata(it.path()).map(|it| (it.dev(), it.ino())).ok();
        let mut seen = HashSet::new();
        found.retain(|it| inode(it).is_some_and(|inode| seen.insert(inode)));
        Ok(found)
    }

    /// That of a systemd service in `system.slice`, if it is there: if the unit runs.
    ///
    /// # Errors
    ///
    /// The mounts cannot be read.
    pub fn of_unit(unit: &str) -> Result<Option<Self>> {
        Ok(first_of(Self::candidates_of_unit(unit)?))
    }

    /// The folders that [`Cgroup::of_unit`] takes the first of.
    ///
    /// # Errors
    ///
    /// The mounts cannot be read.
    pub fn candidates_of_unit(unit: &str) -> Result<Vec<PathBuf>> {
        let full = if unit.contains('.') { unit.to_owned() } else { format!("{unit}.service") };
        let slice = Path::new("/system.slice");
        // Those of a template have a slice of their own.
        let template = full.split_once('@').map(|(name, _)| {
            slice.join(format!("system-{}.slice", name.replace('-', "\\x2d"))).join(&full)
        });
        let paths = std::iter::once(slice.join(&full)).chain(template);
        let candidates = paths.map(|path| Self::candidates(&path)).collect::<Result<Vec<_>>>()?;
        Ok(candidates.concat())
    }

    /// The systemd services in `system.slice` that run, those of templates too, by name.
    ///
    /// # Errors
    ///
    /// The mounts cannot be read.
    pub fn units() -> Result<Vec<String>> {
        let names = |folder: &Path| {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
        };
        let slices = mounts::points("cgroup2")?.into_iter().map(|it| it.join("system.slice"));
        let mut units = Vec::new();
        for slice in slices {
            for name in names(&slice) {
                if name.starts_with("system-") {
                    units.extend(names(&slice.join(&name)));
                }
                units.push(name);
            }
        }
        units.retain(|name| name.ends_with(".service"));
        Ok(units)
    }

    /// The one with this number, which is its folder's inode number
    /// (fs/kernfs/inode.c); looked for first where the process `pid` is. `None` where it
    /// was removed, or lies outside of what is mounted here.
    pub(crate) fn by_id(id: u64, pid: u32) -> Option<Self> {
        let is = |path: &Path| fs::metadata(path).is_ok_and(|folder| folder.ino() == id);
        if let Ok(likely) = Self::of_process(pid)
            && is(&likely.path)
        {
            return Some(likely);
        }
        let mut found = None;
        for point in mounts::points("cgroup2").ok()? {
            // An error ends the walk: the one that was looked for has been found.
            let _ = visit_folder(&point, &mut |folder| {
                if is(folder) {
                    found = Some(Self::at(folder.to_owned()));
                    return Err(io::ErrorKind::Other.into());
                }
                Ok(())
            });
        }
        found
    }

    /// The one with this folder.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Whether there is such a control group now.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.path.join("cgroup.procs").exists()
    }

    /// Its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its last name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// The one that it lies in.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        self.path.parent().map(|path| Self::at(path.to_owned()))
    }

    /// Makes one within it, or takes one that is there.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn make(&self, name: &str) -> Result<Self> {
        let path = self.path.join(name);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(Error::system("make the cgroup", path.display().to_string(), error))
            }
            _ => Ok(Self { path }),
        }
    }

    /// Puts a process into it. Threads and children that it has from then on follow.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn enter(&self, pid: u32) -> Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// The processes in it and below it; those of another pid namespace are left out.
    ///
    /// # Errors
    ///
    /// It does not exist.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        self.visit(&mut |folder| {
            let text = fs::read_to_string(folder.join("cgroup.procs"))?;
            pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
            Ok(())
        })?;
        pids.retain(|&pid| pid != 0);
        Ok(pids)
    }

    /// Those right below it.
    ///
    /// # Errors
    ///
    /// It does not exist.
    pub fn children(&self) -> Result<Vec<Self>> {
        let failed =
            |error| Error::system("read the cgroup", self.path.display().to_string(), error);
        let entries = fs::read_dir(&self.path).map_err(failed)?;
        let folders = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
        Ok(folders.map(Self::at).collect())
    }

    /// Whether no process is in it or below it.
    ///
    /// # Errors
    ///
    /// It cannot be read. One that does not exist is empty.
    pub fn is_empty(&self) -> Result<bool> {
        match fs::read_to_string(self.path.join("cgroup.events")) {
            Ok(text) => Ok(text.lines().any(|line| line == "populated 0")),
            Err(error) if is_absent(&error) => Ok(true),
            Err(error) => Err(Error::system("read", self.path.display().to_string(), error)),
        }
    }

    /// Kills all its processes and those below it (`cgroup.kill`, Linux 5.14). They may
    /// take a moment to end.
    ///
    /// # Errors
    ///
    /// The kernel refuses it. One that does not exist has no processes.
    pub fn kill(&self) -> Result<()> {
        match self.write("cgroup.kill", "1") {
            Err(Error::System { source, .. }) if is_absent(&source) => Ok(()),
            result => result,
        }
    }

    /// Removes it and those below it, which have to be empty. One that does not exist is
    /// removed already.
    ///
    /// # Errors
    ///
    /// The kernel refuses it: a process is in it.
    pub fn remove(&self) -> Result<()> {
        let mut folders = Vec::new();
        match self.visit(&mut |folder| {
            folders.push(folder.to_owned());
            Ok(())
        }) {
            Err(Error::System { source, .. }) if is_absent(&source) => return Ok(()),
            result => result?,
        }
        // What lies below comes behind.
        for folder in folders.iter().rev() {
            match fs::remove_dir(folder) {
                Err(error) if !is_absent(&error) => {
                    let object = folder.display().to_string();
                    return Err(Error::system("remove the cgroup", object, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Its number and those of all below it, by which the kernel tells them apart: the inode
    /// numbers of their folders. Nothing for one that does not exist.
    pub(crate) fn ids(&self) -> Result<Vec<u64>> {
        let mut ids = Vec::new();
        match self.visit(&mut |folder| {
            ids.push(fs::metadata(folder)?.ino());
            Ok(())
        }) {
            Err(Error::System { source, .. }) if is_absent(&source) => Ok(Vec::new()),
            result => result.map(|()| ids),
        }
    }

    pub(crate) fn open(&self) -> Result<File> {
        File::open(&self.path).map_err(|error| {
            Error::system("open the cgroup", self.path.display().to_string(), error)
        })
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path.join(name);
        OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|error| Error::system("write to", path.display().to_string(), error))
    }

    /// Its folder, and then those below it.
    fn visit(&self, visit: &mut impl FnMut(&Path) -> io::Result<()>) -> Result<()> {
        visit_folder(&self.path, visit).map_err(|error| {
            Error::system("read the cgroup", self.path.display().to_string(), error)
        })
    }
}

/// The first folder that is a control group.
fn first_of(folders: impl IntoIterator<Item = PathBuf>) -> Option<Cgroup> {
    folders.into_iter().map(Cgroup::at).find(Cgroup::exists)
}

fn visit_folder(folder: &Path, visit: &mut impl FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    visit(folder)?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            match visit_folder(&entry.path(), visit) {
                // Removed meanwhile.
                Err(error) if is_absent(&error) => {}
                result => result?,
            }
        }
    }
    Ok(())
}

/// A cgroup that is removed while it is looked at answers one way or the other.
fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}
