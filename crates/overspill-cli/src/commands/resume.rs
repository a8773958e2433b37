//! `overspill resume`

use crate::args::MemberArgs;
use crate::failure::Outcome;
use crate::help;

/// Give a drained member requests again
#[derive(Debug, clap::Args)]
#[command(add = help::Manual::text(include_str!("resume.manual")))]
#[command(after_help = "\
EXAMPLES
  overspill resume web 2
  overspill resume web 2 --netns blue")]
pub(crate) struct Args {
    #[command(flatten)]
    whom: MemberArgs,
}

pub(crate) fn run(args: &Args) -> Outcome {
    Ok(args.whom.service()?.resume(args.whom.member)?)
}
