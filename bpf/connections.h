/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Counting the connections that each member holds.
 *
 * User space puts an origin into the storage of each member's socket. The kernel copies
 * it to every connection that the socket accepts (net/core/bpf_sk_storage.c,
 * bpf_sk_storage_clone), so that a connection knows its member for as long as it lives.
 * `connections` is attached to the control groups of the members' sockets, which their
 * connections inherit: the kernel calls it when a handshake is complete
 * (tcp_init_transfer) and at every later change of the state (tcp_set_state).
 *
 * A connection is counted from there until it leaves ESTABLISHED and CLOSE_WAIT, i.e.
 * until its server or a reset closes it, accepted or not. What waits in the queue of a
 * socket that ends goes to another member's socket with the program `migrate`, and so
 * does the count. Both happen under the connection's lock, one after the other
 * (inet_csk_listen_stop): each is counted once, and taken off once.
 *
 * A slot's count is that of one membership, its era: connections that outlive it change
 * nothing, whoever has the slot next, be it the same socket.
 */
#ifndef OVERSPILL_CONNECTIONS_H
#define OVERSPILL_CONNECTIONS_H

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ov_load);
} loads SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct ov_origin);
} origins SEC(".maps");

/* Connections that were moved and are not closed yet. When the map is full, further ones stay
 * counted at the member that they came from. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct ov_moved);
} moved SEC(".maps");

/* Whether `moved` was ever written to. Most connections end without a look-up in `moved`. A
 * map of its own: an upgrade keeps it together with `moved`. */
volatile __u32 any_moved SEC(".data.any_moved") = 0;

/* The count that a connection is part of, while its membership lasts. */
static __always_inline struct ov_load *load_of(const struct ov_origin *origin)
{
	__u32 slot = origin->slot;
	struct ov_load *load = bpf_map_lookup_elem(&loads, &slot);

	return load && origin->era && load->era == origin->era ? load : NULL;
}

static __always_inline void add_to(const struct ov_origin *origin, __s32 connections)
{
	struct ov_load *load = load_of(origin);

	if (load)
		__sync_fetch_and_add(&load->established, connections);
}

static __always_inline __u64 established(__u32 slot)
{
	struct ov_load *load = bpf_map_lookup_elem(&loads, &slot);

	return load ? load->established : 0;
}

static __always_inline void count_begun(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct ov_origin *origin;
	struct ov_load *load;

	if (!sk)
		return;
	origin = bpf_sk_storage_get(&origins, sk, NULL, 0);
	/* Counted already where a group and one above it are both attached to: each calls. */
	if (!origin || origin->counted)
		return;
	load = load_of(origin);
	/* The flags of others stay: another program may want other calls. */
	if (!load || bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags |
							    BPF_SOCK_OPS_STATE_CB_FLAG))
		return;
	origin->counted = true;
	__sync_fetch_and_add(&load->established, 1);
}

static __always_inline void count_ended(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct ov_origin *origin;
	struct ov_moved *now;
	__u64 connection;

	if (!sk)
		return;
	origin = bpf_sk_storage_get(&origins, sk, NULL, 0);
	if (!origin || !origin->counted)
		return;
	if (any_moved) {
		connection = bpf_get_socket_cookie(ctx);
		now = bpf_map_lookup_elem(&moved, &connection);
		if (now) {
			*origin = now->to;
			bpf_map_delete_elem(&moved, &connection);
		}
	}
	origin->counted = false;
	add_to(origin, -1);
}

SEC("sockops")
int connections(struct bpf_sock_ops *ctx)
{
	if (ctx->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		count_begun(ctx);
	else if (ctx->op == BPF_SOCK_OPS_STATE_CB && ctx->args[1] != TCP_ESTABLISHED &&
		 ctx->args[1] != TCP_CLOSE_WAIT)
		count_ended(ctx);
	return 1;
}

/* The id of the control group that a socket belongs to, and its connections with it. */
static __always_inline __u64 cgroup_of(__u64 at)
{
	struct kernfs_node *node = NULL;
	struct cgroup *cgroup = NULL;
	__u64 id = 0;

	LOAD(cgroup, sock, at, sk_cgrp_data.cgroup);
	if (!cgroup)
		return 0;
	LOAD(node, cgroup, cgroup, kn);
	if (!node)
		return 0;
	LOAD(id, kernfs_node, node, id);
	return id;
}

/* How many programs' storage in a connection is gone through for ours. */
#define STORAGES 16

/* What `origins` has for a connection. The program `migrate` may not ask for it
 * (sk_reuseport_func_proto), so it reads what bpf_sk_storage_get would find. */
static __always_inline struct ov_origin origin_of(__u64 connection)
{
	union {
		__s64 word;
		struct ov_origin origin;
	} found = {};
	const struct ov_origin none = {};
	__u32 own = ((struct bpf_map *)&origins)->id;
	struct bpf_local_storage *storage = NULL;
	struct hlist_node *node = NULL;
	__u64 element, data;
	__u32 i, id;

	LOAD(storage, sock, connection, sk_bpf_storage);
	if (!storage)
		return none;
	LOAD(node, bpf_local_storage, storage, list.first);
	for (i = 0; i < STORAGES && node; i++) {
		struct bpf_local_storage_map *map = NULL;

		element = (__u64)node -
			  bpf_core_field_offset(struct bpf_local_storage_elem, snode);
		data = element + bpf_core_field_offset(struct bpf_local_storage_elem, sdata);
		LOAD(map, bpf_local_storage_data, data, smap);
		LOAD(id, bpf_local_storage_map, map, map.id);
		if (id == own) {
			data += bpf_core_field_offset(struct bpf_local_storage_data, data);
			/* Any type of the kernel's will do that begins with such a number. */
			LOAD(found.word, timespec64, data, tv_sec);
			return found.origin;
		}
		LOAD(node, hlist_node, node, next);
	}
	return none;
}

/* Takes note that a connection goes to another member's socket. One that nobody is told of
 * when it ends, since it was complete before its socket became a member, is not counted
 * there either. */
static __always_inline void count_moved(struct bpf_sock *connection, __u32 slot)
{
	struct ov_moved moving = { .to = { .slot = slot, .counted = true } }, *before;
	struct ov_origin from;
	struct ov_load *load;
	__u64 cookie, address;

	if (connection->state != TCP_ESTABLISHED && connection->state != TCP_CLOSE_WAIT)
		return;
	address = plain_address(connection);
	from = origin_of(address);
	if (!from.counted)
		return;
	cookie = bpf_get_socket_cookie(connection);
	before = bpf_map_lookup_elem(&moved, &cookie);
	if (before)
		from = before->to;
	load = bpf_map_lookup_elem(&loads, &slot);
	if (load && load->cookie)
		moving.to.era = load->era;
	moving.cgroup = cgroup_of(address);
	any_moved = true;
	if (bpf_map_update_elem(&moved, &cookie, &moving, 0))
		return;
	add_to(&moving.to, 1);
	add_to(&from, -1);
}

#endif
