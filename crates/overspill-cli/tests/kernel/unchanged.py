"""A plain HTTP server on each address given, which answers with its worker's number.

An address that begins with "own:" is bound to by the worker's number in its last part.
"""

import http.server
import os
import socket
import sys
import threading

WORKER = os.environ["OVERSPILL_WORKER"]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        page = (str(os.getuid()) if self.path == "/uid" else WORKER).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_):
        pass


class Server(http.server.HTTPServer):
    def server_bind(self):
        # Without a look for the host's name.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "", 0


for address in sys.argv[1:]:
    host, port = address.removeprefix("own:").rsplit(":", 1)
    if address.startswith("own:"):
        host = host.rsplit(".", 1)[0] + "." + str(int(WORKER) + 1)
    Server.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        server = Server((host.strip("[]"), int(port)), Handler)
    except OSError as error:
        sys.exit(error.errno)
    threading.Thread(target=server.serve_forever).start()
