"""A worker that does as it is told.

usage: kept.py ADDRESS[,ADDRESS...] [WORD...]

It answers each client with its number, as an HTTP server. The words:

dies=FILE    when it listens, it kills itself, unless FILE exists; it makes FILE
again        worker 0 listens again and again
closes       at SIGUSR1 it closes its sockets and goes on running
upgrades     at SIGUSR2 a child goes on with its sockets, and it ends
reopens      at SIGUSR1 it closes its sockets, and listens again a while later
slow=FILE    if FILE exists it takes a second until it listens
notes=FILE   at SIGUSR2 it makes FILE and ends
"""

import os
import signal
import socket
import sys
import threading
import time

addresses, *words = sys.argv[1:]
words = dict(word.partition("=")[::2] for word in words)
WORKER = os.environ["OVERSPILL_WORKER"]
listeners = []


def serve(listener):
    while True:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        except OSError:
            return
        connection.setblocking(True)
        connection.recv(1024)
        page = WORKER.encode()
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(page) + page)
        connection.close()


def listen():
    for address in addresses.split(","):
        host, port = address.rsplit(":", 1)
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        listener.listen(64)
        # So that who waits in accept() sees that it is closed.
        listener.settimeout(0.05)
        listeners.append(listener)
        threading.Thread(target=serve, args=[listener]).start()


def close(*_):
    for listener in listeners:
        listener.close()


def upgrade(*_):
    if os.fork():
        os._exit(0)
    for listener in listeners:
        threading.Thread(target=serve, args=[listener]).start()


def reopen(*_):
    close()
    listeners.clear()
    time.sleep(3)
    listen()


def note(*_):
    open(words["notes"], "w").close()
    os._exit(0)


if "closes" in words:
    signal.signal(signal.SIGUSR1, close)
if "upgrades" in words:
    signal.signal(signal.SIGUSR2, upgrade)
if "notes" in words:
    signal.signal(signal.SIGUSR2, note)
if "reopens" in words:
    signal.signal(signal.SIGUSR1, reopen)
if os.path.exists(words.get("slow", "")):
    time.sleep(1)
listen()
if "dies" in words and not os.path.exists(words["dies"]):
    open(words["dies"], "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
while True:
    if "again" in words and WORKER == "0":
        listeners[0].listen(64)
    else:
        time.sleep(0.1)
