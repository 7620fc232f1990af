"""Makes a static site that runs a `.tflite` file in the browser."""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from keras_cait.files import sha256
from keras_cait.labels import load_labels
from keras_cait.litert import LiteRTModel
from keras_cait.preprocessing import load_image

PAGE = Path(__file__).parent / "page"
# What browsers show as images with pixels.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif", ".bmp")


def make_site(
    model: str | Path, examples: Sequence[str | Path], folder: str | Path
) -> None:
    """Writes a site that any static host can serve.

    npm downloads the version of LiteRT.js in `page/package-lock.json`. All
    files but `index.html` and the service worker are in a folder named after
    their content, so files of two versions of a site never meet.

    Args:
        model: a `.tflite` file written by `python -m export litert`, with
            batch size 1. With the signature `attention`, the page shows where
            the model looks.
        examples: images that the page offers. It opens with the first. They
            are named after their folders where these are classes, otherwise
            after their files.
        folder: folder to write; it must not exist.

    Raises:
        ValueError: the file is not such a model, browsers do not show an
            example, an example is damaged, or npm is missing or fails.

    Example:
    >>> make_site("model.tflite", ["cat.jpg"], "site")  # doctest: +SKIP
    """
    model, folder = Path(model), Path(folder)
    if model.suffix != ".tflite":
        raise ValueError(
            f"The page runs .tflite files. Got {str(model)!r}. Export the "
            "model with python -m export litert."
        )
    classifier = LiteRTModel(model)
    labels = load_labels(model, classes=classifier.classes)
    if classifier.batch_size != 1:
        raise ValueError(
            "The page classifies one image at a time, but "
            f"{str(model)!r} has batch size {classifier.batch_size}. Export "
            "the model without --batch-size."
        )
    for example in map(Path, examples):
        if example.suffix.lower() not in SUFFIXES:
            raise ValueError(
                f"Browsers cannot show {str(example)!r}. Examples must end in "
                f"{', '.join(SUFFIXES)}."
            )
        load_image(example)  # refuses one that is damaged
    files = folder / "files"
    shutil.copytree(PAGE, files)
    add_litert(files)
    (files / "examples").mkdir()
    named = []
    for i, example in enumerate(map(Path, examples)):
        url = f"examples/{i}{example.suffix.lower()}"
        label = Path(os.path.abspath(example)).parent.name  # not a link's
        name = label if label in labels else example.stem.replace("_", " ")
        named.append({"url": url, "name": name})
        shutil.copyfile(example, files / url)
    shutil.copyfile(model, files / "model.tflite")
    site = {
        "name": model.stem,
        "labels": labels,
        "examples": named,
        "sha256": sha256(model),
    }
    (files / "site.json").write_text(json.dumps(site))
    version = sha256(files)[:12]
    page = (files / "index.html").read_text()
    page = page.replace('<base href="./" />', f'<base href="{version}/" />')
    (folder / "index.html").write_text(page)
    (files / "index.html").unlink()
    (files / "service-worker.js").rename(folder / "service-worker.js")
    files.rename(folder / version)


def add_litert(folder: Path) -> None:
    """Adds LiteRT.js to the files of a page."""
    runtime = install(folder)
    for name in ("core", "wasm-utils"):
        shutil.copytree(
            runtime / name / "dist",
            folder / "litert" / name,
            ignore=shutil.ignore_patterns("*.map", "*.json", "*.ts"),
        )
    # One file each for browsers without SIMD, with SIMD, and with threads.
    shutil.copytree(
        runtime / "core" / "wasm",
        folder / "litert" / "wasm",
        ignore=shutil.ignore_patterns("*_jspi_*"),
    )
    shutil.rmtree(runtime.parent)
    for used in folder.glob("package*.json"):
        used.unlink()


def install(folder: Path) -> Path:
    """Downloads LiteRT.js into a folder; returns the folder of its packages."""
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
            "npm, which downloads LiteRT.js, is missing. Install Node.js 20 or "
            "later."
        ) from None
    except subprocess.CalledProcessError as error:
        raise ValueError(
            f"npm could not download LiteRT.js: {error.stderr.strip()}"
        ) from None
    return folder / "node_modules" / "@litertjs"
