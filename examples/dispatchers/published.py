"""A worker that tells the dispatcher published.bpf.c how many connections it has.

    overspill run --listen 127.0.0.1:8080 --words \\
        --policy dispatcher=published.bpf.o -- python3 published.py
"""

import mmap
import os
import re
import selectors
import socket
import struct

SO_COOKIE = 57


class Word:
    """The number that dispatchers read of a listening socket."""

    def __init__(self, listener):
        fd = int(os.environ["OVERSPILL_WORDS"])
        with open(f"/proc/self/fdinfo/{fd}") as about:
            entries = int(re.search(r"max_entries:\s*(\d+)", about.read())[1])
        # Of each member its socket's cookie and its word, 8 bytes each.
        self.words = memoryview(mmap.mmap(fd, 16 * entries)).cast("Q")
        cookie = struct.unpack("Q", listener.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]
        self.place = 2 * self.words[::2].tolist().index(cookie) + 1

    def store(self, number):
        """One store to memory, no system call."""
        self.words[self.place] = number


def main():
    listener = socket.socket(fileno=3)  # as handed over by --listen
    word = Word(listener)
    clients = set()
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                client = listener.accept()[0]
                selector.register(client, selectors.EVENT_READ)
                clients.add(client)
                word.store(len(clients))
                client.sendall(f"worker {os.environ['OVERSPILL_WORKER']}\n".encode())
            elif not key.fileobj.recv(4096):
                selector.unregister(key.fileobj)
                clients.remove(key.fileobj)
                word.store(len(clients))
                key.fileobj.close()


main()
