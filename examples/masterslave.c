/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A server with three listening sockets on three addresses, which share their queues.
 *
 *     cc -Iinclude -o /tmp/masterslave examples/masterslave.c
 *     sudo overspill run --name web -n 1 -- /tmp/masterslave 8080
 *     overspill show web
 *
 * Started by something else, it joins while this runs:
 *
 *     sudo overspill allow web --cgroup PATH
 *
 * Each connection is answered with the number of the socket that has accepted it.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <overspill.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define SOCKETS 3

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

int main(int argc, char **argv)
{
	uint16_t port = argc > 1 ? (uint16_t)atoi(argv[1]) : 8080;
	struct pollfd polled[SOCKETS];
	struct overspill_member member;
	int fds[SOCKETS], i;

	for (i = 0; i < SOCKETS; i++) {
		struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };
		int one = 1;

		address.sin_addr.s_addr = htonl(INADDR_LOOPBACK + (uint32_t)i);
		fds[i] = socket(AF_INET, SOCK_STREAM, 0);
		setsockopt(fds[i], SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
		if (bind(fds[i], (struct sockaddr *)&address, sizeof(address)))
			fail("bind");
		if (listen(fds[i], 16))
			fail("listen");
		polled[i] = (struct pollfd){ .fd = fds[i], .events = POLLIN };
	}
	if (overspill_join(port, fds, SOCKETS, 10000))
		fail("overspill_join");
	for (i = 0; i < SOCKETS; i++) {
		socklen_t length = sizeof(member);

		if (getsockopt(fds[i], SOL_OVERSPILL, SO_MASTERSLAVE, &member, &length))
			fail("getsockopt");
		printf("socket %d: position %u of %s\n", i, member.position, member.service);
	}
	fflush(stdout);
	while (poll(polled, SOCKETS, -1) > 0) {
		for (i = 0; i < SOCKETS; i++) {
			int connection = polled[i].revents ? accept(fds[i], NULL, NULL) : -1;

			if (connection < 0)
				continue;
			dprintf(connection, "%d\n", i);
			close(connection);
		}
	}
	fail("poll");
}
