/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Asking a program of the user's own which member gets a request.
 *
 * `overspill` gathers the candidates (rule 3 of crates/overspill/src/model.rs) into
 * `requests` and calls the program in `dispatchers` at the service's number: a tail call,
 * from which it does not come back. That program (include/overspill_dispatcher.h) writes
 * its answer and calls `take_answer` the same way, which carries it out. Whatever fails on
 * the way is counted (`fallback`), and next-available chooses.
 *
 * Between the two calls lies no end of an RCU read section: what `searches` says of the
 * request still holds, and nobody writes over the roster.
 */
#ifndef OVERSPILL_DISPATCHERS_H
#define OVERSPILL_DISPATCHERS_H

/* The whole contract with such programs: it has no other place. */
#include "../include/overspill_dispatcher.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct overspill_request);
} requests SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} dispatchers SEC(".maps");

/* Every user's program ends with a call of this map's entry: `take_answer`. User space puts it
 * there; libbpf must not fill it when it loads. An upgrade keeps this map, because users'
 * programs are bound to it. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} finish SEC(".maps");

/* --- gathering the candidates ------------------------------------------------ */

struct gathering {
	struct request *r;
	struct overspill_request *out;
};

static __always_inline void enter(struct search *s, struct ov_member *m, struct ov_figures *f,
				  __u32 position, struct overspill_request *out)
{
	struct overspill_candidate *c;
	__u32 slot = m->slot, at = out->count;
	struct ov_word *word = bpf_map_lookup_elem(&words, &slot);

	if (at >= OVERSPILL_CANDIDATES)
		return;
	c = &out->candidates[at];
	out->count = at + 1;
	c->word = word && word->cookie == m->cookie ? word->word : 0;
	c->established = established(slot);
	c->member = m->id;
	c->queued = f->queued;
	c->half_open = f->half_open;
	c->capacity = f->backlog + 1;
	c->weight = m->weight;
	c->called = m->flags & OV_WILDCARD || same_address(m->address, s->address);
	c->position = position;
	c->slot = slot;
}

/* A global function, so that the verifier checks it once. 6.19 and 7.0 refuse the loop
 * otherwise. */
__weak int gather_one(struct search *s, __u32 position, struct overspill_request *out)
{
	struct ov_figures f = {};
	struct ov_member *m;
	struct request r;

	if (!s || !out)
		return 0;
	r = request_of(s);
	m = member_at(&r, position);
	if (m && m->flags & s->takes && read_figures(m, &f) && has_room(s, m, &f, position))
		enter(s, m, &f, position, out);
	return 0;
}

static long gather(__u32 batch, struct gathering *g)
{
	struct search *s = g->r->s;
	__u32 i, k;

	for (k = 0; k < BATCH; k++) {
		i = batch * BATCH + k;
		if (i >= s->count)
			return 1;
		gather_one(s, position_of(g->r, index_of(s, i)), g->out);
	}
	return g->out->count == OVERSPILL_CANDIDATES;
}

static __always_inline void gather_all(struct gathering *g)
{
	g->out->count = 0;
	aim(g->r);
	bpf_loop((g->r->s->count + BATCH - 1) / BATCH, gather, g, 0);
}

/* --- asking ------------------------------------------------------------------ */

static __always_inline void describe(struct request *r, struct overspill_request *out)
{
	struct search *s = r->s;

	out->version = OVERSPILL_DISPATCHER_VERSION;
	remote_of(s, out->remote_address);
	__builtin_memcpy(out->local_address, s->address, sizeof(out->local_address));
	out->remote_port = s->ports >> 16;
	out->local_port = s->ports;
	out->hash = flow_hash(r);
	out->interface = r->ctx->ingress_ifindex;
	out->cpu = bpf_get_smp_processor_id();
	out->node = bpf_get_numa_node_id();
	out->service = s->service;
	out->answer = OVERSPILL_CANDIDATES; /* none */
	out->zero = 0;
}

static __always_inline void fall_back(struct request *r)
{
	r->s->fell_back = true;
	COUNT_SERVICE(r->s->service, fallback);
}

/* Does not come back if the service has a dispatcher that can be asked. Where no member
 * has room there is nothing to ask. */
static __always_inline void ask_dispatcher(struct request *r)
{
	__u32 zero = 0;
	struct gathering g = { .r = r };

	g.out = bpf_map_lookup_elem(&requests, &zero);
	if (!g.out)
		return; /* not reached: the map has this one entry */
	r->s->patient = true;
	r->s->fell_back = false;
	r->s->since = 0;
	start_anew(r);
	gather_all(&g);
	if (!g.out->count) {
		r->s->siblings = true;
		gather_all(&g);
	}
	if (!g.out->count)
		return;
	describe(r, g.out);
	bpf_tail_call(r->ctx, &dispatchers, r->s->service);
	fall_back(r);
}

/* --- carrying out the answer -------------------------------------------------- */

/* The member that the answer names, if it still has room. (The user's program may have
 * written over what it was handed.) */
static __always_inline struct ov_member *answered(struct request *r,
						  struct overspill_request *request)
{
	__u32 at = request->answer;
	struct overspill_candidate *c;
	struct ov_member *m;

	if (at >= OVERSPILL_CANDIDATES || at >= request->count)
		return NULL;
	c = &request->candidates[at];
	if (c->position >= r->members)
		return NULL;
	aim_at(r, c->position);
	m = look_at(r, c->position, c->position);
	return m && m->slot == c->slot ? m : NULL;
}

/* Never attached: user's programs end with a call of it. */
SEC("sk_lookup")
int take_answer(struct bpf_sk_lookup *ctx)
{
	struct request r = { .ctx = ctx };
	struct overspill_request *request;
	struct ov_member *m;
	__u32 zero = 0;

	request = bpf_map_lookup_elem(&requests, &zero);
	if (!request || !go_on_with_search(&r))
		return SK_PASS;
	m = answered(&r, request);
	if (m && assign(&r, m))
		return SK_PASS;
	fall_back(&r);
	return place_by_rules(&r);
}

#endif
