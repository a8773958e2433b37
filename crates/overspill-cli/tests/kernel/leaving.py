"""A server whose connections last: it greets each client with the id of the process that has it,
and closes the connection when the client has sent a line, with an answer.

usage: leaving.py KIND ADDRESS

The kinds:

primary      the first process has others accept; at SIGTERM it lets them finish, and ends as
             the last one. SIGTERM ends the others at once
threads      a thread with a descriptor table of its own accepts
forks        each client has a process of its own, which does not listen; SIGTERM ends the
             first process at once, and the others do not notice
stays        as forks, and the others ignore SIGTERM
wakes        at SIGTERM it connects to its own port, so that accept() returns, and ends
"""

import ctypes
import os
import signal
import socket
import sys
import threading

kind, address = sys.argv[1:]
host, port = address.replace("WORKER", str(1 + int(os.environ["OVERSPILL_WORKER"]))).split(":")
address = host, int(port)
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(address)


def serve(connection):
    connection.sendall(b"%d\n" % os.getpid())
    if connection.recv(1024):
        connection.sendall(b"bye\n")
    connection.close()


def accept_all():
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=[connection], daemon=False).start()


def wait_for(thread):
    # A signal's handler runs between the waits of the main thread.
    while thread.is_alive():
        thread.join(0.05)


def primary():
    child = os.fork()
    if child:
        signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGUSR1))
        listener.close()
        os.waitpid(child, 0)
        return
    finishes = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: finishes.set())
    listener.listen(64)
    threading.Thread(target=accept_all, daemon=True).start()
    while not finishes.wait(0.05):
        pass
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            wait_for(thread)


def threads():
    def own_table():
        CLONE_FILES = 0x400
        if ctypes.CDLL(None).unshare(CLONE_FILES):
            raise OSError("unshare")
        while True:
            connection, _ = listener.accept()
            serve(connection)

    listener.listen(64)
    thread = threading.Thread(target=own_table)
    thread.start()
    wait_for(thread)


def forks():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    listener.listen(64)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN if kind == "stays" else signal.SIG_DFL)
            listener.close()
            serve(connection)
            os._exit(0)
        connection.close()


def wakes():
    ends = threading.Event()

    def end(*_):
        ends.set()
        socket.create_connection(address)

    signal.signal(signal.SIGTERM, end)

    def accept():
        while not ends.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                continue
            if not ends.is_set():
                threading.Thread(target=serve, args=[connection], daemon=False).start()

    listener.listen(64)
    thread = threading.Thread(target=accept)
    thread.start()
    wait_for(thread)


{"primary": primary, "threads": threads, "forks": forks, "stays": forks, "wakes": wakes}[kind]()
