// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Programs of somebody else, to be attached beside overspill's.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} chosen SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} runs SEC(".maps");

static void count(void)
{
	__u32 zero = 0;
	__u64 *n = bpf_map_lookup_elem(&runs, &zero);

	if (n)
		__sync_fetch_and_add(n, 1);
}

SEC("sk_lookup")
int passes(struct bpf_sk_lookup *ctx)
{
	count();
	return SK_PASS;
}

SEC("sk_lookup")
int drops(struct bpf_sk_lookup *ctx)
{
	count();
	return SK_DROP;
}

static int assign(struct bpf_sk_lookup *ctx, __u64 flags)
{
	__u32 zero = 0;
	struct bpf_sock *sk = bpf_map_lookup_elem(&chosen, &zero);

	count();
	if (!sk)
		return SK_DROP;
	bpf_sk_assign(ctx, sk, flags);
	bpf_sk_release(sk);
	return SK_PASS;
}

SEC("sk_lookup")
int assigns(struct bpf_sk_lookup *ctx)
{
	return assign(ctx, 0);
}

SEC("sk_lookup")
int replaces(struct bpf_sk_lookup *ctx)
{
	return assign(ctx, BPF_SK_LOOKUP_F_REPLACE);
}

/* The choice of a SO_REUSEPORT group: always the socket at 0. */
SEC("sk_reuseport")
int selects(struct sk_reuseport_md *ctx)
{
	__u32 zero = 0;

	count();
	bpf_sk_select_reuseport(ctx, &chosen, &zero, 0);
	return SK_PASS;
}
