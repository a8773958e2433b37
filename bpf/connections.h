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

/* Connections that have been moved and are not closed yet. Where there are more, the
 * rest stay counted where they came from. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct ov_origin);
} moved SEC(".maps");

/* Whether `moved` was ever written to: most connections end without a look at it. */
static volatile bool any_moved;

/* The count of a socket's connections, while the slot is that socket's. */
static __always_inline struct ov_load *load_of(struct ov_origin *origin)
{
	__u32 slot = origin->slot;
	struct ov_load *load = bpf_map_lookup_elem(&loads, &slot);

	return load && load->cookie == origin->cookie ? load : NULL;
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
	struct ov_origin *origin, *now;
	struct ov_load *load;
	__u64 connection;

	if (!sk)
		return;
	origin = bpf_sk_storage_get(&origins, sk, NULL, 0);
	if (!origin || !origin->counted)
		return;
	origin->counted = false;
	if (any_moved) {
		connection = bpf_get_socket_cookie(ctx);
		now = bpf_map_lookup_elem(&moved, &connection);
		if (now) {
			*origin = *now;
			bpf_map_delete_elem(&moved, &connection);
			origin->counted = false;
		}
	}
	load = load_of(origin);
	if (load)
		__sync_fetch_and_add(&load->established, -1);
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

/* Takes note that a connection goes from one member's socket to another's, `to`. Only
 * one that is counted has the flag (or another program has set it, for one that was
 * complete before its socket became a member: it is counted from then on). */
static __always_inline void count_moved(struct bpf_sock *connection, struct ov_origin *from,
					struct ov_origin *to)
{
	struct ov_load *load;
	__u8 flags = 0;
	__u64 cookie;

	if (connection->state != TCP_ESTABLISHED && connection->state != TCP_CLOSE_WAIT)
		return;
	LOAD(flags, tcp_sock, connection, bpf_sock_ops_cb_flags);
	if (!(flags & BPF_SOCK_OPS_STATE_CB_FLAG))
		return;
	cookie = bpf_get_socket_cookie(connection);
	any_moved = true;
	if (bpf_map_update_elem(&moved, &cookie, to, 0))
		return;
	load = load_of(to);
	if (load)
		__sync_fetch_and_add(&load->established, 1);
	load = load_of(from);
	if (load)
		__sync_fetch_and_add(&load->established, -1);
}

#endif
