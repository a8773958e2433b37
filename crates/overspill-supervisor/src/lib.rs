//! Supervisors: they start the workers of a server, make their listening sockets members of
//! [`overspill`] services, and keep it so.
//!
//! [`run()`] is `overspill run`, and [`allow::run`] is `overspill allow`. A supervisor compares
//! what is with what is to be, again and again; an event is only a reason to look sooner. It
//! starts processes of its own as `/proc/self/exe worker ...` and `... relay ...`: the program
//! that uses this crate has to hand these on to [`worker::run`] and [`relay::run`].

pub mod allow;
mod child;
pub mod control;
mod crew;
mod error;
mod ground;
mod groups;
mod hand;
pub mod handover;
mod hints;
pub mod identity;
pub mod ignored;
mod inheritance;
mod instance;
mod instance_id;
mod leaving;
mod log;
mod looking;
mod membership;
mod notify;
mod option;
mod plan;
mod process;
pub mod relay;
mod reload;
mod restart;
mod run;
mod seats;
mod services;
mod sight;
mod signals;
mod sockets;
mod succession;
mod supervisor;
mod threads;
mod watching;
pub mod worker;

pub use error::{Error, Result};
pub use leaving::{drain_time, stop_signal};
pub use plan::{KillMode, Peers, Place, Plan};
pub use reload::{Reread, keep};
pub use run::{check, run};
