//! `overspill check`

use std::path::PathBuf;

use overspill::preflight::{self, Item, ProgramReport, Verdict};

use crate::failure::{Failure, Outcome};
use crate::help;
use crate::output::{self, numbers, words};

/// Check that this host meets the requirements
///
/// Looks at the kernel, at what this user may do, at limits and at the services that exist.
/// Loads the programs that place requests and the hooks of run and allow, and removes them
/// again. Fails when something is missing; a note is no failure.
///
/// With FILE, validates that file for overspill run --config FILE and looks at nothing else.
/// Prints each error with its line; the exit status is then 2.
#[derive(Debug, clap::Args)]
#[command(add = help::Manual::text(include_str!("check.manual")))]
#[command(after_help = "\
EXAMPLES
  overspill check
  sudo -u www-data overspill check    # what that user may do
  overspill check /etc/overspill/web.toml
  overspill check --programs          # for a report about a kernel
  overspill check --json | jq '.[] | select(.verdict != \"ok\")'")]
pub(crate) struct Args {
    /// Validate these configuration files (overspill run --config) instead
    #[arg(value_name = "FILE", conflicts_with_all = ["json", "programs"])]
    files: Vec<PathBuf>,

    /// Load every program and print the verifier's steps and the size of each
    #[arg(long)]
    programs: bool,

    /// Print JSON: an array of objects with name, verdict, found and remedy
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Outcome {
    if !args.files.is_empty() {
        return check_files(&args.files);
    }
    if args.programs {
        return check_programs(args.json);
    }
    let items = preflight::report();
    if args.json {
        output::print_json(&items)?;
    } else {
        output::print(&table(&items))?;
    }
    let missing: Vec<&str> = items
        .iter()
        .filter(|item| item.verdict == Verdict::Missing)
        .map(|item| item.name.as_str())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let (count, names) = (items.len(), missing.join(", "));
    Err(Failure::new(format!(
        "{} of {count} checks found something missing: {names}; each comes with what to do about it",
        missing.len()
    )))
}

fn check_files(files: &[PathBuf]) -> Outcome {
    let mut wrong = Vec::new();
    for file in files {
        match super::run::read(file) {
            Ok(_) => output::print(&format!("{}: right", file.display()))?,
            Err(failure) => wrong.extend_from_slice(failure.lines()),
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(Failure::wrong(wrong)) }
}

fn check_programs(json: bool) -> Outcome {
    let programs = preflight::programs()?;
    if json {
        output::print_json(&programs)?;
    } else {
        output::print(&program_table(&programs))?;
    }
    let refused = programs.iter().filter(|program| !program.loaded).count();
    if refused == 0 {
        return Ok(());
    }
    Err(Failure::new(format!(
        "the kernel refuses {refused} of {} programs: the reason is above; use a kernel on which \
         overspill was tried (docs/COMPATIBILITY.md)",
        programs.len()
    )))
}

/// Each program on a line, and below the table why the kernel refuses some.
fn program_table(programs: &[ProgramReport]) -> String {
    let rows = programs.iter().map(|program| {
        let verdict = if program.loaded { "ok" } else { "refused" };
        let numbers = [program.steps, program.instructions, program.machine_code];
        let [steps, instructions, code] = numbers.map(|number| number.to_string());
        [
            verdict.to_owned(),
            program.object.into(),
            program.program.clone(),
            steps,
            instructions,
            code,
        ]
    });
    let head = [
        words("VERDICT"),
        words("OBJECT"),
        words("PROGRAM"),
        numbers("STEPS"),
        numbers("INSTRUCTIONS"),
        numbers("BYTES"),
    ];
    let refused = programs
        .iter()
        .filter_map(|program| Some(format!("\n{}: {}", program.program, program.error.as_ref()?)));
    output::table(&head, rows) + &refused.collect::<String>()
}

/// Each item on a line, and what to do about it on the next.
fn table(items: &[Item]) -> String {
    let rows = items.iter().flat_map(|item| {
        let row = [item.verdict.name().to_owned(), item.name.clone(), item.found.clone()];
        let remedy = item.remedy.iter();
        let remedy = remedy.map(|text| [String::new(), String::new(), format!("-> {text}")]);
        std::iter::once(row).chain(remedy)
    });
    output::table(&[words("VERDICT"), words("CHECK"), words("FOUND")], rows)
}
