//! By which rules a service's requests are placed.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::nearest::nearest;

/// How a member is chosen among those with room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Policy {
    /// The called member; where several share the called address, the one that a hash
    /// of the flow gives. If it has no room, the next one in list order.
    #[default]
    NextAvailable,
    /// The member with the fewest queued and half-open requests; equals take turns.
    ShortestQueue,
    /// The member after the one chosen last.
    RoundRobin,
    /// The member with the fewest queued, half-open and established connections, over its
    /// weight; equals take turns. For connections that all work: an idle one counts as much as
    /// one that is busy.
    LeastLoaded,
    /// The better of two that the flow's hash gives, by the measure of `LeastLoaded`: near
    /// to it in effect, at the cost of two members however many there are.
    TwoChoices,
    /// The member that a program of the user's own chooses
    /// ([`Change::dispatcher`](crate::Change::dispatcher)).
    Dispatcher,
}

/// What becomes of a request when every member's accept queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFull {
    /// The kernel drops it silently and counts it (`ListenOverflows`); the client
    /// tries again after a second.
    #[default]
    Drop,
    /// The client is refused at once (RST).
    Reset,
}

/// All that a service's user chooses about the placing of its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rules {
    /// How a member is chosen among those with room.
    pub policy: Policy,
    /// What becomes of a request when every queue is full.
    pub on_full: OnFull,
    /// Whether siblings of the called members may be chosen at all. Without it the
    /// kernel places as it does without overspill.
    pub redirect: bool,
    /// Whether every member counts as called, whatever its address.
    pub spread: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            on_full: OnFull::default(),
            redirect: true,
            spread: false,
        }
    }
}

impl Policy {
    /// Every policy of overspill's own, i.e. but for [`Policy::Dispatcher`], in the order of
    /// the documentation.
    pub const ALL: [Self; 5] = [
        Self::NextAvailable,
        Self::ShortestQueue,
        Self::RoundRobin,
        Self::LeastLoaded,
        Self::TwoChoices,
    ];

    /// The name on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NextAvailable => "next-available",
            Self::ShortestQueue => "shortest-queue",
            Self::RoundRobin => "round-robin",
            Self::LeastLoaded => "least-loaded",
            Self::TwoChoices => "two-choices",
            Self::Dispatcher => "dispatcher",
        }
    }

    /// The number in the kernel's maps (`enum ov_policy`).
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::NextAvailable => 0,
            Self::ShortestQueue => 1,
            Self::RoundRobin => 2,
            Self::LeastLoaded => 3,
            Self::TwoChoices => 4,
            Self::Dispatcher => 5,
        }
    }

    /// Whether the next choice begins where the last one ended.
    pub(crate) fn takes_turns(self) -> bool {
        matches!(self, Self::ShortestQueue | Self::RoundRobin | Self::LeastLoaded)
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        let mut all = Self::ALL.into_iter().chain([Self::Dispatcher]);
        all.find(|policy| policy.number() == number)
    }
}

impl OnFull {
    /// Both, in the order of the documentation.
    pub const ALL: [Self; 2] = [Self::Drop, Self::Reset];

    /// The name on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Reset => "reset",
        }
    }
}

fn parse<T: Copy>(
    what: &'static str,
    text: &str,
    all: &[T],
    name: fn(T) -> &'static str,
) -> Result<T> {
    all.iter().copied().find(|&one| name(one) == text).ok_or_else(|| Error::UnknownWord {
        what,
        word: text.to_owned(),
        nearest: nearest(text, all.iter().map(|&one| name(one))).map(str::to_owned),
        known: all.iter().map(|&one| name(one)).collect::<Vec<_>>().join(", "),
    })
}

impl FromStr for Policy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all: Vec<Self> = Self::ALL.into_iter().chain([Self::Dispatcher]).collect();
        parse("policy", text, &all, Self::name)
    }
}

impl FromStr for OnFull {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse("action on a full service", text, &Self::ALL, Self::name)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for OnFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_lead_back() {
        for policy in Policy::ALL.into_iter().chain([Policy::Dispatcher]) {
            assert_eq!(policy.name().parse::<Policy>().unwrap(), policy);
            assert_eq!(Policy::from_number(policy.number()), Some(policy));
        }
        for on_full in OnFull::ALL {
            assert_eq!(on_full.name().parse::<OnFull>().unwrap(), on_full);
        }
    }

    #[test]
    fn an_unknown_policy_is_answered_with_the_known_ones() {
        let error = "fastest".parse::<Policy>().unwrap_err().to_string();
        assert!(error.contains("fastest") && error.contains("next-available"), "{error}");
    }
}
