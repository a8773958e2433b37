//! What a shell offers at TAB, told by the command itself, so that it is what this version
//! takes: its commands and options, and the services that there are.

use std::ffi::OsStr;

use clap_complete::CompleteEnv;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use overspill::{Namespace, Service};

use crate::help;
use overspill_supervisor::control;

/// What the script that a shell has loaded (`overspill generate completions`) sets to ask.
/// Not clap's own COMPLETE: that is others' as well, and somebody may have exported it.
pub(crate) const VARIABLE: &str = "OVERSPILL_COMPLETE";

/// Answers and ends, where a shell asks.
pub(crate) fn answer() {
    CompleteEnv::with_factory(help::definition).var(VARIABLE).complete();
}

/// The names of the services of this network namespace.
pub(crate) fn services() -> ArgValueCompleter {
    ArgValueCompleter::new(|begun: &OsStr| beginning_with(begun, service_names()))
}

/// The names of the supervisors of this network namespace.
pub(crate) fn supervisors() -> ArgValueCompleter {
    let names = || control::names().iter().map(ToString::to_string).collect();
    ArgValueCompleter::new(move |begun: &OsStr| beginning_with(begun, names()))
}

/// None where they can't be read: who presses TAB is not told why.
fn service_names() -> Vec<String> {
    let services = Namespace::current().and_then(|here| Service::all(&here)).unwrap_or_default();
    services.iter().map(|service| service.name().to_string()).collect()
}

fn beginning_with(begun: &OsStr, names: Vec<String>) -> Vec<CompletionCandidate> {
    let begun = begun.to_string_lossy();
    names.into_iter().filter(|it| it.starts_with(&*begun)).map(CompletionCandidate::new).collect()
}
