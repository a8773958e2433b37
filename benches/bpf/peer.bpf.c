/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the cost of a decision is compared with: programs that find the socket for
 * a request without looking at any queue.
 *
 * `two_lookups` does what a dispatcher by address prefix does: the label of the
 * called address at its port and at any port, the longer prefix wins; a counter of
 * the label; its socket. `one_lookup` is the least that any such dispatcher does:
 * one label, one socket, nothing counted. `nothing` is the floor of the measuring
 * itself.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define BPF_MAP_TYPE_LPM_TRIE 11 /* include/uapi/linux/bpf.h */
#define BPF_F_NO_PREALLOC 1
#define LABELS 1024

struct label_key {
	__u32 prefix; /* bits of what follows */
	__u16 port; /* host order; 0: any */
	__u16 protocol;
	__be32 address[4]; /* IPv4 as ::ffff:a.b.c.d */
};

struct label {
	__u32 socket; /* index in `sockets` and `counters` */
	__u32 prefix;
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, LABELS);
	__type(key, struct label_key);
	__type(value, struct label);
} labels SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, LABELS);
	__type(key, __u32);
	__type(value, __u64);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LABELS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/* The barrier keeps clang from merging the branches' loads into one through a
 * computed address, which the verifier refuses on a context. */
static __always_inline void read_key(struct bpf_sk_lookup *ctx,
				     struct label_key *key)
{
	__u32 word;

	key->prefix = 8 * (sizeof(*key) - sizeof(key->prefix));
	key->port = ctx->local_port;
	key->protocol = ctx->protocol;
	if (ctx->family == AF_INET) {
		key->address[2] = bpf_htonl(0xffff);
		word = ctx->local_ip4;
		barrier_var(word);
		key->address[3] = word;
	} else {
		key->address[0] = ctx->local_ip6[0];
		key->address[1] = ctx->local_ip6[1];
		key->address[2] = ctx->local_ip6[2];
		key->address[3] = ctx->local_ip6[3];
	}
}

static __always_inline int assign(struct bpf_sk_lookup *ctx, __u32 index)
{
	struct bpf_sock *sk = bpf_map_lookup_elem(&sockets, &index);
	long error;

	if (!sk)
		return SK_DROP;
	/* The flag because a test run refuses sockets of a SO_REUSEPORT group. */
	error = bpf_sk_assign(ctx, sk, BPF_SK_LOOKUP_F_NO_REUSEPORT);
	bpf_sk_release(sk);
	return error ? SK_DROP : SK_PASS;
}

SEC("sk_lookup")
int one_lookup(struct bpf_sk_lookup *ctx)
{
	struct label_key key = {};
	struct label *label;

	read_key(ctx, &key);
	label = bpf_map_lookup_elem(&labels, &key);
	return label ? assign(ctx, label->socket) : SK_PASS;
}

SEC("sk_lookup")
int two_lookups(struct bpf_sk_lookup *ctx)
{
	struct label_key key = {};
	struct label *label, *any_port;
	__u64 *counter;
	__u32 index;

	read_key(ctx, &key);
	label = bpf_map_lookup_elem(&labels, &key);
	key.port = 0;
	any_port = bpf_map_lookup_elem(&labels, &key);
	if (any_port && (!label || any_port->prefix > label->prefix))
		label = any_port;
	if (!label)
		return SK_PASS;
	index = label->socket;
	counter = bpf_map_lookup_elem(&counters, &index);
	if (!counter)
		return SK_DROP;
	(*counter)++;
	return assign(ctx, index);
}

SEC("sk_lookup")
int nothing(struct bpf_sk_lookup *ctx)
{
	(void)ctx;
	return SK_PASS;
}
