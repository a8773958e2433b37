//! The hooks on a control group.

use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::time::Duration;

use libbpf_rs::{
    Link, MapCore as _, MapFlags, MapHandle, Object, ObjectBuilder, OpenObject, RingBufferBuilder,
};
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes as _};

use super::{layout, verifier};
use crate::adopt::{self, Adopted};
use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::name::Name;

/// `OV_SOCKETS`, of `bpf/hooks.h`.
const SOCKETS: usize = 64;

const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hooks.bpf.o"));

/// Hooks on a control group: every TCP socket that its processes bind gets `SO_REUSEPORT`,
/// so that several of them can listen on one port; each socket that begins to listen is told
/// ([`Hooks::events`]), as is each call of the socket option `SO_MASTERSLAVE`
/// (`include/overspill.h`), to be answered with [`Hooks::answer`].
///
/// They end with this value, and leave nothing behind. They rest on `cgroup/bind4`,
/// `cgroup/bind6`, `BPF_SOCK_OPS_TCP_LISTEN_CB` (`net/ipv4/af_inet.c`),
/// `BPF_SOCK_OPS_TCP_CONNECT_CB` (`net/ipv4/tcp_output.c`), `cgroup/setsockopt` and
/// `cgroup/getsockopt`.
#[derive(Debug)]
pub struct Hooks {
    object: Object,
    attached: Option<AttachedHooks>,
    events: MapHandle,
    calls: MapHandle,
    places: MapHandle,
}

/// Hooks on one control group more ([`Hooks::attach_to`]). They end with this value, or with the
/// control group.
#[derive(Debug)]
pub struct AttachedHooks(Vec<Link>);

/// What the hooks tell, as it happens ([`Hooks::events`]).
#[derive(Debug)]
pub struct HooksEvents(MapHandle);

/// What the hooks tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HooksEvent {
    /// A socket has begun to listen.
    Listening(Listening),
    /// A process connects to a port of its own host on which a socket of the control group has
    /// listened.
    Connecting {
        /// The process that called `connect(2)`.
        pid: u32,
        /// The port.
        port: u16,
    },
    /// Sockets are to join the service of a port.
    Request(Request),
}

/// A socket that has begun to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listening {
    /// The process that called `listen(2)`.
    pub pid: u32,
    /// The socket's `SO_COOKIE`.
    pub cookie: u64,
    /// The port.
    pub port: u16,
}

/// A call of the socket option: sockets that are to join, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The process that called `setsockopt(2)`.
    pub pid: u32,
    /// The port.
    pub port: u16,
    tid: u32,
    caller: u64,
    /// Descriptors, and the inode numbers of the sockets behind them.
    sockets: Vec<(i32, u64)>,
}

impl Request {
    fn read(bytes: &[u8]) -> Option<Self> {
        let request = layout::Request::read_from_bytes(bytes).ok()?;
        let layout::Request { caller, pid, tid, port, count, inodes, fds, .. } = request;
        let sockets = fds.into_iter().zip(inodes).take(count.into()).collect();
        Some(Self { pid, port, tid, caller, sockets })
    }

    /// Duplicates of the sockets, in order.
    ///
    /// # Errors
    ///
    /// One is closed by now, or the caller may not take it ([`Error::System`]).
    pub fn sockets(&self) -> Result<Vec<Adopted>> {
        adopt::by_descriptor(self.pid, self.tid, &self.sockets)
    }
}

impl Hooks {
    /// Loads the hooks to see whether this kernel accepts them, and unloads them.
    pub(crate) fn rehearse() -> Result<()> {
        verifier::retried(|| load(open()?).map(drop))
    }

    /// Attaches them. Sockets on `private` ports are left alone.
    ///
    /// # Errors
    ///
    /// The kernel refuses the programs, or to attach them: [`Error::Permission`],
    /// [`Error::Bpf`].
    pub fn attach(cgroup: &Cgroup, private: &[u16]) -> Result<Self> {
        let mut ports = vec![layout::PORT_SHARED; 1 << 16];
        for &port in private {
            ports[usize::from(port)] = layout::PORT_PRIVATE;
        }
        let hooks = Self::load(&ports)?;
        let attached = hooks.attach_to(cgroup)?;
        Ok(Self { attached: Some(attached), ..hooks })
    }

    /// Loads them for control groups whose servers share only the ports given: on others
    /// `bind(2)` goes on as without them, and sockets join by the option alone. They are attached
    /// with [`Hooks::attach_to`].
    ///
    /// # Errors
    ///
    /// The kernel refuses the programs: [`Error::Permission`], [`Error::Bpf`].
    pub fn sharing(shared: &[u16]) -> Result<Self> {
        let mut ports = vec![layout::PORT_BY_OPTION; 1 << 16];
        for &port in shared {
            ports[usize::from(port)] = layout::PORT_SHARED;
        }
        Self::load(&ports)
    }

    fn load(ports: &[u8]) -> Result<Self> {
        let failed = |operation| move |error| Error::bpf(operation, "the hooks", error);
        let object = verifier::retried(|| load(open()?))?;
        map(&object, "ports")?
            .update(&0_u32.to_ne_bytes(), ports, MapFlags::ANY)
            .map_err(failed("set up"))?;
        let (events, calls, places) =
            (map(&object, "events")?, map(&object, "calls")?, map(&object, "places")?);
        Ok(Self { object, attached: None, events, calls, places })
    }

    /// Attaches them to a control group, beside others that they are attached to.
    ///
    /// # Errors
    ///
    /// The kernel refuses it: [`Error::Permission`], [`Error::Bpf`].
    pub fn attach_to(&self, cgroup: &Cgroup) -> Result<AttachedHooks> {
        let directory = cgroup.open()?;
        let links = self.object.progs_mut().map(|program| {
            program.attach_cgroup(directory.as_raw_fd()).map_err(|error| {
                Error::bpf("attach hooks to", cgroup.path().display().to_string(), error)
            })
        });
        links.collect::<Result<_>>().map(AttachedHooks)
    }

    /// The descriptors that keep them attached to the first control group: with the last of these
    /// they end.
    pub fn links(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.attached.iter().flat_map(|it| &it.0).map(AsFd::as_fd)
    }

    /// What they tell, for one reader.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left.
    pub fn events(&self) -> Result<HooksEvents> {
        MapHandle::try_from(&self.events)
            .map(HooksEvents)
            .map_err(|error| Error::bpf("duplicate", "the map events", error))
    }

    /// Says what has become of a request: the next call of the option on that socket returns
    /// it, once. A caller that has closed the socket is told nothing.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn answer(&self, request: &Request, result: Result<(), Errno>) -> Result<()> {
        let Ok(Some(socket)) = adopt::by_inode(request.pid, request.tid, request.caller) else {
            return Ok(());
        };
        let mut inodes = [0; SOCKETS];
        for (place, &(_, inode)) in inodes.iter_mut().zip(&request.sockets) {
            *place = inode;
        }
        let call = layout::Call {
            progress: layout::CALL_FINISHED,
            error: result.err().map_or(0, Errno::raw_os_error),
            port: request.port,
            count: u16::try_from(request.sockets.len()).expect("it was counted in these"),
            inodes,
        };
        let key = socket.as_fd().as_raw_fd().to_ne_bytes();
        self.calls
            .update(&key, call.as_bytes(), MapFlags::ANY)
            .map_err(|error| Error::bpf("update", "the map calls", error))
    }

    /// Notes which service a socket is a member of, and at what position of its list, for
    /// those that ask with `getsockopt(2)`; `None` is none.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn note(&self, socket: &impl AsFd, place: Option<(&Name, u32)>) -> Result<()> {
        let key = socket.as_fd().as_raw_fd().to_ne_bytes();
        let Some((name, position)) = place else {
            // It may not have been noted at all.
            let _ = self.places.delete(&key);
            return Ok(());
        };
        let mut place = layout::Place { position, flags: 0, service: [0; 72] };
        let name = name.as_str().as_bytes();
        place.service[..name.len()].copy_from_slice(name);
        self.places
            .update(&key, place.as_bytes(), MapFlags::ANY)
            .map_err(|error| Error::bpf("update", "the map places", error))
    }
}

impl HooksEvents {
    /// Waits, and hands out each event, until `told` is false.
    ///
    /// # Errors
    ///
    /// The kernel refuses to wait.
    pub fn each(self, mut told: impl FnMut(HooksEvent) -> bool) -> Result<()> {
        let failed = |error| Error::bpf("read", "the map events", error);
        let go_on = Cell::new(true);
        let mut builder = RingBufferBuilder::new();
        let read = |bytes: &[u8]| {
            if let Some(event) = HooksEvent::read(bytes) {
                go_on.set(go_on.get() && told(event));
            }
            0
        };
        builder.add(&self.0, read).map_err(failed)?;
        let ring = builder.build().map_err(failed)?;
        while go_on.get() {
            match ring.poll_raw(Duration::MAX) {
                code if code >= 0 || code == -libc::EINTR => {}
                code => {
                    let error = std::io::Error::from_raw_os_error(-code);
                    return Err(Error::system("wait for", "the map events", error));
                }
            }
        }
        Ok(())
    }
}

impl HooksEvent {
    fn read(bytes: &[u8]) -> Option<Self> {
        if let Ok(event) = layout::Listening::read_from_bytes(bytes) {
            let layout::Listening { cookie, pid, port, connects } = event;
            return Some(match connects {
                0 => Self::Listening(Listening { pid, cookie, port }),
                _ => Self::Connecting { pid, port },
            });
        }
        Request::read(bytes).map(Self::Request)
    }
}

/// The embedded object, not loaded yet.
pub(super) fn open() -> Result<OpenObject> {
    verifier::hush();
    ObjectBuilder::default()
        .open_memory(OBJECT)
        .map_err(|error| Error::bpf("open", "the hooks", error))
}

pub(super) fn load(object: OpenObject) -> Result<Object> {
    verifier::load("the hooks", || object.load())
}

fn map(object: &Object, name: &str) -> Result<MapHandle> {
    let map = object.maps().find(|map| map.name() == name).expect("a map of the object");
    MapHandle::try_from(&map).map_err(|error| Error::bpf("duplicate", format!("map {name}"), error))
}
