//! `overspill upgrade`

use std::path::Path;

use overspill::{Build, Name, Namespace, Upgrade};
use overspill_supervisor::control::{self, Client, Request};

use crate::args::{self, Places};
use crate::failure::{Failure, Outcome};
use crate::help;
use crate::output;

/// Upgrade running services to this version
///
/// Services and their programs in the kernel keep running when no overspill process runs.
/// This command replaces the programs in one step while clients connect. No client is lost.
/// Members, rules and counters are kept. Each overspill run becomes this version too: its
/// process goes on, and so do its workers. The Debian package runs this command when it is
/// installed. It needs root.
///
/// To go back, run overspill upgrade with the older binary.
#[derive(Debug, clap::Args)]
#[command(add = help::Manual::text(include_str!("upgrade.manual")))]
#[command(after_help = "\
EXAMPLES
  overspill upgrade
  overspill upgrade --netns blue
  overspill check    # shows which version made the services")]
pub(crate) struct Args {
    #[command(flatten)]
    places: Places,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let mut failed = Vec::new();
    let namespaces = args.places.namespaces()?;
    if namespaces.is_empty() {
        return output::print("no services: nothing to upgrade");
    }
    for namespace in namespaces {
        match namespace.upgrade() {
            Ok(Some(upgrade)) => {
                output::print(&line(namespace.inode(), &upgrade))?;
                failed.extend(hand_over_all(&namespace));
            }
            // The last service was removed meanwhile.
            Ok(None) => {}
            Err(error) => failed.extend_from_slice(Failure::from(error).lines()),
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Failure::several(failed)) }
}

/// Has the supervisors of a network namespace become this program. Gives what failed.
fn hand_over_all(namespace: &Namespace) -> Vec<String> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::new(format!("cannot find this program: {error}; mount /proc")));
    let program = program.and_then(|program| {
        args::enter(namespace)?;
        Ok(program)
    });
    match program {
        Ok(program) => {
            let names = control::names().into_iter();
            names.filter_map(|name| hand_over(&name, &program).err()).collect()
        }
        Err(failure) => failure.lines().to_vec(),
    }
}

fn hand_over(name: &Name, program: &Path) -> Result<(), String> {
    let Some(supervisor) = Client::connect(name).map_err(|error| error.to_string())? else {
        // It has ended.
        return Ok(());
    };
    let told = |line: &str| output::print(&format!("supervisor of {name}: {line}"));
    let asked = supervisor.ask(&Request::HandOver(program.to_owned()), told);
    asked.map_err(|failure: Failure| failure.lines().join("; "))
}

fn line(netns: u64, Upgrade { from, to, services }: &Upgrade) -> String {
    let services = match services {
        1 => "1 service".to_owned(),
        many => format!("{many} services"),
    };
    if from == to {
        return format!("{services} in network namespace {netns}: already at this version");
    }
    format!(
        "{services} in network namespace {netns}: upgraded from {} to {}",
        named(from),
        named(to)
    )
}

fn named(Build { version, digest, layout }: &Build) -> String {
    format!("{version} (build {digest}, layout {layout})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_was_done() {
        let build = |layout| Build { version: "0.1.0".into(), digest: "1b2c3d4e".into(), layout };
        let upgrade = |from, services| Upgrade { from: build(from), to: build(9), services };
        let same = "1 service in network namespace 7: already at this version";
        assert_eq!(line(7, &upgrade(9, 1)), same);
        assert_eq!(
            line(7, &upgrade(8, 2)),
            "2 services in network namespace 7: upgraded from 0.1.0 (build 1b2c3d4e, layout 8) to 0.1.0 \
             (build 1b2c3d4e, layout 9)"
        );
    }
}
