"""A server that forks.

usage: prefork.py ADDRESS CHILDREN WHO

WHO accepts, the "children" or the "parent", and answers with its process id. The others hold the
socket as well and wait. A child that ends is not forked again.
"""

import os
import signal
import socket
import sys

host, port = sys.argv[1].rsplit(":", 1)
children, who = int(sys.argv[2]), sys.argv[3]
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((host, int(port)))
listener.listen(64)


def serve():
    while True:
        connection, _ = listener.accept()
        connection.sendall(b"%d" % os.getpid())
        connection.close()


# Ended with their parent, which nobody has to end in good order.
libc = __import__("ctypes").CDLL(None)
for _ in range(children):
    if os.fork() == 0:
        libc.prctl(1, signal.SIGKILL)
        if who == "children":
            serve()
        while True:
            signal.pause()
if who == "parent":
    serve()
while True:
    signal.pause()
