// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The hooks on a control group: what lets servers that know nothing of overspill share
 * a port, tells user space of each socket that begins to listen, and is the socket
 * option for those that do know of it.
 *
 * They run in the system calls bind(), listen(), setsockopt() and getsockopt() on sockets
 * that the group's processes have made, and `listening` besides at a few moments of each
 * of their connections.
 */
#include "kernel.h"
#include <asm-generic/errno.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "load.h"
#include "hooks.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Never read: they bring the types into the object's BTF, where a test compares them with
 * those of user space. */
const volatile struct ov_listening listening_type = {};
const volatile struct ov_request request_type = {};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ov_ports);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1024 * 1024);
} events SEC(".maps");

/* Both end with their socket. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct ov_call);
} calls SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct ov_place);
} places SEC(".maps");

static __always_inline __u8 kind_of(__u16 port)
{
	__u32 zero = 0, index = port;
	struct ov_ports *all = bpf_map_lookup_elem(&ports, &zero);

	/* Before 7.0 the verifier loses the bounds of a byte-swapped number, so it needs the
	 * mask. The barrier stops clang from removing the mask as redundant. */
	barrier_var(index);
	return all ? all->is[index & 0xffff] : OV_SHARED;
}

/* Sets SO_REUSEPORT, so that the same bind() succeeds in every worker. Port 0 is left
 * alone: the kernel gives each its own. Never refuses: bind() itself does. */
static __always_inline int share_port(struct bpf_sock_addr *ctx)
{
	__u16 port = bpf_ntohs((__u16)ctx->user_port);
	int one = 1;

	if (ctx->type == SOCK_STREAM && ctx->protocol == IPPROTO_TCP && port &&
	    kind_of(port) == OV_SHARED)
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

/* Ports on which sockets of the group have begun to listen. */
volatile __u8 listened[65536] = {};

static __always_inline volatile __u8 *listened_on(__u16 port)
{
	__u32 index = port;

	/* As in kind_of. */
	barrier_var(index);
	return &listened[index & 0xffff];
}

/* Whether both ends of a connection that begins have one address, which is this host's. */
static __always_inline bool is_own(struct bpf_sock_ops *ctx)
{
	if (ctx->family == AF_INET)
		return ctx->local_ip4 == ctx->remote_ip4;
	return ctx->local_ip6[0] == ctx->remote_ip6[0] &&
	       ctx->local_ip6[1] == ctx->remote_ip6[1] &&
	       ctx->local_ip6[2] == ctx->remote_ip6[2] &&
	       ctx->local_ip6[3] == ctx->remote_ip6[3];
}

static __always_inline void tell(struct bpf_sock_ops *ctx, __u16 port, __u16 connects)
{
	struct ov_listening event = {
		.cookie = bpf_get_socket_cookie(ctx),
		/* sock_ops programs have bpf_get_current_pid_tgid only since 6.10. */
		.pid = bpf_get_current_task_btf()->tgid,
		.port = port,
		.connects = connects,
	};

	bpf_ringbuf_output(&events, &event, sizeof(event), 0);
}

/* At the end of listen(), when the socket can be found by requests already: an event that
 * finds no place is lost, and the port is then shared by the kernel's own hash. And in
 * connect() to a port that the group listens on: some servers look in this way whether
 * their port is free. */
SEC("sockops")
int listening(struct bpf_sock_ops *ctx)
{
	__u16 port;

	if (ctx->op == BPF_SOCK_OPS_TCP_LISTEN_CB) {
		port = ctx->local_port;
		if (kind_of(port) == OV_PRIVATE)
			return 1;
		*listened_on(port) = 1;
		tell(ctx, port, 0);
	} else if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
		port = bpf_ntohl(ctx->remote_port);
		if (*listened_on(port) && is_own(ctx))
			tell(ctx, port, 1);
	}
	return 1;
}

/* The socket option. The descriptors are looked up here, where they are the caller's own;
 * what may sleep (bind(), a change of a service) is user space's, so a call is begun and
 * asked for again, like connect() on a non-blocking socket. */

static __always_inline struct socket *socket_of(struct file *file)
{
	struct socket *socket = NULL;
	struct inode *inode = NULL;
	struct file *back = NULL;
	__u16 mode = 0;

	LOAD(socket, file, file, private_data);
	LOAD(inode, file, file, f_inode);
	LOAD(mode, inode, inode, i_mode);
	if ((mode & S_IFMT) != S_IFSOCK || !socket)
		return NULL;
	LOAD(back, socket, socket, file);
	/* Files opened with O_PATH fail this. */
	return back == file ? socket : NULL;
}

/* What stands against a socket's membership on the port, as far as it is known here. */
static __always_inline int fitness(struct socket *socket, __u16 port)
{
	__u16 family = 0, bound = 0, type = 0, protocol = 0;
	struct sock *sk = NULL;
	__u8 state = 0;

	LOAD(sk, socket, socket, sk);
	LOAD(family, sock, sk, __sk_common.skc_family);
	LOAD(state, sock, sk, __sk_common.skc_state);
	LOAD(bound, sock, sk, __sk_common.skc_num);
	LOAD(type, sock, sk, sk_type);
	LOAD(protocol, sock, sk, sk_protocol);
	if ((family != AF_INET && family != AF_INET6) || type != SOCK_STREAM ||
	    protocol != IPPROTO_TCP)
		return -EPROTONOSUPPORT;
	if (state != TCP_CLOSE && state != TCP_LISTEN)
		return -EISCONN;
	return bound && bound != port ? -EINVAL : 0;
}

static __always_inline __u64 inode_number(struct file *file)
{
	struct inode *inode = NULL;
	__u64 number = 0;

	LOAD(inode, file, file, f_inode);
	LOAD(number, inode, inode, i_ino);
	return number;
}

/* What the caller's descriptor is, or NULL. */
static __always_inline struct file *file_of(__u32 fd)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct files_struct *files = NULL;
	struct fdtable *table = NULL;
	struct file **slots = NULL;
	__u32 count = 0;
	void *file;

	LOAD(files, task_struct, task, files);
	LOAD(table, files_struct, files, fdt);
	LOAD(count, fdtable, table, max_fds);
	if (fd >= count)
		return NULL;
	LOAD(slots, fdtable, table, fd);
	/* hlist_node: any type with a pointer first works. */
	LOAD(file, hlist_node, slots + fd, next);
	return file;
}

/* Looks up a descriptor of the caller. A global function, so that the verifier checks it
 * once, not for each descriptor. (Weak: otherwise clang specializes the arguments.) */
__weak int look_up(__u32 fd, __u16 port, __u64 *inode)
{
	struct file *file = file_of(fd);
	struct socket *socket;

	if (!file || !inode)
		return -EBADF;
	socket = socket_of(file);
	if (!socket)
		return -ENOTSOCK;
	*inode = inode_number(file);
	return fitness(socket, port);
}

/* Reads what the caller asks for, and looks up all that it names. */
static __always_inline int read_request(struct bpf_sockopt *ctx, struct ov_request *request)
{
	__u16 *head = ctx->optval;
	__u16 count;

	if ((void *)(head + 2) > ctx->optval_end)
		return -EINVAL;
	request->port = head[0];
	count = head[1];
	if (count > OV_SOCKETS)
		return -E2BIG;
	if (!count || !request->port || ctx->optlen != 4 + 4 * count)
		return -EINVAL;
	if (kind_of(request->port) == OV_PRIVATE)
		return -EPERM;
	request->count = count;
	for (int i = 0; i < OV_SOCKETS; i++) {
		__s32 *fd = (__s32 *)(head + 2) + i;
		int error;

		request->fds[i] = -1;
		request->inodes[i] = 0;
		if (i >= count)
			continue;
		if ((void *)(fd + 1) > ctx->optval_end)
			return -EINVAL;
		request->fds[i] = *fd;
		error = look_up(*fd, request->port, &request->inodes[i]);
		if (error)
			return error;
	}
	return 0;
}

static __always_inline bool is_same(struct ov_call *call, struct ov_request *request)
{
	if (call->port != request->port || call->count != request->count)
		return false;
	for (int i = 0; i < OV_SOCKETS; i++)
		if (call->inodes[i] != request->inodes[i])
			return false;
	return true;
}

static __always_inline __u64 inode_of(struct bpf_sock *of)
{
	struct socket *socket = NULL;
	struct file *file = NULL;

	LOAD(socket, sock, plain_address(of), sk_socket);
	LOAD(file, socket, socket, file);
	return inode_number(file);
}

/* Begins a call, or tells what has become of it; `request` is filled in for user space
 * only with -EINPROGRESS. */
static __always_inline int advance(struct bpf_sockopt *ctx, struct ov_call *call,
				   struct ov_request *request)
{
	int error = read_request(ctx, request);

	if (error)
		return error;
	if (__sync_val_compare_and_swap(&call->progress, OV_FINISHED, OV_IDLE) ==
	    OV_FINISHED) {
		error = call->error;
		/* That of another list is nobody's any more. */
		if (is_same(call, request))
			return -error;
	}
	if (__sync_val_compare_and_swap(&call->progress, OV_IDLE, OV_UNDER_WAY) != OV_IDLE)
		return -EALREADY;
	call->port = request->port;
	call->count = request->count;
	__builtin_memcpy(call->inodes, request->inodes, sizeof(call->inodes));
	request->caller = inode_of(ctx->sk);
	request->pid = bpf_get_current_pid_tgid() >> 32;
	request->tid = bpf_get_current_pid_tgid();
	request->zero = 0;
	return -EINPROGRESS;
}

static __always_inline int call_option(struct bpf_sockopt *ctx)
{
	struct ov_request *request;
	struct ov_call *call;
	int result;

	if (!ctx->sk)
		return -ENOPROTOOPT;
	call = bpf_sk_storage_get(&calls, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!call)
		return -ENOMEM;
	if (call->progress == OV_UNDER_WAY)
		return -EALREADY;
	request = bpf_ringbuf_reserve(&events, sizeof(*request), 0);
	if (!request)
		return -ENOBUFS;
	result = advance(ctx, call, request);
	if (result == -EINPROGRESS)
		bpf_ringbuf_submit(request, 0);
	else
		bpf_ringbuf_discard(request, 0);
	return result;
}

/* Since 7.2 the verifier requires a bounded return value. That of a call comes from user
 * space. */
static __always_inline long errno_of(long result)
{
	return result > 0 || result < -MAX_ERRNO ? -EINVAL : result;
}

SEC("cgroup/setsockopt")
int set_option(struct bpf_sockopt *ctx)
{
	/* -1: hooks of a group within this one have dealt with it. */
	if (ctx->level != SOL_OVERSPILL || ctx->optlen == -1)
		return 1;
	bpf_set_retval(errno_of(ctx->optname == SO_MASTERSLAVE ? call_option(ctx) : -ENOPROTOOPT));
	ctx->optlen = -1;
	return 1;
}

/* The kernel has been asked, and knows no such level. */
SEC("cgroup/getsockopt")
int get_option(struct bpf_sockopt *ctx)
{
	struct ov_place *answer = ctx->optval, *place;

	if (ctx->level != SOL_OVERSPILL || ctx->optname != SO_MASTERSLAVE || !ctx->retval)
		return 1;
	place = ctx->sk ? bpf_sk_storage_get(&places, ctx->sk, NULL, 0) : NULL;
	if (!place) {
		bpf_set_retval(-ENOENT);
		return 1;
	}
	if ((void *)(answer + 1) > ctx->optval_end) {
		bpf_set_retval(-EINVAL);
		return 1;
	}
	__builtin_memcpy(answer, place, sizeof(*answer));
	ctx->optlen = sizeof(*answer);
	barrier(); /* the two in one store are no access that the verifier knows */
	ctx->retval = 0;
	return 1;
}
