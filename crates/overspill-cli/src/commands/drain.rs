//! `overspill drain`

use std::thread;
use std::time::{Duration, Instant};

use overspill::{MemberId, MemberState, MemberStatus, Service, Status};

use crate::args::{self, MemberArgs};
use crate::failure::{Failure, Outcome};
use crate::help;
use crate::output;

/// The pause between two looks at a member that is waited for.
const LOOK: Duration = Duration::from_millis(100);

/// Give a member no new requests
///
/// What its queue holds stays there, to be accepted; requests to its address go to its
/// siblings. Once it holds nothing it can be stopped without a client noticing: --wait
/// waits for that. Its worker's next process gets requests again.
#[derive(Debug, clap::Args)]
#[command(add = help::Manual::text(include_str!("drain.manual")))]
#[command(after_help = "\
EXAMPLES
  overspill drain web 2
  overspill drain web 2 --wait 60 && kill PID    # stop it when it holds nothing")]
pub(crate) struct Args {
    #[command(flatten)]
    whom: MemberArgs,

    /// Wait until it holds no connections, SECONDS at most if they are given
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, value_parser = args::seconds())]
    #[expect(clippy::option_option, reason = "clap's way to say that the value may be left out")]
    wait: Option<Option<u32>>,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let service = args.whom.service()?;
    service.drain(args.whom.member)?;
    remark_on_rest(&service.status()?);
    match args.wait {
        Some(seconds) => wait(&service, args.whom.member, seconds),
        None => Ok(()),
    }
}

/// Warns if this was the last member that takes requests.
fn remark_on_rest(status: &Status) {
    let any = |state| status.members.iter().any(|member| member.state == state);
    let name = &status.name;
    if any(MemberState::Active) {
        return;
    }
    output::remark(&if any(MemberState::Hung) {
        format!("no member of {name} is active: requests go to those that hang; resume one")
    } else {
        format!("no member of {name} is active: new requests are refused; resume one")
    });
}

fn wait(service: &Service, member: MemberId, seconds: Option<u32>) -> Outcome {
    let begun = Instant::now();
    let patience = seconds.map(|seconds| Duration::from_secs(seconds.into()));
    loop {
        let members = service.status()?.members;
        let holds = match members.iter().find(|it| it.member == member) {
            // Who was taken out is nobody's to wait for.
            None => 0,
            Some(status) => holds(service, status)?,
        };
        if holds == 0 {
            return Ok(());
        }
        if let Some(seconds) = seconds.filter(|_| patience.is_some_and(|it| begun.elapsed() >= it))
        {
            let holds = output::count(usize::try_from(holds).unwrap_or(usize::MAX), "connection");
            let name = service.name();
            return Err(Failure::new(format!(
                "member {member} of {name} holds {holds} after {seconds} s; it drains on, wait longer"
            )));
        }
        thread::sleep(LOOK);
    }
}

/// How many connections a member holds, with those that are not complete.
fn holds(service: &Service, status: &MemberStatus) -> Result<u64, Failure> {
    let failed = |why: &str| {
        let (name, member) = (service.name(), status.member);
        Err(Failure::new(format!("cannot wait for member {member} of {name}: {why}")))
    };
    match (status.state, status.established) {
        (MemberState::Active | MemberState::Hung, _) => failed(
            "it gets requests again: it was resumed, or has a new process; drain it once more",
        ),
        (MemberState::Gone, None) => Ok(0),
        (_, None) => failed(
            "its connections are not counted, as its control group was removed or is not mounted; \
             count them with ss -tp",
        ),
        (_, Some(established)) => {
            Ok(u64::from(status.queued.max(established)) + u64::from(status.half_open))
        }
    }
}
