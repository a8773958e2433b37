//! Tests that touch the kernel. They need root; each runs in namespaces of its own.

mod run;
