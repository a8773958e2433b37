//! Reads and changes the state of another layout through the programs that its build pinned
//! (`bpf/contract.h`).

use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use libbpf_rs::MapHandle;

use super::arguments::{Arguments, SK_PASS};
use super::handle::Datapath;
use super::layout::{self, ExportedMember, ExportedService, Extent, known_part};
use super::lock::Lock;
use super::maps::lookup;
use super::read::READS;
use super::roster::{self, Member, Roster};
use super::{pin, swap};
use crate::error::{Error, Result};
use crate::sys;

/// How long a reader tries to be the one that `export` writes for: a run takes microseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// A service, and some of its members.
struct Page {
    service: ExportedService,
    members: Vec<ExportedMember>,
}

impl Datapath {
    /// Reads service `id` through its own build's programs.
    pub(super) fn exported(&self, id: u32) -> Result<Option<(Extent, Roster)>> {
        for _ in 0..READS {
            let Some(place) = self.place(id)? else { return Ok(None) };
            let service = self.export_all(id)?;
            let all = |page: &Page| page.members.len() == page.service.members as usize;
            // Otherwise a writer published the service while it was read: try again.
            if self.place(id)?.is_some_and(|now| now.number == place.number)
                && service.as_ref().is_none_or(all)
            {
                let roster = service.map(|page| self.import(id, &page)).transpose()?;
                return Ok(roster.map(|roster| (place, roster)));
            }
        }
        Err(self.unopenable(id))
    }

    /// Only its name.
    pub(super) fn exported_name(&self, id: u32) -> Result<Option<String>> {
        if self.place(id)?.is_none() {
            return Ok(None);
        }
        Ok(self.export(id, 0)?.map(|page| layout::text(&page.service.name)))
    }

    fn import(&self, id: u32, page: &Page) -> Result<Roster> {
        let name = layout::text(&page.service.name);
        let port = page.service.port;
        let members = page.members.iter().map(|member| roster::imported_member(member, port));
        let members: Vec<Member> = members.collect();
        if members.is_empty() {
            return Err(self.unopenable(id));
        }
        let roster = Roster::imported(name.clone(), &page.service, members);
        roster.ok_or(Error::UnknownPolicy { service: name, policy: page.service.policy })
    }

    /// All members, page by page.
    fn export_all(&self, id: u32) -> Result<Option<Page>> {
        let Some(mut all) = self.export(id, 0)? else { return Ok(None) };
        while all.members.len() < all.service.members as usize {
            let first = u32::try_from(all.members.len()).expect("the capacity is a u32");
            match self.export(id, first)? {
                Some(more) if !more.members.is_empty() => all.members.extend(more.members),
                // A writer has published a shorter list: the caller notices.
                _ => break,
            }
        }
        Ok(Some(all))
    }

    fn export(&self, id: u32, first: u32) -> Result<Option<Page>> {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let wide = u64::from(std::process::id()) << 32 | u64::from(count);
            let arguments = Arguments { service: id, position: first, wide, port: 0 };
            let exporter = self.programs.exporter.as_fd();
            let verdict = sys::test_run(exporter, &arguments.context())
                .map_err(|error| Error::system("run", "the program export", error))?;
            if verdict != SK_PASS {
                return Ok(None);
            }
            if let Some(page) = page(&self.maps.exported, wide, first)? {
                return Ok(Some(page));
            }
            // Another reader was faster.
            thread::yield_now();
        }
        Err(Error::system("read", format!("service number {id}"), rustix::io::Errno::BUSY))
    }

    /// Starts or stops draining a member, in a state of any layout. False if the member moved.
    /// On return, every request sees the change.
    pub(crate) fn drain_in_place(&self, id: u32, position: usize, member: &Member) -> Result<bool> {
        let done = self.mark_draining(id, position, member)?;
        swap::wait_for_programs()?;
        Ok(done)
    }

    /// Removes a service from a state of any layout.
    pub(crate) fn retire(&self, id: u32, roster: &Roster, _lock: &Lock) -> Result<()> {
        let retirer = self.program(pin::RETIRER)?;
        let arguments = Arguments { service: id, ..Arguments::default() };
        sys::test_run(retirer.as_fd(), &arguments.context())
            .map_err(|error| Error::system("run", "the program retire", error))?;
        self.put_into_services(id, None)?;
        self.free(roster.members.iter().map(|member| member.slot));
        Ok(())
    }
}

/// The answer of `export` to the call with that number, for the members from `first` on; `None`
/// if another call was faster.
fn page(map: &MapHandle, number: u64, first: u32) -> Result<Option<Page>> {
    let bytes = lookup(map, 0)?;
    let service: ExportedService = known_part(&bytes);
    let ended = bytes.last_chunk().map(|last| u64::from_ne_bytes(*last));
    if service.begun != number || ended != Some(number) {
        return Ok(None);
    }
    let given = service.first.checked_add(service.given);
    if service.first != first || given.is_none_or(|given| given > service.members) {
        return Ok(None);
    }
    let (head, size) = (service.head as usize, service.member_size as usize);
    let members = bytes.get(head..).unwrap_or_default().chunks_exact(size.max(1));
    let members = members.take(service.given as usize).map(known_part).collect();
    Ok(Some(Page { service, members }))
}
