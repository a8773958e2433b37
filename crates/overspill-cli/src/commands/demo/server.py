"""A server of Python's standard library: ADDRESS PORT BACKLOG NAME."""

import socketserver
import sys
from http.server import BaseHTTPRequestHandler

ADDRESS, PORT, BACKLOG, NAME = sys.argv[1:]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"hello\n"
        self.send_response(200)
        self.send_header("X-Server", NAME)
        # The address of the accepted socket: the one that the client called.
        self.send_header("X-Address", self.connection.getsockname()[0])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(socketserver.TCPServer):
    allow_reuse_address = True
    request_queue_size = int(BACKLOG)


Server((ADDRESS, int(PORT)), Handler).serve_forever()
