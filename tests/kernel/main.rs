//! Tests that touch the kernel. They need root; each runs in namespaces of its own.

mod beside;
mod capacity;
mod lookup;
mod tools;
