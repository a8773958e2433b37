//! `overspill upgrade`

use overspill::{Build, Upgrade};

use crate::args::Places;
use crate::failure::{Failure, Outcome};
use crate::help;
use crate::output;

/// Upgrade running services to this version
///
/// Services and their programs in the kernel keep running when no overspill process runs.
/// This command replaces the programs in one step while clients connect. No client is lost.
/// Members, rules and counters are kept. If the services are already of this version, it does
/// nothing. The Debian package runs it when it is installed. It needs root.
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
            Ok(Some(upgrade)) => output::print(&line(namespace.inode(), &upgrade))?,
            // The last service was removed meanwhile.
            Ok(None) => {}
            Err(error) => failed.extend_from_slice(Failure::from(error).lines()),
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Failure::several(failed)) }
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
