//! What a service looks like at one moment.

use serde::{Serialize, Serializer};

use crate::figure::figures;
use crate::member::{Address, Health, MemberId};
use crate::policy::{OnFull, Policy};

/// A service with its figures. Its JSON is a promise: fields may be added, none change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The service's name.
    pub name: String,
    /// How a member is chosen among those with room.
    pub policy: Policy,
    /// The name of the program that chooses, by the policy `dispatcher`: its first 15 letters.
    pub dispatcher: Option<String>,
    /// What becomes of a request when every queue is full.
    pub on_full: OnFull,
    /// Whether requests are redirected at all; `"on"` or `"off"` in JSON.
    #[serde(serialize_with = "on_off")]
    pub redirect: bool,
    /// Whether every member is a called one.
    pub spread: bool,
    /// The port of all its members.
    pub port: u16,
    /// The members in list order.
    pub members: Vec<MemberStatus>,
    /// What became of the service's requests since it was made.
    pub requests: Requests,
}

figures! {
    /// A member with its figures.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize)]
    pub struct MemberStatus {
        /// Its number within the service.
        pub member: MemberId,
        /// Where it listens.
        pub address: Address,
        /// A process that holds its socket: as it was when the member joined, or as it was
        /// set since ([`Service::set_pid`](crate::Service::set_pid)).
        pub pid: u32,
        /// Whether it gets requests.
        pub state: MemberState,
    }
    gauges {
        weight: u16 = "Its share among members that hold as much, for `least-loaded` and \
                       `two-choices`.",
        queued: u32 = "Connections that wait to be accepted.",
        half_open: u32 = "Handshakes not yet completed.",
        capacity: u32 = "How many connections the queue holds: the backlog and one more.",
        established: Option<u32> = "Connections in `ESTABLISHED` or `CLOSE_WAIT`, those that \
            wait to be accepted among them; of those only that were complete after the socket \
            became a member. Not known where the socket's control group was removed or is not \
            mounted.",
    }
    counters {
        placed = "Requests put on this member that called it.",
        redirected_in = "Requests put on this member that called siblings.",
        redirected_out = "Requests that called this member and were put on siblings.",
        special = "Requests put on this member for another address than its own.",
        starts = "How often `overspill run` has started its process, the first time among \
                  them, or has tried to; 0 for one that others start.",
    }
}

/// Whether a member gets requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MemberState {
    /// It gets requests.
    Active,
    /// It gets no new requests: by the user's wish, or while `overspill run` pauses before it
    /// starts a worker that keeps ending again.
    Draining,
    /// It has stopped accepting, and gets requests only where no other member can take
    /// them, or one now and then to see whether it accepts again.
    Hung,
    /// Its socket is closed or shut down. Its place and its address are kept.
    Gone,
}

impl MemberState {
    /// Every state, from the best on.
    pub const ALL: [Self; 4] = [Self::Active, Self::Draining, Self::Hung, Self::Gone];

    /// The state of a member of which these are true.
    pub(crate) fn of(gone: bool, draining: bool, hung: bool) -> Self {
        match (gone, draining, hung) {
            (true, ..) => Self::Gone,
            (_, true, _) => Self::Draining,
            (_, _, true) => Self::Hung,
            _ => Self::Active,
        }
    }

    /// The name in tables and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Hung => "hung",
            Self::Gone => "gone",
        }
    }
}

/// A member's socket ([`Service::sockets`](crate::Service::sockets)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedSocket {
    /// The member.
    pub member: MemberId,
    /// The socket's `SO_COOKIE`.
    pub cookie: u64,
    /// Where it listens.
    pub address: Address,
    /// The process that serves it.
    pub pid: u32,
    /// It is closed or shut down.
    pub gone: bool,
    /// It was told to drain ([`Service::drain`](crate::Service::drain)).
    pub draining: bool,
}

/// A member's accept queue at one moment, as one looks at it to see whether it moves
/// ([`Service::queues`](crate::Service::queues)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Queue {
    /// The member.
    pub member: MemberId,
    /// What it is marked as ([`Service::set_health`](crate::Service::set_health)).
    pub health: Health,
    /// It gets no new requests, by the user's wish.
    pub draining: bool,
    /// Its socket is closed or shut down.
    pub gone: bool,
    /// Connections that wait to be accepted.
    pub queued: u32,
    /// Handshakes not yet completed.
    pub half_open: u32,
    /// The backlog that it listens with.
    pub backlog: u32,
    /// Which connection has waited longest; `None` when none waits. Another connection is
    /// another number.
    pub head: Option<u64>,
    /// Whether anybody waits for connections: in `accept(2)` or `poll(2)`, or with the
    /// socket in an epoll set.
    pub awaited: bool,
    /// The same, and where that is in epoll sets alone, somebody is in `epoll_wait(2)` for
    /// one of them: whoever hangs or is busy is not. True as well where that can't be told.
    pub attended: bool,
    /// Requests ever put on it, whatever they called.
    pub placed: u64,
}

figures! {
    /// What became of a service's requests.
    ///
    /// A request is one look-up of a listener: a SYN, sent anew or not, but also an ACK with
    /// a SYN cookie, a stray packet, and a look-up by another program (`ss` for one socket).
    /// Each is counted once, in `placed`, `redirected`, `dropped`, `reset` or `left`, but for
    /// those whose socket the kernel refused ([`Exits::refused`]).
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
    pub struct Requests {}
    counters {
        placed = "Requests put on a member that they called.",
        redirected = "Requests put on a sibling of the called members.",
        special = "Requests put on a member bound to another address than the called one.",
        dropped = "Requests left with a full member, where the kernel drops them.",
        reset = "Requests refused (RST).",
        fallback = "Requests placed by `next-available`, because the policy gave no usable \
                    answer.",
        left = "Requests left to the kernel, because every member was gone.",
        crowded = "Requests put where half-open requests fill the queue; also in `placed` or \
                   `redirected`.",
        returned = "Requests put back on the member that had answered their flow with a SYN \
                    cookie; also in `placed` or `redirected`.",
    }
}

figures! {
    /// The ways out of the kernel program that belong to no service, counted for the
    /// network namespace since its first service was made.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
    pub struct Exits {}
    counters {
        not_tcp = "Look-ups of UDP sockets.",
        other_program = "Requests for which another `sk_lookup` program had chosen already.",
        unserved_port = "Requests to a port that no service has.",
        unserved_address = "Requests to an address that no service has, on a port that one has.",
        no_roster = "Requests during which the service was taken out.",
        vanished = "Requests during which the chosen socket was closed; another was chosen.",
        refused = "Requests for which the kernel refused the chosen socket.",
        contended = "Looks repeated because another CPU was taking a last place.",
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn on_off<S: Serializer>(on: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(if *on { "on" } else { "off" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::Families;

    #[test]
    fn the_json_is_as_promised() {
        let address =
            Address { ip: "192.0.2.1".parse().unwrap(), port: 80, families: Families::IPV4 };
        let member = MemberStatus {
            member: MemberId(0),
            address,
            pid: 7,
            state: MemberState::Active,
            weight: 1,
            queued: 2,
            half_open: 1,
            capacity: 17,
            established: None,
            placed: 5,
            redirected_in: 1,
            redirected_out: 0,
            special: 1,
            starts: 2,
        };
        let status = Status {
            name: "web".to_owned(),
            policy: Policy::ShortestQueue,
            dispatcher: None,
            on_full: OnFull::Drop,
            redirect: true,
            spread: false,
            port: 80,
            members: vec![member],
            requests: Requests { placed: 5, redirected: 1, special: 1, ..Requests::default() },
        };
        let json = serde_json::to_value(status).unwrap();
        let expected = serde_json::json!({
            "name": "web", "policy": "shortest-queue", "dispatcher": null, "on_full": "drop", "redirect": "on",
            "spread": false, "port": 80,
            "members": [{
                "member": 0, "address": "192.0.2.1:80", "pid": 7, "state": "active", "weight": 1,
                "queued": 2, "half_open": 1, "capacity": 17, "established": null, "placed": 5,
                "redirected_in": 1, "redirected_out": 0, "special": 1,
                "starts": 2,
            }],
            "requests": {
                "placed": 5, "redirected": 1, "special": 1, "dropped": 0, "reset": 0,
                "fallback": 0, "left": 0, "crowded": 0, "returned": 0,
            },
        });
        assert_eq!(json, expected);
    }
}
