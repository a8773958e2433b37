//! What several commands take on their command lines.

use std::fmt::Display;
use std::fs::File;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use nix::sched::{CloneFlags, setns};
use overspill::{Capacity, Change, MemberId, Name, Namespace, OnFull, Policy, Rules, Service};

use crate::complete;
use crate::failure::{Failure, Outcome};
use crate::nearest;

/// By which rules requests are placed; what is not given stays as it is.
#[derive(Debug, clap::Args)]
pub(crate) struct RuleArgs {
    /// How a member is chosen among those with room
    #[arg(long, value_parser = policy, long_help = "\
How a member is chosen among those with room: next-available, shortest-queue, round-robin, \
least-loaded, two-choices; dispatcher=FILE asks a program of your own")]
    policy: Option<Chosen>,

    /// What becomes of a request when every queue is full
    #[arg(long, value_name = "ACTION", value_parser = on_full())]
    on_full: Option<OnFull>,

    /// Whether requests are redirected at all
    #[arg(long, value_name = "ON|OFF", value_parser = on_off(), hide_possible_values = true)]
    redirect: Option<bool>,
}

impl RuleArgs {
    /// As the rules of a new service; `policy` is for where none is given.
    pub(crate) fn of_new(&self, policy: Policy, spread: bool) -> Rules {
        let default = Rules::default();
        Rules {
            policy: self.policy.as_ref().map_or(policy, Chosen::policy),
            on_full: self.on_full.unwrap_or(default.on_full),
            redirect: self.redirect.unwrap_or(default.redirect),
            spread,
        }
    }

    /// Whether the program that is to choose is fit for it, as far as can be told before
    /// there is a service.
    pub(crate) fn check_dispatcher(&self) -> Outcome {
        Ok(self.dispatcher().map_or(Ok(()), overspill::check_dispatcher)?)
    }

    /// Takes a relative path to be one from this folder.
    pub(crate) fn relative_to(&mut self, folder: &Path) {
        if let Some(Chosen::Dispatcher(path)) = &mut self.policy {
            *path = folder.join(&*path);
        }
    }

    /// The file of the program that is to choose.
    pub(crate) fn dispatcher(&self) -> Option<PathBuf> {
        match &self.policy {
            Some(Chosen::Dispatcher(path)) => Some(path.clone()),
            _ => None,
        }
    }

    /// As a change of an existing service.
    pub(crate) fn as_change(&self) -> Change {
        Change {
            policy: self.policy.as_ref().map(Chosen::policy),
            dispatcher: self.dispatcher(),
            on_full: self.on_full,
            redirect: self.redirect,
            ..Change::default()
        }
    }
}

/// A policy as it is given: with the program's file, where it needs one.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Chosen {
    Own(Policy),
    Dispatcher(PathBuf),
}

impl Chosen {
    fn policy(&self) -> Policy {
        match self {
            Self::Own(policy) => *policy,
            Self::Dispatcher(_) => Policy::Dispatcher,
        }
    }
}

fn policy(text: &str) -> Result<Chosen, String> {
    match text.split_once('=') {
        Some(("dispatcher", path)) if !path.is_empty() => Ok(Chosen::Dispatcher(path.into())),
        _ => match text.parse() {
            Ok(Policy::Dispatcher) | Err(_) if text.starts_with("dispatcher") => {
                Err("give the program's object file too: dispatcher=FILE".to_owned())
            }
            Ok(policy) => Ok(Chosen::Own(policy)),
            Err(error) => Err(error.to_string()),
        },
    }
}

fn on_full() -> impl TypedValueParser<Value = OnFull> {
    PossibleValuesParser::new(OnFull::ALL.map(OnFull::name)).try_map(|word| word.parse::<OnFull>())
}

/// `on` or `off`.
pub(crate) fn on_off() -> impl TypedValueParser<Value = bool> {
    PossibleValuesParser::new(["on", "off"]).map(|word| word == "on")
}

/// A service's name; a wrong one is answered with the rules for names.
pub(crate) fn name(text: &str) -> Result<Name, String> {
    text.parse().map_err(|error: overspill::Error| Failure::from(error).to_string())
}

/// A name to which the port is added where it is needed.
pub(crate) fn base_name(text: &str) -> Result<Name, String> {
    let remedy = "use 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit";
    if text.contains(':') {
        return Err(format!("overspill adds the port by itself; {remedy}"));
    }
    text.parse().map_err(|error| format!("{error}; {remedy}"))
}

/// A whole number within bounds; a wrong one is answered with what it is.
pub(crate) fn number<N>(
    what: &'static str,
    bounds: RangeInclusive<N>,
) -> impl Fn(&str) -> Result<N, String> + Clone
where
    N: FromStr + PartialOrd + Display + Clone,
{
    move |text| {
        let number = text.parse().ok().filter(|number| bounds.contains(number));
        number.ok_or_else(|| format!("it is {what} from {} to {}", bounds.start(), bounds.end()))
    }
}

pub(crate) fn port() -> impl Fn(&str) -> Result<u16, String> + Clone {
    number("the number of a port", 1..=u16::MAX)
}

pub(crate) fn seconds() -> impl Fn(&str) -> Result<u32, String> + Clone {
    number("a whole number of seconds", 0..=u32::MAX)
}

pub(crate) fn milliseconds() -> impl Fn(&str) -> Result<u32, String> + Clone {
    number("a whole number of milliseconds", 0..=u32::MAX)
}

/// What an address is to look like.
pub(crate) const ADDRESS: &str = "give an address and a port, such as 127.0.0.1:8080 or [::]:8080";

pub(crate) fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| ADDRESS)
}

/// How many services and members, each within its bounds.
pub(crate) fn capacity(text: &str) -> Result<Capacity, String> {
    let fit = |number: &str| number.parse().ok().filter(|n| (1..=Capacity::MAX).contains(n));
    text.split_once(',')
        .and_then(|(services, members)| {
            Some(Capacity { services: fit(services)?, members: fit(members)? })
        })
        .ok_or_else(|| format!("two numbers from 1 to {}, as in 16,256", Capacity::MAX))
}

/// A member's number and its weight.
pub(crate) fn weight(text: &str) -> Result<(MemberId, NonZeroU16), String> {
    let (id, weight) = text.split_once('=').ok_or("it is MEMBER=WEIGHT, as in 0=3")?;
    let weight = weight.parse().map_err(|_| "a weight is a number from 1 to 65535")?;
    Ok((member(id)?, weight))
}

/// A member's number, as `overspill show` tells it.
pub(crate) fn member(text: &str) -> Result<MemberId, String> {
    match text.parse() {
        Ok(number) => Ok(MemberId(number)),
        Err(_) => Err("a member is given by its number; overspill show lists them".to_owned()),
    }
}

/// Where `ip netns` keeps the network namespaces that it has given names.
const NAMED: &str = "/run/netns";

/// In which network namespace a service is looked for.
#[derive(Debug, clap::Args)]
pub(crate) struct Place {
    /// Look in this network namespace
    #[arg(
        long,
        value_name = "NETNS",
        long_help = "\
Look in this network namespace: a name as ip netns shows it, a path such as /proc/PID/ns/net, or \
an inode number as lsns shows it [default: the current one]"
    )]
    netns: Option<Netns>,
}

impl Place {
    pub(crate) fn namespace(&self) -> Result<Namespace, Failure> {
        self.netns.as_ref().map_or_else(|| Ok(Namespace::current()?), opened)
    }

    /// Lets the calling thread live there from now on.
    pub(crate) fn enter(&self) -> Result<Namespace, Failure> {
        let namespace = self.namespace()?;
        match &self.netns {
            None => {}
            Some(Netns::Inode(_)) => enter(&namespace)?,
            Some(Netns::Path(path)) => enter_at(&namespace, || Ok(path.clone()))?,
        }
        Ok(namespace)
    }

    pub(crate) fn service(&self, name: &Name) -> Result<Service, Failure> {
        Ok(Service::open_in(name.as_str(), &self.namespace()?)?)
    }
}

/// Lets the calling thread live in a network namespace from now on.
pub(crate) fn enter(namespace: &Namespace) -> Result<(), Failure> {
    enter_at(namespace, || find_namespace(namespace.inode()))
}

fn enter_at(
    namespace: &Namespace,
    path: impl FnOnce() -> Result<PathBuf, Failure>,
) -> Result<(), Failure> {
    // To enter one takes privilege, even where one is already.
    if *namespace == Namespace::current()? {
        return Ok(());
    }
    let path = path()?;
    let entered = File::open(&path).and_then(|file| Ok(setns(file, CloneFlags::CLONE_NEWNET)?));
    entered.map_err(|error| {
        let path = path.display();
        Failure::new(format!("cannot enter network namespace {path}: {error}; be root"))
    })
}

/// The network namespace that somebody has named.
fn opened(netns: &Netns) -> Result<Namespace, Failure> {
    let path = match netns {
        Netns::Inode(inode) => return numbered(*inode),
        Netns::Path(path) => path,
    };
    Namespace::at(path).map_err(|error| {
        let says_what_to_do = error.remedy().is_some();
        let line = Failure::from(error);
        if says_what_to_do {
            return line;
        }
        let hint = nearest_named(path);
        Failure::new(format!("{line}{hint}; look with ip netns or lsns -t net"))
    })
}

/// A name that `ip netns` has given which is much like the one given here.
fn nearest_named(path: &Path) -> String {
    let Ok(name) = path.strip_prefix(NAMED) else { return String::new() };
    let named = std::fs::read_dir(NAMED).into_iter().flatten().flatten();
    let named = named.filter_map(|file| file.file_name().into_string().ok());
    nearest::hint(&name.to_string_lossy(), named)
}

/// In which network namespaces services are looked for.
#[derive(Debug, clap::Args)]
pub(crate) struct Places {
    /// Look in this network namespace [default: all that have services]
    #[arg(long, value_name = "NETNS")]
    netns: Option<Netns>,
}

impl Places {
    pub(crate) fn namespaces(&self) -> Result<Vec<Namespace>, Failure> {
        match &self.netns {
            None => Ok(Namespace::with_services()?),
            Some(netns) => Ok(vec![opened(netns)?]),
        }
    }
}

/// The network namespace of that number. One with services exists, and no more is needed to
/// get at them; any other has to be found.
fn numbered(inode: u64) -> Result<Namespace, Failure> {
    let namespace = Namespace::numbered(inode);
    let known = Namespace::with_services();
    if known.as_ref().is_ok_and(|known| known.contains(&namespace)) {
        return Ok(namespace);
    }
    match find_namespace(inode) {
        Ok(path) => Ok(Namespace::at(path)?),
        // It may have services that can't be seen.
        Err(failure) => known.map_or_else(|error| Err(error.into()), |_| Err(failure)),
    }
}

/// The network namespace of that number, as one of the processes in it has it, or by the
/// name that `ip netns` has given it.
fn find_namespace(inode: u64) -> Result<PathBuf, Failure> {
    let processes = std::fs::read_dir("/proc")
        .map_err(|error| Failure::new(format!("cannot read /proc: {error}; mount it")))?;
    let named = std::fs::read_dir(NAMED).into_iter().flatten().flatten();
    // What else there is in /proc has no such file.
    let paths = processes.flatten().map(|process| process.path().join("ns/net"));
    let mut paths = paths.chain(named.map(|file| file.path()));
    let is_it = |path: &PathBuf| {
        path.metadata().is_ok_and(|file| file.ino() == inode) && Namespace::at(path).is_ok()
    };
    paths.find(is_it).ok_or_else(|| {
        Failure::new(format!(
            "there is no network namespace {inode}, as far as you may look; look with lsns -t net"
        ))
    })
}

/// A member of a service.
#[derive(Debug, clap::Args)]
pub(crate) struct MemberArgs {
    /// The service's name
    #[arg(value_parser = name, add = complete::services())]
    name: Name,

    /// The member's number, as show lists it
    #[arg(value_parser = member)]
    pub(crate) member: MemberId,

    #[command(flatten)]
    place: Place,
}

impl MemberArgs {
    pub(crate) fn service(&self) -> Result<Service, Failure> {
        self.place.service(&self.name)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Netns {
    Inode(u64),
    Path(PathBuf),
}

impl FromStr for Netns {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            Err("it is a name, a path or an inode number".to_owned())
        } else if let Ok(inode) = text.parse() {
            Ok(Self::Inode(inode))
        } else if text.contains('/') {
            Ok(Self::Path(text.into()))
        } else {
            Ok(Self::Path(Path::new(NAMED).join(text)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_given_in_three_ways() {
        let parse = |text: &str| text.parse::<Netns>();
        assert_eq!(parse("blue"), Ok(Netns::Path("/run/netns/blue".into())));
        assert_eq!(parse("/proc/1/ns/net"), Ok(Netns::Path("/proc/1/ns/net".into())));
        assert_eq!(parse("./here"), Ok(Netns::Path("./here".into())));
        assert_eq!(parse("4026531840"), Ok(Netns::Inode(4_026_531_840)));
        assert!(parse("").is_err());
    }

    #[test]
    fn a_capacity_is_two_numbers_within_bounds() {
        assert_eq!(capacity("16,256"), Ok(Capacity { services: 16, members: 256 }));
        for bad in ["", "16", "0,1", "1,0", "1,65537", "-1,2", "1,2,3", "a,b", "1, 2"] {
            assert!(capacity(bad).is_err(), "{bad}");
        }
    }
}
