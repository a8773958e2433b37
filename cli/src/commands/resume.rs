//! `overspill resume`

use overspill::{MemberId, Name};

use crate::args::{self, Place};
use crate::failure::Outcome;

/// Give a drained member requests again
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  overspill resume web 2
  overspill resume web 2 --netns blue")]
pub(crate) struct Args {
    /// The service's name
    #[arg(value_parser = args::name)]
    name: Name,

    /// The member's number, as show lists it
    #[arg(value_parser = args::member)]
    member: MemberId,

    #[command(flatten)]
    place: Place,
}

pub(crate) fn run(args: &Args) -> Outcome {
    Ok(args.place.service(&args.name)?.resume(args.member)?)
}
