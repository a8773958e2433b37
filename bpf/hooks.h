/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What passes between the hooks on a control group and user space.
 * crates/overspill/src/datapath/layout.rs has the same structures in Rust, and a test
 * compares them.
 */
#ifndef OVERSPILL_HOOKS_H
#define OVERSPILL_HOOKS_H

/* As in include/overspill.h, for the programs that use the option. */
#define SOL_OVERSPILL 0x6f76
#define SO_MASTERSLAVE 1
#define OV_SOCKETS 64 /* at most in one call */

/* `events`: a socket that has begun to listen, or that connects to one of this host. */
struct ov_listening {
	__u64 cookie; /* SO_COOKIE */
	__u32 pid; /* of the process that called listen() or connect() */
	__u16 port; /* that it listens on, or connects to; host order */
	__u16 connects; /* 1: it connects */
};

/* `events`: a call of the option, told from the other by its size. */
struct ov_request {
	__u64 caller; /* inode number of the socket it was called on */
	__u32 pid;
	__u32 tid;
	__u16 port; /* host order */
	__u16 count;
	__u32 zero;
	__u64 inodes[OV_SOCKETS]; /* of the sockets behind the descriptors */
	__s32 fds[OV_SOCKETS];
};

enum ov_progress {
	OV_IDLE = 0,
	OV_UNDER_WAY = 1, /* from here on user space has it */
	OV_FINISHED = 2, /* the result is for the next call */
};

/* `calls`: the last call of the option on a socket. */
struct ov_call {
	__u64 progress;
	__s32 error; /* an errno; 0: done */
	__u16 port;
	__u16 count;
	__u64 inodes[OV_SOCKETS];
};

/* `places`: what getsockopt() answers; struct overspill_member in include/overspill.h. */
struct ov_place {
	__u32 position;
	__u32 flags;
	char service[72];
};

/* `ports`: what is done on a port. */
enum ov_port {
	OV_SHARED = 0, /* bind() sets SO_REUSEPORT */
	OV_PRIVATE = 1, /* nothing */
	OV_BY_OPTION = 2, /* only what is asked for by the option */
};

struct ov_ports {
	__u8 is[65536]; /* by port, host order */
};

#endif
