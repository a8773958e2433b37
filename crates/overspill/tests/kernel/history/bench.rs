//! A service in the kernel and its image in the model, side by side.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use overspill::model::{self, Choice, Cookies, Request, Turns, Verdict};
use overspill::trace::{Event, Filter, Outcome, Trace, Why};
use overspill::{
    Capacity, Change, Health, MemberId, MemberState, MemberStatus, OnFull, Policy, Requests, Rules,
    Service, flow,
};
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rustix::net::sockopt;
use socket2::{Domain, Protocol, Socket, Type};

use super::asked::Asked;
use crate::dispatcher::Object;
use world::syn::{self, Answer, Wire};

const PORT: u16 = 8080;

/// How many members a history has.
#[derive(Debug, Clone, Copy)]
pub(super) enum Size {
    /// So few that every one of them matters.
    Few,
    /// More than the kernel program looks at in one go, by any way that it has.
    Many,
}

impl Size {
    /// How many there are at first.
    fn members(self, random: &mut StdRng) -> usize {
        match self {
            Self::Few => random.random_range(1..=5),
            Self::Many => {
                let most = *[16, 64, 80, 150].choose(random).unwrap();
                random.random_range(9..=most)
            }
        }
    }

    fn most(self) -> usize {
        match self {
            Self::Few => 8,
            Self::Many => 160,
        }
    }

    /// Of the namespace: while the list changes, there are two of it.
    fn capacity(self) -> u32 {
        match self {
            Self::Few => 32,
            Self::Many => 640,
        }
    }
}

/// Which addresses a history's members have.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Ipv4,
    Ipv6,
    /// IPv4, and IPv6 sockets that take both.
    Dual,
}

impl Kind {
    fn members(self) -> &'static [&'static str] {
        match self {
            Self::Ipv4 => &["10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.3", "0.0.0.0"],
            Self::Ipv6 => &["fd00::1", "fd00::1", "fd00::2", "fd00::3", "::"],
            Self::Dual => &["10.0.0.1", "10.0.0.2", "0.0.0.0", "::", "::"],
        }
    }

    /// The last one is nobody's own.
    fn called(self) -> &'static [&'static str] {
        match self {
            Self::Ipv4 => &["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"],
            Self::Ipv6 => &["fd00::1", "fd00::2", "fd00::3", "fd00::4"],
            Self::Dual => &["10.0.0.1", "10.0.0.2", "fd00::1", "10.0.0.4"],
        }
    }
}

/// A client whose connection waits to be accepted.
#[derive(Debug)]
struct Waiting {
    client: SocketAddr,
    called: SocketAddr,
    /// `None` where a raw segment did the client's part.
    stream: Option<Socket>,
    reset: bool,
    /// It began in this membership of its server's socket, not in an earlier one.
    counted: bool,
}

/// A client whose SYN was answered with a cookie.
#[derive(Debug)]
struct Answered {
    client: SocketAddr,
    called: SocketAddr,
    cookie: u32,
}

/// A member: its socket, its image in the model, and what must be true of it.
struct Member {
    listener: Option<TcpListener>,
    model: model::Member,
    expected: MemberStatus,
    waiting: VecDeque<Waiting>,
    served: Vec<(TcpStream, Waiting)>,
    half_open: Vec<(SocketAddr, SocketAddr)>,
}

/// What must be told of a request to those who trace.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    client: SocketAddr,
    called: SocketAddr,
    outcome: Outcome,
    why: Option<Why>,
    /// Where the request was put on a member.
    member: Option<MemberId>,
    chosen: Option<Seen>,
}

/// A member's number, its queue, its half-open requests, and what it holds.
type Seen = (MemberId, u32, u32, u32);

pub(super) struct Bench {
    kind: Kind,
    size: Size,
    /// How many of the members have long queues.
    roomy: f64,
    random: StdRng,
    service: Service,
    seed: u32,
    rules: Rules,
    turns: Turns,
    /// `net.ipv4.tcp_syncookies=2`
    always_cookies: bool,
    cookies: Cookies,
    answered: Vec<Answered>,
    wires: [Wire; 2],
    members: Vec<Member>,
    /// Those that have left, and whose sockets listen as before; with the place of each.
    away: Vec<(usize, Member)>,
    requests: Requests,
    trace: Trace,
    told: Vec<Told>,
    next_id: u32,
    next_port: u16,
    /// Whether the dispatcher has left the last request to next-available.
    fell_back: bool,
}

impl Bench {
    pub(super) fn new(kind: Kind, size: Size, mut random: StdRng) -> Self {
        let rules = random_rules(&mut random);
        let (seed, count) = (random.random(), size.members(&mut random));
        let roomy = *[0.0, 0.0, 0.2, 0.9].choose(&mut random).unwrap();
        let mut listeners: Vec<TcpListener> =
            (0..count).map(|_| listener(kind, roomy, &mut random)).collect();
        // Members at one address follow one another, or others stand between them.
        if random.random() {
            listeners.sort_by_key(|listener| listener.local_addr().unwrap());
        }
        let builder = Service::builder("history").rules(rules);
        let builder = match dispatcher(rules.policy) {
            Some(path) => builder.dispatcher(path),
            None => builder,
        };
        let service = builder
            .capacity(Capacity { services: 2, members: size.capacity() })
            .seed(seed)
            .share(&listeners)
            .unwrap();
        assert_eq!(service.namespace().seed().unwrap(), Some(seed));
        let trace = Trace::begin(service.namespace(), &Filter::default()).unwrap();
        let requests = Requests::default();
        let always_cookies = random.random_bool(0.2);
        world::sysctl("net/ipv4/tcp_syncookies", if always_cookies { "2" } else { "1" });
        let (turns, members, next_id) = (Turns::default(), Vec::new(), 0);
        let mut bench = Self {
            kind,
            size,
            roomy,
            random,
            service,
            seed,
            rules,
            turns,
            always_cookies,
            cookies: Cookies::new(always_cookies),
            answered: Vec::new(),
            wires: [false, true].map(|ipv6| Wire::to(syn::client(ipv6, 0).ip())),
            members,
            away: Vec::new(),
            requests,
            trace,
            told: Vec::new(),
            next_id,
            next_port: 1024,
            fell_back: false,
        };
        for listener in listeners {
            bench.enter(listener);
        }
        bench.compare();
        bench
    }

    /// Enters a listener that has joined the service into the model.
    fn enter(&mut self, listener: TcpListener) {
        let expected = self.joined();
        assert_eq!((expected.queued, expected.half_open), (0, 0));
        let model = model::Member {
            socket: sockopt::socket_cookie(&listener).unwrap(),
            address: expected.address,
            gone: false,
            draining: false,
            health: Health::Well,
            queued: 0,
            half_open: 0,
            backlog: expected.capacity - 1,
            established: 0,
            weight: expected.weight,
        };
        self.members.push(Member {
            listener: Some(listener),
            model,
            expected,
            waiting: VecDeque::new(),
            served: Vec::new(),
            half_open: Vec::new(),
        });
    }

    /// What is said of the member that has just joined: nothing is counted yet.
    fn joined(&mut self) -> MemberStatus {
        let status = self.service.status().unwrap().members.swap_remove(self.members.len());
        assert_eq!(status.member, MemberId(self.next_id), "ids are given in order, once");
        assert_eq!((status.placed, status.redirected_in, status.redirected_out), (0, 0, 0));
        assert_eq!((status.special, status.established), (0, Some(0)));
        self.next_id += 1;
        self.turns = Turns::default();
        status
    }

    /// Fills queues, and takes members out: few steps are much for a few, not for many.
    pub(super) fn stir(&mut self) {
        for _ in 0..self.random.random_range(0..=2 * self.members.len()) {
            self.request(true);
            self.compare();
        }
        for _ in 0..self.random.random_range(0..=self.members.len()) {
            match self.random.random_range(0..4) {
                0 => self.set_draining(true),
                1 => self.set_health(),
                2 => self.set_weight(),
                _ => self.close(),
            }
        }
        self.compare();
    }

    /// Does something, and compares.
    pub(super) fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..44 => self.request(true),
            44..57 => self.request(false),
            57..59 => self.abort(),
            59..64 => self.acknowledge(),
            64..75 => self.accept(),
            75..78 => self.end(),
            78..81 => self.reset(),
            81..84 => self.close(),
            84..87 => self.join(),
            87..90 => self.leave(),
            90 => {
                let place = self.any_member();
                self.move_last_to(place);
            }
            91..93 => self.set_draining(true),
            93..95 => self.set_draining(false),
            95..97 => self.set_health(),
            97 => self.set_weight(),
            _ => self.set(),
        }
        self.compare();
    }

    pub(super) fn finish(self) {
        self.service.remove().unwrap();
        assert!(!std::path::Path::new("/sys/fs/bpf/overspill").exists());
    }

    fn any_member(&mut self) -> usize {
        self.random.random_range(0..self.members.len())
    }

    /// A member, or one that has left: its server does not care.
    fn any_server(&mut self) -> &mut Member {
        let index = self.random.random_range(0..self.members.len() + self.away.len());
        let away = self.away.iter_mut().map(|(_, member)| member);
        self.members.iter_mut().chain(away).nth(index).unwrap()
    }

    /// A client, real if asked for and if the handshake is to complete, calls.
    fn request(&mut self, real: bool) {
        let ip: IpAddr = self.kind.called().choose(&mut self.random).unwrap().parse().unwrap();
        let called = SocketAddr::new(ip, PORT);
        let client = self.new_client(real, called);
        let verdict = self.place(client, called);
        if self.kernel_may_find_a_socket(verdict) {
            return;
        }
        self.count(verdict, client, called);
        if real {
            self.connect(verdict, client, called);
        } else {
            self.half_open(verdict, client, called);
        }
    }

    /// A flow is never used twice: nothing is left of an earlier one. Nor does one take the
    /// place of another's cookie.
    fn new_client(&mut self, real: bool, called: SocketAddr) -> SocketAddr {
        loop {
            self.next_port += 1;
            let client = if real {
                let ip: &str = if called.is_ipv6() { "fd00:1::1" } else { "10.1.0.1" };
                SocketAddr::new(ip.parse().unwrap(), self.next_port)
            } else {
                syn::client(called.is_ipv6(), self.next_port)
            };
            if !self.cookies.collides(flow::hash(self.seed, client, called)) {
                return client;
            }
        }
    }

    fn place(&mut self, client: SocketAddr, called: SocketAddr) -> Verdict {
        let members: Vec<model::Member> =
            self.members.iter().map(|member| member.model.clone()).collect();
        let hash = flow::hash(self.seed, client, called);
        let ids: Vec<MemberId> = self.members.iter().map(|it| it.expected.member).collect();
        let asked = Asked { hash, client, called, members: &members, ids: &ids };
        self.fell_back = false;
        let mut dispatcher = |candidates: &[usize]| {
            let answer = asked.answer(candidates);
            self.fell_back = answer.is_none_or(|answer| answer >= candidates.len());
            answer
        };
        let request = Request { called: called.ip(), hash };
        let (turns, cookies) = (&mut self.turns, &mut self.cookies);
        model::place_asking(self.rules, &members, turns, cookies, request, &mut dispatcher)
    }

    /// Whether the kernel's own look-up may find a socket for a request left to it: that of a
    /// member on a wildcard address, when redirecting is off and those on the called one are
    /// gone, or of one that has left. The model does not say which.
    fn kernel_may_find_a_socket(&self, verdict: Verdict) -> bool {
        let member_listens = || self.members.iter().any(|member| !member.model.gone);
        match verdict {
            Verdict::Left => !self.away.is_empty() || member_listens(),
            Verdict::NotOurs => !self.away.is_empty(),
            _ => false,
        }
    }

    /// Whether the kernel answers with a SYN cookie and forgets the request
    /// (`tcp_conn_request`, `inet_csk_reqsk_queue_is_full`).
    fn sends_cookie(&self, verdict: Verdict) -> bool {
        chosen(verdict).is_some_and(|position| {
            let model = &self.members[position].model;
            self.always_cookies || model.half_open > model.backlog
        })
    }

    fn connect(&mut self, verdict: Verdict, client: SocketAddr, called: SocketAddr) {
        let socket =
            Socket::new(Domain::for_address(called), Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.bind(&client.into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let answer = socket.connect(&called.into());
        if let Verdict::Dropped(_) = verdict {
            // No answer: it stays on its way until it is dropped here.
            assert_eq!(answer.unwrap_err().raw_os_error(), Some(libc::EINPROGRESS));
            return;
        }
        let mut place = chosen(verdict);
        if self.sends_cookie(verdict) {
            // The ACK that follows at once is a request of its own.
            let verdict = self.place(client, called);
            self.count(verdict, client, called);
            place = chosen(verdict);
        }
        let expected = place.map(|_| ()).ok_or(ErrorKind::ConnectionRefused);
        let call = format!("{client} calls {called}: {verdict:?} by {:?}", self.rules);
        let ended = outcome(&socket, answer, &call);
        assert_eq!(ended, expected, "{call} in {:#?}", self.service.status());
        if let Some(position) = place {
            let member = &mut self.members[position];
            member.model.queued += 1;
            member.model.established += 1;
            member.waiting.push_back(Waiting {
                client,
                called,
                stream: Some(socket),
                reset: false,
                counted: true,
            });
        }
    }

    fn half_open(&mut self, verdict: Verdict, client: SocketAddr, called: SocketAddr) {
        let wire = &self.wires[usize::from(called.is_ipv6())];
        wire.forget();
        syn::open(client, called);
        if self.sends_cookie(verdict) {
            let cookie = wire.answer(client, called);
            self.answered.push(Answered { client, called, cookie });
            return;
        }
        if let Some(position) = chosen(verdict) {
            let member = &mut self.members[position];
            member.model.half_open += 1;
            member.half_open.push((client, called));
        }
    }

    /// What the counters must say of a request.
    fn count(&mut self, verdict: Verdict, client: SocketAddr, called: SocketAddr) {
        self.told.extend(self.told(verdict, client, called));
        self.requests.fallback += u64::from(self.fell_back);
        match verdict {
            Verdict::NotOurs => {}
            Verdict::Placed(to) => {
                self.requests.placed += 1;
                self.members[to.member].expected.placed += 1;
            }
            Verdict::Redirected { from, to } => {
                self.requests.redirected += 1;
                self.members[from].expected.redirected_out += 1;
                self.members[to.member].expected.redirected_in += 1;
            }
            Verdict::Dropped(_) => self.requests.dropped += 1,
            Verdict::Reset => self.requests.reset += 1,
            Verdict::Left => self.requests.left += 1,
        }
        if let Some(to) = choice(verdict) {
            self.requests.special += u64::from(to.special);
            self.requests.crowded += u64::from(to.crowded);
            self.requests.returned += u64::from(to.returned);
            self.members[to.member].expected.special += u64::from(to.special);
        }
    }

    /// What must be told of it.
    fn told(&self, verdict: Verdict, client: SocketAddr, called: SocketAddr) -> Option<Told> {
        let id = |at: usize| self.members[at].expected.member;
        let seen = |at: usize| {
            let model = &self.members[at].model;
            (id(at), model.queued, model.half_open, model.backlog + 1)
        };
        let (outcome, member, chosen) = match verdict {
            Verdict::NotOurs => return None,
            Verdict::Placed(to) => (Outcome::Placed, Some(id(to.member)), Some(seen(to.member))),
            Verdict::Redirected { from, to } => {
                (Outcome::Redirected, Some(id(from)), Some(seen(to.member)))
            }
            Verdict::Dropped(full) => (Outcome::Dropped, None, Some(seen(full))),
            Verdict::Reset => (Outcome::Reset, None, None),
            Verdict::Left => (Outcome::Left, None, None),
        };
        let why = match verdict {
            Verdict::Placed(to) | Verdict::Redirected { to, .. } if to.crowded => Why::Crowded,
            Verdict::Placed(to) | Verdict::Redirected { to, .. } if to.returned => Why::Cookie,
            Verdict::Dropped(_) => Why::Full,
            Verdict::Left => Why::Gone,
            // The model does not say which rule of those about hung ones it was.
            _ if self.members.iter().any(|member| member.model.health != Health::Well) => {
                return Some(Told { client, called, outcome, why: None, member, chosen });
            }
            Verdict::Placed(_) if self.fell_back => Why::Fallback,
            Verdict::Placed(_) => Why::Policy,
            _ => return Some(Told { client, called, outcome, why: None, member, chosen }),
        };
        Some(Told { client, called, outcome, why: Some(why), member, chosen })
    }

    /// Each request was told once, and as it was.
    fn compare_trace(&mut self) {
        let expected = std::mem::take(&mut self.told);
        let mut events = Vec::new();
        while events.len() < expected.len() {
            let more = self.trace.wait(world::deadline()).unwrap();
            assert!(!more.is_empty(), "told {events:#?}, expected {expected:#?}");
            events.extend(more);
        }
        events.extend(self.trace.wait(Duration::ZERO).unwrap());
        let told: Vec<Told> =
            events.iter().zip(&expected).map(|(event, expected)| read(event, expected)).collect();
        assert_eq!(events.len(), expected.len(), "{events:#?}");
        assert_eq!(told, expected, "{events:#?}");
        assert_eq!(self.trace.lost(), 0);
    }

    /// A client that was sent a cookie answers it, late.
    fn acknowledge(&mut self) {
        if self.answered.is_empty() {
            return;
        }
        let index = self.random.random_range(0..self.answered.len());
        let Answered { client, called, cookie } = self.answered.swap_remove(index);
        let verdict = self.place(client, called);
        if self.kernel_may_find_a_socket(verdict) {
            return;
        }
        self.count(verdict, client, called);
        self.wires[usize::from(called.is_ipv6())].forget();
        syn::acknowledge(client, called, cookie);
        self.compare_trace(); // where it went, before that is asked about it
        if let Some(to) = choice(verdict)
            && self.takes(to, client, called)
        {
            let member = &mut self.members[to.member];
            member.model.queued += 1;
            member.model.established += 1;
            member.waiting.push_back(Waiting {
                client,
                called,
                stream: None,
                reset: false,
                counted: true,
            });
        }
    }

    /// Whether the member chosen takes an ACK, and does not refuse it. The one that has sent the
    /// cookie does; which others can check it, the model does not know.
    fn takes(&self, to: Choice, client: SocketAddr, called: SocketAddr) -> bool {
        let wire = &self.wires[usize::from(called.is_ipv6())];
        let queued = || self.service.status().unwrap().members[to.member].queued;
        let (mut taken, mut refused) = (false, false);
        world::wait_until("the ACK is taken or refused", || {
            taken = queued() > self.members[to.member].model.queued;
            refused = wire.next() == Some((client, called, Answer::Reset));
            taken || refused
        });
        assert!(taken || !to.returned, "{to:?} refuses {client}");
        taken
    }

    fn abort(&mut self) {
        let member = self.any_server();
        if let Some((client, called)) = member.half_open.pop() {
            syn::abort(client, called);
            member.model.half_open -= 1;
        }
    }

    /// A server accepts: the client that came first, at the address that it called.
    fn accept(&mut self) {
        let member = self.any_server();
        let (Some(listener), Some(waiting)) = (&member.listener, member.waiting.pop_front()) else {
            return;
        };
        let (stream, peer) = listener.accept().unwrap();
        let canonical = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
        assert_eq!(canonical(peer), waiting.client, "accepted by {}", member.expected.member);
        assert_eq!(canonical(stream.local_addr().unwrap()), waiting.called);
        member.model.queued -= 1;
        if !waiting.reset {
            member.served.push((stream, waiting));
        }
    }

    /// A connection that is served ends: the server closes it, or the client resets it.
    fn end(&mut self) {
        let by_client = self.random.random::<bool>();
        let member = self.any_server();
        let Some((server, mut client)) = member.served.pop() else { return };
        member.model.established -= u32::from(client.counted);
        if by_client && client.reset() {
            // Its end has been seen before the server can take part in it.
            world::wait_until("the reset arrives", || server.take_error().unwrap().is_some());
        }
    }

    /// A client that waits resets its connection, and goes on taking its place.
    fn reset(&mut self) {
        let member = self.any_server();
        if let Some(client) = member.waiting.iter_mut().find(|client| client.stream.is_some()) {
            client.reset();
            member.model.established -= u32::from(client.counted);
        }
    }

    /// A member's socket is closed, or shut down.
    fn close(&mut self) {
        let position = self.any_member();
        let shut_down = self.random.random();
        let member = &mut self.members[position];
        match &member.listener {
            // Once shut down, a socket does not listen and can't be shut down again.
            Some(listener) if shut_down && !member.model.gone => {
                rustix::net::shutdown(listener, rustix::net::Shutdown::Both).unwrap();
            }
            _ => member.listener = None,
        }
        member.model.gone = true;
        (member.model.queued, member.model.half_open) = (0, 0);
        member.waiting.clear();
        member.model.established = member.counted();
        member.half_open.clear();
    }

    /// A socket joins: a new one, or one that has left.
    fn join(&mut self) {
        if self.members.len() >= self.size.most() {
            return;
        }
        if !self.away.is_empty() && self.random.random_bool(0.8) {
            return self.rejoin();
        }
        let listener = listener(self.kind, self.roomy, &mut self.random);
        self.service.join(&listener).unwrap();
        self.enter(listener);
    }

    /// A socket that has left joins again, with what it holds, as another member: at the end,
    /// or where it stood.
    fn rejoin(&mut self) {
        let index = self.random.random_range(0..self.away.len());
        let (place, mut member) = self.away.swap_remove(index);
        self.service.join(member.listener.as_ref().unwrap()).unwrap();
        member.expected = self.joined();
        member.begin_anew();
        self.members.push(member);
        if self.random.random() {
            self.move_last_to(place);
        }
    }

    /// A member leaves. Its socket is closed, or takes requests on its own.
    fn leave(&mut self) {
        let position = self.any_member();
        let id = self.members[position].expected.member;
        if self.members.len() == 1 {
            self.service.leave(id).unwrap_err();
            return;
        }
        self.service.leave(id).unwrap();
        let member = self.members.remove(position);
        self.turns = Turns::default();
        if !member.model.gone && self.random.random() {
            self.away.push((position, member));
        }
    }

    /// The last member comes to a place, and those from there on stand after it.
    fn move_last_to(&mut self, place: usize) {
        if place + 1 >= self.members.len() {
            return;
        }
        let moved = &mut self.members[place..];
        moved.rotate_right(1);
        let order: Vec<MemberId> = moved.iter().map(|member| member.expected.member).collect();
        self.service.arrange(&order).unwrap();
        self.turns = Turns::default();
    }

    fn set_draining(&mut self, draining: bool) {
        let position = self.any_member();
        let member = &mut self.members[position];
        let id = member.expected.member;
        if draining { self.service.drain(id) } else { self.service.resume(id) }.unwrap();
        member.model.draining = draining;
    }

    fn set_health(&mut self) {
        let position = self.any_member();
        let health = [Health::Well, Health::Hung, Health::OnTrial];
        let health = *health.choose(&mut self.random).unwrap();
        let member = &mut self.members[position];
        self.service.set_health(member.expected.member, health).unwrap();
        member.model.health = health;
    }

    fn set_weight(&mut self) {
        let (position, weight) = (self.any_member(), self.random.random_range(1..=3));
        let member = &mut self.members[position];
        let weights = vec![(member.expected.member, weight.try_into().unwrap())];
        self.service.set(&Change { weights, ..Change::default() }).unwrap();
        member.model.weight = weight;
    }

    fn set(&mut self) {
        let rules = random_rules(&mut self.random);
        let change = Change {
            policy: Some(rules.policy),
            dispatcher: dispatcher(rules.policy),
            on_full: Some(rules.on_full),
            redirect: Some(rules.redirect),
            spread: Some(rules.spread),
            weights: Vec::new(),
        };
        self.service.set(&change).unwrap();
        self.rules = rules;
    }

    /// The kernel's figures become those of the model: a handshake's last segment is
    /// taken a moment after the client's `connect` is done.
    fn compare(&mut self) {
        self.compare_trace();
        let expected: Vec<MemberStatus> = self.members.iter().map(Member::expected).collect();
        let start = Instant::now();
        loop {
            let status = self.service.status().unwrap();
            if status.members == expected && status.requests == self.requests {
                return;
            }
            if start.elapsed() > world::deadline() {
                assert_eq!(status.members, expected, "{:?}", self.rules);
                assert_eq!(status.requests, self.requests, "{:?}", self.rules);
            }
        }
    }
}

/// What an event says of what is expected.
fn read(event: &Event, expected: &Told) -> Told {
    assert_eq!(event.service, "history");
    let chosen = event.chosen.map(|it| (it.member, it.queued, it.half_open, it.capacity));
    Told {
        client: event.client,
        called: event.called,
        outcome: event.outcome,
        why: expected.why.and(Some(event.why)),
        member: expected.member.and(event.member.map(|member| member.member)),
        chosen,
    }
}

impl Waiting {
    /// False where there is nothing to reset.
    fn reset(&mut self) -> bool {
        let Some(stream) = self.stream.take() else { return false };
        stream.set_linger(Some(Duration::ZERO)).unwrap();
        self.reset = true;
        true
    }
}

impl Member {
    /// How many of its connections are counted.
    fn counted(&self) -> u32 {
        let all = self.waiting.iter().chain(self.served.iter().map(|(_, client)| client));
        let alive = all.filter(|client| client.counted && !client.reset);
        u32::try_from(alive.count()).unwrap()
    }

    /// As it joins again: nobody drains or marks it, and no connection that it has is counted.
    fn begin_anew(&mut self) {
        let served = self.served.iter_mut().map(|(_, client)| client);
        for client in self.waiting.iter_mut().chain(served) {
            client.counted = false;
        }
        self.model.established = 0;
        self.model.weight = self.expected.weight;
        self.model.draining = false;
        self.model.health = Health::Well;
    }

    fn expected(&self) -> MemberStatus {
        let model = &self.model;
        MemberStatus {
            queued: model.queued,
            half_open: model.half_open,
            established: Some(model.established),
            weight: model.weight,
            capacity: if model.gone { 0 } else { model.backlog + 1 },
            state: match (model.gone, model.draining, model.health) {
                (true, ..) => MemberState::Gone,
                (_, true, _) => MemberState::Draining,
                (_, _, Health::Well) => MemberState::Active,
                _ => MemberState::Hung,
            },
            ..self.expected.clone()
        }
    }
}

/// What becomes of a call: connected, or the error that ends it. The kernel tells an error
/// once, so the first one counts.
fn outcome(socket: &Socket, answer: io::Result<()>, call: &str) -> Result<(), ErrorKind> {
    match answer {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        ended => return ended.map_err(|error| error.kind()),
    }
    let mut ended = None;
    world::wait_until(&format!("it ends: {call}"), || {
        ended = match socket.take_error().unwrap() {
            Some(error) => Some(Err(error.kind())),
            None => socket.peer_addr().ok().map(|_| Ok(())),
        };
        ended.is_some()
    });
    ended.unwrap()
}

fn choice(verdict: Verdict) -> Option<Choice> {
    match verdict {
        Verdict::Placed(to) | Verdict::Redirected { to, .. } => Some(to),
        _ => None,
    }
}

/// The position of the member chosen.
fn chosen(verdict: Verdict) -> Option<usize> {
    choice(verdict).map(|to| to.member)
}

fn random_rules(random: &mut StdRng) -> Rules {
    let policies: Vec<Policy> = Policy::ALL.into_iter().chain([Policy::Dispatcher]).collect();
    Rules {
        policy: *policies.choose(random).unwrap(),
        on_full: *OnFull::ALL.choose(random).unwrap(),
        redirect: random.random_bool(0.9),
        spread: random.random_bool(0.2),
    }
}

/// The program that a policy needs.
fn dispatcher(policy: Policy) -> Option<PathBuf> {
    static ASKED: LazyLock<Object> =
        LazyLock::new(|| Object::compile("tests/kernel/history/asked.bpf.c", &[]));
    (policy == Policy::Dispatcher).then(|| ASKED.path())
}

/// A listener at one of the kind's addresses, with a small queue; or, that often, one that has
/// more room than the CPUs can take at once.
fn listener(kind: Kind, roomy: f64, random: &mut StdRng) -> TcpListener {
    let cpus = i32::try_from(libbpf_rs::num_possible_cpus().unwrap()).unwrap();
    let ip: IpAddr = kind.members().choose(random).unwrap().parse().unwrap();
    let address = SocketAddr::new(ip, PORT);
    let socket =
        Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_reuse_port(true).unwrap();
    if address.is_ipv6() {
        socket.set_only_v6(!matches!(kind, Kind::Dual)).unwrap();
    }
    socket.bind(&address.into()).unwrap();
    let backlogs = if random.random_bool(roomy) { 4 * cpus..=5 * cpus } else { 0..=3 };
    socket.listen(random.random_range(backlogs)).unwrap();
    socket.into()
}
