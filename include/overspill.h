/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The socket option by which a server says which of its sockets share their queues.
 *
 * It is there for sockets made by the processes of a control group that overspill looks
 * after: those started by `overspill run` without --listen, and those that `overspill allow`
 * names. Elsewhere setsockopt() fails with ENOPROTOOPT, and getsockopt() with that or, for
 * IPv4, with EOPNOTSUPP.
 *
 *     setsockopt(fd, SOL_OVERSPILL, SO_MASTERSLAVE, list, length)
 *
 * lets the sockets of the list join the service of its port, in that order: its first
 * member, and so on. `fd` is any socket of the process, commonly the first of the list;
 * `length` is overspill_length(count). A socket that is not bound is bound to the port, at
 * the wildcard address of its family, with SO_REUSEPORT. One that listens becomes a member
 * at once; another is bound at once, and becomes a member when it begins to listen, in the
 * place that it was given.
 *
 * The call follows the convention of connect() on a non-blocking socket. It fails with
 *
 *     EINPROGRESS      it has begun; call it again with the same list
 *     EALREADY         it is under way
 *
 * and then returns 0, or fails with what has gone wrong; each is told once, and the call
 * after it begins anew. overspill_join() does all of this. What may go wrong at once:
 *
 *     EINVAL           the length is not that of the list; no socket; port 0; a socket that
 *                      is bound to another port
 *     E2BIG            more than OVERSPILL_SOCKETS sockets
 *     EBADF, ENOTSOCK  a descriptor that is not open, or is no socket
 *     EPROTONOSUPPORT  a socket that is not TCP (MPTCP is not)
 *     EISCONN          a socket that is connected
 *     EPERM            the port is one that each worker has for itself (--private-port)
 *     ENOBUFS          too many calls at once; call again
 *
 * and afterwards:
 *
 *     EADDRINUSE       the port is in use, or belongs to another service
 *     EACCES           the process may not bind sockets to this port
 *     EINVAL           a socket is twice in the list
 *     EBADF            a descriptor was closed meanwhile
 *     EBUSY            a socket is a member of another service
 *     EAFNOSUPPORT     sockets of IPv4 alone and of IPv6 alone
 *     EOPNOTSUPP       a socket that is bound to a device
 *     ENOSPC           the network namespace has no room for more members
 *     EXDEV            a socket of another network namespace
 *     ESRCH            the process has ended, or is none of a worker's
 *     EIO              anything else: the log of overspill says what
 *
 *     getsockopt(fd, SOL_OVERSPILL, SO_MASTERSLAVE, &member, &length)
 *
 * tells which member of which service a socket is; it fails with ENOENT where it is none,
 * and with EINVAL where `length` is less than sizeof(struct overspill_member).
 */
#ifndef OVERSPILL_OPTION_H
#define OVERSPILL_OPTION_H

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SOL_OVERSPILL 0x6f76
#define SO_MASTERSLAVE 1
#define OVERSPILL_SOCKETS 64

struct overspill_sockets {
	uint16_t port; /* as a number: 80 is 80 */
	uint16_t count;
	int32_t fds[OVERSPILL_SOCKETS];
};

struct overspill_member {
	uint32_t position; /* in the list of the service, from 0 on */
	uint32_t flags; /* none yet */
	char service[72]; /* its name, ended by a zero */
};

/* The length of a list of so many sockets. */
static inline socklen_t overspill_length(uint16_t count)
{
	return (socklen_t)(offsetof(struct overspill_sockets, fds) + 4u * count);
}

/* Lets sockets join the service of a port, and waits until they have, but no longer than
 * about `milliseconds`. Returns 0, or -1 with errno; EINPROGRESS when the time is over. */
static inline int overspill_join(uint16_t port, const int *fds, uint16_t count,
				 int milliseconds)
{
	struct overspill_sockets list;
	uint16_t i;

	if (!count || count > OVERSPILL_SOCKETS) {
		errno = count ? E2BIG : EINVAL;
		return -1;
	}
	memset(&list, 0, sizeof(list));
	list.port = port;
	list.count = count;
	for (i = 0; i < count; i++)
		list.fds[i] = fds[i];
	for (;;) {
		if (!setsockopt(fds[0], SOL_OVERSPILL, SO_MASTERSLAVE, &list,
				overspill_length(count)))
			return 0;
		if (errno != EINPROGRESS && errno != EALREADY)
			return -1;
		if (milliseconds-- <= 0) {
			errno = EINPROGRESS;
			return -1;
		}
		poll(NULL, 0, 1);
	}
}

#ifdef __cplusplus
}
#endif

#endif
