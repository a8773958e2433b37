"""A server with three listening sockets on three addresses, which share their queues.

    sudo overspill run --name web -n 1 -- python3 examples/masterslave.py 8080
    overspill show web

Started by something else, it joins while this runs:

    sudo overspill allow web --cgroup PATH

Each connection is answered with the number of the socket that has accepted it.
"""

import errno
import selectors
import socket
import struct
import sys
import time

SOL_OVERSPILL, SO_MASTERSLAVE = 0x6F76, 1
port = int(sys.argv[1]) if len(sys.argv) > 1 else 8080

listeners = []
for number in range(3):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((f"127.0.0.{number + 1}", port))
    listener.listen(16)
    listeners.append(listener)


def join(sockets):
    """Asks until it is done, for ten seconds at most."""
    numbers = [each.fileno() for each in sockets]
    request = struct.pack(f"=HH{len(numbers)}i", port, len(numbers), *numbers)
    deadline = time.monotonic() + 10
    while True:
        try:
            return sockets[0].setsockopt(SOL_OVERSPILL, SO_MASTERSLAVE, request)
        except OSError as error:
            under_way = error.errno in (errno.EINPROGRESS, errno.EALREADY)
            if not under_way or time.monotonic() > deadline:
                raise
        time.sleep(0.001)


join(listeners)
selector = selectors.DefaultSelector()
for number, listener in enumerate(listeners):
    answer = listener.getsockopt(SOL_OVERSPILL, SO_MASTERSLAVE, 80)
    position, flags, service = struct.unpack("=II72s", answer)
    name = service.rstrip(b"\0").decode()
    print(f"socket {number}: position {position} of {name}", flush=True)
    selector.register(listener, selectors.EVENT_READ, number)
while True:
    for key, _ in selector.select():
        connection, _ = key.fileobj.accept()
        connection.sendall(f"{key.data}\n".encode())
        connection.close()
