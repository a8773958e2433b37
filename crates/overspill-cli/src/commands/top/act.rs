//! A change: what is asked before it is made, and how it is made.

use overspill::{Change, MemberId, MemberState, Namespace, Policy, Service};

use super::state::State;
use crate::failure::Outcome;

/// A change of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Act {
    pub(super) service: String,
    pub(super) what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Drain(MemberId),
    Resume(MemberId),
    Policy(Policy),
}

impl Act {
    /// Makes the change.
    pub(super) fn run(&self, namespace: &Namespace) -> Outcome {
        let service = Service::open_in(&self.service, namespace)?;
        match self.what {
            What::Drain(member) => service.drain(member)?,
            What::Resume(member) => service.resume(member)?,
            What::Policy(policy) => {
                service.set(&Change { policy: Some(policy), ..Change::default() })?;
            }
        }
        Ok(())
    }

    /// What is asked, and what is to be known before it is answered.
    pub(super) fn question(&self, state: &State) -> (String, String) {
        let name = &self.service;
        match self.what {
            What::Drain(member) => {
                let mut known = "It gets no new requests; what its queue holds stays there.";
                if self.is_last_active(member, state) {
                    known = "No other member is active: it gets no new requests, and where no \
                             other can take them they are refused.";
                }
                (format!("Drain member {member} of {name}?"), known.to_owned())
            }
            What::Resume(member) => {
                (format!("Resume member {member} of {name}?"), "It gets requests again.".to_owned())
            }
            What::Policy(policy) => {
                let service = state.find(name).map(|service| &service.status);
                let from = service.map_or_else(String::new, |it| format!(" from {}", it.policy));
                let known = match service {
                    Some(service) if service.policy == Policy::Dispatcher => {
                        "The program that chooses now is taken out; overspill set NAME \
                         --policy dispatcher=FILE loads it again."
                    }
                    _ => "It holds from the next request on.",
                };
                (format!("Change the policy of {name}{from} to {policy}?"), known.to_owned())
            }
        }
    }

    fn is_last_active(&self, member: MemberId, state: &State) -> bool {
        let active = |service: &super::book::Service| {
            let others = service.members.iter().filter(|it| it.id() != member);
            others.filter(|it| it.status.state == MemberState::Active).count()
        };
        state.find(&self.service).is_some_and(|service| active(service) == 0)
    }

    pub(super) fn doing(&self) -> String {
        let name = &self.service;
        match self.what {
            What::Drain(member) => format!("draining member {member} of {name} ..."),
            What::Resume(member) => format!("resuming member {member} of {name} ..."),
            What::Policy(policy) => format!("changing the policy of {name} to {policy} ..."),
        }
    }

    pub(super) fn done(&self) -> String {
        let name = &self.service;
        match self.what {
            What::Drain(member) => format!("member {member} of {name} drains"),
            What::Resume(member) => format!("member {member} of {name} gets requests again"),
            What::Policy(policy) => format!("{name} has the policy {policy}"),
        }
    }
}

/// What a policy does, in a few words.
pub(super) fn meaning(policy: Policy) -> &'static str {
    match policy {
        Policy::NextAvailable => "the called one, else the next with room",
        Policy::ShortestQueue => "the one that holds the fewest requests",
        Policy::RoundRobin => "the one after the last chosen",
        Policy::LeastLoaded => "the fewest requests and connections",
        Policy::TwoChoices => "the less loaded of two at random",
        _ => "",
    }
}
