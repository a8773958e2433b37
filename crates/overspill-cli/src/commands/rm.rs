//! `overspill rm`

use overspill::{Families, MemberId, Name};
use overspill_supervisor::control;

use crate::args::{self, Place};
use crate::complete;
use crate::failure::{Failure, Outcome};
use crate::help;
use crate::output;

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

    /// Remove also what overspill run keeps, and will make anew
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    place: Place,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let service = args.place.service(&args.name)?;
    if !args.force {
        refuse_if_kept(args)?;
    }
    if let Some(member) = args.member {
        return Ok(service.leave(member)?);
    }
    service.remove()?;
    tell_twins(args)
}

/// Says what is still there of the same servers: the service for the other family.
fn tell_twins(args: &Args) -> Outcome {
    for families in [Families::IPV4, Families::IPV6] {
        let Ok(twin) = args.name.with_family(families) else { continue };
        if args.place.service(&twin).is_ok() {
            output::print(&format!("{twin} stays; remove it with overspill rm {twin}"))?;
        }
    }
    Ok(())
}

/// What a supervisor keeps comes back.
fn refuse_if_kept(args: &Args) -> Outcome {
    let (name, member) = (&args.name, args.member);
    // Who may not enter the namespace can't be told.
    let kept = args.place.enter().ok().and_then(|_| control::keeper(name));
    let Some((supervisor, pid)) = kept else { return Ok(()) };
    let who = match pid {
        Some(pid) => format!("overspill run --name {supervisor} (pid {pid})"),
        None => format!("overspill run --name {supervisor}, in another PID namespace"),
    };
    let end = match pid {
        Some(pid) => format!("end that with kill {pid}"),
        None => "end that".to_owned(),
    };
    Err(Failure::new(match member {
        None => format!(
            "service {name} is kept by {who}, which would make it anew; {end}, or give --force"
        ),
        Some(member) => format!(
            "member {member} of {name} is kept by {who}, which would let it join again; give \
             it no requests with overspill drain {name} {member}, or give --force"
        ),
    }))
}
