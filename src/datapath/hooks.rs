//! The hooks on a control group.

use std::cell::Cell;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use libbpf_rs::{
    Link, MapCore as _, MapFlags, MapHandle, Object, ObjectBuilder, RingBufferBuilder,
};
use zerocopy::FromBytes;

use super::layout;
use crate::cgroup::Cgroup;
use crate::error::{Error, Result};

const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hooks.bpf.o"));

/// Hooks on a control group: every TCP socket that its processes bind gets `SO_REUSEPORT`,
/// so that several of them can listen on one port, and each socket that begins to listen
/// is told ([`Hooks::wait`]).
///
/// They end with this value, and leave nothing behind. They rest on `cgroup/bind4`,
/// `cgroup/bind6` and `BPF_SOCK_OPS_TCP_LISTEN_CB` (`net/ipv4/af_inet.c`).
#[derive(Debug)]
pub struct Hooks {
    _links: Vec<Link>,
    listenings: MapHandle,
}

/// The sockets that begin to listen, as they do ([`Hooks::listenings`]).
#[derive(Debug)]
pub struct Listenings(MapHandle);

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

impl Hooks {
    /// Attaches them. Sockets on `private` ports are left alone.
    ///
    /// # Errors
    ///
    /// The kernel refuses the programs, or to attach them: [`Error::Permission`],
    /// [`Error::Bpf`].
    pub fn attach(cgroup: &Cgroup, private: &[u16]) -> Result<Self> {
        super::hush();
        let failed = |operation| move |error| Error::bpf(operation, "the hooks", error);
        let object = ObjectBuilder::default()
            .open_memory(OBJECT)
            .and_then(libbpf_rs::OpenObject::load)
            .map_err(failed("load"))?;
        let mut ports = vec![0; 1 << 16];
        for &port in private {
            ports[usize::from(port)] = 1;
        }
        map(&object, "private_ports")?
            .update(&0_u32.to_ne_bytes(), &ports, MapFlags::ANY)
            .map_err(failed("set up"))?;
        let listenings = map(&object, "listenings")?;
        let directory = cgroup.open()?;
        let links = object.progs_mut().map(|program| {
            program.attach_cgroup(directory.as_raw_fd()).map_err(|error| {
                Error::bpf("attach hooks to", cgroup.path().display().to_string(), error)
            })
        });
        let links = links.collect::<Result<_>>()?;
        Ok(Self { _links: links, listenings })
    }

    /// What is told of sockets that begin to listen, for one reader.
    ///
    /// # Errors
    ///
    /// The process has no descriptor left.
    pub fn listenings(&self) -> Result<Listenings> {
        MapHandle::try_from(&self.listenings)
            .map(Listenings)
            .map_err(|error| Error::bpf("duplicate", "the map listenings", error))
    }
}

impl Listenings {
    /// Waits, and hands out each socket that begins to listen, until `told` is false.
    ///
    /// # Errors
    ///
    /// The kernel refuses to wait.
    pub fn each(self, mut told: impl FnMut(Listening) -> bool) -> Result<()> {
        let failed = |error| Error::bpf("read", "the map listenings", error);
        let go_on = Cell::new(true);
        let mut builder = RingBufferBuilder::new();
        let read = |bytes: &[u8]| {
            if let Ok(event) = layout::Listening::read_from_bytes(bytes) {
                let layout::Listening { cookie, pid, port, .. } = event;
                go_on.set(go_on.get() && told(Listening { pid, cookie, port }));
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
                    return Err(Error::system("wait for", "the map listenings", error));
                }
            }
        }
        Ok(())
    }
}

fn map(object: &Object, name: &str) -> Result<MapHandle> {
    let map = object.maps().find(|map| map.name() == name).expect("a map of the object");
    MapHandle::try_from(&map).map_err(|error| Error::bpf("duplicate", format!("map {name}"), error))
}
