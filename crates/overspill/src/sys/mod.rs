//! Sockets and descriptors: the only module with hand-written `unsafe`.

mod clock;
mod descriptor;
mod memory;
mod signals;
mod socket;

pub(crate) use clock::monotonic;
pub(crate) use descriptor::{
    attach_to_cgroup, attach_to_group, enter_new_netns, own_descriptor, pin, read_array, read_hash,
    take_inherited, test_run, update_link,
};
pub(crate) use memory::Shared;
pub(crate) use signals::without_signals;
pub(crate) use socket::{Listener, bind_unbound, empty_queue, inspect, listen, wake};
