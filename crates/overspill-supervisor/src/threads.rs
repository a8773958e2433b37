//! Threads beside the one that decides.

use std::thread::Builder;

use crate::error::{Error, Result};

/// Starts one that nobody waits for.
pub(crate) fn start_thread(body: impl FnOnce() + Send + 'static) -> Result<()> {
    let started = Builder::new().spawn(body);
    started
        .map(drop)
        .map_err(|error| Error::helped("start a thread", error, "; raise the limit of processes"))
}
