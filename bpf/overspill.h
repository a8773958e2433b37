/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The contract between the kernel program and user space: what lies in the maps.
 *
 * crates/overspill/src/datapath/layout.rs has the same structures in Rust, and a test compares
 * each size and offset with the BTF of the compiled object.
 *
 * A command of one build can work on a state whose programs belong to another build
 * (docs/decisions/0025-upgrade.md). So there are three kinds of structure.
 *
 * 1. What all builds share (marked "contract" below): struct ov_state, the counters,
 *    ov_figures, ov_export and the arguments of the programs that user space runs
 *    (bpf/contract.h). Fields are only appended. Numbers never get a new meaning. A reader
 *    takes the fields that it knows, and zeros for missing ones. `sockets`, `words` and
 *    `starts` never change: servers have `words` in their memory.
 *    The contract also has the folder BPFFS/overspill/INODE and its pins `link`,
 *    `overspill`, `connections`, `connections-ID`, `migrate`, `move_request` and
 *    `take_answer`. Deleting an entry of `services` removes the service.
 * 2. What belongs to connections and flows, and so outlives a program: `loads`, `origins`,
 *    `moved`, `any_moved`, `cookies`. Raise OVERSPILL_CONNECTIONS when one of them changes.
 *    An upgrade between different numbers makes these maps anew.
 * 3. Everything else is internal to a layout. Raise OVERSPILL_LAYOUT when the meaning or the
 *    place of a field changes. An upgrade between different layouts makes these maps anew.
 *
 * The nouns: a service is an ordered list of members; a member is a listening
 * socket; an endpoint is an address and port that clients call; a request is one
 * look-up of a listener by the kernel. A roster is a service as published: a run
 * of 64-byte rows in the map `rows`, never changed in its list, replaced as a whole
 * by another run.
 *
 *     row 0                       struct ov_header
 *     rows 1, 2                   the service's name, padded with zeros
 *     rows 3 .. 3+E               struct ov_endpoint_row
 *     rows 3+E .. 3+E+M           struct ov_member, in list order
 *     rows 3+M+E .. 3+M+E+A       copies of ov_member.sk, close together for scans
 *     rows 3+M+E+A ..             the called table: 16 positions a row
 */
#ifndef OVERSPILL_H
#define OVERSPILL_H

#define OVERSPILL_LAYOUT 8
#define OVERSPILL_CONNECTIONS 1

#define OV_ROW_SIZE 64
#define OV_ROW_HEADER 0
#define OV_ROW_NAME 1
#define OV_ROW_ENDPOINTS 3
#define OV_POSITIONS_PER_ROW 16
#define OV_ADDRESSES_PER_ROW 8

/* Contract: numbers are only added. The same holds for the flags of services and members. */
enum ov_policy {
	OV_NEXT_AVAILABLE = 0,
	OV_SHORTEST_QUEUE = 1,
	OV_ROUND_ROBIN = 2,
	OV_LEAST_LOADED = 3,
	OV_TWO_CHOICES = 4,
	OV_DISPATCHER = 5,
};

/* ov_header.flags */
enum {
	OV_REDIRECT = 1 << 0, /* siblings of the called members may be chosen */
	OV_RESET = 1 << 1, /* refuse the request when every queue is full */
	OV_SPREAD = 1 << 2, /* every member is a called one */
	OV_APART = 1 << 3, /* redirected between addresses: not all know of each SYN cookie */
};

/* Where a snapshot lies in `rows`. Each entry of `services` is a map with this one entry.
 * `publications`, by service, has copies for user space, which the program `locate` makes:
 * before 6.8 each look-up in a map of maps by user space waits for a grace period of RCU
 * (kernel/bpf/syscall.c, bpf_map_copy_value). Contract: fields are only appended. In a state
 * of another layout only `number` has a meaning. */
struct ov_extent {
	__u32 number; /* changes with each publication; 0: there is no such service */
	__u32 first;
	__u32 count;
	__u32 endpoints;
	__u32 members;
	__u32 zero;
};

struct ov_header {
	__u32 members;
	__u32 endpoints;
	__u32 turn; /* where the next redirected request's turn begins: a position */
	__u16 port; /* host order */
	__u8 policy;
	__u8 flags;
	__u32 next_id; /* for user space: the id of the next member to join */
	__u32 zero[11];
};

/* ov_member.flags */
enum {
	OV_TAKES_IPV4 = 1 << 0,
	OV_TAKES_IPV6 = 1 << 1,
	OV_WILDCARD = 1 << 2, /* bound to every address of the families it takes */
	OV_DRAINING = 1 << 3,
	OV_HUNG = 1 << 4, /* it has stopped accepting; set in place by `mark` */
	OV_TRIAL = 1 << 5, /* hung, and given one request to see whether it still is */
};

/* ov_member.sk besides an address: the socket was seen to be gone for good. */
#define OV_GONE 1ULL

struct ov_member {
	__u64 sk; /* the kernel's address of the socket; 0: not looked up yet */
	__u64 cookie; /* SO_COOKIE: tells whether memory at sk is still that socket */
	__u64 claim; /* the last request put on one of its last places */
	__u32 slot; /* index in all that is kept by slot: `sockets`, `loads`, ... */
	__u16 weight; /* 1 and more */
	__u8 flags;
	__u8 zero;
	__be32 address[4]; /* IPv4 as ::ffff:a.b.c.d */
	__u32 id; /* for user space, as is all that follows */
	__u32 pid;
	__u32 marked; /* the mark tick of the last mark */
	__u32 cgroup; /* id of the one whose connections are counted; 0: it has more bits */
};

/* A mark tick is 2^20 ns of the monotonic clock, about a millisecond. A member that was
 * marked as hung counts as well again when nobody renews the mark for this long: whoever
 * watches it has ended. */
#define OV_MARK_TICK_SHIFT 20
#define OV_MARK_TICKS 10000

/* The mark of an endpoint row: no other row has it in this place. */
#define OV_ENDPOINT_MARK 0x6f760001

struct ov_endpoint_row {
	__be32 address[4];
	__u32 first; /* its called members: table[first .. first + count] ... */
	__u32 count;
	__u32 direct; /* ... or, if set, positions first .. first + count themselves */
	__u32 turn; /* where the next turn begins: 0 .. count */
	/* of the header, so that a request reads one row less */
	__u32 members;
	__u32 endpoints;
	__u8 policy;
	__u8 flags;
	__u16 port; /* host order */
	__u32 service; /* its number */
	__u64 cookie; /* the cookie tick of the last SYN cookie sent; 0: none lately */
	__u32 roster; /* the number of its first row */
	__u32 mark; /* OV_ENDPOINT_MARK; 0 where the row is not in use */
};

union ov_row {
	struct ov_header header;
	__u8 name[OV_ROW_SIZE];
	struct ov_member member;
	struct ov_endpoint_row endpoint;
	__u64 addresses[OV_ADDRESSES_PER_ROW]; /* 0: not known yet */
	__u32 positions[OV_POSITIONS_PER_ROW];
};

/* `endpoints`: where a called address leads. */
struct ov_endpoint_key {
	__be32 address[4];
	__u16 port; /* host order */
	__u16 zero;
};

struct ov_endpoint {
	__u32 service; /* its number: the index in `services` and `service_counters` */
	__u32 row; /* number of its row, of the roster's endpoint rows */
};

/* A cookie tick is 2^26 ns of the monotonic clock, about 67 ms. A flow that was sent a SYN
 * cookie is remembered for this long, about 8.6 s: a long round trip, and what a client does
 * when its first ACK is lost, which is to send its first data again and again. */
#define OV_COOKIE_TICK_SHIFT 26
#define OV_COOKIE_TICKS 128

/* `cookies`, by the lower half of a flow's hash: the flow that was sent a SYN cookie last,
 * and the member that sent it. As many as there are values of that half. Only the kernel
 * program knows them. */
#define OV_COOKIES 65536

struct ov_cookie {
	__u16 when; /* cookie tick */
	__u16 flow; /* the upper half of its hash */
	__u16 position;
	__u16 socket; /* of the member's cookie: whether it still is the one at the position */
};

/* `near`: which of `rows` is an endpoint's, each at the index that the endpoint's key gives.
 * Of several with one index it has one: whoever reads it compares address and port with the
 * row. 0 where there is none: a header is no endpoint row. User space writes them in its
 * memory, whole, and waits for those who have read what was there before it writes over the
 * rows that they were led to. */
#define OV_NEAR_FACTOR 0x9e3779b97f4a7c15ULL /* 2^64 over the golden ratio */

/* `ports`: which kinds of endpoint a port has, so that other ports cost one load. */
enum {
	OV_PORT_EXACT = 1 << 0,
	OV_PORT_WILDCARD = 1 << 1,
};

struct ov_ports {
	__u8 kinds[65536]; /* by port, host order */
};

/* The counters are contract. Each CPU has a part. One extra part follows, in which no program
 * counts: it holds what was counted before an upgrade that made the map anew.
 *
 * `service_counters`, for each CPU by service. Each request that reaches a service is
 * in exactly one of placed, redirected, dropped, reset and left, or in exits.refused. */
struct ov_service_counters {
	__u64 placed; /* put on a member that it called */
	__u64 redirected; /* put on a sibling of the called members */
	__u64 special; /* put on a member bound to another address than the called */
	__u64 dropped; /* every queue full: left with a full one, the kernel drops it */
	__u64 reset; /* refused */
	__u64 left; /* every member gone: left to the kernel */
	__u64 fallback; /* the policy gave no usable answer: next-available did */
	__u64 crowded; /* put where only half-open requests stand in the way */
	__u64 returned; /* put where a SYN cookie was sent for them */
};

/* `member_counters`, for each CPU by slot. */
struct ov_member_counters {
	__u64 placed; /* requests put on this member that called it */
	__u64 redirected_in; /* requests that called siblings */
	__u64 redirected_out; /* requests that called this member and went to siblings */
	__u64 special; /* requests put here for another address than its own */
};

/* `exits`, by CPU: the ways out of the program before a service is found, and
 * those that should not happen. */
struct ov_exits {
	__u64 not_tcp;
	__u64 other_program; /* another sk_lookup program has chosen already */
	__u64 unserved_port;
	__u64 unserved_address;
	__u64 no_roster; /* the service went away during the request */
	__u64 vanished; /* the chosen socket was closed during the request */
	__u64 refused; /* bpf_sk_assign said no */
	__u64 contended; /* a look was repeated because a last place was being taken */
};

/* `awaited` of `ov_figures`. */
enum {
	OV_AWAITED = 1 << 0, /* somebody is in accept or poll, or has it in an epoll set */
	OV_UNATTENDED = 1 << 1, /* that is in sets alone, and nobody waits for one of them */
};

/* `figures`, by slot: filled on demand by the program `read_queues`. Contract. */
struct ov_figures {
	__u64 cookie; /* 0: the socket is gone */
	__u64 head; /* which connection has waited longest to be accepted; 0: none waits */
	__u32 queued; /* sk_ack_backlog */
	__u32 half_open; /* icsk_accept_queue.qlen */
	__u32 backlog; /* sk_max_ack_backlog */
	__u32 awaited; /* whether anybody waits for connections on it, below */
	__u64 cgroup; /* id of the socket's control group */
};

/* `loads`, by slot: what a member holds besides its queue. */
struct ov_load {
	__u64 cookie; /* of the socket whose connections these are; 0: not counted */
	__u32 era; /* grows with each member that has the slot, and as it leaves */
	__u32 established; /* connections in ESTABLISHED or CLOSE_WAIT, accepted or not */
};

/* `words`, by slot: a number of the user's own for each member, for dispatchers. Contract,
 * never to change. User space maps it into its memory and writes it without a system call. */
struct ov_word {
	__u64 cookie; /* of the member's socket: who looks for its place finds it by this */
	__u64 word;
};

/* `origins`, in the storage of a member's socket, and by it of every connection that it
 * accepts. A socket that leaves and joins again is another member, of another era. */
struct ov_origin {
	__u32 era; /* of the slot as the socket joined; 0: its connections are not counted */
	__u16 slot;
	__u16 counted; /* a connection that the program is told the end of */
};

/* `moved`, by a connection's cookie: where it went from its origin. */
struct ov_moved {
	struct ov_origin to;
	__u64 cgroup; /* id of the control group by which the program is told its end */
};

/* What became of a request, as those who trace are told. */
enum ov_outcome {
	OV_PLACED = 0,
	OV_REDIRECTED = 1,
	OV_DROPPED = 2,
	OV_RESET_SENT = 3,
	OV_LEFT = 4,
	OV_REFUSED = 5, /* the kernel refused the socket */
};

/* ov_event.why, besides what the figures of the called member say */
enum ov_why {
	OV_BY_POLICY = 0,
	OV_CROWDED = 1, /* only half-open requests stood in the way */
	OV_NO_OTHER = 2, /* hung, but no other member can take it */
	OV_COOKIE = 3, /* its flow was sent a SYN cookie from there */
	OV_FALLBACK = 4, /* the policy gave no usable answer */
};

/* A member as it was when a request was placed, before the kernel has queued that. */
struct ov_glimpse {
	__u32 id; /* OV_NO_MEMBER: there is none */
	__u32 queued;
	__u32 half_open;
	__u32 backlog;
	__u8 flags; /* ov_member.flags */
	__u8 gone;
	__u16 zero;
};

#define OV_NO_MEMBER 0xffffffff

/* A request, in the ring buffers of those who trace. */
struct ov_event {
	__u64 time; /* ns of the monotonic clock */
	__u8 service[72]; /* its name, padded with zeros */
	__be32 remote[4]; /* IPv4 as ::ffff:a.b.c.d */
	__be32 address[4]; /* the called one */
	__u16 remote_port;
	__u16 port;
	__u8 outcome;
	__u8 why;
	__u8 policy;
	__u8 zero;
	struct ov_glimpse called; /* the one whose turn or hash it is, of the called members */
	struct ov_glimpse chosen;
};

/* How many may trace a network namespace at the same time. */
#define OV_TRACERS 8

/* One who traces: its ring buffer is in `tracers`, at the same index. */
struct ov_tracer {
	__u64 until; /* ns of the monotonic clock; who goes on tracing moves it on */
	__u64 lost; /* events for which its ring buffer had no room */
	__u32 service; /* its number; OV_EVERY_SERVICE */
	__u32 outcomes; /* 1 << ov_outcome of those that it is told of */
};

#define OV_EVERY_SERVICE 0xffffffff

/* `tracing`: user space maps it into its memory. */
struct ov_tracing {
	struct ov_tracer tracers[OV_TRACERS];
};

/* `settings`: what every request has to know, in one cache line. */
struct ov_settings {
	__u64 active; /* 1 << index of those who trace; user space maps it into its memory */
	__u32 seed; /* of the flow hash; as what follows, set before loading */
	__u32 cpus; /* that there may be */
	__u32 services; /* capacity */
	__u32 members; /* capacity */
	__u32 near_bits; /* `near` has 2^near_bits entries */
	__u32 zero;
};

/* `exported`: a service in the form that every build reads, filled by the program `export`.
 * Contract. The members lie where `head` says, each `member_size` bytes long. */
#define OV_EXPORTED_MEMBERS 64

struct ov_exported_member {
	__u64 cookie; /* SO_COOKIE */
	__be32 address[4]; /* IPv4 as ::ffff:a.b.c.d */
	__u32 id;
	__u32 pid;
	__u32 slot;
	__u32 cgroup;
	__u32 marked; /* the mark tick of the last mark */
	__u16 weight;
	__u8 flags; /* as ov_member.flags */
	__u8 zero;
};

struct ov_exported_service {
	__u64 begun; /* the caller's number, by which it recognizes its own answer */
	__u32 head; /* where the members begin, in bytes */
	__u32 member_size; /* in bytes */
	__u32 members; /* of the service */
	__u32 first; /* the position of the first one given here */
	__u32 given; /* how many are */
	__u32 next_id; /* the id of the next member to join */
	__u16 port; /* host order */
	__u8 policy; /* enum ov_policy */
	__u8 flags; /* as ov_header.flags */
	__u32 turn; /* the round-robin cursor over all members: a position */
	__u8 name[128]; /* padded with zeros */
};

struct ov_export {
	struct ov_exported_service service;
	struct ov_exported_member member[OV_EXPORTED_MEMBERS];
	__u64 busy; /* the number of the run that writes; 0: none does */
	__u64 ended; /* as `begun`, written last: the last 8 bytes of the map's value */
};

/* `state`: written once, when the maps are made. Contract. */
struct ov_state {
	__u32 layout; /* OVERSPILL_LAYOUT */
	__u32 seed; /* of the flow hash */
	__u32 services; /* capacity */
	__u32 members; /* the number of slots: the capacity, and `spare` more */
	__u8 tag[8]; /* of the program, by the kernel */
	__u8 build[32]; /* SHA-256 of the object that it was loaded from */
	__u8 version[32]; /* of overspill, padded with zeros */
	__u32 connections; /* OVERSPILL_CONNECTIONS */
	__u32 dispatchers; /* OVERSPILL_DISPATCHER_VERSION */
	__u32 spare; /* slots that the capacity does not count: a replacement needs one */
	__u32 zero;
};

#endif
