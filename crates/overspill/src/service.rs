//! Making, changing and reading services.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroU16;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::adopt::Adopted;
use crate::datapath::roster::{self, Member, Roster};
use crate::datapath::{self, Capacity, Datapath, Dispatcher, Joining, Lock, Snapshot};
use crate::error::{Error, Result};
use crate::member::{Health, MemberId};
use crate::name::Name;
use crate::namespace::Namespace;
use crate::nearest::nearest;
use crate::policy::{OnFull, Policy, Rules};
use crate::status::{ListedSocket, Queue, Status};
use crate::sys::{self, Listener};

/// A service in the kernel. This is its name, not its life: dropping it changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    name: Name,
    namespace: Namespace,
}

/// How a new service is to be; see [`Service::builder`].
#[derive(Debug, Clone)]
pub struct Builder {
    name: String,
    rules: Rules,
    dispatcher: Option<PathBuf>,
    namespace: Option<Namespace>,
    capacity: Option<Capacity>,
    seed: Option<u32>,
    backlog: u32,
}

/// What to change of a service; what is `None` stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// See [`Rules::policy`].
    pub policy: Option<Policy>,
    /// The object file of a program that is to choose from now on; the policy then is
    /// [`Policy::Dispatcher`], whatever else `policy` says. See [`Builder::dispatcher`].
    pub dispatcher: Option<PathBuf>,
    /// See [`Rules::on_full`].
    pub on_full: Option<OnFull>,
    /// See [`Rules::redirect`].
    pub redirect: Option<bool>,
    /// See [`Rules::spread`].
    pub spread: Option<bool>,
    /// Members' shares among those that hold as much, for the policies that look at the
    /// load. A new member's is 1; those that are not named keep theirs.
    pub weights: Vec<(MemberId, NonZeroU16)>,
}

impl Change {
    fn apply(&self, rules: &mut Rules) {
        let asked = self.dispatcher.as_ref().map(|_| Policy::Dispatcher);
        rules.policy = asked.or(self.policy).unwrap_or(rules.policy);
        rules.on_full = self.on_full.unwrap_or(rules.on_full);
        rules.redirect = self.redirect.unwrap_or(rules.redirect);
        rules.spread = self.spread.unwrap_or(rules.spread);
    }
}

/// A socket that is to be a member.
struct Candidate<'a> {
    socket: BorrowedFd<'a>,
    pid: u32,
    listener: Listener,
}

impl<'a> Candidate<'a> {
    fn own<F: AsFd>(sockets: &'a [F]) -> Result<Vec<Self>> {
        let pid = std::process::id();
        Self::all(sockets.iter().map(|socket| (socket.as_fd(), pid)))
    }

    fn adopted<A: Borrow<Adopted>>(sockets: &'a [A]) -> Result<Vec<Self>> {
        let adopted = sockets.iter().map(Borrow::borrow);
        Self::all(adopted.map(|adopted: &Adopted| (adopted.as_fd(), adopted.pid())))
    }

    fn all(sockets: impl Iterator<Item = (BorrowedFd<'a>, u32)>) -> Result<Vec<Self>> {
        let mut all: Vec<Self> = Vec::new();
        for (socket, pid) in sockets {
            let mut listener = sys::inspect(socket)?;
            // One descriptor of a namespace is enough: each socket would take two of what
            // the process may have.
            let known = all.first().map(|first| &first.listener.namespace);
            if let Some(known) = known.filter(|&known| *known == listener.namespace) {
                listener.namespace = known.clone();
            }
            all.push(Self { socket, pid, listener });
        }
        Ok(all)
    }
}

impl Builder {
    /// All its rules at once (those of [`Rules::default`]).
    #[must_use]
    pub fn rules(mut self, rules: Rules) -> Self {
        self.rules = rules;
        self
    }

    /// How a member is chosen among those with room ([`Policy::NextAvailable`]).
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.rules.policy = policy;
        self
    }

    /// Lets a program of the user's own choose, by [`Policy::Dispatcher`]: that in this
    /// object file, made with `include/overspill_dispatcher.h`. It is loaded when the
    /// service is made; the file is not needed after that. Until another policy is chosen,
    /// it stays with the service.
    #[must_use]
    pub fn dispatcher(mut self, path: impl Into<PathBuf>) -> Self {
        self.rules.policy = Policy::Dispatcher;
        self.dispatcher = Some(path.into());
        self
    }

    /// What becomes of a request when every queue is full ([`OnFull::Drop`]).
    #[must_use]
    pub fn on_full(mut self, on_full: OnFull) -> Self {
        self.rules.on_full = on_full;
        self
    }

    /// Whether requests are redirected at all (they are).
    #[must_use]
    pub fn redirect(mut self, redirect: bool) -> Self {
        self.rules.redirect = redirect;
        self
    }

    /// Whether every member is a called one, whatever its address (only those at the
    /// called address are).
    #[must_use]
    pub fn spread(mut self, spread: bool) -> Self {
        self.rules.spread = spread;
        self
    }

    /// The network namespace (that of the sockets).
    #[must_use]
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = Some(namespace);
        self
    }

    /// How many services and members the network namespace is set up for, if this is
    /// its first service. A capacity other than that of a namespace that has services is
    /// refused.
    #[must_use]
    pub fn capacity(mut self, capacity: Capacity) -> Self {
        self.capacity = Some(capacity);
        self
    }

    /// The seed of the flow's hash (a random number), if this is the first service of its
    /// network namespace. For simulations and tests, which must know the member that a
    /// flow calls; where clients can guess it, they can choose their member.
    #[must_use]
    pub fn seed(mut self, seed: u32) -> Self {
        self.seed = Some(seed);
        self
    }

    /// The backlog of the sockets that [`Builder::listen`] makes (4096; the kernel
    /// lowers it to `net.core.somaxconn`).
    #[must_use]
    pub fn backlog(mut self, backlog: u32) -> Self {
        self.backlog = backlog;
        self
    }

    /// Makes the service of listening sockets of this process, in this order.
    ///
    /// # Errors
    ///
    /// The name, or a socket, is not fit: the variants of [`Error`] say how. Nothing has
    /// changed then.
    pub fn share<F: AsFd>(self, sockets: &[F]) -> Result<Service> {
        let candidates = Candidate::own(sockets)?;
        self.make(&candidates)
    }

    /// Makes the service of sockets taken from other processes.
    ///
    /// # Errors
    ///
    /// As [`Builder::share`].
    pub fn share_adopted<A: Borrow<Adopted>>(self, sockets: &[A]) -> Result<Service> {
        let candidates = Candidate::adopted(sockets)?;
        self.make(&candidates)
    }

    /// Makes a listening socket for each address, in this order, and the service of them.
    /// An address may be given several times; its sockets then share it
    /// (`SO_REUSEPORT`).
    ///
    /// # Errors
    ///
    /// As [`Builder::share`], or the kernel refuses an address. The sockets are closed
    /// then.
    pub fn listen(
        self,
        addresses: impl IntoIterator<Item = SocketAddr>,
    ) -> Result<(Service, Vec<TcpListener>)> {
        let listeners = listeners(addresses, self.backlog)?;
        let service = self.share(&listeners)?;
        Ok((service, listeners))
    }

    fn make(self, candidates: &[Candidate<'_>]) -> Result<Service> {
        let name: Name = self.name.parse()?;
        check_dispatcher(self.rules, self.dispatcher.as_deref(), None, &name)?;
        let Some(first) = candidates.first() else {
            return Err(Error::NoMembers { service: self.name });
        };
        let namespace = self.namespace.unwrap_or_else(|| first.listener.namespace.clone());
        check_namespaces(candidates, &namespace)?;
        // NAME:PORT with another port than the sockets' would mislead: they don't fit it.
        let port = name.port().unwrap_or(first.listener.address.port);
        let mut roster = Roster::new(self.name, port, self.rules);
        let lock = Lock::acquire()?;
        let datapath = Datapath::open_or_make(&namespace, self.capacity, self.seed, &lock)?;
        let made = datapath.snapshot(&lock).and_then(|snapshot| {
            if snapshot.find(&roster.name).is_some() {
                return Err(Error::NameTaken { name: roster.name.clone() });
            }
            let id = datapath.free_id(&snapshot)?;
            check(&roster, id, candidates, &snapshot)?;
            let joining = join(&mut roster, &datapath, &snapshot, candidates)?;
            let dispatcher = load(self.dispatcher.as_deref(), &datapath)?;
            let dispatcher = dispatcher.as_ref();
            let change =
                datapath::Change { id, old: None, new: Some(&roster), joining, dispatcher };
            datapath.apply(&snapshot, &change)
        });
        if let Err(error) = made {
            // A state made for this service alone is taken away again.
            if datapath.is_empty()? {
                datapath.remove(&lock)?;
            }
            return Err(error);
        }
        Ok(Service { name, namespace })
    }
}

/// A listening socket for each address, in no service yet; an address may be given several
/// times, its sockets then share it (`SO_REUSEPORT`).
///
/// # Errors
///
/// The kernel refuses an address. The sockets made before it are closed again.
pub fn listeners(
    addresses: impl IntoIterator<Item = SocketAddr>,
    backlog: u32,
) -> Result<Vec<TcpListener>> {
    let addresses: Vec<SocketAddr> = addresses.into_iter().collect();
    // A wildcard stands in the way of every address on its port.
    let in_the_way = |one: SocketAddr, other: SocketAddr| {
        let wildcard = one.ip().is_unspecified() || other.ip().is_unspecified();
        one.port() == other.port() && (wildcard || one.ip() == other.ip())
    };
    let shared = |one| addresses.iter().filter(|&&other| in_the_way(one, other)).count() > 1;
    addresses.iter().map(|&address| sys::listen(address, backlog, shared(address))).collect()
}

/// Empties the queue of a listening socket without losing what waits there: the kernel
/// moves it to siblings in its `SO_REUSEPORT` group, if requests are kept there
/// ([`Service::keep_requests`]); otherwise they are reset. The socket listens on.
///
/// `backlog` is the one that it is to listen with ([`Queue::backlog`]).
///
/// # Errors
///
/// The kernel refuses to let it listen again.
pub fn empty_queue(socket: &impl AsFd, backlog: u32) -> Result<()> {
    sys::empty_queue(socket.as_fd(), backlog)
        .map_err(|error| Error::system("empty the queue of", "a member", error))
}

/// Wakes whoever waits for connections on a listening socket (`accept`, `poll`, `epoll`).
///
/// Needed after requests were moved to it ([`Service::keep_requests`]): kernels before a fix of
/// 2026 put a moved connection into the queue and wake nobody (`inet_csk_listen_stop`,
/// `net/ipv4/inet_connection_sock.c`), so that a client waits until the next one comes.
/// If the queue is empty, they go back to sleep.
///
/// # Errors
///
/// [`Error::System`]: `socket` is not a listening TCP socket.
pub fn wake(socket: &impl AsFd) -> Result<()> {
    sys::wake(socket.as_fd())
        .map_err(|error| Error::system("wake those who wait for", "a socket", error))
}

impl Service {
    /// Begins a new service.
    #[must_use]
    pub fn builder(name: &str) -> Builder {
        Builder {
            name: name.to_owned(),
            rules: Rules::default(),
            dispatcher: None,
            namespace: None,
            capacity: None,
            seed: None,
            backlog: 4096,
        }
    }

    /// The service of that name in the calling thread's network namespace. `NAME:PORT` is also
    /// the service `NAME`, if that is its port and no other is called so.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchService`].
    pub fn open(name: &str) -> Result<Self> {
        Self::open_in(name, &Namespace::current()?)
    }

    /// The same in `namespace`.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchService`].
    pub fn open_in(name: &str, namespace: &Namespace) -> Result<Self> {
        let service = Self { name: name.parse()?, namespace: namespace.clone() };
        let Some(datapath) = Datapath::open(namespace)? else {
            return Err(service.unknown(std::iter::empty()));
        };
        match service.find(&datapath) {
            Ok(_) => Ok(service),
            Err(unknown @ Error::NoSuchService { .. }) => {
                service.on_first_port(&datapath)?.ok_or(unknown)
            }
            Err(error) => Err(error),
        }
    }

    /// Of a name with a port: the service that has the name without it, if it is on that port.
    fn on_first_port(&self, datapath: &Datapath) -> Result<Option<Self>> {
        let Some(port) = self.name.port() else { return Ok(None) };
        let first = Self { name: self.name.without_port(), namespace: self.namespace.clone() };
        match first.read(datapath) {
            Ok((_, roster)) => Ok((roster.port == port).then_some(first)),
            Err(Error::NoSuchService { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All services of a network namespace, by name.
    pub fn all(namespace: &Namespace) -> Result<Vec<Self>> {
        let Some(datapath) = Datapath::open(namespace)? else { return Ok(Vec::new()) };
        let service = |name| Self { name: Name(name), namespace: namespace.clone() };
        let mut services = datapath
            .names()
            .map(|named| named.map(|(_, name)| service(name)))
            .collect::<Result<Vec<_>>>()?;
        services.sort_by(|a, b| a.name.0.cmp(&b.name.0));
        Ok(services)
    }

    /// What all services of a network namespace look like, by name: one look at its state.
    pub fn statuses(namespace: &Namespace) -> Result<Vec<Status>> {
        let Some(datapath) = Datapath::open(namespace)? else { return Ok(Vec::new()) };
        let mut statuses = datapath.statuses()?;
        statuses.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(statuses)
    }

    /// The members' sockets of all services of a network namespace, in list order, with the
    /// services' names: less than [`Service::statuses`] tells, and cheaper.
    pub fn sockets(namespace: &Namespace) -> Result<Vec<(Name, Vec<ListedSocket>)>> {
        let Some(datapath) = Datapath::open(namespace)? else { return Ok(Vec::new()) };
        let sockets = datapath.sockets()?.into_iter();
        Ok(sockets.map(|(name, members)| (Name(name), members)).collect())
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The network namespace that it lives in.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its members, their queues and the counters.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchService`] when it was removed.
    pub fn status(&self) -> Result<Status> {
        let datapath = self.datapath()?;
        let id = self.find(&datapath)?;
        // Its number may have been given to another service since.
        let status = datapath.status(id)?.filter(|status| status.name == self.name.0);
        status.ok_or_else(|| self.unknown(std::iter::empty()))
    }

    /// Adds a listening socket of this process at the end of the list.
    ///
    /// # Errors
    ///
    /// As [`Builder::share`].
    pub fn join(&self, socket: &impl AsFd) -> Result<MemberId> {
        let joined = self.add(&Candidate::own(std::slice::from_ref(socket))?)?;
        Ok(joined[0])
    }

    /// Adds sockets taken from other processes at the end of the list.
    ///
    /// # Errors
    ///
    /// As [`Builder::share`].
    pub fn join_adopted<A: Borrow<Adopted>>(&self, sockets: &[A]) -> Result<Vec<MemberId>> {
        self.add(&Candidate::adopted(sockets)?)
    }

    /// Which member a socket is, if it is one.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchService`] when it was removed; the socket does not listen.
    pub fn member(&self, socket: &impl AsFd) -> Result<Option<MemberId>> {
        let cookie = sys::inspect(socket.as_fd())?.cookie;
        let (_, roster) = self.read(&self.datapath()?)?;
        Ok(roster.members.iter().find(|it| it.cookie == cookie).map(|it| it.id))
    }

    /// Takes a member out of the list. Its socket is untouched: what it holds stays
    /// there, and requests to its address are the kernel's own affair again.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchMember`], or [`Error::NoMembers`] for the last one.
    pub fn leave(&self, member: MemberId) -> Result<()> {
        self.change(|roster| {
            let position = self.position(roster, member)?;
            if roster.members.len() == 1 {
                return Err(Error::NoMembers { service: self.name.0.clone() });
            }
            roster.leave(position);
            Ok(())
        })
    }

    /// Gives the member no new requests; what it holds stays. Where only draining
    /// members are left, requests are refused.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchMember`].
    pub fn drain(&self, member: MemberId) -> Result<()> {
        self.set_draining(member, true)
    }

    /// Gives the member requests again.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchMember`].
    pub fn resume(&self, member: MemberId) -> Result<()> {
        self.set_draining(member, false)
    }

    /// Lets the members named stand in this order, in the places that they hold together;
    /// the others stay where they are. Who is no member is left out.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchService`] when it was removed.
    pub fn arrange(&self, order: &[MemberId]) -> Result<()> {
        self.change(|roster| {
            roster.arrange(order);
            Ok(())
        })
    }

    /// Notes that another process serves the member's socket now. For people: nothing
    /// depends on it.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchMember`].
    pub fn set_pid(&self, member: MemberId, pid: u32) -> Result<()> {
        self.change(|roster| {
            let position = self.position(roster, member)?;
            roster.members[position].pid = pid;
            Ok(())
        })
    }

    /// Counts a start of the process of each of these members ([`MemberStatus::starts`]). For
    /// whoever starts it: nothing else does.
    ///
    /// [`MemberStatus::starts`]: crate::MemberStatus::starts
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchMember`].
    pub fn count_starts(&self, members: &[MemberId]) -> Result<()> {
        let Open { lock: _lock, datapath, roster, .. } = self.open_for_change()?;
        members.iter().try_for_each(|&member| {
            let slot = roster.members[self.position(&roster, member)?].slot;
            datapath.set_starts(slot, datapath.starts(slot)? + 1)
        })
    }

    /// Counts a start of one member's process.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchMember`].
    pub fn count_start(&self, member: MemberId) -> Result<()> {
        self.count_starts(&[member])
    }

    /// Puts another listening socket into a member's place: that of its successor, at the
    /// same address. The member's number, weight and starts stay, its other counters begin anew.
    /// A draining member drains on if the socket is one of the same process; another process has
    /// come to serve. The old socket is untouched. It needs no room for one more member, unless the
    /// capacity is [`Capacity::MAX`] members.
    ///
    /// # Errors
    ///
    /// As [`Service::join`]; [`Error::NoSuchMember`]; [`Error::OtherAddress`] when the new
    /// socket is bound to another address than the old one.
    pub fn replace(&self, member: MemberId, socket: &impl AsFd) -> Result<()> {
        self.put_in_place(member, &Candidate::own(std::slice::from_ref(socket))?)
    }

    /// The same with a socket taken from another process.
    ///
    /// # Errors
    ///
    /// As [`Service::replace`].
    pub fn replace_adopted(&self, member: MemberId, socket: &Adopted) -> Result<()> {
        self.put_in_place(member, &Candidate::adopted(std::slice::from_ref(socket))?)
    }

    /// Gives the service another name. What is counted stays.
    ///
    /// # Errors
    ///
    /// [`Error::BadName`], or [`Error::NameTaken`].
    pub fn rename(&mut self, name: &str) -> Result<()> {
        let name: Name = name.parse()?;
        self.change_with(|_, snapshot, roster| {
            if name != self.name && snapshot.find(&name.0).is_some() {
                return Err(Error::NameTaken { name: name.0.clone() });
            }
            roster.name.clone_from(&name.0);
            Ok(Vec::new())
        })?;
        self.name = name;
        Ok(())
    }

    /// The members' queues, in list order. Who looks often does so with [`Service::looker`].
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchService`] when it was removed.
    pub fn queues(&self) -> Result<Vec<Queue>> {
        self.looker()?.queues()
    }

    /// Looks at the queues again and again, at the cost of a few system calls a look.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchService`].
    pub fn looker(&self) -> Result<Looker> {
        Ok(Looker { service: self.clone(), place: Mutex::new(self.place()?) })
    }

    /// Its number, and the state that has it.
    fn place(&self) -> Result<(Datapath, u32)> {
        let datapath = self.datapath()?;
        let id = self.find(&datapath)?;
        Ok((datapath, id))
    }

    /// Marks a member as hung, on trial or well. It takes effect at once, without a new list,
    /// and a change of the list keeps it, but for one that is being made at the same moment
    /// by another writer: whoever marks looks again. A mark runs out when it is not renewed within 10 s,
    /// so that a member is not left out when whoever watched it has ended.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchMember`].
    pub fn set_health(&self, member: MemberId, health: Health) -> Result<()> {
        self.looker()?.set_health(member, health)
    }

    /// Lets the kernel move what waits at this member's socket, or is half open there, to
    /// a sibling at the same address when the socket ends or is emptied
    /// ([`empty_queue`](crate::empty_queue)): to the one that holds the fewest. It holds
    /// for the socket's whole `SO_REUSEPORT` group, in which there has to be a sibling.
    ///
    /// # Errors
    ///
    /// The kernel refuses it: the socket has no `SO_REUSEPORT`; [`Error::OtherVersion`].
    pub fn keep_requests(&self, socket: &impl AsFd) -> Result<()> {
        let datapath = self.datapath()?;
        datapath.check_writable()?;
        let program = datapath.mover()?;
        sys::attach_to_group(socket.as_fd(), program.as_fd()).map_err(|error| {
            Error::system("attach a program to the SO_REUSEPORT group of", "a member", error)
        })
    }

    /// Changes its rules and its members' weights, all of it or nothing.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchMember`] for a weight; [`Error::NoDispatcher`] when the policy is to be
    /// [`Policy::Dispatcher`] and there is no program; what is wrong with a program given:
    /// [`Error::NotADispatcher`], [`Error::DispatcherVersion`], [`Error::DispatcherRefused`],
    /// or that it can't be read.
    pub fn set(&self, change: &Change) -> Result<()> {
        let path = change.dispatcher.as_deref();
        self.change_all(path, |_, _, roster| {
            let before = roster.rules.policy;
            change.apply(&mut roster.rules);
            check_dispatcher(roster.rules, path, Some(before), &self.name)?;
            for &(member, weight) in &change.weights {
                let position = self.position(roster, member)?;
                roster.members[position].weight = weight.get();
            }
            Ok(Vec::new())
        })
    }

    /// Removes the service. Its sockets are untouched and get their requests from the
    /// kernel again; with the last service of a namespace all that overspill has there
    /// is taken away.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchService`].
    pub fn remove(self) -> Result<()> {
        let (lock, datapath) = self.open_locked()?;
        if !datapath.is_of_own_layout() {
            return self.remove_from(datapath, &lock);
        }
        let Open { lock, datapath, snapshot, id, roster } = self.open_all(lock, datapath)?;
        let change = datapath::Change {
            id,
            old: Some(&roster),
            new: None,
            joining: Vec::new(),
            dispatcher: None,
        };
        if datapath.apply(&snapshot, &change)?.is_empty() {
            datapath.remove(&lock)?;
        }
        Ok(())
    }

    /// Removes it from the state of another layout.
    fn remove_from(&self, datapath: Datapath, lock: &Lock) -> Result<()> {
        let (id, roster) = self.read(&datapath)?;
        datapath.retire(id, &roster, lock)?;
        if datapath.is_empty()? { datapath.remove(lock) } else { Ok(()) }
    }

    /// Its number and roster, in a state of any layout.
    fn read(&self, datapath: &Datapath) -> Result<(u32, Roster)> {
        let id = self.find(datapath)?;
        let roster = datapath.roster(id)?;
        // As in `status`.
        let roster = roster.filter(|roster| roster.name == self.name.0);
        Ok((id, roster.ok_or_else(|| self.unknown(std::iter::empty()))?))
    }

    fn datapath(&self) -> Result<Datapath> {
        Datapath::open(&self.namespace)?.ok_or_else(|| self.unknown(std::iter::empty()))
    }

    /// Its number.
    pub(crate) fn find(&self, datapath: &Datapath) -> Result<u32> {
        let mut others = Vec::new();
        for named in datapath.names() {
            match named? {
                (id, name) if name == self.name.0 => return Ok(id),
                (_, name) => others.push(name),
            }
        }
        Err(self.unknown(others.iter().map(String::as_str)))
    }

    fn unknown<'a>(&self, names: impl Iterator<Item = &'a str>) -> Error {
        Error::NoSuchService {
            name: self.name.0.clone(),
            nearest: nearest(&self.name.0, names).map(str::to_owned),
        }
    }

    fn position(&self, roster: &Roster, member: MemberId) -> Result<usize> {
        roster.position(member).ok_or_else(|| {
            let known: Vec<String> =
                roster.members.iter().take(16).map(|member| member.id.to_string()).collect();
            let more = if roster.members.len() > 16 { ", ..." } else { "" };
            Error::NoSuchMember {
                service: self.name.0.clone(),
                member,
                known: known.join(", ") + more,
            }
        })
    }

    fn set_draining(&self, member: MemberId, draining: bool) -> Result<()> {
        let (lock, datapath) = self.open_locked()?;
        if !datapath.is_of_own_layout() {
            return self.set_draining_in(&datapath, member, draining);
        }
        let open = self.open_all(lock, datapath)?;
        Self::change_open(open, None, |_, _, roster| {
            let position = self.position(roster, member)?;
            roster.members[position].draining = draining;
            Ok(Vec::new())
        })
    }

    /// The same in the state of another layout: in place, since only its own build can publish.
    fn set_draining_in(&self, datapath: &Datapath, member: MemberId, draining: bool) -> Result<()> {
        let (id, roster) = self.read(datapath)?;
        let position = self.position(&roster, member)?;
        let marked = Member { draining, ..roster.members[position].clone() };
        // The lock is held, so that the list stays as it was read.
        if datapath.drain_in_place(id, position, &marked)? {
            return Ok(());
        }
        Err(self.unknown(std::iter::empty()))
    }

    /// Replaces the roster by a changed one, if the change makes a difference.
    fn change(&self, change: impl FnOnce(&mut Roster) -> Result<()>) -> Result<()> {
        self.change_with(|_, _, roster| change(roster).map(|()| Vec::new()))
    }

    fn put_in_place(&self, member: MemberId, candidates: &[Candidate<'_>]) -> Result<()> {
        check_namespaces(candidates, &self.namespace)?;
        self.change_with(|datapath, snapshot, roster| {
            let position = self.position(roster, member)?;
            let listener = &candidates[0].listener;
            let expected = roster.members[position].address;
            if listener.address != expected {
                return Err(Error::OtherAddress { socket: listener.name.clone(), expected });
            }
            let (id, _) = snapshot.find(&roster.name).expect("it is being changed");
            check(roster, id, candidates, snapshot)?;
            let slot = datapath.successors_slot(snapshot)?;
            let (members, mut joining) = seats(candidates, &[slot]);
            joining[0].starts = datapath.starts(roster.members[position].slot)?;
            roster.replace(position, &members[0]);
            Ok(joining)
        })
    }

    fn add(&self, candidates: &[Candidate<'_>]) -> Result<Vec<MemberId>> {
        check_namespaces(candidates, &self.namespace)?;
        let mut joined = Vec::new();
        self.change_with(|datapath, snapshot, roster| {
            let (id, _) = snapshot.find(&roster.name).expect("it is being changed");
            check(roster, id, candidates, snapshot)?;
            let before = roster.members.len();
            let joining = join(roster, datapath, snapshot, candidates)?;
            joined = roster.members[before..].iter().map(|member| member.id).collect();
            Ok(joining)
        })?;
        Ok(joined)
    }

    fn change_with<'a>(
        &self,
        change: impl FnOnce(&Datapath, &Snapshot, &mut Roster) -> Result<Vec<Joining<'a>>>,
    ) -> Result<()> {
        self.change_all(None, change)
    }

    /// The same, with the program of the file as its dispatcher.
    fn change_all<'a>(
        &self,
        dispatcher: Option<&Path>,
        change: impl FnOnce(&Datapath, &Snapshot, &mut Roster) -> Result<Vec<Joining<'a>>>,
    ) -> Result<()> {
        Self::change_open(self.open_for_change()?, dispatcher, change)
    }

    fn change_open<'a>(
        open: Open,
        dispatcher: Option<&Path>,
        change: impl FnOnce(&Datapath, &Snapshot, &mut Roster) -> Result<Vec<Joining<'a>>>,
    ) -> Result<()> {
        let Open { lock: _lock, datapath, snapshot, id, roster } = open;
        let mut new = roster.clone();
        let joining = change(&datapath, &snapshot, &mut new)?;
        if new == roster && dispatcher.is_none() {
            return Ok(());
        }
        let dispatcher = load(dispatcher, &datapath)?;
        let dispatcher = dispatcher.as_ref();
        let change =
            datapath::Change { id, old: Some(&roster), new: Some(&new), joining, dispatcher };
        datapath.apply(&snapshot, &change).map(drop)
    }

    fn open_for_change(&self) -> Result<Open> {
        let (lock, datapath) = self.open_locked()?;
        self.open_all(lock, datapath)
    }

    /// The state, of whatever layout, and the right to change it.
    fn open_locked(&self) -> Result<(Lock, Datapath)> {
        let lock = Lock::acquire()?;
        let datapath = self.datapath()?;
        datapath.check_program()?;
        Ok((lock, datapath))
    }

    fn open_all(&self, lock: Lock, datapath: Datapath) -> Result<Open> {
        datapath.check_writable()?;
        let snapshot = datapath.snapshot(&lock)?;
        let Some((id, roster)) = snapshot.find(&self.name.0) else {
            return Err(self.unknown(snapshot.names()));
        };
        let roster = roster.clone();
        Ok(Open { lock, datapath, snapshot, id, roster })
    }
}

/// Looks at a service's queues ([`Service::looker`]).
#[derive(Debug)]
pub struct Looker {
    service: Service,
    /// The state, and the service's number in it.
    place: Mutex<(Datapath, u32)>,
}

impl Looker {
    /// The current state. An upgrade may have replaced the folder since it was opened.
    fn place(&self) -> Result<MutexGuard<'_, (Datapath, u32)>> {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if !place.0.is_current()? {
            *place = self.service.place()?;
        }
        Ok(place)
    }

    /// The members' queues, in list order.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchService`] when it was removed, or renamed.
    pub fn queues(&self) -> Result<Vec<Queue>> {
        let name = self.service.name.as_str();
        let place = self.place()?;
        let queues = place.0.queues(place.1, name)?;
        queues.ok_or_else(|| self.service.unknown(std::iter::empty()))
    }

    /// As [`Service::set_health`].
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchMember`], or [`Error::NoSuchService`].
    pub fn set_health(&self, member: MemberId, health: Health) -> Result<()> {
        let place = self.place()?;
        let (datapath, id) = &*place;
        datapath.check_program()?;
        loop {
            let roster = datapath.roster(*id)?;
            let own = |roster: &Roster| roster.name == self.service.name.0;
            let Some(roster) = roster.filter(own) else {
                return Err(self.service.unknown(std::iter::empty()));
            };
            let position = self.service.position(&roster, member)?;
            let marked = roster::Member { health, ..roster.members[position].clone() };
            // Otherwise the list has changed since it was read.
            if datapath.mark(*id, position, &marked)? {
                return Ok(());
            }
        }
    }
}

/// A service that is being changed, and with it the right to.
struct Open {
    lock: Lock,
    datapath: Datapath,
    snapshot: Snapshot,
    id: u32,
    roster: Roster,
}

fn load(dispatcher: Option<&Path>, datapath: &Datapath) -> Result<Option<Dispatcher>> {
    dispatcher.map(|path| Dispatcher::load(path, datapath)).transpose()
}

/// Whether there is a program where the rules want one: a new one, or the one that is asked
/// already.
fn check_dispatcher(
    rules: Rules,
    new: Option<&Path>,
    before: Option<Policy>,
    service: &Name,
) -> Result<()> {
    let wanted = rules.policy == Policy::Dispatcher;
    if wanted && new.is_none() && before != Some(Policy::Dispatcher) {
        return Err(Error::NoDispatcher { service: service.0.clone() });
    }
    Ok(())
}

fn check_namespaces(candidates: &[Candidate<'_>], namespace: &Namespace) -> Result<()> {
    let listeners = candidates.iter().map(|candidate| &candidate.listener);
    match listeners.into_iter().find(|listener| listener.namespace != *namespace) {
        None => Ok(()),
        Some(listener) => Err(Error::OtherNamespace {
            socket: listener.name.clone(),
            actual: listener.namespace.inode(),
            expected: namespace.inode(),
        }),
    }
}

/// Whether the candidates can join service number `id`, whose roster is given.
fn check(
    roster: &Roster,
    id: u32,
    candidates: &[Candidate<'_>],
    snapshot: &Snapshot,
) -> Result<()> {
    let mut cookies = HashSet::new();
    for Listener { cookie, address, name, namespace } in
        candidates.iter().map(|candidate| &candidate.listener)
    {
        let socket = || name.clone();
        if address.port != roster.port {
            let (actual, expected) = (address.port, roster.port);
            return Err(Error::OtherPort { socket: socket(), actual, expected });
        }
        if !cookies.insert(*cookie) {
            return Err(Error::GivenTwice { socket: socket() });
        }
        if let Some((of, member)) = snapshot.membership(*cookie) {
            let is_elsewhere = Namespace::current().is_ok_and(|current| current != *namespace);
            return Err(Error::AlreadyMember {
                socket: socket(),
                service: of.name.clone(),
                member,
                only: of.members.len() == 1,
                netns: is_elsewhere.then(|| namespace.inode()),
            });
        }
        for ip in address.endpoints() {
            let address = SocketAddr::new(ip, roster.port);
            if let Some(service) = snapshot.serving(address, id) {
                return Err(Error::AddressTaken { address, service: service.to_owned() });
            }
        }
    }
    check_families(roster, candidates)
}

fn check_families(roster: &Roster, candidates: &[Candidate<'_>]) -> Result<()> {
    let addresses = || {
        let members = roster.members.iter().map(|member| member.address);
        members.chain(candidates.iter().map(|candidate| candidate.listener.address))
    };
    let ipv4 = addresses().find(|address| !address.families.ipv6);
    let ipv6 = addresses().find(|address| !address.families.ipv4);
    match (ipv4, ipv6) {
        (Some(ipv4), Some(ipv6)) => Err(Error::MixedFamilies {
            ipv4: format!("socket {ipv4}"),
            ipv6: format!("socket {ipv6}"),
        }),
        _ => Ok(()),
    }
}

/// Enters the candidates into the roster, each with a free slot.
fn join<'a>(
    roster: &mut Roster,
    datapath: &Datapath,
    snapshot: &Snapshot,
    candidates: &[Candidate<'a>],
) -> Result<Vec<Joining<'a>>> {
    let slots = datapath.free_slots(snapshot, candidates.len())?;
    let (members, joining) = seats(candidates, &slots);
    roster.join(members);
    Ok(joining)
}

/// The candidates as members that have no number yet, each with its slot.
fn seats<'a>(candidates: &[Candidate<'a>], slots: &[u32]) -> (Vec<Member>, Vec<Joining<'a>>) {
    let members = candidates.iter().zip(slots).map(|(candidate, &slot)| Member {
        id: MemberId(0),
        pid: candidate.pid,
        cookie: candidate.listener.cookie,
        slot,
        weight: 1,
        draining: false,
        health: Health::Well,
        marked: 0,
        cgroup: 0,
        address: candidate.listener.address,
    });
    let members = members.collect();
    let joining = candidates.iter().zip(slots).map(|(candidate, &slot)| Joining {
        socket: candidate.socket,
        slot,
        cookie: candidate.listener.cookie,
        pid: candidate.pid,
        starts: 0,
        name: candidate.listener.name.clone(),
    });
    (members, joining.collect())
}
