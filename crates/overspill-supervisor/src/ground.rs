//! The control groups whose processes may join: they come and go, as those of units do.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use overspill::{AttachedHooks, Cgroup, Hooks, Result, nearest};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;

use crate::log;
use crate::plan::Place;
use crate::threads::start_thread;

/// A control group, there or not.
#[derive(Debug)]
pub(crate) struct Ground {
    place: Place,
    there: Option<There>,
    /// What was logged of it last.
    told: Option<String>,
}

#[derive(Debug)]
struct There {
    cgroup: Cgroup,
    /// That of the folder: one that was removed and made anew is another control group.
    inode: u64,
    /// Nothing where they could not be attached yet.
    hooks: Option<AttachedHooks>,
}

impl Ground {
    pub(crate) fn new(place: Place) -> Self {
        Self { place, there: None, told: None }
    }

    /// Looks whether the control group is there now, and attaches the hooks to a new one. Whether
    /// they were attached.
    pub(crate) fn look(&mut self, hooks: &Hooks, watch: &Watch) -> bool {
        if self.there.as_ref().is_some_and(There::is_still) {
            return false;
        }
        let was_there = self.there.take().is_some();
        let attached = candidates(&self.place).and_then(|candidates| {
            // Before the look: what comes in between is found by one or the other.
            for folder in &candidates {
                watch.add(folder);
            }
            let Some((cgroup, inode)) = find(candidates) else { return Ok(()) };
            self.there = Some(There { cgroup, inode, hooks: None });
            let there = self.there.as_mut().expect("it was just put there");
            there.hooks = Some(hooks.attach_to(&there.cgroup)?);
            Ok(())
        });
        match (attached, &self.there) {
            // A control group that is gone again by now is none that the hooks failed at.
            (Err(error), there) if there.as_ref().is_none_or(There::exists) => {
                self.tell(format!("{}; it is tried again", error.with_causes()));
            }
            (_, Some(there)) if there.hooks.is_some() => {
                if !was_there && self.told.is_some() {
                    log::line(format_args!("{} is there: its processes may join", self.place));
                }
                self.told = None;
            }
            _ => self.tell_absent(),
        }
        self.there.as_ref().is_some_and(|it| it.hooks.is_some())
    }

    /// The processes in it now; nothing if they can't be read.
    pub(crate) fn processes(&self) -> Option<Vec<u32>> {
        let Some(there) = &self.there else { return Some(Vec::new()) };
        match there.cgroup.processes() {
            Err(_) if !there.exists() => Some(Vec::new()),
            processes => processes.ok(),
        }
    }

    fn tell(&mut self, what: String) {
        if self.told.as_ref() != Some(&what) {
            log::line(format_args!("{what}"));
            self.told = Some(what);
        }
    }

    /// That it is not there, and what may be meant instead.
    fn tell_absent(&mut self) {
        let absent = match self.place {
            Place::Cgroup(_) => format!("{} does not exist", self.place),
            Place::Unit(_) => format!("{} is not running in system.slice", self.place),
        };
        if self.told.as_ref() != Some(&absent) {
            let hint = near(&self.place).map(|name| format!(" (there is {name})"));
            log::line(format_args!("{absent}{}; waiting for it", hint.unwrap_or_default()));
            self.told = Some(absent);
        }
    }
}

impl There {
    /// It is the one that the hooks are attached to.
    fn is_still(&self) -> bool {
        self.hooks.is_some() && inode(&self.cgroup) == Some(self.inode)
    }

    fn exists(&self) -> bool {
        inode(&self.cgroup).is_some()
    }
}

/// Where it may be.
fn candidates(place: &Place) -> Result<Vec<PathBuf>> {
    match place {
        Place::Cgroup(path) => Cgroup::candidates(path),
        Place::Unit(unit) => Cgroup::candidates_of_unit(unit),
    }
}

/// Where it is, and its inode number.
fn find(candidates: Vec<PathBuf>) -> Option<(Cgroup, u64)> {
    let mut found = candidates.into_iter().map(Cgroup::at).filter(Cgroup::exists);
    found.find_map(|cgroup| inode(&cgroup).map(|inode| (cgroup, inode)))
}

fn inode(cgroup: &Cgroup) -> Option<u64> {
    cgroup.path().metadata().map(|folder| folder.ino()).ok()
}

/// Tells when a control group may have come or gone, for a look to come at once: a server that
/// binds its port before the hooks are attached keeps it for itself. Only a hint, and none where
/// the kernel refuses it (`fs.inotify.max_user_instances`).
#[derive(Debug)]
pub(crate) struct Watch(Option<Arc<OwnedFd>>);

impl Watch {
    /// Calls `hint` at each event, as long as that is true.
    pub(crate) fn start(hint: impl Fn() -> bool + Send + 'static) -> Self {
        let Ok(descriptor) = inotify::init(CreateFlags::CLOEXEC) else { return Self(None) };
        let descriptor = Arc::new(descriptor);
        let read = Arc::clone(&descriptor);
        let started = start_thread(move || {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = Reader::new(&read, &mut buffer);
            while match reader.next() {
                Ok(_) => hint(),
                Err(error) => error == Errno::INTR,
            } {}
        });
        Self(started.ok().map(|()| descriptor))
    }

    /// Watches the place where a folder may come and go: the nearest one above it that there is.
    fn add(&self, folder: &Path) {
        let Some(descriptor) = &self.0 else { return };
        let flags = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::ONLYDIR;
        let mut above = folder.ancestors().skip(1).map(|it| Cgroup::at(it.to_owned()));
        if let Some(above) = above.find(Cgroup::exists) {
            // It may be gone by now; then the next look finds another one.
            let _ = inotify::add_watch(&**descriptor, above.path(), flags);
        }
    }
}

/// A unit that runs and has a name much like it, with or without what may be left out.
fn near(place: &Place) -> Option<String> {
    let Place::Unit(unit) = place else { return None };
    let running = Cgroup::units().unwrap_or_default().into_iter().flat_map(|unit| {
        let short = unit.trim_end_matches(".service").to_owned();
        [short, unit]
    });
    nearest(unit, running)
}
