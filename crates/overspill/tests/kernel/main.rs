//! Tests that touch the kernel. They need root; each runs in namespaces of its own.

mod bad;
mod beside;
mod capacity;
mod changes;
mod connections;
mod dispatcher;
mod flood;
mod history;
mod hooks;
mod library;
mod lookup;
mod migrate;
mod sharing;
mod tools;
mod trace;
