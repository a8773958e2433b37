/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What passes between the hooks on a control group and user space.
 * src/datapath/hooks.rs has the same structures in Rust.
 */
#ifndef OVERSPILL_HOOKS_H
#define OVERSPILL_HOOKS_H

/* `listenings`: a socket that has begun to listen. */
struct ov_listening {
	__u64 cookie; /* SO_COOKIE */
	__u32 pid; /* of the process that called listen() */
	__u16 port; /* host order */
	__u16 zero;
};

/* `private_ports`: ports that are none of ours. */
struct ov_private_ports {
	__u8 is[65536]; /* by port, host order */
};

#endif
