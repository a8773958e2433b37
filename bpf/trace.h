/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Telling those who trace what became of a request.
 *
 * Where nobody does, a request reads one word that nobody writes. Each who does has a ring
 * buffer of its own, and is told what it asked for until its time is up: one that was
 * killed costs nothing for long. What finds no room in a buffer is counted. Nobody is
 * woken, since that would cost more than all the rest: they look by themselves.
 */
#ifndef OVERSPILL_TRACE_H
#define OVERSPILL_TRACE_H

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ov_tracing);
} tracing SEC(".maps");

struct ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096); /* user space makes larger ones */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, OV_TRACERS);
	__type(key, __u32);
	__array(values, struct ring);
} tracers SEC(".maps");

/* Too large for the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ov_event);
} event SEC(".maps");

static __always_inline void glimpse(struct request *r, __u32 position,
				    struct ov_glimpse *out)
{
	struct ov_member *m = member_at(r, position);
	struct ov_figures f = {};

	__builtin_memset(out, 0, sizeof(*out));
	out->id = OV_NO_MEMBER;
	if (!m)
		return;
	out->id = m->id;
	out->flags = m->flags & ~(is_out(m) ? 0 : OV_HUNG); /* a mark that has run out */
	out->gone = !read_figures(m, &f);
	out->queued = f.queued;
	out->half_open = f.half_open;
	out->backlog = f.backlog;
}

static __always_inline __u8 why_of(struct search *s, struct ov_endpoint_row *endpoint)
{
	bool asked = endpoint->policy == OV_DISPATCHER && endpoint->flags & OV_REDIRECT;

	switch (s->rule) {
	case RULE_CROWDED:
		return OV_CROWDED;
	case RULE_HUNG:
		return OV_NO_OTHER;
	case RULE_COOKIE:
		return OV_COOKIE;
	}
	return asked && s->fell_back ? OV_FALLBACK : OV_BY_POLICY;
}

static __always_inline void name_of(struct request *r, struct ov_event *e)
{
	union ov_row *first = row(r, OV_ROW_NAME), *second = row(r, OV_ROW_NAME + 1);

	if (!first || !second)
		return; /* not reached: a roster has them */
	__builtin_memcpy(e->service, first->name, OV_ROW_SIZE);
	__builtin_memcpy(e->service + OV_ROW_SIZE, second->name,
			 sizeof(e->service) - OV_ROW_SIZE);
}

/* Who was called: the chosen one where it is among the called, else the flow's. */
static __always_inline void describe_event(struct request *r, __u32 outcome,
					   struct ov_event *e)
{
	struct search *s = r->s;

	name_of(r, e);
	remote_of(s, e->remote);
	__builtin_memcpy(e->address, s->address, sizeof(e->address));
	e->remote_port = s->ports >> 16;
	e->port = s->ports;
	e->outcome = outcome;
	e->policy = r->endpoint->policy;
	e->why = why_of(s, r->endpoint);
	__builtin_memset(&e->chosen, 0, sizeof(e->chosen));
	e->chosen.id = OV_NO_MEMBER;
	if (outcome != OV_RESET_SENT && outcome != OV_LEFT)
		glimpse(r, position_of(r, s->index), &e->chosen);
	if (e->chosen.id != OV_NO_MEMBER && !s->siblings)
		e->called = e->chosen;
	else
		glimpse(r, called_position(r), &e->called);
}

/* A global function, as `look` is: else each of all could want it or not. */
__weak int wants(struct search *s, __u32 i, __u32 outcome, __u64 now)
{
	__u32 zero = 0;
	struct ov_tracing *t = bpf_map_lookup_elem(&tracing, &zero);
	struct ov_tracer *tracer;

	i %= OV_TRACERS; /* as it is: for the verifier */
	if (!s || !t)
		return false;
	tracer = &t->tracers[i];
	if (tracer->until < now) {
		__sync_fetch_and_and(&settings.active, ~(1ULL << i));
		/* It may have been moved on just now, and nobody would be told. */
		if (*(volatile __u64 *)&tracer->until >= now)
			__sync_fetch_and_or(&settings.active, 1ULL << i);
		return false;
	}
	return tracer->outcomes & 1 << outcome &&
	       (tracer->service == OV_EVERY_SERVICE || tracer->service == s->service);
}

static __always_inline void tell(struct ov_tracing *t, __u32 i, struct ov_event *e)
{
	__u32 key = i; /* before 6.14 the verifier knows nothing of a key after the call */
	void *ring = bpf_map_lookup_elem(&tracers, &key);

	if (!ring || bpf_ringbuf_output(ring, e, sizeof(*e), BPF_RB_NO_WAKEUP))
		__sync_fetch_and_add(&t->tracers[i].lost, 1);
}

__weak int report(struct search *s, __u32 outcome)
{
	__u32 zero = 0, wanted = 0, i;
	struct ov_tracing *t = bpf_map_lookup_elem(&tracing, &zero);
	struct ov_event *e = bpf_map_lookup_elem(&event, &zero);
	__u64 now = bpf_ktime_get_coarse_ns();
	struct request r;
	union ov_row *found;
	__u32 number;

	if (!s || !t || !e)
		return 0; /* not reached: the maps have these entries */
	for (i = 0; i < OV_TRACERS; i++)
		if (settings.active & 1ULL << i)
			wanted |= (wants(s, i, outcome, now) & 1) << i;
	if (!wanted)
		return 0;
	r = request_of(s);
	number = s->row; /* before 6.2 a key may not lie in what an argument points to */
	found = bpf_map_lookup_elem(&rows, &number);
	if (!found)
		return 0; /* not reached: the row was found before */
	r.endpoint = &found->endpoint;
	e->time = bpf_ktime_get_ns();
	describe_event(&r, outcome, e);
	for (i = 0; i < OV_TRACERS; i++)
		if (wanted & 1 << i)
			tell(t, i, e);
	return 0;
}

static __always_inline void trace(struct request *r, enum ov_outcome outcome)
{
	if (settings.active)
		report(r->s, outcome);
}

static __always_inline void trace_placed(struct request *r)
{
	trace(r, r->s->siblings ? OV_REDIRECTED : OV_PLACED);
}

#endif
