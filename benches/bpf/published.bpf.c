/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a contestant of the tail benchmark does: workers publish who may be given
 * connections, one bit each, and the kernel's hash chooses among those bits.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define BPF_MAP_TYPE_REUSEPORT_SOCKARRAY 20 /* include/uapi/linux/bpf.h */
#define WORKERS 64

struct {
	__uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	__uint(max_entries, WORKERS);
	__type(key, __u32);
	__type(value, __u64);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} available SEC(".maps");

/* Left to the kernel's own hash where nobody is available. */
SEC("sk_reuseport")
int choose(struct sk_reuseport_md *md)
{
	__u32 zero = 0, worker, count = 0, skip;
	__u64 *bits = bpf_map_lookup_elem(&available, &zero);
	__u64 set;

	if (!bits)
		return SK_PASS;
	set = *bits;
	for (worker = 0; worker < WORKERS; worker++)
		count += set >> worker & 1;
	if (!count)
		return SK_PASS;
	skip = (__u64)md->hash * count >> 32;
	for (worker = 0; worker < WORKERS; worker++)
		if (set >> worker & 1 && !skip--)
			break;
	bpf_sk_select_reuseport(md, &sockets, &worker, 0);
	return SK_PASS;
}
