//! Programs of the user's own that choose (`include/overspill_dispatcher.h`).
//!
//! Each service has its own, in the map `dispatchers` at the service's number, from which
//! the kernel program calls it. It stands there before the roster says that it is to be
//! asked, and until no roster says so any more: in between, no request could find it gone.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use libbpf_rs::{
    ErrorKind, MapCore as _, MapFlags, ObjectBuilder, OpenObject, ProgramHandle, ProgramType,
};

use super::folder::bpffs;
use super::handle::Datapath;
use super::maps::ignore_absent;
use super::roster::Roster;
use super::transaction::{Change, Dispatcher};
use super::verifier::{Refusal, hush, last_lines, listen};
use crate::error::{Error, Result};
use crate::policy::Policy;
use crate::sys;

/// `OVERSPILL_DISPATCHER_VERSION`; a test compares it with that of the header.
pub(super) const VERSION: u32 = 1;
/// Where the header puts the version that it has.
const VERSION_MAP: &str = ".rodata.overspill";

impl Dispatcher {
    /// Whether a file is one, as far as can be told without the kernel.
    pub(crate) fn check(path: &Path) -> Result<()> {
        open(path).map(drop)
    }

    /// Loads the one in the file.
    pub(crate) fn load(path: &Path, datapath: &Datapath) -> Result<Self> {
        let mut object = open(path)?;
        let maps = &datapath.maps;
        for (name, own) in
            [("overspill_requests", &maps.requests), ("overspill_finish", &maps.finish)]
        {
            let mut map = object
                .maps_mut()
                .find(|map| map.name() == name)
                .ok_or_else(|| not_one(path, format!("it has no map {name}")))?;
            map.reuse_fd(own.as_fd()).map_err(|error| Error::bpf("use", "the map", error))?;
        }
        let (loaded, said) = listen(|| sys::without_signals(|| object.load()));
        let object = loaded.map_err(|error| match Refusal::read(&said) {
            Some(Refusal { verdict, .. }) => {
                Error::DispatcherRefused { path: path.to_owned(), verdict }
            }
            None => Error::bpf("load", path.display().to_string(), error),
        })?;
        let program = object.progs().next().expect("it has been counted");
        let program = program
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| Error::system("keep", path.display().to_string(), error))?;
        Ok(Self(program))
    }
}

/// Opens the object and looks whether it was made for this version.
fn open(path: &Path) -> Result<OpenObject> {
    // libbpf would say less of a file that can't be read.
    let bytes = fs::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::IsADirectory => not_one(path, error.to_string()),
        _ => Error::system("read", path.display().to_string(), error),
    })?;
    if !bytes.starts_with(b"\x7fELF") {
        return Err(not_one(path, "it is not an object file".to_owned()));
    }
    hush();
    let mut builder = ObjectBuilder::default();
    builder
        .pin_root_path(bpffs()?)
        .map_err(|error| Error::bpf("open", path.display().to_string(), error))?;
    let (opened, said) = listen(|| builder.open_file(path));
    let object = opened.map_err(|error| match last_lines(&said) {
        Some(said) => not_one(path, said),
        None => not_one(path, error.to_string()),
    })?;
    let version = object.maps().find(|map| map.name() == VERSION_MAP);
    let version = version.as_ref().and_then(|map| map.initial_value());
    let version = version.and_then(|bytes| Some(u32::from_ne_bytes(bytes.try_into().ok()?)));
    let Some(version) = version else {
        let why = "it was not made with OVERSPILL_DISPATCHER of overspill_dispatcher.h";
        return Err(not_one(path, why.to_owned()));
    };
    if version != VERSION {
        return Err(Error::DispatcherVersion { path: path.to_owned(), version, own: VERSION });
    }
    let kinds: Vec<ProgramType> = object.progs().map(|program| program.prog_type()).collect();
    match kinds[..] {
        [ProgramType::SkLookup] => Ok(object),
        [_] => Err(not_one(path, "its program is not of the kind sk_lookup".to_owned())),
        _ => Err(not_one(path, format!("it has {} programs, not one", kinds.len()))),
    }
}

fn not_one(path: &Path, why: String) -> Error {
    Error::NotADispatcher { path: path.to_owned(), why }
}

impl Datapath {
    /// Puts a service's dispatcher in its place before the roster asks for it. Gives the one
    /// that was there, to be put back if the rest fails.
    pub(super) fn place_dispatcher(&self, change: &Change<'_>) -> Result<Option<Dispatcher>> {
        // Left by a writer that was killed, or of a service that had the number before.
        if !asks(change.old) {
            self.clear_dispatcher(change.id)?;
        }
        let Some(new) = change.dispatcher else { return Ok(None) };
        let old = self.dispatcher(change.id)?;
        let old = old.map(|program| {
            libbpf_rs::Program::fd_from_id(program)
                .map(Dispatcher)
                .map_err(|error| Error::bpf("open", "the dispatcher before", error))
        });
        let old = old.transpose()?;
        self.set_dispatcher(change.id, new)?;
        Ok(old)
    }

    /// Takes it out after the roster has ceased to ask for it.
    pub(super) fn drop_dispatcher(&self, change: &Change<'_>) -> Result<()> {
        if asks(change.new) { Ok(()) } else { self.clear_dispatcher(change.id) }
    }

    /// Undoes [`Datapath::place_dispatcher`].
    pub(super) fn restore_dispatcher(
        &self,
        change: &Change<'_>,
        old: Option<&Dispatcher>,
    ) -> Result<()> {
        match (change.dispatcher, old) {
            (None, _) => Ok(()),
            (Some(_), Some(old)) => self.set_dispatcher(change.id, old),
            (Some(_), None) => self.clear_dispatcher(change.id),
        }
    }

    fn set_dispatcher(&self, id: u32, Dispatcher(program): &Dispatcher) -> Result<()> {
        let fd = program.as_raw_fd().to_ne_bytes();
        self.maps
            .dispatchers
            .update(&id.to_ne_bytes(), &fd, MapFlags::ANY)
            .map_err(|error| Error::bpf("change", "the map dispatchers", error))
    }

    fn clear_dispatcher(&self, id: u32) -> Result<()> {
        ignore_absent(self.maps.dispatchers.delete(&id.to_ne_bytes()))
            .map_err(|error| Error::bpf("change", "the map dispatchers", error))
    }

    /// The number of the program that service number `id` asks.
    pub(super) fn dispatcher(&self, id: u32) -> Result<Option<u32>> {
        let program = self
            .maps
            .dispatchers
            .lookup(&id.to_ne_bytes(), MapFlags::ANY)
            .map_err(|error| Error::bpf("read", "the map dispatchers", error))?;
        let number = |bytes: Vec<u8>| u32::from_ne_bytes(bytes.try_into().expect("a number"));
        Ok(program.map(number))
    }

    /// The name of the program that service number `id` asks, if there is one.
    pub(super) fn dispatcher_name(&self, id: u32) -> Result<Option<String>> {
        let Some(program) = self.dispatcher(id)? else { return Ok(None) };
        match ProgramHandle::from_prog_id(program) {
            Ok(program) => Ok(Some(program.name().to_string_lossy().into_owned())),
            // Replaced between the two steps.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::bpf("open", "the dispatcher", error)),
        }
    }
}

/// Whether requests are handed to a dispatcher by this roster.
fn asks(roster: Option<&Roster>) -> bool {
    roster.is_some_and(|roster| roster.rules.policy == Policy::Dispatcher)
}

/// What is wrong with a file given as a dispatcher, as far as can be told without loading
/// it into the kernel.
///
/// # Errors
///
/// [`Error::System`] when it can't be read, [`Error::NotADispatcher`],
/// [`Error::DispatcherVersion`].
pub fn check_dispatcher(path: impl Into<PathBuf>) -> Result<()> {
    Dispatcher::check(&path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_header() {
        let header = include_str!("../../include/overspill_dispatcher.h");
        let line = format!("#define OVERSPILL_DISPATCHER_VERSION {VERSION}\n");
        assert!(header.contains(&line));
    }
}
