//! The binary against the kernel. These tests need root; each runs in namespaces of its
//! own.

mod allow;
mod bad_input;
mod commands;
mod config;
mod control;
mod demo;
mod dispatcher;
mod handover;
mod drain;
mod hang;
mod kept;
mod metrics;
mod names;
mod option;
mod output;
mod run;
mod server;
mod survive;
mod tool;
mod top;
mod trace;
mod unchanged;
mod unit;
mod upgrade;
mod versions;
