"""A Hugging Face hub on loopback that speaks as much as its client asks.

A large file is found under `/<repository>/resolve/<revision>/<file>`, which
redirects to another server, where its bytes are, and tells commit, SHA-256 and
size; the bytes come with support for ranges.
"""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" + 34 * "0"


class Hub:
    """Serves `files`, a dict of `repository/file` to bytes, while in `with`.

    `requests` lists what was asked: method, path and range. `cut_after` lets
    the next download break off after that many bytes; `altered` turns over
    one bit of what is sent.
    """

    def __init__(self, files):
        self.files = files
        self.records = {
            name: hashlib.sha256(content).hexdigest()
            for name, content in files.items()
        }
        self.requests = []
        self.cut_after = None
        self.altered = False

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"hub": self})
        self.servers = [
            ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)
        ]
        self.address, self.storage = (
            f"http://127.0.0.1:{server.server_port}" for server in self.servers
        )
        for server in self.servers:
            threading.Thread(target=server.serve_forever, args=[0.02]).start()
        return self

    def __exit__(self, *_):
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def downloads(self):
        """The requests of bytes, among those of the client's own."""
        return [
            request
            for request in self.requests
            if request[0] == "GET" and request[1].startswith("/bytes/")
        ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 5

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        asked = self.headers.get("Range")
        self.hub.requests.append((self.command, self.path, asked))
        for name, record in self.hub.records.items():
            repository, _, file = name.rpartition("/")
            if self.path == f"/{repository}/resolve/main/{file}":
                return self.redirect(name, record)
            if self.path == f"/bytes/{record}":
                return self.send(self.hub.files[name], asked)
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def redirect(self, name, record):
        self.send_response(302)
        self.send_header("Location", f"{self.hub.storage}/bytes/{record}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Etag", f'"{record}"')
        self.send_header("X-Linked-Size", str(len(self.hub.files[name])))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, content, asked):
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        body = content[start:]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        if asked:
            end = f"{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", f"bytes {start}-{end}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.altered:
            body = body[:-1] + bytes([body[-1] ^ 1])
        if self.hub.cut_after is not None:
            body = body[: self.hub.cut_after]
            self.hub.cut_after = None
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, *_):
        pass
