//! `overspill drain`

use overspill::{MemberId, Name};

use crate::args::{self, Place};
use crate::failure::Outcome;

/// Give a member no new requests
///
/// What its queue holds stays there, to be accepted; requests to its address go to its
/// siblings. Once it holds nothing it can be stopped without a client noticing.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  overspill drain web 2
  overspill drain web 2 && overspill show web    # stop it when it holds nothing")]
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
    Ok(args.place.service(&args.name)?.drain(args.member)?)
}
