"""A Hugging Face hub on loopback that speaks as much as its client asks.

A large file is found under `/<repository>/resolve/<revision>/<file>`, which
redirects to another server, where its bytes are, and tells commit, SHA-256 and
size; the bytes come with support for ranges. With a token a repository is made
and files are committed to it, whole in the commit, as the hub takes small ones.
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from huggingface_hub import constants

COMMIT = "c0ffee" + 34 * "0"
TOKEN = "hf_of_the_tests"


class Hub:
    """Serves `files`, a dict of `repository/file` to bytes, while in `with`.

    `requests` lists what was asked: method, path and range. `cut_after` lets
    the next download break off after that many bytes; `altered` turns over
    one bit of what is sent.
    """

    def __init__(self, files):
        self.files, self.records = {}, {}
        for name, content in files.items():
            self.add(name, content)
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

    def add(self, name, content):
        self.files[name] = content
        self.records[name] = hashlib.sha256(content).hexdigest()

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
        self.reply()

    def do_GET(self):
        self.reply()

    def do_POST(self):
        self.hub.requests.append((self.command, self.path, None))
        body = self.read_body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401, "Invalid credentials")
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            url = f"{self.hub.address}/{name}"
            return self.send_json({"url": url, "name": name, "id": name})
        if self.path == "/api/validate-yaml":  # of a model card
            return self.send_json({"errors": [], "warnings": []})
        path = self.path.removeprefix("/api/models/")
        repository, kind, _ = path.rsplit("/", 2)
        if kind == "preupload":
            return self.send_json(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": "regular",
                            "shouldIgnore": False,
                        }
                        for file in json.loads(body)["files"]
                    ]
                }
            )
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.hub.add(f"{repository}/{line['value']['path']}", content)
        url = f"{self.hub.address}/{repository}/commit/{COMMIT}"
        self.send_json({"commitUrl": url, "commitOid": COMMIT})

    def read_body(self):
        length = self.headers.get("Content-Length")
        if length is not None:
            return self.rfile.read(int(length))
        body = b""  # in chunks
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def files_of(self, repository):
        start = f"{repository}/"
        return {
            name.removeprefix(start): content
            for name, content in self.hub.files.items()
            if name.startswith(start)
        }

    def describe(self):
        """The commit of a repository, or the files in it; `None`: neither."""
        path = self.path.partition("?")[0].removeprefix("/api/models/")
        owner, name, *rest = path.split("/")
        repository, kind = f"{owner}/{name}", rest[0] if rest else "revision"
        files = self.files_of(repository)
        if kind == "revision" and files:
            return {"id": repository, "sha": COMMIT}
        if kind == "tree" and files:
            return [
                {"type": "file", "path": name, "size": len(content), "oid": ""}
                for name, content in files.items()
            ]
        return None

    def send_json(self, reply):
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status, reason):
        self.send_response(status)
        self.send_header("X-Error-Code", reason)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def reply(self):
        asked = self.headers.get("Range")
        self.hub.requests.append((self.command, self.path, asked))
        if self.path.startswith("/api/models/"):
            reply = self.describe()
            if reply is not None:
                return self.send_json(reply)
        for name, record in self.hub.records.items():
            repository, _, file = name.rpartition("/")
            if self.path in (
                f"/{repository}/resolve/main/{file}",
                f"/{repository}/resolve/{COMMIT}/{file}",
            ):
                return self.redirect(name, record)
            if self.path == f"/bytes/{record}":
                return self.send(self.hub.files[name], asked)
        self.refuse(404, "RepoNotFound")

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


def point_client_to(address, cache, monkeypatch):
    """What HF_ENDPOINT and HF_HOME set when the client is imported."""
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
