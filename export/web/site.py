"""Makes the folder of a static page around a `.tflite` file, and serves it."""

import json
import shutil
import subprocess
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from export.litert_runner import LiteRTClassifier
from export.metadata import read_labels

PAGE = Path(__file__).parent / "page"


def make_site(model, examples, folder):
    """Writes a page that needs nothing but a static host.

    LiteRT.js is fetched by npm in the version that `page/package-lock.json`
    names, and copied into the folder.

    Args:
        model: path of a `.tflite` file of `python -m export litert`, of one
            picture at a time. With the signature `attention`, the page shows
            where the model looks.
        examples: paths of pictures that the page offers, the first of which
            it classifies when it opens.
        folder: path. It must not exist.

    Raises:
        ValueError: the file is no such model, or npm is missing or fails.

    Example:
    >>> make_site("model.tflite", [Path("cat.jpg")], "site")  # doctest: +SKIP
    """
    model, folder = Path(model), Path(folder)
    labels = read_labels(model)
    classifier = LiteRTClassifier(model)
    if classifier.shape[0] != 1:
        raise ValueError(
            "The page classifies one picture at a time. Received: "
            f"{model} of batch size {classifier.shape[0]}. Export the model "
            "without --batch-size."
        )
    shutil.copytree(PAGE, folder)
    runtime = install(folder)
    for name in ("core", "wasm-utils"):
        shutil.copytree(
            runtime / name / "dist",
            folder / "litert" / name,
            ignore=shutil.ignore_patterns("*.map", "*.json", "*.ts"),
        )
    # One file each for browsers without SIMD, with it, and with threads.
    shutil.copytree(
        runtime / "core" / "wasm",
        folder / "litert" / "wasm",
        ignore=shutil.ignore_patterns("*_jspi_*"),
    )
    shutil.rmtree(runtime.parent)
    for used in folder.glob("package*.json"):
        used.unlink()
    (folder / "examples").mkdir()
    urls = []
    for i, path in enumerate(examples):
        urls.append(f"examples/{i}{path.suffix.lower()}")
        shutil.copy(path, folder / urls[-1])
    shutil.copy(model, folder / "model.tflite")
    site = {"name": model.stem, "labels": labels, "examples": urls}
    (folder / "site.json").write_text(json.dumps(site))


def install(folder):
    """Fetches LiteRT.js into a folder; returns the folder of its packages."""
    try:
        subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund"],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        raise ValueError(
            "npm fetches LiteRT.js, and it is missing. Install Node.js 20 or "
            "later."
        ) from None
    except subprocess.CalledProcessError as error:
        raise ValueError(
            f"npm could not fetch LiteRT.js:\n{error.stderr.strip()}"
        ) from None
    return folder / "node_modules" / "@litertjs"


class Handler(SimpleHTTPRequestHandler):
    """Files with the types and headers that a static host should send."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript",
        ".wasm": "application/wasm",
        ".tflite": "application/octet-stream",
    }

    def end_headers(self):
        # Pages that are isolated from others may use threads.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *args):
        """Says nothing of each request."""


def server(folder, port=8000):
    """A server of a folder, on this machine alone.

    Args:
        folder: path of a site.
        port: int; 0 is any that is free.

    Returns:
        `http.server.ThreadingHTTPServer`.
    """
    handler = partial(Handler, directory=str(folder))
    return ThreadingHTTPServer(("127.0.0.1", port), handler)
