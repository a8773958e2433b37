// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The hooks on a control group: what lets servers that know nothing of overspill share
 * a port, and tells user space of each socket that begins to listen.
 *
 * They run in the system calls bind() and listen() of the group's processes, and
 * `listening` besides at a few moments of each of their connections.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "hooks.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Never read: it brings the type into the object's BTF, where a test compares it with
 * that of user space. */
const volatile struct ov_listening listening_type = {};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ov_private_ports);
} private_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} listenings SEC(".maps");

static __always_inline bool is_private(__u16 port)
{
	__u32 zero = 0;
	struct ov_private_ports *ports =
		bpf_map_lookup_elem(&private_ports, &zero);

	return ports && ports->is[port];
}

/* Sets SO_REUSEPORT, so that the same bind() succeeds in every worker. Port 0 is left
 * alone: the kernel gives each its own. Never refuses: bind() itself does. */
static __always_inline int share_port(struct bpf_sock_addr *ctx)
{
	__u16 port = bpf_ntohs((__u16)ctx->user_port);
	int one = 1;

	if (ctx->type == SOCK_STREAM && ctx->protocol == IPPROTO_TCP && port &&
	    !is_private(port))
		bpf_setsockopt(ctx, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one));
	return 1;
}

SEC("cgroup/bind4")
int bind4(struct bpf_sock_addr *ctx)
{
	return share_port(ctx);
}

SEC("cgroup/bind6")
int bind6(struct bpf_sock_addr *ctx)
{
	return share_port(ctx);
}

/* At the end of listen(), when the socket can be found by requests already. An event
 * that finds no place is lost: the port is then shared by the kernel's own hash. */
SEC("sockops")
int listening(struct bpf_sock_ops *ctx)
{
	struct ov_listening event = {};

	if (ctx->op != BPF_SOCK_OPS_TCP_LISTEN_CB || is_private(ctx->local_port))
		return 1;
	event.cookie = bpf_get_socket_cookie(ctx);
	event.pid = bpf_get_current_pid_tgid() >> 32;
	event.port = ctx->local_port;
	bpf_ringbuf_output(&listenings, &event, sizeof(event), 0);
	return 1;
}
