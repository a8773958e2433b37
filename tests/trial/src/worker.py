"""A server that knows nothing of overspill: one process, one request at a time.

    worker.py PORT RECORD SECONDS

It notes each client in the file RECORD (src/record.rs has its layout) right after accept(),
says `accepted` to it, reads its request, works for SECONDS, and answers `done`.
"""

import mmap
import os
import select
import socket
import sys
import time

PIDS = 1 << 22
LISTENS, ACCEPTS = 1, 2
BLOCK, LOOP, CLOSE = 1, 2, 3

port, path, work = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
file = os.open(path, os.O_RDWR)
record = mmap.mmap(file, 0)
state, order = os.getpid(), PIDS + os.getpid()
clients = 2 * PIDS

listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("10.0.0.1", port))
listener.listen(511)
listener.setblocking(False)
record[state] = LISTENS
poll = select.poll()
poll.register(listener, select.POLLIN)


def number_of(source):
    """Each client comes from an address of its own: 10.128.0.0 and its number."""
    return int.from_bytes(socket.inet_aton(source), "big") & 0x7FFFFF


def serve(connection):
    connection.settimeout(2)
    connection.sendall(b"accepted\n")
    connection.recv(64)
    told, record[order] = record[order], 0
    if told == LOOP:
        while True:
            pass
    time.sleep(0.3 if told == BLOCK else work)
    connection.sendall(b"done\n")
    connection.close()
    if told == CLOSE:
        listener.close()
        record[state] = 0
        time.sleep(0.3)
        sys.exit()


while True:
    poll.poll()
    record[state] = ACCEPTS
    try:
        connection, (source, _) = listener.accept()
        record[clients + number_of(source)] = 1
    except BlockingIOError:
        continue
    finally:
        record[state] = LISTENS
    try:
        serve(connection)
    except OSError:
        connection.close()
