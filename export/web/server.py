"""Serves a site on this computer, for trying it out."""

from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HOSTS = ("localhost", "127.0.0.1")


class Handler(SimpleHTTPRequestHandler):
    """Serves the files of a site, and nothing else of the computer.

    Folders are not listed, links that leave the site are not followed, and
    requests for other host names are refused: a page of another site could
    send them through DNS rebinding.
    """

    timeout = 30  # seconds that a connection may be silent
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript",
        ".wasm": "application/wasm",
        ".tflite": "application/octet-stream",
    }

    def send_head(self) -> Any:
        """Checks the host and the path before a file is sent."""
        _, port = self.connection.getsockname()
        # Browsers leave out port 80.
        host = self.headers.get("Host", "").removesuffix(f":{port}")
        if host not in HOSTS:
            self.send_error(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"Use http://localhost:{port}",
            )
            return None
        if not self.is_in_site():
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        # A site may be older than the one that this port served before.
        del self.headers["If-Modified-Since"]
        return super().send_head()

    def is_in_site(self) -> bool:
        """Whether the path leads to a file of the site, through all links."""
        site = Path(self.directory).resolve()
        path = Path(self.translate_path(self.path))
        # A request for a folder is answered by its index.
        sent = path, path / "index.html", path / "index.htm"
        try:
            return all(file.resolve().is_relative_to(site) for file in sent)
        except ValueError:  # a null character
            return False

    def list_directory(self, path: Any) -> None:
        """Replaces the listing of a folder by an error."""
        self.send_error(HTTPStatus.NOT_FOUND)

    def end_headers(self) -> None:
        """Adds the headers that a static host should send, too."""
        # Only isolated pages may use threads.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        # Otherwise browsers guess how long a file stays as it is.
        self.send_header("Cache-Control", "no-cache")
        # The rest of the policy is in the page.
        self.send_header("Content-Security-Policy", "frame-ancestors 'none'")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing."""


def site_server(folder: str | Path, port: int = 8000) -> ThreadingHTTPServer:
    """A server for a site, reachable only from this computer.

    Args:
        folder: the site.
        port: TCP port in 0...65535; 0 chooses a free one.

    Raises:
        ValueError: the port is out of range.
        OSError: the port is in use or needs more rights.
    """
    if not 0 <= port < 1 << 16:
        raise ValueError(f"The port must be in 0...65535. Got {port}.")
    handler = partial(Handler, directory=str(folder))
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise OSError(f"Cannot use port {port}: {error.strerror}.") from None
