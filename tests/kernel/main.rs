//! Tests that touch the kernel. They need root; each runs in namespaces of its own.

mod bad;
mod beside;
mod capacity;
mod changes;
mod connections;
<<<<<<< HEAD
mod flood;
=======
mod dispatcher;
>>>>>>> a590f8e (Hold dispatchers against the model, and test what is refused)
mod history;
mod hooks;
mod library;
mod lookup;
mod migrate;
mod sharing;
mod syn;
mod tools;
