/* SPDX-License-Identifier: (MIT OR Apache-2.0) OR (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Choosing by your own rule which socket of a service gets a request.
 *
 * For each request (a client's SYN) that a service with the policy "dispatcher" gets,
 * overspill gathers its members with room and asks your function which one it is to be:
 *
 *     #include "overspill_dispatcher.h"
 *
 *     OVERSPILL_DISPATCHER(shortest, request)
 *     {
 *             struct overspill_candidate *c, *best = overspill_candidate(request, 0);
 *
 *             OVERSPILL_FOR_EACH(c, request)
 *                     if (c->queued < best->queued)
 *                             best = c;
 *             return best;
 *     }
 *
 * The answer is a candidate; OVERSPILL_REFUSE leaves the choice to next-available and is
 * counted (`fallback`), as is an answer that is none of this request's candidates.
 * It needs nothing but clang, 14 or later:
 *
 *     clang -target bpf -O2 -g -I include -c shortest.bpf.c -o shortest.bpf.o
 *     overspill set web --policy dispatcher=shortest.bpf.o
 *
 * The function runs in the kernel, in a program of the kind sk_lookup: the kernel's
 * verifier has to see that it ends and stays within its memory. Loops over candidates are
 * best written with OVERSPILL_FOR_EACH, which it takes. Maps of your own, global
 * variables and helpers may be used as in every such program (include bpf/bpf_helpers.h);
 * helpers that are for GPL programs alone (bpf_printk) need
 *
 *     char LICENSE[] __attribute__((section("license"), used)) = "GPL";
 *
 * A client that gets no answer calls again, and is asked about again. Where it is to come
 * to the same member then, choose by `hash`, not by chance.
 *
 * docs/ways/dispatcher.md tells more; examples/dispatchers/ has three that are of use.
 */
#ifndef OVERSPILL_DISPATCHER_H
#define OVERSPILL_DISPATCHER_H

/* Of this header. A program made for another one is not loaded. */
#define OVERSPILL_DISPATCHER_VERSION 1

/* At most this many candidates are handed over: of more members with room the first. */
#define OVERSPILL_CANDIDATES 512

/* The answer that leaves the choice to next-available. */
#define OVERSPILL_REFUSE ((struct overspill_candidate *)0)

/* As in linux/types.h, which may be included as well. */
typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;

/* A member with room. */
struct overspill_candidate {
	__u64 word; /* the user's own number, as last written; 0: none was */
	__u64 established; /* connections that it has, accepted or not */
	__u32 member; /* its number, as `overspill show` tells it */
	__u32 queued; /* connections that wait to be accepted */
	__u32 half_open; /* handshakes not completed yet */
	__u32 capacity; /* how many of queued and half_open together it can hold */
	__u16 weight; /* 1 and more */
	__u8 called; /* bound to the called address, or to a wildcard that covers it */
	__u8 reserved;
	/* for overspill: leave these as they are */
	__u32 position;
	__u32 slot;
	__u32 reserved2;
};

/* A request. Addresses are in network order, IPv4 ones as ::ffff:a.b.c.d. */
struct overspill_request {
	__u32 version; /* OVERSPILL_DISPATCHER_VERSION of the running overspill */
	__u32 count; /* of candidates: 1 and more */
	__u32 remote_address[4]; /* the client's */
	__u32 local_address[4]; /* the called one */
	__u16 remote_port;
	__u16 local_port;
	__u32 hash; /* of the flow: the same for each of its packets */
	__u32 interface; /* index of the one where it arrived */
	__u32 cpu; /* where it arrived */
	__u32 node; /* the NUMA node of that CPU */
	__u32 service; /* the service's number: for maps of your own */
	__u32 zero; /* always; but the verifier does not know it: see OVERSPILL_FOR_EACH */
	/* for overspill: leave these as they are */
	__u32 answer;
	__u32 reserved[2];
	/* The first is the one that next-available would choose. They are called members,
	 * if any of these has room, else siblings of those. */
	struct overspill_candidate candidates[OVERSPILL_CANDIDATES];
};

/* --- what a dispatcher needs ---------------------------------------------- */

#define OVERSPILL_SECTION(name) __attribute__((section(name), used))

/*
 * Begins the function `name`, with `request` to read; what it returns is the answer. One in
 * a file. `overspill show` tells the name (its first 15 letters).
 */
#define OVERSPILL_DISPATCHER(name, request)                                                 \
	struct {                                                                            \
		int(*type)[6]; /* BPF_MAP_TYPE_PERCPU_ARRAY */                              \
		int(*max_entries)[1];                                                       \
		__u32 *key;                                                                 \
		struct overspill_request *value;                                            \
	} overspill_requests OVERSPILL_SECTION(".maps");                                    \
	struct {                                                                            \
		int(*type)[3]; /* BPF_MAP_TYPE_PROG_ARRAY */                                \
		int(*max_entries)[1];                                                       \
		int(*key_size)[4];                                                          \
		int(*value_size)[4];                                                        \
	} overspill_finish OVERSPILL_SECTION(".maps");                                      \
	/* overspill reads it before it loads the program. */                               \
	const volatile __u32 overspill_version OVERSPILL_SECTION(".rodata.overspill") =     \
		OVERSPILL_DISPATCHER_VERSION;                                               \
                                                                                            \
	static inline __attribute__((always_inline)) struct overspill_candidate *           \
	name##_answers(struct overspill_request *);                                         \
                                                                                            \
	OVERSPILL_SECTION("sk_lookup") int name(struct bpf_sk_lookup *ctx)                  \
	{                                                                                   \
		__u32 zero = 0;                                                             \
		struct overspill_request *asked =                                           \
			overspill_map_lookup(&overspill_requests, &zero);                   \
		struct overspill_candidate *answer;                                         \
                                                                                            \
		if (!asked)                                                                 \
			return 1; /* not reached: the map has this one entry */             \
		answer = name##_answers(asked);                                             \
		if (answer)                                                                 \
			asked->answer = overspill_place(asked, answer);                     \
		overspill_tail_call(ctx, &overspill_finish, 0);                             \
		return 1; /* SK_PASS; not reached: overspill goes on from there */          \
	}                                                                                   \
                                                                                            \
	static inline __attribute__((always_inline)) struct overspill_candidate *           \
	name##_answers(struct overspill_request *request)

/* The candidate at a place: 0 is the first. From `count` on there is none to be answered. */
static inline __attribute__((always_inline)) struct overspill_candidate *
overspill_candidate(struct overspill_request *request, __u64 place)
{
	place &= OVERSPILL_CANDIDATES - 1;
	/* Or the compiler could take the mask, which the verifier wants, for superfluous. */
	__asm__ volatile("" : "+r"(place));
	return &request->candidates[place];
}

/* The place of a candidate. */
static inline __attribute__((always_inline)) __u32
overspill_place(struct overspill_request *request, struct overspill_candidate *c)
{
	/* Not as a difference of pointers: that is a signed division, which v1 to v3 have not. */
	return ((__u64)c - (__u64)request->candidates) / sizeof(*c);
}

/*
 * Goes through the candidates: `c` (a pointer) is each of them.
 *
 * The verifier follows every turn of a loop. What it knows exactly, as it does a counter, it
 * follows through the rest of the program, value by value: a `best = c` would make as many
 * programs as there are candidates. So a zero that it does not know is mixed in. A counter
 * of your own that is asked for after the loop begins with it too: `n = request->zero`. The
 * compiler is kept from knowing the turn, or it would make a loop of it whose end the
 * verifier can't see.
 */
#define OVERSPILL_FOR_EACH(c, request)                                                    \
	for (__u64 overspill_turn = 0;                                                    \
	     overspill_turn < OVERSPILL_CANDIDATES && overspill_turn < (request)->count && \
	     ((c) = overspill_candidate(request, overspill_turn ^ (request)->zero), 1);   \
	     overspill_turn++, ({ __asm__ volatile("" : "+r"(overspill_turn)); }))

/* A number below `n`, the same for the same hash, and each as often as the others. */
static inline __attribute__((always_inline)) __u32 overspill_share(__u32 hash, __u32 n)
{
	return (__u64)hash * n >> 32;
}

/* A number below `n` by chance. */
#define overspill_random(n) overspill_share(overspill_prandom(), n)

/*
 * Another hash of a hash. The member that candidate 0 is was chosen by the flow's hash: a
 * share of the requests that is to be independent of that takes overspill_mix(hash).
 */
static inline __attribute__((always_inline)) __u32 overspill_mix(__u32 hash)
{
	hash ^= hash >> 16;
	hash *= 0x7feb352d;
	hash ^= hash >> 15;
	hash *= 0x846ca68b;
	return hash ^ hash >> 16;
}

/* --- the helpers of the kernel used here, by their numbers in linux/bpf.h ---- */

struct bpf_sk_lookup;

static void *(*const overspill_map_lookup)(void *map, const void *key)
	__attribute__((unused)) = (void *)1;
static __u32 (*const overspill_prandom)(void) __attribute__((unused)) = (void *)7;
static long (*const overspill_tail_call)(void *ctx, void *map, __u32 index)
	__attribute__((unused)) = (void *)12;

#endif
