"""Serves a site on this computer, for trying it out."""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Handler(SimpleHTTPRequestHandler):
    """Sends files with the types and headers that a static host should send."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript",
        ".wasm": "application/wasm",
        ".tflite": "application/octet-stream",
    }

    def end_headers(self) -> None:
        """Adds the headers of a cross-origin isolated page."""
        # Only isolated pages may use threads.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing."""


def site_server(folder: str | Path, port: int = 8000) -> ThreadingHTTPServer:
    """A server for a site, reachable only from this computer.

    Args:
        folder: the site.
        port: TCP port; 0 chooses a free one.

    Raises:
        OSError: the port is in use.
    """
    handler = partial(Handler, directory=str(folder))
    return ThreadingHTTPServer(("127.0.0.1", port), handler)
