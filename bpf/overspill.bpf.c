// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Placing a request: the kernel half of overspill.
 *
 * The kernel runs `overspill` at every look-up of a listener in the network
 * namespace that it is attached to (net/ipv4/inet_hashtables.c,
 * inet_lookup_run_sk_lookup): for a SYN, but also for an ACK that carries a SYN
 * cookie and for a stray packet; it cannot tell them apart. Each of these is a
 * request here. The program finds the service that the request calls, chooses a
 * member with room and assigns its socket; crates/overspill/src/model.rs says the same in Rust and
 * is the judge of this file.
 *
 * Finding: `ports` says at once that a port is not served. From the called address, or
 * from the wildcard one, `near` leads to most endpoint rows without a call. For the others
 * `endpoints` has the service and the number of the row, and `services` where the service's
 * roster lies.
 *
 * Choosing: what the first rule can settle with a few looks is settled at once
 * (`place_at_once`). Else, in a program of their own (`by_rules`), the rules are tried
 * in order, each a scan over members (`step`, `consider`): room among the called, room
 * among all, a queue that only half-open requests fill, a member that hangs, and then the
 * end: dropped, refused, or left to the kernel.
 *
 * Coming back: where SYN cookies were sent, a flow that was sent one is put back on the
 * member that sent it, before anything else (`place_back`).
 *
 * Reading: a member's figures are read through the address of its socket, cached
 * in its row, without taking a reference. The memory may be freed meanwhile: the
 * loads cannot fault (the JIT gives them exception entries), and the cookie tells
 * whether it was still that socket before the member is chosen by them. Only the
 * socket chosen in the end is looked up, with a reference.
 *
 * No way out of this program can lose a connection that would have been served
 * without it: every error passes the request on to the kernel's own look-up.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include "load.h"
#include "overspill.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Set by user space before loading. */
volatile struct ov_settings settings SEC(".data.settings") = {};

/* A map too, with one value; what lies in one is read without a look-up. */
volatile struct ov_ports ports SEC(".data.ports") = {};

/* Never read: they bring these types into the object's BTF, where a test compares them
 * with those of user space. */
const volatile union ov_row row_types = {};
const volatile struct ov_extent extent_type = {};

/* Sizes of one entry are placeholders: user space sets the capacity, times the CPUs where
 * each has its own. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ov_state);
} state SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct ov_endpoint_key);
	__type(value, struct ov_endpoint);
} endpoints SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} near SEC(".maps");

/* Every roster's rows in one plain array: the verifier writes its look-ups into the
 * program, while those in arrays of different lengths would be calls. To be mapped, so that
 * it begins with a page, and a row is one cache line, not parts of two. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, union ov_row);
} rows SEC(".maps");

struct roster {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__uint(value_size, sizeof(struct ov_extent));
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct roster);
} services SEC(".maps");

/* 8-byte values: user space reads a socket's cookie (net/core/sock_map.c). */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ov_service_counters);
} service_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ov_member_counters);
} member_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ov_exits);
} exits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ov_figures);
} figures SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ov_word);
} words SEC(".maps");

/* For user space, by slot: how often the member's process was started. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} starts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, OV_COOKIES);
	__type(key, __u32);
	__type(value, struct ov_cookie);
} cookies SEC(".maps");

/* What this CPU has of an array in which each has `own` entries, one CPU's after the
 * other's. An array for each CPU would be a look-up in two steps, and so two cache lines. */
#define OF_CPU(map, own, number)                                          \
	({                                                                \
		__u32 key_ = bpf_get_smp_processor_id() * (own) + (number); \
		bpf_map_lookup_elem(&map, &key_);                         \
	})

static __always_inline struct ov_exits *exits_here(void)
{
	return OF_CPU(exits, 1, 0);
}

static __always_inline struct ov_service_counters *service_here(__u32 id)
{
	return OF_CPU(service_counters, settings.services, id);
}

static __always_inline struct ov_member_counters *member_here(__u32 slot)
{
	return OF_CPU(member_counters, settings.members, slot);
}

/* Every counter is one of this CPU, and softirqs do not nest on a CPU: a plain
 * addition is exact for packets. (Look-ups from process context, as of sock_diag
 * for one socket, may be interrupted and lose a count.) */
#define COUNT(counters, field)                    \
	do {                                      \
		typeof(counters) c_ = (counters); \
		if (c_)                           \
			c_->field++;              \
	} while (0)
#define COUNT_EXIT(field) COUNT(exits_here(), field)
#define COUNT_SERVICE(id, field) COUNT(service_here(id), field)
#define COUNT_MEMBER(slot, field) COUNT(member_here(slot), field)

/* --- a member's figures ------------------------------------------------- */

/* The kernel's address of a member's socket, or OV_GONE. A socket leaves the
 * SOCKMAP when it is closed and never returns to its slot, so what is found once
 * holds for good. One that is shut down stays, and may listen again. */
static __always_inline __u64 resolve(struct ov_member *m)
{
	__u64 address = OV_GONE;
	__u32 slot = m->slot;
	void *sk = bpf_map_lookup_elem(&sockets, &slot);

	if (sk) {
		void *tcp = bpf_skc_to_tcp_sock(sk);

		if (tcp)
			address = (__u64)tcp;
		bpf_sk_release(sk);
	}
	m->sk = address;
	return address;
}

#include "connections.h"

/* False when the socket is gone: closed, shut down, or its memory reused. */
static __always_inline bool figures_at(struct ov_member *m, __u64 at,
				       struct ov_figures *f)
{
	__u64 cookie = 0;
	__u8 state = 0;

	if (at <= OV_GONE)
		return false;
	LOAD(cookie, sock, at, __sk_common.skc_cookie.counter);
	LOAD(state, sock, at, __sk_common.skc_state);
	if (cookie != m->cookie || state != TCP_LISTEN)
		return false;
	/* Half-open first: a handshake that ends between the two loads is counted
	 * twice, not never. (The kernel itself takes it out of the one before it
	 * enters it into the other: where both loads fall in between, it is missed.) */
	LOAD(f->half_open, inet_connection_sock, at,
	     icsk_accept_queue.qlen.counter);
	LOAD(f->queued, sock, at, sk_ack_backlog);
	LOAD(f->backlog, sock, at, sk_max_ack_backlog);
	return true;
}

static __always_inline bool read_figures(struct ov_member *m,
					 struct ov_figures *f)
{
	return figures_at(m, m->sk ?: resolve(m), f);
}

/* --- the last places ------------------------------------------------------
 *
 * Between this program's choice and the kernel's counting of the request lie a
 * few microseconds of the same softirq. Two CPUs that choose a member's last
 * place at the same time would both see it free; the second client would believe
 * itself connected and wait. So whoever takes one of the last places, as many as
 * there are CPUs, leaves a claim in the member's row: when, by which CPU, and at
 * what figure. The place counts as being taken until the figure has grown, the
 * same CPU is back (its softirqs do not nest, so it has finished), or the time
 * is up.
 *
 * Who finds nothing else than places being taken looks again, until the first
 * claim that it met must have run out; then it heeds none.
 */
#define CLAIM_TICKS 32 /* about 32 us: a tick is 1024 ns */

static __always_inline __u32 tick(void)
{
	return bpf_ktime_get_ns() >> 10;
}

static __always_inline __u64 claim(__u32 used)
{
	return (__u64)tick() << 32 | bpf_get_smp_processor_id() << 16 |
	       (__u16)used;
}

static __always_inline bool being_taken(__u64 claim, __u32 used)
{
	/* The clock may differ by a little between CPUs: one tick of grace. */
	return claim && (__u16)(claim >> 16) != (__u16)bpf_get_smp_processor_id() &&
	       (__s16)((__u16)used - (__u16)claim) <= 0 &&
	       tick() + 1 - (__u32)(claim >> 32) <= CLAIM_TICKS;
}

/* --- a request ------------------------------------------------------------- */

enum want {
	WANT_ROOM, /* the first with room */
	WANT_SHORTEST, /* the one with room whose queue holds the fewest */
	WANT_LIGHTEST, /* the one with room that holds the fewest of all, over its weight */
	WANT_ONE, /* the first with room, to be compared with ... */
	WANT_OTHER, /* ... another: the next with room, if it is lighter */
	WANT_ACTIVE, /* the first that is neither draining nor gone */
	WANT_OPEN, /* the first whose accept queue is not full */
	WANT_HUNG, /* the same, be it hung */
	WANT_FULL, /* the first whose accept queue is full */
	WANT_ALIVE, /* the first that is not gone */
};

enum rule {
	RULE_ROOM, /* a member with room, by the policy */
	RULE_CROWDED, /* one where only half-open requests stand in the way */
	RULE_HUNG, /* one that has stopped accepting: what waits there may be moved */
	RULE_DROP, /* a full one, so that the kernel drops the request */
	RULE_RESET, /* refused, if any socket is left to refuse for */
	RULE_LEFT, /* left to the kernel's own look-up */
	RULE_COOKIE, /* back to who sent it a SYN cookie; comes before all (place_back) */
};

/* What is known and chosen for a request. It lies in a map, not on the stack: the
 * verifier would follow every value that it can take, and never come to an end. */
struct search {
	__be32 address[4]; /* the called one; IPv4 as ::ffff:a.b.c.d */
	__be32 remote[4]; /* of an IPv4 client, only the last word is set */
	__u32 row; /* the number of its endpoint row, and by that: */
	__u32 service;
	__u32 roster; /* the number of its first row */
	__u32 endpoints;
	__u32 members;
	__u32 takes; /* the flag that a member must have */
	__u32 ports; /* remote, local */

	/* where it stands */
	__u32 rule;
	bool siblings; /* all members, not the called ones */
	bool patient; /* heed the claims of other CPUs */
	bool contended; /* a claim stood in the way */
	bool fell_back; /* a dispatcher has given no usable answer */
	__u32 since; /* the tick of the first time that one did; 0: none has yet */

	/* the scan: over table[first .. first + count] from `start`, wrapping */
	bool direct;
	__u32 want;
	__u32 first;
	__u32 count;
	__u32 start;

	/* what it found */
	bool found;
	bool compared; /* with another */
	bool claims; /* one of the last places */
	bool full;
	__u32 position;
	__u32 index;
	__u32 used;
	__u32 weight;
	__u64 load; /* what it holds, by the measure of the policy */
	__u64 claim;

	__u8 apart[128]; /* no cache line of it is the next CPU's as well */
};
_Static_assert(sizeof(struct search) == 256, "apart, and found by a shift");

/* One for each CPU: a packet's run is never interrupted by another run. One from process
 * context (sock_diag for one socket, a program that calls bpf_sk_lookup_tcp) may
 * be: its answer may then be that of the packet, and places nothing. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE); /* as `rows` */
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct search);
} searches SEC(".maps");

/* A request and the way to its service. */
struct request {
	struct bpf_sk_lookup *ctx;
	struct ov_endpoint_row *endpoint;
	struct search *s;
	/* the roster */
	__u32 first; /* where its rows begin */
	__u32 endpoints;
	__u32 members;
};

static __always_inline union ov_row *row(struct request *r, __u32 number)
{
	number += r->first;
	return bpf_map_lookup_elem(&rows, &number);
}

static __always_inline __u32 first_member(struct request *r)
{
	return OV_ROW_ENDPOINTS + r->endpoints;
}

static __always_inline struct ov_member *member_at(struct request *r,
						   __u32 position)
{
	union ov_row *found = row(r, first_member(r) + position);

	return found ? &found->member : NULL;
}

/* What is known of the address of a member's socket. */
static __always_inline __u64 address_of(struct request *r, __u32 position)
{
	struct ov_member *m = member_at(r, position);

	return m ? m->sk : 0;
}

static __always_inline __u32 first_addresses(struct request *r)
{
	return first_member(r) + r->members;
}

/* The position that stands at `index` of the called table. */
static __always_inline __u32 called_at(struct request *r, __u32 index)
{
	__u32 addresses = (r->members + OV_ADDRESSES_PER_ROW - 1) /
			  OV_ADDRESSES_PER_ROW;
	__u32 first = first_addresses(r) + addresses;
	union ov_row *table = row(r, first + index / OV_POSITIONS_PER_ROW);

	return table ? table->positions[index % OV_POSITIONS_PER_ROW] : 0;
}

/* --- scanning the members --------------------------------------------------- */

static __always_inline __u32 mark_tick(void)
{
	return bpf_ktime_get_ns() >> OV_MARK_TICK_SHIFT;
}

/* No new requests, while others take them. The clock is read where there is a mark. */
static __always_inline bool is_out(struct ov_member *m)
{
	if (m->flags & OV_DRAINING)
		return true;
	return m->flags & OV_HUNG && mark_tick() - m->marked <= OV_MARK_TICKS;
}

/* Whether a hung member is to have a request, by which it can show that it is well. */
static __always_inline bool is_tried(struct ov_member *m, __u32 used)
{
	return !(m->flags & OV_DRAINING) && m->flags & OV_TRIAL && !used;
}

static __always_inline bool compares(struct search *s)
{
	return s->want == WANT_SHORTEST || s->want == WANT_LIGHTEST ||
	       s->want == WANT_OTHER;
}

/* Room, and nobody on another CPU about to take the last of it; where members are
 * compared, also less than the one found before. */
static __always_inline bool has_room(struct search *s, struct ov_member *m,
				     struct ov_figures *f, __u32 position)
{
	__u32 used = f->queued + f->half_open;
	__u64 load = used, claim = m->claim;
	__u32 weight = 1;
	bool claims, lighter = true;

	if (used > f->backlog || (is_out(m) && !is_tried(m, used)))
		return false;
	if (s->want == WANT_OTHER && position == s->position)
		return false;
	if (s->want >= WANT_LIGHTEST) {
		load += established(m->slot);
		weight = m->weight;
	}
	if (compares(s) && s->found)
		lighter = load * s->weight < s->load * weight;
	if (!lighter && s->want != WANT_OTHER)
		return false;
	claims = f->backlog - used < settings.cpus;
	if (claims && s->patient && being_taken(claim, used)) {
		s->contended = true;
		return false;
	}
	s->compared = true;
	if (!lighter)
		return false;
	s->claims = claims;
	s->claim = claim;
	s->used = used;
	s->load = load;
	s->weight = weight;
	return true;
}

static __always_inline bool wanted(struct search *s, struct ov_member *m,
				   struct ov_figures *f, __u32 position)
{
	switch (s->want) {
	case WANT_ROOM:
	case WANT_SHORTEST:
	case WANT_LIGHTEST:
	case WANT_ONE:
	case WANT_OTHER:
		return has_room(s, m, f, position);
	case WANT_ACTIVE:
		return !(m->flags & OV_DRAINING);
	case WANT_OPEN:
		return !is_out(m) && f->queued <= f->backlog;
	case WANT_HUNG:
		return !(m->flags & OV_DRAINING) && f->queued <= f->backlog;
	case WANT_FULL:
		return f->queued > f->backlog;
	}
	return true;
}

/* Whether a member holds no fewer than the best so far: what most are passed by
 * for, and so looked at before whether the socket is still the member's. */
static __always_inline bool holds_more(struct search *s, __u64 at)
{
	__u32 queued, half_open;

	if (at <= OV_GONE)
		return false;
	LOAD(queued, sock, at, sk_ack_backlog);
	if (queued >= s->used)
		return true;
	LOAD(half_open, inet_connection_sock, at,
	     icsk_accept_queue.qlen.counter);
	return queued + half_open >= s->used;
}

/* The index of the i-th to be looked at, from the start on. */
static __always_inline __u32 index_of(struct search *s, __u32 i)
{
	__u32 index = s->start + i;

	return index >= s->count ? index - s->count : index;
}

static __always_inline __u32 position_of(struct request *r, __u32 index)
{
	__u32 position = r->s->first + index;

	return r->s->direct ? position : called_at(r, position);
}

/* The member at a position if it is wanted. */
static __always_inline struct ov_member *look_at(struct request *r, __u32 index,
						 __u32 position)
{
	struct ov_figures f = {};
	struct search *s = r->s;
	struct ov_member *m = member_at(r, position);

	if (!m || !(m->flags & s->takes) || !read_figures(m, &f) ||
	    !wanted(s, m, &f, position))
		return NULL;
	s->found = true;
	s->full = f.queued > f.backlog;
	s->position = position;
	s->index = index;
	return m;
}

/* The request that a search is for, as far as the roster is concerned. */
static __always_inline struct request request_of(struct search *s)
{
	struct request r = {
		.s = s,
		.first = s->roster,
		.endpoints = s->endpoints,
		.members = s->members,
	};

	return r;
}

/* `look_at` for the loops. This one, `lightest` and `shortest` are global functions: the
 * verifier goes through each once, whatever is known where it is called, and not through
 * all that may come together. (Weak, or it would not.) */
__weak int look(struct search *s, __u32 index, __u32 position)
{
	struct request r;

	if (!s)
		return false;
	r = request_of(s);
	return look_at(&r, index, position) != NULL;
}

/* Whether the scan may end: nobody holds less than nothing. */
static __always_inline bool is_best(struct search *s)
{
	if (s->want == WANT_SHORTEST || s->want == WANT_LIGHTEST)
		return s->load == 0;
	return s->want != WANT_OTHER || s->compared;
}

/* Members are looked at in batches: a call for each would cost more than the look. */
#define BATCH 8

static long consider(__u32 batch, struct request *r)
{
	__u32 i, k, index, position, number, near_number = 0;
	struct search *s = r->s;
	union ov_row *near = NULL;
	__u64 *address;

	for (k = 0; k < BATCH; k++) {
		i = batch * BATCH + k;
		if (i >= s->count)
			return 1;
		index = index_of(s, i);
		position = position_of(r, index);
		if (s->want != WANT_SHORTEST || !s->found) {
			if ((look(s, index, position) || s->want == WANT_OTHER) &&
			    is_best(s))
				return 1;
			continue;
		}
		number = position / OV_ADDRESSES_PER_ROW;
		if (!near || number != near_number)
			near = row(r, first_addresses(r) + number);
		if (!near)
			return 1; /* not reached: a roster has them all */
		near_number = number;
		address = &near->addresses[position % OV_ADDRESSES_PER_ROW];
		if (holds_more(s, *address))
			continue;
		if (look(s, index, position) && is_best(s))
			return 1;
		if (!*address)
			*address = address_of(r, position);
	}
	return 0;
}

/* --- the flow's hash ---------------------------------------------------- */

/* Chosen by search for this shift (Chris Wellons, hash-prospector). */
#define MIX_FACTOR 0xd6e8feb86659fd93ULL

static __always_inline __u64 mix(__u64 h, __u32 high, __u32 low)
{
	h = (h ^ ((__u64)high << 32 | low)) * MIX_FACTOR;
	return h ^ h >> 32;
}

/* The words of the flow as they stand in memory; crates/overspill/src/flow.rs is the same. */
static __always_inline __u32 flow_hash(struct request *r)
{
	const __be32 *remote = r->s->remote, *address = r->s->address;
	__u64 h = settings.seed;

	if (r->s->takes == OV_TAKES_IPV6) {
		h = mix(h, remote[0], address[0]);
		h = mix(h, remote[1], address[1]);
		h = mix(h, remote[2], address[2]);
	}
	h = mix(h, remote[3], address[3]);
	h = mix(h, 0, r->s->ports);
	return h * MIX_FACTOR >> 32;
}

/* Which of the called members the flow calls: its index among them. Hashed where it
 * is asked for: not for a lone one, nor where turns are taken. */
static __always_inline __u32 called_index(struct request *r)
{
	if (r->endpoint->count == 1)
		return 0;
	return (__u64)flow_hash(r) * r->endpoint->count >> 32;
}

/* Where to begin to look for two of `count`; crates/overspill/src/flow.rs is the same. */
static __always_inline __u32 one_of(struct request *r, __u32 count)
{
	return (__u64)flow_hash(r) * count >> 32;
}

static __always_inline __u32 other_of(struct request *r, __u32 count)
{
	__u32 hash = flow_hash(r), other;

	if (count < 2)
		return 0;
	other = ((__u64)hash * count >> 32) + 1;
	hash = (hash ^ hash >> 16) * 0x9e3779b1;
	other += (__u64)hash * (count - 1) >> 32;
	return other >= count ? other - count : other;
}

static __always_inline __u32 called_position(struct request *r)
{
	__u32 at = r->endpoint->first + called_index(r);

	return r->endpoint->direct ? at : called_at(r, at);
}

/* --- finding the service -------------------------------------------------- */

/* The barriers keep clang from merging the two branches' loads into one through
 * a computed address, which the verifier refuses on a context. */
static __always_inline void read_addresses(struct bpf_sk_lookup *ctx,
					   struct request *r)
{
	__u32 word;

	if (ctx->family == AF_INET) {
		r->s->takes = OV_TAKES_IPV4;
		r->s->address[0] = 0;
		r->s->address[1] = 0;
		r->s->address[2] = bpf_htonl(0xffff);
		word = ctx->local_ip4;
		barrier_var(word);
		r->s->address[3] = word;
		word = ctx->remote_ip4;
		barrier_var(word);
		r->s->remote[3] = word;
		return;
	}
	r->s->takes = OV_TAKES_IPV6;
	r->s->address[0] = ctx->local_ip6[0];
	r->s->address[1] = ctx->local_ip6[1];
	r->s->address[2] = ctx->local_ip6[2];
	word = ctx->local_ip6[3];
	barrier_var(word);
	r->s->address[3] = word;
	r->s->remote[0] = ctx->remote_ip6[0];
	r->s->remote[1] = ctx->remote_ip6[1];
	r->s->remote[2] = ctx->remote_ip6[2];
	word = ctx->remote_ip6[3];
	barrier_var(word);
	r->s->remote[3] = word;
}

/* The client's address as others are told it: IPv4 as ::ffff:a.b.c.d. */
static __always_inline void remote_of(const struct search *s, __be32 *out)
{
	bool ipv4 = s->takes == OV_TAKES_IPV4;

	out[0] = ipv4 ? 0 : s->remote[0];
	out[1] = ipv4 ? 0 : s->remote[1];
	out[2] = ipv4 ? bpf_htonl(0xffff) : s->remote[2];
	out[3] = s->remote[3];
}

/* The address that the request is found by: the called one, or the wildcard. */
static __always_inline void set_key(struct request *r, struct ov_endpoint_key *key,
				    bool wildcard)
{
	if (!wildcard) {
		__builtin_memcpy(key->address, r->s->address, sizeof(key->address));
		return;
	}
	__builtin_memset(key->address, 0, sizeof(key->address));
	if (r->s->takes == OV_TAKES_IPV4)
		key->address[2] = bpf_htonl(0xffff);
}

static __always_inline bool same_address(const __be32 *a, const __be32 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

/* Multiplied so that keys which differ in few bits differ in the upper ones: addresses
 * and ports that follow one another have different indexes.
 * crates/overspill/src/datapath/index.rs is the same. */
static __always_inline __u64 *find_near(const __be32 *address, __u16 port)
{
	__u64 high = (__u64)bpf_ntohl(address[0]) << 32 | bpf_ntohl(address[1]);
	__u64 low = (__u64)bpf_ntohl(address[2]) << 32 | bpf_ntohl(address[3]);
	__u64 product = ((high ^ port) * OV_NEAR_FACTOR + low) * OV_NEAR_FACTOR;
	__u32 index = product >> (64 - settings.near_bits);

	return bpf_map_lookup_elem(&near, &index);
}

static __always_inline void by_endpoint(struct request *r, struct ov_endpoint_row *endpoint)
{
	r->endpoint = endpoint;
	r->first = endpoint->roster;
	r->endpoints = endpoint->endpoints;
	r->members = endpoint->members;
}

/* The endpoint row of that number if it is the address's. */
static __always_inline bool find_row(struct request *r, __u32 number, const __be32 *address,
				     __u16 port)
{
	union ov_row *found = bpf_map_lookup_elem(&rows, &number);
	struct ov_endpoint_row *endpoint;

	if (!found)
		return false;
	endpoint = &found->endpoint;
	if (endpoint->mark != OV_ENDPOINT_MARK || endpoint->port != port ||
	    !same_address(endpoint->address, address))
		return false;
	by_endpoint(r, endpoint);
	return true;
}

static __always_inline void keep(struct request *r, __u32 number)
{
	r->s->row = number;
	r->s->service = r->endpoint->service;
	r->s->roster = r->first;
	r->s->endpoints = r->endpoints;
	r->s->members = r->members;
}

/* As `find_row`, for the search and those who go on with it. */
static __always_inline bool find_for_search(struct request *r, __u32 number,
					    const __be32 *address, __u16 port)
{
	if (!find_row(r, number, address, port))
		return false;
	keep(r, number);
	return true;
}

static __always_inline bool find_roster(struct request *r, __u32 service)
{
	struct ov_extent *extent;
	__u32 zero = 0;
	void *roster = bpf_map_lookup_elem(&services, &service);

	if (!roster)
		return false;
	extent = bpf_map_lookup_elem(roster, &zero);
	if (!extent)
		return false; /* not reached: the map has this one entry */
	r->first = extent->first;
	r->endpoints = extent->endpoints;
	r->members = extent->members;
	return true;
}

static __always_inline struct ov_endpoint *
find_endpoint(struct request *r, struct ov_endpoint_key *key, __u8 kinds)
{
	struct ov_endpoint *endpoint = NULL;

	if (kinds & OV_PORT_EXACT) {
		set_key(r, key, false);
		endpoint = bpf_map_lookup_elem(&endpoints, key);
	}
	if (!endpoint && kinds & OV_PORT_WILDCARD) {
		set_key(r, key, true);
		endpoint = bpf_map_lookup_elem(&endpoints, key);
	}
	return endpoint;
}

/* Where the row of an endpoint lies, by the roster; where its number was given up this
 * moment, a row that is no endpoint's. */
static __always_inline __u32 number_of(struct request *r, struct ov_endpoint *endpoint)
{
	bool given_up = endpoint->row >= r->endpoints;

	return r->first + (given_up ? OV_ROW_HEADER : OV_ROW_ENDPOINTS + endpoint->row);
}

/* False where the request is not for us, which is counted. */
static __noinline bool find_by_key(struct request *r, __u8 kinds)
{
	struct ov_endpoint_key key = { .port = r->ctx->local_port };
	struct ov_endpoint *endpoint = find_endpoint(r, &key, kinds);

	if (!endpoint) {
		/* Rule 1: no member is bound to it. */
		COUNT_EXIT(unserved_address);
		return false;
	}
	if (!find_roster(r, endpoint->service)) {
		/* Taken out this moment: the kernel finds its sockets itself. */
		COUNT_EXIT(no_roster);
		return false;
	}
	if (find_for_search(r, number_of(r, endpoint), key.address, key.port))
		return true;
	/* Given up this moment: as above. */
	COUNT_EXIT(unserved_address);
	return false;
}

/* The way to the endpoint row without a call, for all but a few. What `near` says may be of
 * another endpoint: the row tells. */
static __always_inline bool find_at_once(struct request *r, __u8 kinds)
{
	__be32 address[4] = {}; /* as set_key gives it, but not in memory */
	__u16 port = r->ctx->local_port;
	__u64 *number;

	if (kinds & OV_PORT_EXACT) {
		address[0] = r->s->address[0];
		address[1] = r->s->address[1];
		address[3] = r->s->address[3];
	}
	address[2] = kinds & OV_PORT_EXACT || r->s->takes == OV_TAKES_IPV4 ? r->s->address[2] : 0;
	number = find_near(address, port);
	return number && find_for_search(r, *number, address, port);
}

/* --- carrying out a choice --------------------------------------------------- */

#include "trace.h"

static __always_inline void count_placed(struct request *r, struct ov_member *m)
{
	bool special = !(m->flags & OV_WILDCARD) &&
		       !same_address(m->address, r->s->address);
	struct ov_member_counters *c = member_here(m->slot);
	struct ov_service_counters *s = service_here(r->s->service);

	if (!c || !s)
		return;
	if (special) {
		c->special++;
		s->special++;
	}
	if (!r->s->siblings) {
		c->placed++;
		s->placed++;
		return;
	}
	c->redirected_in++;
	s->redirected++;
	m = member_at(r, called_position(r));
	if (m)
		COUNT_MEMBER(m->slot, redirected_out);
}

static __always_inline bool takes_turns(__u8 policy)
{
	const __u32 turns = 1 << OV_SHORTEST_QUEUE | 1 << OV_ROUND_ROBIN |
			    1 << OV_LEAST_LOADED;

	return turns >> policy & 1; /* a table: a switch is a jump or two for each request */
}

/* The turns move only where the policy takes turns, and only by a choice among
 * members with room. CPUs may race here: a turn is then taken twice, no more. */
static __always_inline void move_turn(struct request *r)
{
	union ov_row *header;

	if (r->s->rule != RULE_ROOM || r->s->want == WANT_ACTIVE ||
	    !takes_turns(r->endpoint->policy))
		return;
	if (!r->s->siblings) {
		r->endpoint->turn = r->s->index + 1;
		return;
	}
	header = row(r, OV_ROW_HEADER);
	if (header)
		header->header.turn = r->s->index + 1;
}

/* Takes one of the last places: false when another CPU was faster. */
static __always_inline bool take(struct request *r, struct ov_member *m)
{
	if (r->s->rule != RULE_ROOM || !r->s->claims)
		return true;
	return __sync_val_compare_and_swap(&m->claim, r->s->claim,
					   claim(r->s->used)) == r->s->claim ||
	       !r->s->patient;
}

/* --- SYN cookies ---------------------------------------------------------------
 *
 * Where the kernel answers a SYN with a cookie it keeps nothing of the request: the ACK
 * is looked up anew, and is taken only by a socket that has sent cookies lately, or whose
 * SO_REUSEPORT group has (tcp_synq_no_recent_overflow); any other refuses it. So, where
 * members have different addresses, a flow that was sent a cookie is remembered, and is
 * put back on the member that sent it. To that it belongs as a half-open request does,
 * whether it drains, hangs or is full.
 */

static __always_inline __u64 cookie_tick(void)
{
	return bpf_ktime_get_ns() >> OV_COOKIE_TICK_SHIFT;
}

/* Whether the kernel may answer a SYN for the member with a cookie: for every one, or
 * when half-open requests fill its queue (tcp_conn_request). How many do so differs by
 * one between kernels (inet_csk_reqsk_queue_is_full). */
static __always_inline bool may_send_cookie(__u64 at)
{
	struct net *net = NULL;
	__u32 half_open, backlog;
	__u8 setting = 0;

	LOAD(net, sock, at, __sk_common.skc_net.net);
	LOAD(setting, net, net, ipv4.sysctl_tcp_syncookies);
	if (setting != 1)
		return setting;
	LOAD(half_open, inet_connection_sock, at,
	     icsk_accept_queue.qlen.counter);
	LOAD(backlog, sock, at, sk_max_ack_backlog);
	return half_open >= backlog;
}

static __always_inline struct ov_cookie *cookie_of(__u32 hash)
{
	__u32 at = hash % OV_COOKIES;

	return bpf_map_lookup_elem(&cookies, &at);
}

static __always_inline void remember_cookie(struct request *r,
					    struct ov_member *m)
{
	struct ov_cookie *entry;
	__u32 hash;
	__u64 now;

	if (!may_send_cookie(m->sk))
		return;
	hash = flow_hash(r);
	entry = cookie_of(hash);
	if (!entry)
		return; /* not reached: the map has them all */
	now = cookie_tick();
	entry->when = now;
	entry->flow = hash >> 16;
	entry->position = r->s->position;
	entry->socket = m->cookie;
	if (r->endpoint->cookie != now)
		r->endpoint->cookie = now;
}

/* False, at the cost of one compare, where no cookie was sent lately. The time outlives a
 * change of the rules by which nobody is sent back any more. */
static __always_inline bool expects_cookies(struct ov_endpoint_row *endpoint)
{
	__u64 last = endpoint->cookie;

	if (!last || !(endpoint->flags & OV_APART))
		return false;
	if (cookie_tick() - last <= OV_COOKIE_TICKS)
		return true;
	/* Unless another CPU has just sent one. */
	__sync_val_compare_and_swap(&endpoint->cookie, last, 0);
	return false;
}

/* Whether a member is among the called ones. */
static __always_inline bool is_called(struct request *r, struct ov_member *m)
{
	const __be32 *called = r->endpoint->address;
	bool wildcard = !called[0] && !called[1] && !called[3] &&
			(!called[2] || called[2] == bpf_htonl(0xffff));

	if (r->endpoint->flags & OV_SPREAD)
		return true;
	if (m->flags & OV_WILDCARD)
		return wildcard;
	return same_address(m->address, called);
}

/* Assigns the chosen member's socket. False when another request or the socket's
 * end came in between: another look then finds another. */
static __always_inline bool assign(struct request *r, struct ov_member *m)
{
	void *sk;
	__u32 slot;
	long error;

	if (!take(r, m)) {
		COUNT_EXIT(contended);
		return false;
	}
	slot = m->slot;
	sk = bpf_map_lookup_elem(&sockets, &slot);
	if (!sk) {
		m->sk = OV_GONE;
		COUNT_EXIT(vanished);
		return false;
	}
	/* Without the flag the kernel would choose again in the socket's
	 * SO_REUSEPORT group, by its hash. */
	error = bpf_sk_assign(r->ctx, sk, BPF_SK_LOOKUP_F_NO_REUSEPORT);
	bpf_sk_release(sk);
	if (error) {
		/* Passed on: the kernel's look-up serves it as ever. */
		COUNT_EXIT(refused);
		trace(r, OV_REFUSED);
		return true;
	}
	move_turn(r);
	if (r->s->rule == RULE_DROP) {
		COUNT_SERVICE(r->s->service, dropped);
		trace(r, OV_DROPPED);
		return true;
	}
	if (r->endpoint->flags & OV_APART)
		remember_cookie(r, m);
	count_placed(r, m);
	if (r->s->rule == RULE_CROWDED)
		COUNT_SERVICE(r->s->service, crowded);
	if (r->s->rule == RULE_COOKIE)
		COUNT_SERVICE(r->s->service, returned);
	trace_placed(r);
	return true;
}

/* --- the rules ----------------------------------------------------------------- */

static __always_inline __u32 siblings_turn(struct request *r)
{
	union ov_row *header = row(r, OV_ROW_HEADER);

	return header ? header->header.turn : 0;
}

static __always_inline __u32 wanted_by(__u8 policy)
{
	/* A table, four bits a policy; the others want room. */
	const __u32 wants = WANT_SHORTEST << 4 * OV_SHORTEST_QUEUE |
			    WANT_LIGHTEST << 4 * OV_LEAST_LOADED |
			    WANT_ONE << 4 * OV_TWO_CHOICES;

	return wants >> 4 * policy & 15;
}

/* Says what to look for by the rule, and from where on. */
static __always_inline void aim(struct request *r)
{
	__u8 policy = r->endpoint->policy;
	bool turns = takes_turns(policy);

	switch (r->s->rule) {
	case RULE_ROOM:
		r->s->want = wanted_by(policy);
		if (!(r->endpoint->flags & OV_REDIRECT)) {
			r->s->want = WANT_ACTIVE;
			turns = false;
		}
		break;
	case RULE_CROWDED:
		/* By the flow alone, so that the ACK with the cookie comes to
		 * where its SYN went. */
		r->s->want = WANT_OPEN;
		turns = false;
		break;
	case RULE_HUNG:
		r->s->want = WANT_HUNG;
		turns = false;
		break;
	case RULE_DROP:
		r->s->want = WANT_FULL;
		turns = false;
		break;
	default:
		r->s->want = WANT_ALIVE;
		turns = false;
	}
	if (r->s->siblings) {
		/* The called ones are not left out: the scan before this one has
		 * just found that they are not what is wanted. A lone one comes last. */
		r->s->first = 0;
		r->s->count = r->members;
		r->s->direct = true;
		if (r->s->want == WANT_ONE)
			r->s->start = one_of(r, r->s->count);
		else
			r->s->start = turns ? siblings_turn(r) :
					      called_position(r) +
						      (r->endpoint->count == 1);
	} else {
		r->s->first = r->endpoint->first;
		r->s->count = r->endpoint->count;
		r->s->direct = r->endpoint->direct;
		r->s->start = turns ? r->endpoint->turn : called_index(r);
	}
	if (r->s->start >= r->s->count)
		r->s->start = 0;
	r->s->found = false;
}

/* The first of two is found: says where to look for the other. */
static __always_inline void aim_at_other(struct request *r)
{
	r->s->want = WANT_OTHER;
	r->s->start = other_of(r, r->s->count);
	r->s->compared = false;
}

/* A member is known without a scan: as one over all would have found it. */
static __always_inline void aim_at(struct request *r, __u32 position)
{
	r->s->first = 0;
	r->s->direct = true;
	r->s->index = position;
}

/* The next scope, then the next rule. */
static __always_inline void go_on(struct request *r)
{
	__u8 flags = r->endpoint->flags;

	if (!r->s->siblings && flags & OV_REDIRECT) {
		r->s->siblings = true;
		return;
	}
	r->s->siblings = false;
	r->s->rule++;
	if (r->s->rule == RULE_CROWDED && !(flags & OV_REDIRECT))
		r->s->rule = RULE_DROP;
	if (r->s->rule == RULE_DROP && flags & OV_RESET)
		r->s->rule++;
}

static __always_inline void start_anew(struct request *r)
{
	r->s->rule = RULE_ROOM;
	r->s->siblings = false;
	r->s->contended = false;
}

/* One step: one scan by one rule in one scope. Who loses a race starts anew, until
 * it is overdue (is_overdue), and for no more than all the steps; in the last ones
 * no claim is heeded. */
#define STEPS_OF_A_LOOK (2 * RULE_LEFT)
#define STEPS (512 * STEPS_OF_A_LOOK)

/* Whether a member found will not do after all: today's Linux takes a full one. */
static __always_inline bool is_refused(struct search *s)
{
	return s->want == WANT_ACTIVE && s->full;
}

/* Whether every claim met at first has run out. */
static __always_inline bool is_overdue(struct search *s)
{
	return s->since && tick() - s->since > CLAIM_TICKS;
}

static long step(__u32 i, struct request *r)
{
	struct ov_member *m;

	r->s->patient = i < STEPS - 2 * STEPS_OF_A_LOOK && !is_overdue(r->s);
	aim(r);
	bpf_loop((r->s->count + BATCH - 1) / BATCH, consider, r, 0);
	if (r->s->found && r->s->want == WANT_ONE) {
		aim_at_other(r);
		bpf_loop((r->s->count + BATCH - 1) / BATCH, consider, r, 0);
	}
	if (r->s->found && !is_refused(r->s)) {
		if (r->s->rule == RULE_RESET)
			return 1;
		m = member_at(r, r->s->position);
		if (m && assign(r, m))
			return 1;
		start_anew(r);
		return 0;
	}
	go_on(r);
	if (r->s->rule != RULE_ROOM && r->s->contended) {
		if (!r->s->since)
			r->s->since = tick();
		COUNT_EXIT(contended);
		start_anew(r);
	}
	return r->s->rule == RULE_LEFT;
}

/* --- at once ---------------------------------------------------------------------
 *
 * Most requests are placed by the first rule, on one of the first members looked at, or
 * on the shortest of a few rows. Doing so before the loops begin takes the same choice
 * without their calls. Whatever is not plain here is left to the loops, from the start.
 */

enum answer {
	NO, /* no room, or gone */
	ROOM, /* it can have the request */
	PUT, /* it has it */
	UNCLEAR, /* the loops must look */
};

/* Whether a member has room as far as can be told without the claims and the clock, and
 * before it is known whose figures they are. */
static __always_inline enum answer glance(struct search *s, struct ov_member *m,
					  __u32 *used, __u32 *backlog)
{
	__u64 at = m->sk;
	__u32 half_open;

	if (at == OV_GONE || !(m->flags & s->takes) || m->flags & OV_DRAINING)
		return NO;
	if (!at || m->flags & OV_HUNG)
		return UNCLEAR;
	LOAD(half_open, inet_connection_sock, at, icsk_accept_queue.qlen.counter);
	LOAD(*used, sock, at, sk_ack_backlog);
	LOAD(*backlog, sock, at, sk_max_ack_backlog);
	*used += half_open;
	return *used > *backlog ? NO : ROOM;
}

/* Puts the request on a member that has more room than the CPUs can take at once: there,
 * no claim has to be heeded. The figures are read before it is known whose they are: if
 * the socket at that address is not the member's any more, the member is gone, and has no
 * room either. */
static __always_inline enum answer put(struct request *r, struct ov_member *m)
{
	__u32 slot = m->slot, used = 0, backlog = 0;
	enum answer answer = glance(r->s, m, &used, &backlog);
	struct bpf_sock *sk;
	__u64 at = m->sk;

	if (answer != ROOM)
		return answer;
	answer = UNCLEAR;
	if (backlog - used < settings.cpus)
		return UNCLEAR;
	if (r->endpoint->flags & OV_APART && may_send_cookie(at))
		return UNCLEAR; /* `assign` takes note of it */
	sk = bpf_map_lookup_elem(&sockets, &slot);
	if (!sk) {
		m->sk = OV_GONE;
		return UNCLEAR;
	}
	if ((__u64)sk == at && sk->state == TCP_LISTEN &&
	    !bpf_sk_assign(r->ctx, sk, BPF_SK_LOOKUP_F_NO_REUSEPORT))
		answer = PUT;
	bpf_sk_release(sk);
	return answer;
}

/* How many members are walked over in a scope. */
#define WALK 3

/* Puts the request on the first of the next few members that has room. */
static __always_inline enum answer walk(struct request *r)
{
	struct search *s = r->s;
	struct ov_member *m;
	enum answer answer;
	__u32 i, index;

	for (i = 0; i < WALK; i++) {
		if (i >= s->count)
			return NO;
		index = index_of(s, i);
		m = member_at(r, position_of(r, index));
		if (!m)
			return UNCLEAR;
		answer = put(r, m);
		if (answer == PUT) {
			s->index = index;
			move_turn(r);
			count_placed(r, m);
		}
		if (answer != NO)
			return answer;
	}
	return i >= s->count ? NO : UNCLEAR;
}

/* The shortest so far: what it holds << 32 | its index + 1; or one of these. */
#define NOBODY (~0ULL)
#define ANYBODY 0ULL /* the loops must look */

/* The better of a candidate and the best so far. Whose socket it is, and whether it is
 * in, is asked of the best alone: most candidates are passed by after one load. */
static __always_inline __u64 measure(__u64 at, __u32 index, __u64 best)
{
	__u32 queued, used, backlog;

	if (at <= OV_GONE)
		return at == OV_GONE ? best : ANYBODY;
	LOAD(queued, sock, at, sk_ack_backlog);
	if (queued >= best >> 32)
		return best;
	LOAD(used, inet_connection_sock, at, icsk_accept_queue.qlen.counter);
	used += queued;
	if (used >= best >> 32)
		return best;
	LOAD(backlog, sock, at, sk_max_ack_backlog);
	return used > backlog ? best : (__u64)used << 32 | (index + 1);
}

/* Rows of addresses that are measured without a loop's calls. */
#define STRAIGHT 9

/* The shortest in the scope. Rows of addresses are gone through from the one of the start
 * to the end, and from the beginning to the one of the start again: in the order of turns,
 * so that the first of equals is the one whose turn it is. */
__weak __u64 shortest(struct search *s)
{
	struct request request, *r = &request;
	__u32 begin, end, from, number, upto, position, i, k;
	__u64 best = NOBODY;
	union ov_row *near;

	if (!s)
		return ANYBODY;
	request = request_of(s);
	begin = s->first;
	end = begin + s->count;
	from = begin + s->start;
	number = from / OV_ADDRESSES_PER_ROW;
	upto = end;
	for (i = 0; i < STRAIGHT; i++) {
		near = row(r, first_addresses(r) + number);
		if (!near)
			return ANYBODY;
		for (k = 0; k < OV_ADDRESSES_PER_ROW; k++) {
			position = number * OV_ADDRESSES_PER_ROW + k;
			if (position >= from && position < upto)
				best = measure(near->addresses[k], position - begin, best);
		}
		if (best >> 32 == 0)
			return best; /* nobody holds less */
		number++;
		if (number * OV_ADDRESSES_PER_ROW < upto)
			continue;
		if (upto != end || from == begin)
			return best;
		upto = from;
		from = begin;
		number = begin / OV_ADDRESSES_PER_ROW;
	}
	return ANYBODY;
}

/* Copies the address for the scans; a member that drains is as good as gone to them. */
static __always_inline void remember(struct request *r, __u32 position, struct ov_member *m)
{
	union ov_row *near = row(r, first_addresses(r) + position / OV_ADDRESSES_PER_ROW);

	if (near)
		near->addresses[position % OV_ADDRESSES_PER_ROW] =
			m->flags & OV_DRAINING ? OV_GONE : m->sk;
}

static __always_inline enum answer put_on_shortest(struct request *r)
{
	struct search *s = r->s;
	__u64 best = s->direct ? shortest(s) : ANYBODY;
	__u32 index = (__u32)best - 1;
	struct ov_member *m;

	if (best == NOBODY)
		return NO;
	if (best == ANYBODY)
		return UNCLEAR;
	m = member_at(r, s->first + index);
	if (!m)
		return UNCLEAR;
	if (put(r, m) != PUT) {
		remember(r, s->first + index, m); /* not again, if it is gone */
		return UNCLEAR;
	}
	s->index = index;
	move_turn(r);
	count_placed(r, m);
	return PUT;
}

static __always_inline enum answer put_on(struct request *r, __u32 index)
{
	struct ov_member *m = member_at(r, position_of(r, index));

	if (!m || put(r, m) != PUT)
		return UNCLEAR;
	r->s->index = index;
	move_turn(r);
	count_placed(r, m);
	return PUT;
}

/* Members that are weighed without the loops' calls. */
#define FEW 64

/* The index of the lightest in the scope + 1; NOBODY has room; or ANYBODY. */
__weak __u64 lightest(struct search *s)
{
	__u32 i, index, used = 0, backlog = 0, best = 0, weight = 0;
	enum answer answer;
	struct request r;
	__u64 load, least = 0;
	struct ov_member *m;

	if (!s || s->count > FEW)
		return ANYBODY;
	r = request_of(s);
	for (i = 0; i < FEW && i < s->count; i++) {
		index = index_of(s, i);
		m = member_at(&r, position_of(&r, index));
		if (!m)
			return ANYBODY;
		answer = glance(s, m, &used, &backlog);
		if (answer == UNCLEAR)
			return ANYBODY;
		if (answer == NO)
			continue;
		load = used + established(m->slot);
		if (weight && load * weight >= least * m->weight)
			continue;
		best = index + 1;
		least = load;
		weight = m->weight;
		if (!load)
			break; /* nobody holds less */
	}
	return best ?: NOBODY;
}

static __always_inline enum answer put_on_lightest(struct request *r)
{
	__u64 best = lightest(r->s);

	if (best == NOBODY)
		return NO;
	return best == ANYBODY ? UNCLEAR : put_on(r, (__u32)best - 1);
}

static __always_inline bool put_on_one_of_two(struct request *r)
{
	struct search *s = r->s;
	struct ov_member *m;

	if (!look(s, s->start, position_of(r, s->start)))
		return false;
	if (s->count > 1) {
		aim_at_other(r);
		look(s, s->start, position_of(r, s->start));
	}
	m = member_at(r, s->position);
	return m && is_best(s) && assign(r, m);
}

/* Not inlined: twice the code would take twice the cache. Not a loop either: before 6.7 the
 * verifier refuses a loop whose head is reached again by falling through, and clang decides
 * where the head is. */
static __noinline enum answer choose(struct request *r)
{
	switch (r->s->want) {
	case WANT_ROOM:
		return walk(r);
	case WANT_LIGHTEST:
		return put_on_lightest(r);
	}
	return put_on_shortest(r);
}

static __always_inline bool place_at_once(struct request *r)
{
	enum answer answer;

	start_anew(r);
	r->s->patient = true;
	r->s->since = 0;
	aim(r);
	switch (r->s->want) {
	case WANT_ACTIVE:
		return false;
	case WANT_ONE:
		return put_on_one_of_two(r);
	}
	answer = choose(r);
	if (answer == NO) {
		r->s->siblings = true;
		aim(r);
		answer = choose(r);
	}
	if (answer == PUT)
		trace_placed(r);
	return answer == PUT;
}

/* A flow that was sent a cookie goes back to the member that sent it. Where another flow's
 * cookie has taken its entry since, that one's member will do: in a flood, in which entries
 * are overwritten, it has sent cookies as well. */
static __noinline bool place_back(struct request *r)
{
	struct ov_figures f = {};
	struct ov_cookie *entry;
	struct ov_member *m;
	__u32 hash = flow_hash(r);

	entry = cookie_of(hash);
	if (!entry || (__u16)(cookie_tick() - entry->when) > OV_COOKIE_TICKS ||
	    entry->position >= r->members)
		return false;
	m = member_at(r, entry->position);
	if (!m || (__u16)m->cookie != entry->socket ||
	    !(m->flags & r->s->takes) || !read_figures(m, &f))
		return false;
	r->s->full = f.queued > f.backlog;
	if (entry->flow != hash >> 16 &&
	    (is_out(m) || r->s->full || !may_send_cookie(m->sk)))
		return false;
	/* A full one does with an ACK as with a SYN: the client tries again. */
	r->s->rule = r->s->full ? RULE_DROP : RULE_COOKIE;
	r->s->siblings = !is_called(r, m);
	r->s->position = entry->position;
	aim_at(r, entry->position);
	return assign(r, m);
}

/* --- from one program to the next ---------------------------------------------
 *
 * Most requests end in `overspill`. What it does not place it hands to `by_rules`, in a
 * tail call: the verifier goes through the loops once, not for each program that may come
 * to need them. No RCU read section ends in between: what `searches` says of the request
 * holds, and nobody writes over the roster.
 */
int by_rules(struct bpf_sk_lookup *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, int(struct bpf_sk_lookup *));
} rules SEC(".maps") = { .values = { [0] = (void *)&by_rules } };

/* All by the row alone: where a run in process context was interrupted, the search may be
 * of two requests. */
static __always_inline bool go_on_with_search(struct request *r)
{
	union ov_row *found;
	__u32 number;

	r->s = OF_CPU(searches, 1, 0);
	if (!r->s)
		return false; /* not reached: every CPU has its own */
	number = r->s->row;
	found = bpf_map_lookup_elem(&rows, &number);
	if (!found || found->endpoint.mark != OV_ENDPOINT_MARK)
		return false;
	by_endpoint(r, &found->endpoint);
	keep(r, number);
	return true;
}

/* Never attached: what follows where the request was not placed at once. */
SEC("sk_lookup")
int by_rules(struct bpf_sk_lookup *ctx)
{
	struct request r = { .ctx = ctx };

	if (!go_on_with_search(&r))
		return SK_PASS;
	start_anew(&r);
	r.s->since = 0;
	bpf_loop(STEPS, step, &r, 0);
	if (r.s->rule == RULE_RESET) {
		/* The user's wish, or only draining members are left: the client
		 * is told at once (RST). */
		COUNT_SERVICE(r.s->service, reset);
		trace(&r, OV_RESET_SENT);
		return SK_DROP;
	}
	if (r.s->rule == RULE_LEFT) {
		/* No member has a socket any more: whatever else listens there
		 * may take the request, or nothing does. */
		COUNT_SERVICE(r.s->service, left);
		trace(&r, OV_LEFT);
	}
	return SK_PASS;
}

static __always_inline int place_by_rules(struct request *r)
{
	bpf_tail_call(r->ctx, &rules, 0);
	return SK_PASS; /* not reached: the program is there */
}

#include "dispatcher.h"

/* --- the program ------------------------------------------------------------- */

SEC("sk_lookup")
int overspill(struct bpf_sk_lookup *ctx)
{
	struct request r = { .ctx = ctx };
	__u16 port = ctx->local_port;
	__u8 kinds;

	if (ctx->protocol != IPPROTO_TCP)
		goto not_tcp;
	if (ctx->sk)
		goto other_program;
	kinds = ports.kinds[port];
	if (!kinds)
		goto unserved_port;
	r.s = OF_CPU(searches, 1, 0);
	if (!r.s)
		return SK_PASS; /* not reached: every CPU has its own */
	read_addresses(ctx, &r);
	if (!find_at_once(&r, kinds) && !find_by_key(&r, kinds))
		return SK_PASS;
	r.s->ports = (__u32)bpf_ntohs(ctx->remote_port) << 16 | port;
	if (expects_cookies(r.endpoint) && place_back(&r))
		return SK_PASS;
	if (r.endpoint->policy == OV_DISPATCHER && r.endpoint->flags & OV_REDIRECT)
		goto dispatcher;
place:
	return place_at_once(&r) ? SK_PASS : place_by_rules(&r);

	/* Out of the way of most requests, whose code is rarely in the nearest cache:
	 * clang leaves everything where it stands. */
dispatcher:
	ask_dispatcher(&r);
	goto place;
not_tcp:
	/* UDP: nothing here is for it. */
	COUNT_EXIT(not_tcp);
	return SK_PASS;
other_program:
	/* A program before this one has chosen: its choice stands. */
	COUNT_EXIT(other_program);
	return SK_PASS;
unserved_port:
	/* As if overspill were not there. */
	COUNT_EXIT(unserved_port);
	return SK_PASS;
}

/* --- reading and marking for user space ------------------------------------- */

/* Two connections that wait at the head of a queue one after the other may have the
 * same memory, but not the same pair of initial sequence numbers. */
static __always_inline __u64 head_of_queue(__u64 at)
{
	struct request_sock *head = NULL;
	__u32 ours = 0, theirs = 0;

	LOAD(head, inet_connection_sock, at, icsk_accept_queue.rskq_accept_head);
	if (!head)
		return 0;
	LOAD(ours, tcp_request_sock, head, snt_isn);
	LOAD(theirs, tcp_request_sock, head, rcv_isn);
	return ((__u64)ours << 32 | theirs) ?: 1;
}

/* Whether nobody is in epoll_wait for the epoll set whose entry stands in the list of those
 * who wait for a socket. Anything else in that list is somebody who waits. */
static __always_inline bool is_unattended(__u64 entry, __u64 waits)
{
	struct wait_queue_head *head = NULL;
	struct list_head *waiter = NULL, *poller = NULL;
	struct epitem *item = NULL;
	struct eventpoll *ep = NULL;
	__u64 at;

	if (!bpf_core_field_exists(struct eppoll_entry, wait.entry) ||
	    !bpf_core_field_exists(struct eppoll_entry, whead) ||
	    !bpf_core_field_exists(struct eppoll_entry, base) ||
	    !bpf_core_field_exists(struct epitem, ep) ||
	    !bpf_core_field_exists(struct eventpoll, wq.head) ||
	    !bpf_core_field_exists(struct eventpoll, poll_wait.head))
		return false; /* a kernel with other structures */
	at = entry - bpf_core_field_offset(struct eppoll_entry, wait.entry);
	LOAD(head, eppoll_entry, at, whead);
	if ((__u64)head != waits)
		return false; /* no entry of epoll */
	LOAD(item, eppoll_entry, at, base);
	LOAD(ep, epitem, item, ep);
	LOAD(waiter, eventpoll, ep, wq.head.next);
	LOAD(poller, eventpoll, ep, poll_wait.head.next);
	return (__u64)waiter ==
		       (__u64)ep + bpf_core_field_offset(struct eventpoll, wq.head) &&
	       (__u64)poller ==
		       (__u64)ep + bpf_core_field_offset(struct eventpoll, poll_wait.head);
}

/* How many of those who wait for a socket are looked at. Of more somebody is taken to wait. */
#define WAITERS 8

/* Who waits for connections on the socket: OV_AWAITED and OV_UNATTENDED. */
static __always_inline __u32 awaited(__u64 at)
{
	struct socket_wq *wq = NULL;
	struct list_head *next = NULL;
	__u64 waits, list;
	__u32 i;

	LOAD(wq, sock, at, sk_wq);
	if (!wq)
		return 0;
	waits = (__u64)wq + bpf_core_field_offset(struct socket_wq, wait);
	list = (__u64)wq + bpf_core_field_offset(struct socket_wq, wait.head);
	LOAD(next, socket_wq, wq, wait.head.next);
	if (!next || (__u64)next == list)
		return 0;
	for (i = 0; i < WAITERS; i++) {
		if (!is_unattended((__u64)next, waits))
			return OV_AWAITED;
		LOAD(next, list_head, next, next);
		if (!next)
			return OV_AWAITED;
		if ((__u64)next == list)
			return OV_AWAITED | OV_UNATTENDED;
	}
	return OV_AWAITED;
}

/*
 * Tells the control group of the socket in the slot that stands in local_ip6[0], in that
 * slot's `figures`. Never attached: user space runs it before the socket is a member, since
 * its connections are counted through that group.
 */
SEC("sk_lookup")
int find_cgroup(struct bpf_sk_lookup *ctx)
{
	__u32 slot = ctx->local_ip6[0];
	struct ov_figures *out = bpf_map_lookup_elem(&figures, &slot);
	void *sk = bpf_map_lookup_elem(&sockets, &slot);
	void *tcp;

	if (sk) {
		tcp = bpf_skc_to_tcp_sock(sk);
		if (out)
			out->cgroup = tcp ? cgroup_of((__u64)tcp) : 0;
		bpf_sk_release(sk);
	}
	return SK_PASS;
}

static long read_member(__u32 i, struct request *r)
{
	struct ov_member *m = member_at(r, i);
	struct ov_figures *out;
	__u32 slot;

	if (!m)
		return 0;
	slot = m->slot;
	out = bpf_map_lookup_elem(&figures, &slot);
	if (!out)
		return 0;
	if (!read_figures(m, out)) {
		out->cookie = 0;
		return 0;
	}
	remember(r, i, m);
	out->head = head_of_queue(m->sk);
	out->awaited = awaited(m->sk);
	out->cookie = m->cookie;
	return 0;
}

/*
 * Fills `figures` for the members of the service whose number stands in
 * local_ip6[0]. Never attached: user space runs it (BPF_PROG_TEST_RUN) to read the
 * queues as the data path reads them; half-open requests have no other interface.
 */
SEC("sk_lookup")
int read_queues(struct bpf_sk_lookup *ctx)
{
	struct request r = {};

	if (find_roster(&r, ctx->local_ip6[0]))
		bpf_loop(r.members, read_member, &r, 0);
	return SK_PASS;
}

#include "contract.h"

/* --- moving what waits ------------------------------------------------------- */

struct heir {
	struct request *r;
	__be32 address[4];
	__u64 leaving; /* the cookie of the socket that ends */
	__u32 slot; /* of the best so far */
	__u32 found;
	__u64 score;
};

static long consider_heir(__u32 i, struct heir *heir)
{
	struct request *r = heir->r;
	struct ov_endpoint_row *endpoint = r->endpoint;
	struct ov_figures f = {};
	struct ov_member *m;
	__u32 at = endpoint->first + i;
	__u64 score;

	m = member_at(r, endpoint->direct ? at : called_at(r, at));
	/* A group has one address. What is not known to listen is left out: the socket
	 * that ends does not any more, and one whose address is not cached can't be looked
	 * up here, for lack of bpf_skc_to_tcp_sock. */
	if (!m || m->cookie == heir->leaving ||
	    !same_address(m->address, heir->address) || !figures_at(m, m->sk, &f))
		return 0;
	score = (__u64)is_out(m) << 32 | f.queued;
	if (heir->found && score >= heir->score)
		return 0;
	heir->found = true;
	heir->score = score;
	heir->slot = m->slot;
	return 0;
}

/*
 * Chooses who gets what a socket had queued, or half open, when it ends or is shut down
 * (net/core/sock_reuseport.c, reuseport_migrate_sock): of the members of its group the
 * one that holds the fewest, those that hang or drain last. Called by `migrate`. Whatever
 * goes wrong here, the kernel chooses by the flow's hash.
 */
SEC("sk_reuseport/migrate")
int move_request(struct sk_reuseport_md *md)
{
	struct ov_endpoint_key key = {};
	struct ov_endpoint *endpoint;
	struct request r = {};
	struct heir heir = { .r = &r };
	struct bpf_sock *moving = md->migrating_sk;
	struct bpf_sock *sk = md->sk;
	__u32 word;

	if (!moving)
		return SK_PASS; /* a request that our look-up has left to the kernel */
	/* Not the listener's: it has none any more once it is closed, while requests that
	 * were half open are moved even then. */
	key.port = moving->src_port;
	word = sk->src_ip6[3];
	if (sk->family == AF_INET) {
		word = sk->src_ip4;
		key.address[2] = bpf_htonl(0xffff);
	} else {
		key.address[0] = sk->src_ip6[0];
		key.address[1] = sk->src_ip6[1];
		key.address[2] = sk->src_ip6[2];
	}
	barrier_var(word); /* as in read_addresses */
	key.address[3] = word;
	endpoint = bpf_map_lookup_elem(&endpoints, &key);
	if (!endpoint || !find_roster(&r, endpoint->service) ||
	    !find_row(&r, number_of(&r, endpoint), key.address, key.port))
		return SK_PASS;
	__builtin_memcpy(heir.address, key.address, sizeof(heir.address));
	heir.leaving = bpf_get_socket_cookie(sk);
	/* Before 6.7 the verifier checks the body of a loop once, assumes the same values in
	 * every round, and removes the comparison. It does not know that this value is 0. */
	heir.found = settings.zero;
	heir.score = settings.zero;
	bpf_loop(r.endpoint->count, consider_heir, &heir, 0);
	if (heir.found && !bpf_sk_select_reuseport(md, &sockets, &heir.slot, 0))
		count_moved(moving, heir.slot);
	return SK_PASS;
}

/* `move_request` of the build that places requests. An upgrade keeps this map. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} movers SEC(".maps");

/*
 * Attached to SO_REUSEPORT groups. Its presence enables migration. The groups cannot be
 * enumerated to attach another program, so this one never changes and calls `move_request`.
 * If `movers` is empty, the kernel chooses by the flow's hash.
 */
SEC("sk_reuseport/migrate")
int migrate(struct sk_reuseport_md *md)
{
	if (md->migrating_sk)
		bpf_tail_call(md, &movers, 0);
	return SK_PASS;
}
