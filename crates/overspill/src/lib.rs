//! Sockets of one service share their accept queues inside the Linux kernel.
//!
//! A **service** is a name and an ordered list of **members**: listening TCP sockets
//! on one port that give clients the same thing. When a **request** (a client's SYN)
//! reaches a member whose queue is full, the kernel would silently drop it, even
//! though the queue beside it is empty. With overspill the kernel's socket layer puts
//! it on a sibling with room, by the service's **policy**; the accepted socket still
//! shows the address that the client called.
//!
//! ```no_run
//! use overspill::{Policy, Service};
//!
//! # fn main() -> overspill::Result<()> {
//! let (service, listeners) = Service::builder("web")
//!     .policy(Policy::ShortestQueue)
//!     .listen(["192.0.2.1:80".parse().unwrap(), "192.0.2.2:80".parse().unwrap()])?;
//! // Hand each listener to a worker; then look:
//! for member in service.status()?.members {
//!     println!("{} holds {}", member.address, member.queued);
//! }
//! # drop(listeners);
//! # Ok(()) }
//! ```
//!
//! The state lives in maps and links pinned under bpffs, not in a process: a
//! [`Service`] is a name with which to look at it and to change it.
//!
//! Where things are: [`model`] says where a request is placed; [`Service`] makes and
//! changes services; [`trace`] tells what becomes of each
//! request; [`adopt`] takes the sockets of running processes; [`preflight`]
//! tells what a machine lacks.

#![deny(unsafe_code)]

pub mod adopt;
mod cgroup;
mod connections;
mod datapath;
mod error;
mod figure;
pub mod flow;
pub mod hang;
mod inherited;
mod listening;
mod member;
pub mod model;
mod mounts;
mod moves;
mod name;
mod namespace;
mod nearest;
mod policy;
pub mod preflight;
mod service;
mod sock_diag;
mod state;
mod status;
mod sys;
pub mod trace;
mod words;

pub use cgroup::Cgroup;
pub use connections::{Connection, connections, moved_connections};
pub use datapath::{
    AttachedHooks, Build, Capacity, Hooks, HooksEvent, HooksEvents, Listening, Request, Upgrade,
    check_dispatcher,
};
pub use error::{Error, Result};
pub use figure::{Figure, Kind};
pub use inherited::inherited;
pub use listening::listening;
pub use member::{Address, Families, Health, MemberId};
pub use name::Name;
pub use namespace::Namespace;
pub use nearest::nearest;
pub use policy::{OnFull, Policy, Rules};
pub use service::{Builder, Change, Looker, Service, empty_queue, listeners, wake};
pub use status::{Exits, ListedSocket, MemberState, MemberStatus, Queue, Requests, Status};
pub use words::{Word, Words};
