/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Programs that user space of any build can run (BPF_PROG_TEST_RUN). They hide this build's
 * map layout. None is attached. `read_queues` is one of them too.
 *
 * The context holds their arguments: the service's number in local_ip6[0], a position in
 * local_ip6[1], 64 bits in remote_ip6[0] (the low half) and [1] (the wide argument), and 16
 * bits in local_port. This never changes: see bpf/overspill.h, "contract".
 */
#ifndef OVERSPILL_CONTRACT_H
#define OVERSPILL_CONTRACT_H

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ov_export);
} exported SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ov_extent);
} publications SEC(".maps");

static __always_inline __u64 wide_argument(struct bpf_sk_lookup *ctx)
{
	return (__u64)ctx->remote_ip6[1] << 32 | ctx->remote_ip6[0];
}

/* The part of a member's row that `mark` changes. It is replaced in one step, because a
 * supervisor and a command may mark at the same time. */
union marked {
	__u64 word;
	struct {
		__u32 slot;
		__u16 weight;
		__u8 flags;
		__u8 zero;
	};
};
_Static_assert(__builtin_offsetof(struct ov_member, slot) % 8 == 0, "a word");
_Static_assert(__builtin_offsetof(struct ov_member, flags) ==
		       __builtin_offsetof(struct ov_member, slot) +
			       __builtin_offsetof(union marked, flags),
	       "as in the row");

#define MARK_ATTEMPTS 16

static __always_inline bool set_flags(struct ov_member *m, __u8 flags, __u8 mask)
{
	__u64 *word = (__u64 *)&m->slot;
	union marked before, after;
	__u32 i;

	for (i = 0; i < MARK_ATTEMPTS; i++) {
		before.word = *(volatile __u64 *)word;
		after = before;
		after.flags = (before.flags & ~mask) | (flags & mask);
		if (__sync_val_compare_and_swap(word, before.word, after.word) == before.word)
			return true;
	}
	return false;
}

/*
 * Sets and clears flags of a member in the published snapshot. (A new snapshot takes effect
 * only after the old one has no readers.) The position selects the member. The wide argument
 * is the socket's cookie: a member with another cookie is not changed. The low byte of
 * local_port holds the new flags. The high byte is the mask: which of OV_HUNG, OV_TRIAL and
 * OV_DRAINING to change. SK_DROP: nothing changed.
 */
SEC("sk_lookup")
int mark(struct bpf_sk_lookup *ctx)
{
	const __u8 allowed = OV_HUNG | OV_TRIAL | OV_DRAINING;
	__u16 marks = ctx->local_port;
	__u8 mask = marks >> 8 & allowed;
	__u32 position = ctx->local_ip6[1];
	struct request r = {};
	struct ov_member *m;

	if (!find_roster(&r, ctx->local_ip6[0]) || position >= r.members)
		return SK_DROP;
	m = member_at(&r, position);
	if (!m || m->cookie != wide_argument(ctx))
		return SK_DROP;
	if (mask & OV_HUNG)
		m->marked = mark_tick();
	if (!set_flags(m, marks, mask))
		return SK_DROP;
	if (mask & OV_DRAINING)
		remember(&r, position, m);
	return SK_PASS;
}

static long locate_one(__u32 i, const __u32 *first)
{
	__u32 zero = 0, service = *first + i, key = service;
	struct ov_extent *out = bpf_map_lookup_elem(&publications, &key);
	struct ov_extent *extent = NULL;
	void *roster;

	if (!out)
		return 1; /* there are no more */
	key = service;
	roster = bpf_map_lookup_elem(&services, &key);
	if (roster)
		extent = bpf_map_lookup_elem(roster, &zero);
	if (extent)
		*out = *extent;
	else
		out->number = 0;
	return 0;
}

/*
 * Writes the publication number of each service, and where its snapshot lies, into
 * `publications`. It begins at the given service; the position argument is the number of
 * services. Readers may run it at the same time: each writes the current values. A reader
 * runs it again after reading, and compares the publication numbers.
 */
SEC("sk_lookup")
int locate(struct bpf_sk_lookup *ctx)
{
	__u32 first = ctx->local_ip6[0];

	bpf_loop(ctx->local_ip6[1], locate_one, &first, 0);
	return SK_PASS;
}

struct exporting {
	struct request *r;
	struct ov_export *out;
	__u32 first;
};

static long export_member(__u32 i, struct exporting *e)
{
	struct ov_member *m = member_at(e->r, e->first + i);
	struct ov_exported_member *to = &e->out->member[i % OV_EXPORTED_MEMBERS];

	if (!m)
		return 1;
	to->cookie = m->cookie;
	__builtin_memcpy(to->address, m->address, sizeof(to->address));
	to->id = m->id;
	to->pid = m->pid;
	to->slot = m->slot;
	to->cgroup = m->cgroup;
	to->marked = m->marked;
	to->weight = m->weight;
	to->flags = m->flags;
	to->zero = 0;
	e->out->service.given = i + 1;
	return 0;
}

static __always_inline bool export_service(struct request *r,
					  struct ov_exported_service *out)
{
	union ov_row *header = row(r, OV_ROW_HEADER);
	union ov_row *name = row(r, OV_ROW_NAME), *rest = row(r, OV_ROW_NAME + 1);

	if (!header || !name || !rest)
		return false; /* not reached: every snapshot has these rows */
	out->head = __builtin_offsetof(struct ov_export, member);
	out->member_size = sizeof(struct ov_exported_member);
	out->members = r->members;
	out->given = 0;
	out->next_id = header->header.next_id;
	out->port = header->header.port;
	out->policy = header->header.policy;
	out->flags = header->header.flags;
	out->turn = header->header.turn;
	__builtin_memcpy(out->name, name->name, OV_ROW_SIZE);
	__builtin_memcpy(out->name + OV_ROW_SIZE, rest->name, OV_ROW_SIZE);
	return true;
}

/* Only one run writes at a time: what another one had begun to write would end up in the
 * answer. A run always ends, so nobody keeps this for good. */
static __always_inline bool begin_export(struct ov_export *out, __u64 number)
{
	__u64 before;

	if (__sync_val_compare_and_swap(&out->busy, 0, number))
		return false;
	/* As a barrier too: a reader sees this before it sees what is written next. */
	before = *(volatile __u64 *)&out->ended;
	__sync_val_compare_and_swap(&out->ended, before, 0);
	out->service.begun = number;
	return true;
}

static __always_inline void end_export(struct ov_export *out, __u64 number)
{
	__sync_val_compare_and_swap(&out->ended, 0, number);
	__sync_val_compare_and_swap(&out->busy, number, 0);
}

/*
 * Writes a service into `exported`, with the members from a position on. The wide argument is
 * a number other than 0 that the caller chooses. The answer is complete, and the caller's, if
 * `begun` and `ended` both hold it; otherwise another caller was faster, and this one tries
 * again. SK_DROP: there is no such service.
 */
SEC("sk_lookup")
int export(struct bpf_sk_lookup *ctx)
{
	__u64 number = wide_argument(ctx);
	struct request r = {};
	struct exporting e = { .r = &r };
	__u32 zero = 0, left;

	e.out = bpf_map_lookup_elem(&exported, &zero);
	if (!e.out || !find_roster(&r, ctx->local_ip6[0]))
		return SK_DROP;
	if (!begin_export(e.out, number))
		return SK_PASS;
	e.first = ctx->local_ip6[1];
	e.out->service.first = e.first;
	if (export_service(&r, &e.out->service)) {
		left = e.first < r.members ? r.members - e.first : 0;
		bpf_loop(left < OV_EXPORTED_MEMBERS ? left : OV_EXPORTED_MEMBERS, export_member,
			 &e, 0);
	}
	end_export(e.out, number);
	return SK_PASS;
}

static long retire_endpoint(__u32 i, struct request *r)
{
	union ov_row *found = row(r, OV_ROW_ENDPOINTS + i);

	if (!found)
		return 1;
	found->endpoint.mark = 0;
	return 0;
}

/*
 * Stops serving a service at once. The caller, which then deletes the service's entry in
 * `services`, does not need to know the endpoint cache. The next writer of this layout repairs
 * the indexes.
 */
SEC("sk_lookup")
int retire(struct bpf_sk_lookup *ctx)
{
	struct request r = {};

	if (!find_roster(&r, ctx->local_ip6[0]))
		return SK_DROP;
	bpf_loop(r.endpoints, retire_endpoint, &r, 0);
	return SK_PASS;
}

#endif
