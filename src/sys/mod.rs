//! Sockets and descriptors: the only module with hand-written `unsafe`.

mod descriptor;
mod socket;

pub(crate) use descriptor::{netns_of, test_run};
pub(crate) use socket::{Listener, inspect, listen};
