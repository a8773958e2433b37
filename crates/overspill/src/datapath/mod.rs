//! The state in the kernel: programs, maps and the link, pinned under bpffs.
//!
//! `BPFFS/overspill/INODE/` holds all of one network namespace. Nothing else in this
//! crate names libbpf. Reading needs no lock; every change holds [`Lock`].

mod arguments;
mod change;
mod connections;
mod contract;
mod counters;
mod dispatcher;
mod fail;
mod folder;
mod handle;
mod hooks;
mod index;
pub(crate) mod layout;
mod lock;
mod make;
mod maps;
mod pin;
mod programs;
mod read;
pub(crate) mod roster;
mod rows;
mod snapshot;
mod swap;
mod trace;
mod transaction;
mod upgrade;
mod verifier;

pub use dispatcher::check_dispatcher;
pub(crate) use folder::{bpffs, root};
pub use handle::Capacity;
pub(crate) use handle::Datapath;
pub use hooks::{AttachedHooks, Hooks, HooksEvent, HooksEvents, Listening, Request};
pub(crate) use lock::{Lock, leftovers};
pub(crate) use programs::reads_directly;
pub use programs::{ProgramReport, programs};
pub(crate) use snapshot::Snapshot;
pub(crate) use trace::Tracer;
pub(crate) use transaction::{Change, Dispatcher, Joining};
pub use upgrade::{Build, Upgrade};
