//! No client is lost before a worker has accepted it, whatever befalls the workers.

use std::time::Duration;

use trial::{End, Trial, Trouble};

fn survives(trouble: Trouble) {
    world::enter();
    let trial = Trial {
        program: env!("CARGO_BIN_EXE_overspill").into(),
        redirect: true,
        trouble,
        workers: 4,
        work: Duration::from_millis(4),
        interval: Duration::from_millis(10),
        time: Duration::from_secs(5),
    };
    let outcome = trial.run().unwrap();
    let counts = [End::Served, End::CutOff, End::Undecided].map(|end| outcome.count(end));
    println!("{counts:?}, {} times trouble, {:?}", outcome.troubles, outcome.counts);
    let lost: Vec<_> = outcome.fates.iter().filter(|fate| fate.end.is_lost()).collect();
    assert!(lost.is_empty(), "{lost:#?}\n{}", outcome.log);
    assert!(counts[0] > outcome.fates.len() / 2 && outcome.troubles > 0, "{}", outcome.log);
}

#[test]
fn a_worker_that_is_killed_loses_no_client_in_its_queue() {
    survives(Trouble::Kill);
}

#[test]
fn a_worker_that_is_stopped_loses_no_client() {
    survives(Trouble::Stop);
}

#[test]
fn a_rolling_restart_loses_no_client() {
    survives(Trouble::Restart);
}

#[test]
fn a_supervisor_that_is_killed_and_succeeded_loses_no_client() {
    survives(Trouble::Takeover);
}

#[test]
fn a_change_of_policy_and_members_loses_no_client() {
    survives(Trouble::Change);
}

#[test]
fn a_worker_that_blocks_or_loops_loses_no_client_in_its_queue() {
    survives(Trouble::Block);
}

#[test]
fn everything_at_once_loses_no_client() {
    survives(Trouble::Mixed);
}
