//! Tests that run in guests: a series that touches every feature, or all of them. They are the
//! tests of the kernel that `make test` runs natively.

use std::collections::BTreeMap;
use std::path::Path;

use crate::built::{Built, COMMAND, LIBRARY};

/// Each feature, with the tests of the library and of the command that touch it. The short form
/// takes the first of each: a quick one.
const FEATURES: [(&str, &[&str]); 18] = [
    (
        "share",
        &[
            "library lookup::to_another_address",
            "library lookup::a_full_service_drops_or_refuses",
            "library sharing::nginx_with_a_socket_for_each_worker",
            "command commands::the_life_of_a_service",
        ],
    ),
    (
        "policies and set",
        &[
            "command commands::rules_are_given_and_changed",
            "command commands::weights",
            "library changes::a_mark_survives_a_change_of_the_list",
        ],
    ),
    ("the model", &["library history::ipv4", "library history::dual"]),
    (
        "run",
        &[
            "command run::a_full_worker_is_helped_by_its_sibling_at_another_address",
            "command unchanged::python_server",
        ],
    ),
    ("restart", &["command run::sighup_replaces_the_workers"]),
    ("allow", &["command allow::what_waits_at_another_address_waits_for_the_successor"]),
    (
        "the socket option",
        &[
            "command option::sockets_that_listen_join_in_the_order_given",
            "library hooks::unchanged_servers_share_a_port_and_are_told",
        ],
    ),
    (
        "dispatcher",
        &[
            "library dispatcher::the_answer_is_carried_out",
            "command dispatcher::a_dispatcher_comes_and_goes",
        ],
    ),
    (
        "trace",
        &["library trace::a_request_is_told_with_what_was_seen", "command trace::a_line_a_request"],
    ),
    ("connections", &["library connections::until_the_server_closes"]),
    (
        "migration",
        &[
            "library migrate::what_waits_goes_to_those_that_hold_the_fewest",
            "library migrate::half_open_requests_follow_when_their_ack_arrives",
            "command run::clients_in_the_queue_of_a_killed_worker_are_served_by_its_successor",
        ],
    ),
    ("hang", &["command hang::a_stopped_worker_hangs_until_it_is_continued"]),
    (
        "drain and resume",
        &[
            "command top::a_member_is_drained_and_resumed_by_keys",
            "library migrate::those_that_hang_or_drain_come_last",
        ],
    ),
    ("metrics", &["command metrics::every_figure_is_told_under_its_name"]),
    (
        "SYN cookies",
        &[
            "library flood::a_full_member_drops_the_ack",
            "library flood::a_late_ack_finds_the_member_that_sent_the_cookie",
        ],
    ),
    (
        "changes",
        &[
            "library library::every_change_is_read_back",
            "library library::what_a_killed_writer_left_is_swept_away",
        ],
    ),
    (
        "upgrade",
        &[
            "command upgrade::connections_are_counted_on",
            "command upgrade::another_layout_takes_over_under_load_and_gives_back",
            "command upgrade::a_syn_cookie_is_honoured_by_the_next_build",
        ],
    ),
    (
        "check and show",
        &[
            "command commands::check_finds_nothing_missing_and_leaves_nothing_behind",
            "command commands::show_has_every_figure",
        ],
    ),
];

/// An emulated processor is too slow for two tests at once, for as many histories as usual, each
/// of which loads all programs, and for what the tests wait elsewhere.
const WHEN_EMULATED: [&str; 2] =
    ["export OVERSPILL_HISTORIES=2 OVERSPILL_PATIENCE=6\n", " --test-threads 1"];

/// Which tests run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tests {
    Short,
    Series,
    Whole,
}

/// What became of the tests on a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) passed: usize,
    /// Of these, how many passed when they were run again.
    pub(crate) passed_again: usize,
    pub(crate) failed: Vec<String>,
}

impl Outcome {
    /// Takes what those printed that were run again.
    pub(crate) fn again(&mut self, output: &str) {
        let results = all_results(output);
        let before = self.failed.len();
        self.failed.retain(|test| results.get(test) != Some(&true));
        self.passed_again += before - self.failed.len();
        self.passed += before - self.failed.len();
    }

    pub(crate) fn all(&self) -> usize {
        self.passed + self.failed.len()
    }
}

/// What scripts are made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scripts<'a> {
    pub(crate) built: &'a Built,
    /// The project's root.
    pub(crate) root: &'a Path,
    pub(crate) emulated: bool,
}

impl Scripts<'_> {
    /// A script that runs the tests of the library, then those of the command.
    pub(crate) fn run(&self, tests: Tests) -> String {
        let of = |binary| (tests != Tests::Whole).then(|| of(binary, chosen(tests).into_iter()));
        self.script(of("library"), of("command"))
    }

    /// A script that runs those again that failed.
    pub(crate) fn run_again(&self, outcome: &Outcome) -> String {
        let of = |binary| Some(of(binary, outcome.failed.iter().map(String::as_str)));
        self.script(of("library"), of("command"))
    }

    /// Without names, all tests are run.
    fn script(&self, library: Option<Vec<&str>>, command: Option<Vec<&str>>) -> String {
        let [environment, threads] = if self.emulated { WHEN_EMULATED } else { ["", ""] };
        let run = |folder: &Path, program: &Path, names: Option<Vec<&str>>| {
            let (folder, program) = (folder.display(), program.display());
            match names.map(|names| names.join(" ")) {
                None => format!("cd {folder} && {program}{threads}\n"),
                Some(names) if names.is_empty() => String::new(),
                Some(names) => format!("cd {folder} && {program} --exact {names}{threads}\n"),
            }
        };
        format!(
            "{environment}echo '--- library'\n{}echo '--- command'\n{}",
            run(&self.root.join(LIBRARY), &self.built.library_tests, library),
            run(&self.root.join(COMMAND), &self.built.command_tests, command),
        )
    }
}

/// The tests by the names of their binaries and their own; none for all tests there are.
fn chosen(tests: Tests) -> Vec<&'static str> {
    let each = match tests {
        Tests::Short => 1,
        Tests::Series => usize::MAX,
        Tests::Whole => 0,
    };
    FEATURES.iter().flat_map(|(_, tests)| tests.iter().take(each).copied()).collect()
}

/// Those of one binary.
fn of<'a>(binary: &str, tests: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let own = |test: &'a str| test.strip_prefix(binary)?.strip_prefix(' ');
    tests.filter_map(own).collect()
}

/// Reads what the tests printed. A test that did not run has failed.
pub(crate) fn read(tests: Tests, output: &str) -> Outcome {
    let mut results = all_results(output);
    for test in chosen(tests) {
        results.entry(test.to_owned()).or_insert(false);
    }
    let (library, command) = parts(output);
    for (binary, output) in [("library", library), ("command", command)] {
        // The harness writes this line when all of its tests have ended.
        if !output.lines().any(|line| line.starts_with("test result: ")) {
            results.insert(format!("{binary}: its tests did not end"), false);
        }
    }
    let passed = results.values().filter(|&&passed| passed).count();
    let failed = results.into_iter().filter(|(_, passed)| !passed).map(|(test, _)| test).collect();
    Outcome { passed, passed_again: 0, failed }
}

/// What the tests of the library printed, and those of the command.
fn parts(output: &str) -> (&str, &str) {
    output.split_once("--- command\n").unwrap_or((output, ""))
}

fn all_results(output: &str) -> BTreeMap<String, bool> {
    let (library, command) = parts(output);
    let mut all = results("library", library);
    all.extend(results("command", command));
    all
}

fn results(binary: &str, output: &str) -> BTreeMap<String, bool> {
    let result = |line: &str| {
        let (test, result) = line.strip_prefix("test ")?.split_once(" ... ")?;
        let passed = match result {
            "ok" => true,
            "FAILED" => false,
            _ => return None,
        };
        Some((format!("{binary} {test}"), passed))
    };
    output.lines().filter_map(result).collect()
}

/// The features whose tests are among those that failed.
pub(crate) fn features(failed: &[String]) -> Vec<&'static str> {
    let fails = |tests: &[&str]| tests.iter().any(|test| failed.iter().any(|other| other == test));
    FEATURES.iter().filter(|(_, tests)| fails(tests)).map(|&(feature, _)| feature).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_did_not_run_has_failed() {
        let output = "--- library\ntest lookup::to_another_address ... ok\n\
             test history::ipv4 ... FAILED\ntest result: FAILED. 1 passed; 1 failed\n--- command\n";
        let outcome = read(Tests::Series, output);
        assert_eq!(outcome.passed, 1);
        // With the line that the tests of the command did not end.
        assert_eq!(outcome.all(), chosen(Tests::Series).len() + 1);
        assert_eq!(chosen(Tests::Short).len(), FEATURES.len());
        let whole = read(Tests::Whole, output);
        assert_eq!(whole.failed, ["command: its tests did not end", "library history::ipv4"]);
        assert_eq!(features(&whole.failed), ["the model"]);
        let mut again = whole.clone();
        again.again("--- library\ntest history::ipv4 ... ok\n--- command\n");
        assert_eq!((again.passed, again.passed_again), (2, 1));
        assert_eq!(again.failed, ["command: its tests did not end"]);
    }
}
