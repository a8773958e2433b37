//! `overspill rm`

use overspill::{MemberId, Name};

use crate::args::{self, Place};
use crate::complete;
use crate::failure::Outcome;
use crate::help;

/// Remove a service, or take one member out of it
///
/// The sockets are untouched: they keep what they hold, and get their requests from the
/// kernel as without overspill. With the last service of a network namespace, everything
/// that overspill has there is removed.
#[derive(Debug, clap::Args)]
#[command(add = help::Manual::text(include_str!("rm.manual")))]
#[command(after_help = "\
EXAMPLES
  overspill rm web
  overspill rm web 2
  overspill rm web --netns blue")]
pub(crate) struct Args {
    /// The service's name
    #[arg(value_parser = args::name, add = complete::services())]
    name: Name,

    /// Only this member, by its number as show lists it
    #[arg(value_parser = args::member)]
    member: Option<MemberId>,

    #[command(flatten)]
    place: Place,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let service = args.place.service(&args.name)?;
    match args.member {
        Some(member) => service.leave(member)?,
        None => service.remove()?,
    }
    Ok(())
}
