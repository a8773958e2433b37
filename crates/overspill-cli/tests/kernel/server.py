# Opens the sockets that its arguments describe (KIND=ADDRESS:PORT), says "ready" and
# holds them until its standard input ends.
import socket
import sys

MPTCP = 262
KINDS = {
    "tcp": (socket.SOCK_STREAM, 0),
    "reuseport": (socket.SOCK_STREAM, 0),
    "device": (socket.SOCK_STREAM, 0),
    "bound": (socket.SOCK_STREAM, 0),
    "mptcp": (socket.SOCK_STREAM, MPTCP),
    "udp": (socket.SOCK_DGRAM, 0),
}


def open_socket(kind, address):
    if kind == "unix":
        unix = socket.socket(socket.AF_UNIX)
        unix.bind("\0" + address)
        unix.listen()
        return unix
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, *KINDS[kind])
    if kind == "reuseport":
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if kind == "device":
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    opened.bind((host, int(port)))
    if kind not in ("udp", "bound"):
        opened.listen(5)
    return opened


held = [open_socket(*argument.split("=", 1)) for argument in sys.argv[1:]]
print("ready", flush=True)
sys.stdin.read()
