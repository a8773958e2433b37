//! Which kernels a run takes, and what it does on each.

use std::collections::VecDeque;

use crate::choice::{self, Kernel};
use crate::matrix::Job;
use crate::packages::Package;
use crate::series::Tests;

/// The series that are maintained for years, the oldest first. Tests run on those that the mirror
/// has: what distributions with years of support have is one of them.
const LONG_TERM: [&str; 3] = ["6.1", "6.12", "6.18"];

/// How much of the matrix is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Programs,
    Short,
    Full,
    Whole,
}

/// The kernels that the filters mean: of arm64 the oldest and the newest alone, which only load
/// programs.
pub(crate) fn kernels(offered: &[Package], filters: &[String]) -> Vec<Kernel> {
    let mut kernels = choice::choose(offered, "amd64");
    let mut others = choice::choose(offered, "arm64");
    let newest = others.pop();
    kernels.extend(others.into_iter().next().into_iter().chain(newest));
    let wanted =
        |kernel: &Kernel| filters.is_empty() || filters.iter().any(|filter| kernel.matches(filter));
    kernels.into_iter().filter(wanted).collect()
}

/// The jobs, each with the number of its kernel; the longest first. Tests run on every kernel that
/// was `named`.
pub(crate) fn jobs(kernels: &[Kernel], form: Form, named: bool) -> VecDeque<(usize, Job)> {
    let numbers = 0..kernels.len();
    let tests = match form {
        Form::Whole => Tests::Whole,
        Form::Short => Tests::Short,
        Form::Programs | Form::Full => Tests::Series,
    };
    let newest = kernels.iter().rposition(|kernel| kernel.architecture == "amd64");
    let is_tested = |&number: &usize| {
        let Kernel { label, architecture, .. } = &kernels[number];
        let long_term = LONG_TERM.contains(&label.as_str()) && form != Form::Short;
        let chosen = named || long_term || newest == Some(number) || label == LONG_TERM[0];
        form != Form::Programs && architecture == "amd64" && chosen
    };
    let test = numbers.clone().filter(is_tested).map(|number| (number, Job::Test(tests)));
    test.chain(numbers.map(|number| (number, Job::Load))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered() -> Vec<Package> {
        let package = |version: &str, architecture: &str| Package {
            name: format!("linux-image-{version}-cloud-{architecture}"),
            version: format!("{version}-1"),
            architecture: architecture.to_owned(),
        };
        let amd64 = ["6.1.9", "6.12.3", "6.12.9", "6.16.1", "6.18.2", "7.3.4"];
        let arm64 = ["6.1.9", "6.12.9", "7.3.4"];
        let amd64 = amd64.map(|version| package(version, "amd64"));
        amd64.into_iter().chain(arm64.map(|version| package(version, "arm64"))).collect()
    }

    fn tested(form: Form, filters: &[&str]) -> Vec<String> {
        let filters: Vec<_> = filters.iter().map(|&filter| filter.to_owned()).collect();
        let kernels = kernels(&offered(), &filters);
        let jobs = jobs(&kernels, form, !filters.is_empty());
        let loads = jobs.iter().filter(|(_, job)| *job == Job::Load).count();
        assert_eq!(loads, kernels.len());
        let tested = jobs.into_iter().filter(|(_, job)| *job != Job::Load);
        tested.map(|(number, _)| kernels[number].label.clone()).collect()
    }

    #[test]
    fn tests_run_on_the_ends_and_on_long_term_kernels() {
        assert_eq!(tested(Form::Full, &[]), ["6.1", "6.12", "6.18", "7.3"]);
        assert_eq!(tested(Form::Short, &[]), ["6.1", "7.3"]);
        assert_eq!(tested(Form::Whole, &["6.16", "7"]), ["6.16", "7.3"]);
        assert!(tested(Form::Programs, &["7"]).is_empty());
    }

    #[test]
    fn of_arm64_the_oldest_and_the_newest_are_taken() {
        let kernels = kernels(&offered(), &[]);
        let arm64 = kernels.iter().filter(|kernel| kernel.architecture == "arm64");
        let labels: Vec<_> = arm64.map(|kernel| kernel.label.as_str()).collect();
        assert_eq!(labels, ["6.1", "7.3"]);
    }
}
