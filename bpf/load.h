/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Reads the kernel's memory at an address that may be stale.
 *
 * The kfunc bpf_rdonly_cast (since 6.2) makes such a read a plain load that cannot fault. It
 * is allowed under lockdown in the mode "confidentiality". Before 6.2 a helper is used: slower,
 * and not allowed under lockdown in that mode.
 */
#ifndef OVERSPILL_LOAD_H
#define OVERSPILL_LOAD_H

extern void *bpf_rdonly_cast(const void *, __u32) __ksym __weak;

/* Loads a field of the kernel structure at an address. */
#define LOAD(into, type, address, field)                                       \
	do {                                                                   \
		struct type *p_ = (void *)(address);                           \
		if (bpf_ksym_exists(bpf_rdonly_cast)) {                        \
			p_ = bpf_rdonly_cast(                                  \
				p_, bpf_core_type_id_kernel(struct type));     \
			into = p_->field;                                      \
		} else {                                                       \
			/* A copy, so that `into` can stay in a register. */   \
			typeof(p_->field) read_;                               \
			bpf_core_read(&read_, sizeof(read_), &p_->field);      \
			into = read_;                                          \
		}                                                              \
	} while (0)

/* Makes a pointer that the verifier knows a plain number. Before 6.2 the verifier keeps its
 * type through every cast, and refuses to read a field that the type does not have. */
static __always_inline __u64 plain_address(const void *pointer)
{
	__u64 address = 0;

	if (bpf_ksym_exists(bpf_rdonly_cast))
		return (__u64)pointer;
	bpf_probe_read_kernel(&address, sizeof(address), &pointer);
	return address;
}

#endif
