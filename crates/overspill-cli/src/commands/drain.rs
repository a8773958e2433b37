//! `overspill drain`

use crate::args::MemberArgs;
use crate::failure::Outcome;
use crate::help;

/// Give a member no new requests
///
/// What its queue holds stays there, to be accepted; requests to its address go to its
/// siblings. Once it holds nothing it can be stopped without a client noticing.
#[derive(Debug, clap::Args)]
#[command(add = help::Manual::text(include_str!("drain.manual")))]
#[command(after_help = "\
EXAMPLES
  overspill drain web 2
  overspill drain web 2 && overspill show web    # stop it when it holds nothing")]
pub(crate) struct Args {
    #[command(flatten)]
    whom: MemberArgs,
}

pub(crate) fn run(args: &Args) -> Outcome {
    Ok(args.whom.service()?.drain(args.whom.member)?)
}
