"""What the tests of the socket option do in a process of a hooked control group."""

import errno
import os
import select
import socket
import struct
import sys
import threading
import time

SOL_OVERSPILL, SO_MASTERSLAVE = 0x6F76, 1


def bound(address, kind=socket.SOCK_STREAM, family=socket.AF_INET):
    made = socket.socket(family, kind)
    made.bind(address)
    return made


def listening(address):
    made = bound(address)
    made.listen(16)
    return made


def ask(on, port, numbers, length=None):
    """The name of the error, or ok."""
    request = struct.pack(f"=HH{len(numbers)}i", port, len(numbers), *numbers)
    if length is not None:
        request = request.ljust(length, b"\0")[:length]
    return ask_raw(on, request)


def ask_raw(on, request):
    try:
        on.setsockopt(SOL_OVERSPILL, SO_MASTERSLAVE, request)
        return "ok"
    except OSError as error:
        return errno.errorcode[error.errno]


def join(port, sockets):
    """What becomes of it in the end."""
    numbers = [each.fileno() for each in sockets]
    deadline = time.monotonic() + 10
    while (result := ask(sockets[0], port, numbers)) in ("EINPROGRESS", "EALREADY"):
        if time.monotonic() > deadline:
            return "late"
        time.sleep(0.001)
    return result


def place(of, length=80):
    try:
        answer = of.getsockopt(SOL_OVERSPILL, SO_MASTERSLAVE, length)
    except OSError as error:
        return errno.errorcode[error.errno]
    position, flags, service = struct.unpack("=II72s", answer)
    return f"{position} of {service.rstrip(bytes(1)).decode()}"


def waits_for(expected, look):
    deadline = time.monotonic() + 10
    while (seen := look()) != expected and time.monotonic() < deadline:
        time.sleep(0.001)
    tell(seen)


def tell(*words):
    print("told:", *words, file=sys.stderr, flush=True)


def serve_pid(listeners):
    """Answers with the process id; does not end."""
    print("ready", flush=True)
    while True:
        for listener in select.select(listeners, [], [])[0]:
            connection, _ = listener.accept()
            connection.sendall(b"%d" % os.getpid())
            connection.close()


def serve(listeners):
    """Answers with the number of the socket; does not end."""
    def answer(number, listener):
        while True:
            connection, _ = listener.accept()
            connection.sendall(b"%d" % number)
            connection.close()
    for number, listener in enumerate(listeners):
        threading.Thread(target=answer, args=(number, listener)).start()
