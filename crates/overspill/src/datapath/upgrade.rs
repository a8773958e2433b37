//! Upgrades a state to this build while it serves.
//!
//! It builds a new folder. It reuses maps that both builds define in the same way. It fills the
//! others from the other build's export. Then it swaps the links (`swap.rs`). If a step before
//! the swap fails, it removes the new folder, and the state is unchanged.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::{MapCore as _, MapHandle, OpenMapMut};
use serde::Serialize;

use super::folder::{
    ASIDE, VERSION, check_privilege, digest, inode, open_map, remove_folder, short,
};
use super::handle::{Datapath, OwnMaps};
use super::lock::Lock;
use super::make::{self, OpenOverspillSkel, Size};
use super::roster::Roster;
use super::rows::Written;
use super::snapshot::{Published, Snapshot};
use super::{dispatcher, layout, pin, swap, verifier};
use crate::error::{Error, Result};
use crate::namespace::Namespace;
use crate::policy::Policy;

/// A build of overspill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Build {
    /// The version.
    pub version: String,
    /// The first digits of the digest of the programs: two builds can have the same version.
    pub digest: String,
    /// The number of the layout of the maps.
    pub layout: u32,
}

impl Build {
    /// This build.
    #[must_use]
    pub fn current() -> Self {
        Self { version: VERSION.to_owned(), digest: short(&digest()), layout: layout::LAYOUT }
    }
}

/// The result of an upgrade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    /// The build that served before.
    pub from: Build,
    /// This build. If it equals `from`, nothing was done.
    pub to: Build,
    /// The number of services.
    pub services: usize,
}

/// Maps that are the same in every build.
const FROZEN: &[&str] = &["sockets", "words", "starts", "movers"];
/// Maps that users' dispatchers are bound to.
const ASKED: &[&str] = &["requests", "finish"];
/// Maps that connections and flows refer to.
const CONNECTIONS: &[&str] = &["loads", "origins", "moved", "any_moved", "cookies"];
const COUNTERS: &[&str] = &["service_counters", "member_counters", "exits"];

impl Datapath {
    /// The build that made the state's programs.
    pub(crate) fn build(&self) -> Build {
        build_of(&self.state)
    }

    /// Whether this build made the state's programs.
    pub(crate) fn is_of_this_build(&self) -> bool {
        self.is_of_own_layout() && self.state.build == digest()
    }

    /// Upgrades the state to this build while it serves.
    pub(crate) fn upgrade(self, namespace: &Namespace, lock: &Lock) -> Result<Upgrade> {
        self.check_program()?;
        let rosters = self.rosters()?;
        let to = Build::current();
        let upgrade = Upgrade { from: self.build(), to, services: rosters.len() };
        if self.is_of_this_build() {
            return Ok(upgrade);
        }
        let aside = lock.root().join(format!("{ASIDE}{}", namespace.inode()));
        make::make_folder(&aside)?;
        let built = self.build_aside(namespace, &rosters, &aside);
        if let Err(error) = built.and_then(|()| swap::commit(&aside)) {
            // Report the cause; ignore errors of the clean-up.
            let _ = remove_folder(&aside);
            return Err(error);
        }
        // From here the upgrade is only completed, not undone. If a step fails, the next writer
        // completes it.
        let unfinished = |source| Error::Unfinished { path: self.folder.clone(), source };
        swap::finish(&self.folder, &aside).map_err(|error| unfinished(Box::new(error)))?;
        Ok(upgrade)
    }

    /// The number and snapshot of every service.
    fn rosters(&self) -> Result<Vec<(u32, Roster)>> {
        let numbered = |id| Ok(self.roster(id)?.map(|roster| (id, roster)));
        self.numbers()?.into_iter().filter_map(|id| numbered(id).transpose()).collect()
    }

    /// Prepares everything for the swap.
    fn build_aside(
        &self,
        namespace: &Namespace,
        rosters: &[(u32, Roster)],
        aside: &Path,
    ) -> Result<()> {
        let size = Size { capacity: self.capacity(), spare: self.state.spare };
        let reused = verifier::retried(|| {
            let mut memory = MaybeUninit::uninit();
            let mut open = make::prepare(make::open(&mut memory)?, self.seed(), size)?;
            let reused = self.reuse(&mut open)?;
            self.check_dispatchers(&reused, rosters)?;
            let mut skeleton = make::load(open)?;
            check_privilege(&skeleton.maps.services)?;
            make::describe(&skeleton, self.seed(), size)?;
            make::pin_all(&mut skeleton, aside)?;
            Ok(reused)
        })?;
        if !reused.dispatchers {
            make::begin_to_call(aside, &["finish"])?;
        }
        swap::share_links(&self.folder, aside)?;
        if reused.layout { Ok(()) } else { publish_anew(namespace, rosters, aside) }
    }

    /// Makes the new programs use the state's maps that both builds define in the same way.
    fn reuse(&self, open: &mut OpenOverspillSkel<'_>) -> Result<Reused> {
        let mut reusing = Reusing { folder: &self.folder, open };
        if !reusing.all(FROZEN)? {
            return Err(self.refused(
                "the map sockets, words, starts or movers has another definition",
                "remove its services with the version that made them",
            ));
        }
        for &name in COUNTERS {
            reusing.all(&[name])?;
        }
        let connections = self.state.connections == layout::CONNECTIONS;
        if connections {
            reusing.all(CONNECTIONS)?;
        }
        let dispatchers = self.state.dispatchers == dispatcher::VERSION && reusing.all(ASKED)?;
        let names: Vec<&str> = OwnMaps::NAMES.iter().copied().chain(["services"]).collect();
        let layout = self.is_of_own_layout() && reusing.all(&names)?;
        Ok(Reused { layout, dispatchers })
    }

    /// Refuses the upgrade if a dispatcher cannot be kept. A dispatcher is bound to the maps that
    /// it was loaded with, and overspill does not keep its file to load it again.
    fn check_dispatchers(&self, reused: &Reused, rosters: &[(u32, Roster)]) -> Result<()> {
        let asks = |(_, roster): &&(u32, Roster)| roster.rules.policy == Policy::Dispatcher;
        match rosters.iter().find(asks) {
            Some((_, Roster { name, .. })) if !reused.dispatchers => Err(self.refused(
                format!("the dispatcher of the service \"{name}\" was made for another version"),
                "set another policy with the version that made the service (overspill set \
                 --policy), upgrade, then recompile the dispatcher and set it again",
            )),
            _ => Ok(()),
        }
    }

    fn refused(&self, why: impl Into<String>, remedy: &'static str) -> Error {
        Error::NoUpgrade { path: self.folder.clone(), why: why.into(), remedy }
    }
}

fn build_of(state: &layout::State) -> Build {
    let version = layout::text(&state.version);
    Build { version, digest: short(&state.build), layout: state.layout }
}

/// Which groups of maps the new programs share with the old ones.
struct Reused {
    layout: bool,
    dispatchers: bool,
}

/// Lets programs that are not loaded yet use the maps of a folder.
struct Reusing<'a, 'b> {
    folder: &'a Path,
    open: &'a mut OpenOverspillSkel<'b>,
}

impl Reusing<'_, '_> {
    /// Reuses these maps if all of them have the same definition. Otherwise it reuses none.
    fn all(&mut self, names: &[&str]) -> Result<bool> {
        let pinned: Vec<(&str, MapHandle)> = names
            .iter()
            .map(|&name| Ok((name, open_map(self.folder, name)?)))
            .collect::<Result<_>>()?;
        for (name, map) in &pinned {
            if !is_same(map, &self.map(name))? {
                return Ok(false);
            }
        }
        for (name, map) in &pinned {
            self.map(name)
                .reuse_fd(map.as_fd())
                .map_err(|error| Error::bpf("reuse the map", *name, error))?;
        }
        Ok(true)
    }

    fn map(&mut self, name: &str) -> OpenMapMut<'_> {
        let is_it = |full: &OsStr| make::is_named(full, name);
        let mut maps = self.open.open_object_mut().maps_mut();
        maps.find(|map| is_it(map.name())).expect("a map of the object")
    }
}

fn is_same(pinned: &MapHandle, own: &OpenMapMut<'_>) -> Result<bool> {
    let info =
        pinned.info().map_err(|error| Error::bpf("read", own.name().to_string_lossy(), error))?;
    Ok(pinned.map_type() == own.map_type()
        && pinned.key_size() == own.key_size()
        && pinned.value_size() == own.value_size()
        && pinned.max_entries() == own.max_entries()
        && info.info.map_flags == own.map_flags())
}

/// Writes the services into the new maps of a folder that does not serve yet.
fn publish_anew(namespace: &Namespace, rosters: &[(u32, Roster)], aside: &Path) -> Result<()> {
    let link = inode(&aside.join(pin::LINK))?.unwrap_or_default();
    let new = Datapath::open_folder(namespace, aside, link)?.ok_or_else(|| Error::NoUpgrade {
        path: PathBuf::from(aside),
        why: "the network namespace has ended".to_owned(),
        remedy: "nothing to do",
    })?;
    let mut services = Snapshot::default();
    let mut maps = Vec::new();
    for (id, roster) in rosters {
        let Written { extent, map } = new.write_rows(*id, roster, &mut services)?;
        services.insert(*id, Published { roster: roster.clone(), extent });
        maps.push((*id, map));
    }
    // Nobody reads this folder yet: all at once, not each with its own indexes and its own wait.
    new.put_all_into_services(&maps)?;
    new.reindex(&services)?;
    for (id, _) in rosters {
        // Looks the sockets up here: `move_request` cannot.
        new.refresh_figures(*id)?;
    }
    Ok(())
}
