//! Looks at the listening sockets that processes hold now.
//!
//! A look asks the kernel for those that listen, and no others. A socket that is known is looked
//! for at the descriptor where it was; the descriptors of processes are gone through only for one
//! that is new, or is not there any more.
//!
//! Servers that fork hold a socket in a process that accepts nothing and in its children, which do.
//! Such a socket is seen at one of the children.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use overspill::adopt::{self, Adopted};
use overspill::{Address, Error, listening};

use crate::instance_id::InstanceId;
use crate::log::tell;
use crate::process::{accepts, parent};

/// The pause before a socket that no process here holds is looked for again; it doubles.
const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_secs(5);
/// A child that has run for so long is no helper that just comes and goes.
const SETTLED: Duration = Duration::from_secs(1);

/// An instance's processes.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) id: InstanceId,
    /// In the order of their starts: of several that hold a socket the first is seen.
    pub(crate) processes: Vec<u32>,
}

/// A listening socket, and who holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) owner: InstanceId,
    pub(crate) pid: u32,
    /// Its number there: in the order in which a process opens them.
    pub(crate) descriptor: i32,
    pub(crate) cookie: u64,
    pub(crate) address: Address,
    /// Others can be bound to its address.
    pub(crate) shares_port: bool,
}

/// What is known of a socket.
#[derive(Debug)]
struct Known {
    cookie: u64,
    /// Nothing for one that can't be a member, which was told.
    address: Option<Address>,
    shares_port: bool,
    /// The process and the descriptor where it was seen last.
    place: (u32, i32),
    /// The process that the one there, a child of it, has the socket from.
    parent: Option<u32>,
}

/// When a socket is looked for again.
#[derive(Debug)]
struct Pause {
    until: Instant,
    length: Duration,
}

/// Remembers sockets from look to look, by their inode numbers.
#[derive(Debug, Default)]
pub(crate) struct Sight {
    known: HashMap<u64, Known>,
    missing: HashMap<u64, Pause>,
    /// Processes, and since when they are known; until it was seen what they have from their
    /// parents.
    met: HashMap<u32, Option<Instant>>,
    /// Processes whose descriptors can't be read.
    unreadable: HashSet<u32>,
    /// Why the last look failed, as it was told.
    told: Option<String>,
}

impl Sight {
    /// The sockets that these processes hold; and copies of those that were not known.
    /// Nothing if they can't be read now: that they are closed does not follow from it.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        groups: &[Group],
    ) -> Option<(Vec<Held>, Vec<Adopted>)> {
        let listening = match listening() {
            Ok(listening) => listening,
            Err(error) => {
                self.tell_once(error);
                return None;
            }
        };
        self.known.retain(|inode, _| listening.contains(inode));
        self.missing.retain(|inode, _| listening.contains(inode));
        let owners: HashMap<u32, InstanceId> = groups
            .iter()
            .flat_map(|group| group.processes.iter().map(|&pid| (pid, group.id)))
            .collect();
        let mut holders: HashMap<u64, InstanceId> = HashMap::new();
        for (&inode, known) in &mut self.known {
            if !owners.contains_key(&known.place.0) || !holds(known.place, inode) {
                known.go_to_sibling(inode, groups);
            }
            if let Some(&owner) = owners.get(&known.place.0)
                && holds(known.place, inode)
            {
                holders.insert(inode, owner);
            }
        }
        let is_due = |inode: &u64| self.missing.get(inode).is_none_or(|pause| pause.until <= now);
        let mut wanted: HashSet<u64> = listening
            .into_iter()
            .filter(|inode| !holders.contains_key(inode) && is_due(inode))
            .collect();
        let fresh = self.search(groups, &mut wanted, &mut holders)?;
        self.see_children(now, groups, &holders);
        self.told = None;
        self.missing.retain(|inode, _| !holders.contains_key(inode));
        for inode in wanted {
            self.miss(now, inode);
        }
        let held = holders.iter().filter_map(|(inode, &owner)| self.known[inode].held(owner));
        Some((held.collect(), fresh))
    }

    /// Sees at a child what its parent holds and does not accept from, once for each child.
    fn see_children(&mut self, now: Instant, groups: &[Group], holders: &HashMap<u64, InstanceId>) {
        let processes =
            || groups.iter().flat_map(|it| it.processes.iter().map(|&pid| (it.id, pid)));
        let there: HashSet<u32> = processes().map(|(_, pid)| pid).collect();
        self.met.retain(|pid, _| there.contains(pid));
        for (owner, pid) in processes() {
            let since = self.met.entry(pid).or_insert(Some(now));
            if since.is_none_or(|since| now < since + SETTLED) {
                continue;
            }
            *since = None;
            let Some(parent) = parent(pid).filter(|parent| there.contains(parent)) else {
                continue;
            };
            for (inode, known) in &mut self.known {
                if holders.get(inode) == Some(&owner) && known.place.0 == parent {
                    known.go_to_child(*inode, pid);
                }
            }
        }
    }

    fn tell_once(&mut self, error: Error) {
        let why = error.with_causes();
        if self.told.as_ref() != Some(&why) {
            tell(error);
            self.told = Some(why);
        }
    }

    /// Goes through the descriptors of processes. What is found is wanted no more.
    fn search(
        &mut self,
        groups: &[Group],
        wanted: &mut HashSet<u64>,
        holders: &mut HashMap<u64, InstanceId>,
    ) -> Option<Vec<Adopted>> {
        let mut fresh = Vec::new();
        for (owner, pid) in
            groups.iter().flat_map(|it| it.processes.iter().map(|&pid| (it.id, pid)))
        {
            if wanted.is_empty() {
                break;
            }
            for (descriptor, inode) in self.sockets_of(pid)? {
                if !wanted.contains(&inode) {
                    continue;
                }
                if let Some(known) = self.known.get_mut(&inode) {
                    (known.place, known.parent) = ((pid, descriptor), None);
                } else {
                    // It may be closed by now.
                    let Some(socket) = take(pid, descriptor, inode) else { continue };
                    let Some(known) = Known::of(&socket) else { continue };
                    self.known.insert(inode, known);
                    fresh.push(socket);
                }
                wanted.remove(&inode);
                holders.insert(inode, owner);
                // Children that have it may have been seen already.
                self.met.clear();
            }
        }
        Some(fresh)
    }

    /// The sockets of a process; nothing if that can't be told now. Why it may not be read is told
    /// once.
    fn sockets_of(&mut self, pid: u32) -> Option<Vec<(i32, u64)>> {
        match adopt::sockets_of(pid) {
            Ok(sockets) => Some(sockets),
            Err(Error::NoSuchProcess { .. }) => Some(Vec::new()),
            Err(error @ Error::Permission { .. }) => {
                if self.unreadable.insert(pid) {
                    tell(error);
                }
                Some(Vec::new())
            }
            Err(error) => {
                self.tell_once(error);
                None
            }
        }
    }

    fn miss(&mut self, now: Instant, inode: u64) {
        let before = self.missing.get(&inode);
        let length = before.map_or(SHORTEST, |pause| (pause.length * 2).min(LONGEST));
        self.missing.insert(inode, Pause { until: now + length, length });
    }

    /// Forgets a socket, so that the next look gives a copy of it again.
    pub(crate) fn forget(&mut self, cookie: u64) {
        self.known.retain(|_, known| known.cookie != cookie);
    }

    /// A process has come that may hold a socket which none held before.
    pub(crate) fn hurry(&mut self) {
        self.missing.clear();
    }
}

impl Known {
    /// Nothing where the socket can't be asked, which one that has just been closed can't.
    fn of(socket: &Adopted) -> Option<Self> {
        let cookie = socket.cookie().ok()?;
        let address = socket.address();
        if socket.listens()
            && let Err(error) = &address
        {
            let why = error.with_causes();
            crate::log::line(format_args!("process {}: {why}; it stays by itself", socket.pid()));
        }
        let place = (socket.pid(), socket.descriptor());
        let shares_port = socket.shares_port();
        Some(Self { cookie, address: address.ok(), shares_port, place, parent: None })
    }

    /// A child has what its parent has under the same number.
    fn go_to_child(&mut self, inode: u64, child: u32) {
        let (process, descriptor) = self.place;
        // Children of a process that accepts by itself are its helpers.
        if self.parent.is_none()
            && holds((child, descriptor), inode)
            && !accepts(process, descriptor, inode)
        {
            (self.place, self.parent) = ((child, descriptor), Some(process));
        }
    }

    /// The child that it was seen at has ended: another one of the same parent has it as well.
    fn go_to_sibling(&mut self, inode: u64, groups: &[Group]) {
        let Some(from) = self.parent else { return };
        let all = groups.iter().find(|group| group.processes.contains(&from));
        let is_one =
            |pid: &&u32| holds((**pid, self.place.1), inode) && parent(**pid) == Some(from);
        let sibling = all.and_then(|group| group.processes.iter().find(is_one));
        if let Some(&sibling) = sibling {
            self.place.0 = sibling;
        }
    }

    fn held(&self, owner: InstanceId) -> Option<Held> {
        let Self { cookie, shares_port, place: (pid, descriptor), .. } = *self;
        Some(Held { owner, pid, descriptor, cookie, address: self.address?, shares_port })
    }
}

fn take(pid: u32, descriptor: i32, inode: u64) -> Option<Adopted> {
    adopt::at_descriptor(pid, descriptor, inode).unwrap_or_else(|error| {
        tell(error);
        None
    })
}

/// Those of the processes that hold a listening socket; nothing if that can't be told now.
pub(crate) fn listeners_among(processes: &[u32]) -> Option<Vec<u32>> {
    let listening = listening().ok()?;
    let listens = |&&pid: &&u32| {
        let sockets = adopt::sockets_of(pid).unwrap_or_default();
        sockets.iter().any(|(_, inode)| listening.contains(inode))
    };
    Some(processes.iter().filter(listens).copied().collect())
}

/// Whether there is a process with that number.
pub(crate) fn runs(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

/// Whether a process's descriptor is the socket with that inode number.
fn holds((pid, descriptor): (u32, i32), inode: u64) -> bool {
    let link = std::fs::read_link(format!("/proc/{pid}/fd/{descriptor}"));
    link.is_ok_and(|link| link.as_os_str() == format!("socket:[{inode}]").as_str())
}
