/* A server without any library at run time: answers with its worker's number. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(80) };
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	char request[4096], answer[64];
	size_t held;
	ssize_t got;

	snprintf(answer, sizeof(answer), "HTTP/1.0 200 OK\r\n\r\n%s",
		 getenv("OVERSPILL_WORKER"));
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) ||
	    listen(listener, 128))
		return 1;
	for (;;) {
		int client = accept(listener, NULL, NULL);

		/* To the end of the request: what is unread at close() resets the client. */
		held = 0;
		do {
			got = read(client, request + held, sizeof(request) - 1 - held);
			held += got > 0 ? got : 0;
			request[held] = 0;
		} while (got > 0 && !strstr(request, "\r\n\r\n"));
		if (got > 0)
			write(client, answer, strlen(answer));
		close(client);
	}
}
