//! `overspill set`

use std::num::NonZeroU16;

use clap::ArgGroup;
use overspill::{Change, MemberId, Name};

use crate::args::{self, Place, RuleArgs};
use crate::complete;
use crate::failure::Outcome;
use crate::help;

/// Change the rules of a service, and its members' weights
///
/// What is not given stays. The change takes effect at once, for the next request; what
/// is queued stays where it is.
#[derive(Debug, clap::Args)]
#[command(add = help::Manual::text(include_str!("set.manual")))]
#[command(group = ArgGroup::new("change")
    .args(["policy", "on_full", "redirect", "spread", "weight"]).required(true).multiple(true))]
// The one that clap makes of the group is too long for a line.
#[command(override_usage = "overspill set [OPTIONS] <NAME>")]
#[command(after_help = "\
EXAMPLES
  overspill set web --policy shortest-queue
  overspill set web --on-full reset --spread on
  overspill set web --policy least-loaded --weight 0=3,1=1
  overspill set web --redirect off    # as without overspill")]
pub(crate) struct Args {
    /// The service's name
    #[arg(value_parser = args::name, add = complete::services())]
    name: Name,

    #[command(flatten)]
    rules: RuleArgs,

    /// Whether every member counts as called
    #[arg(long, value_name = "ON|OFF", value_parser = args::on_off(), hide_possible_values = true)]
    spread: Option<bool>,

    /// A member's share, for least-loaded and two-choices; a new one's is 1
    #[arg(long, value_name = "MEMBER=WEIGHT", value_delimiter = ',', value_parser = args::weight)]
    weight: Vec<(MemberId, NonZeroU16)>,

    #[command(flatten)]
    place: Place,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let weights = args.weight.clone();
    let change = Change { spread: args.spread, weights, ..args.rules.as_change() };
    Ok(args.place.service(&args.name)?.set(&change)?)
}
