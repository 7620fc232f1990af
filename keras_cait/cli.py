"""Classifies images: `keras-cait photo.jpg`, or `python -m keras_cait`."""

import csv
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn, TextIO

import keras
import numpy as np
from cyclopts import App, Group, Parameter, Token, validators

from keras_cait.attention_maps import class_attention_maps, figure
from keras_cait.command_line import (
    BatchSize,
    Count,
    ImageSize,
    Labels,
    ModelSource,
    Variant,
    one_line,
    run,
)
from keras_cait.files import (
    folder_path,
    image_files,
    new_output,
    new_path,
    printable,
)
from keras_cait.labels import find_labels, load_labels
from keras_cait.loading import Classifier, load_classifier
from keras_cait.preprocessing import (
    imagenet_labels,
    load_image,
    resize_and_crop,
)
from keras_cait.version import __version__

STANDARD_INPUT = Path("-")
FIGURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")


def paths_or_stdin(type_: Any, tokens: Sequence[Token]) -> list[Path]:
    """Converts arguments to paths; - is the only one that starts with -."""
    for token in tokens:
        if not token.value:  # not the current folder
            raise ValueError("The path of an image is empty.")
        if token.value.startswith("-") and token.value != "-":
            raise ValueError(f"Unknown option: {token.value}.")
    return [Path(token.value) for token in tokens]


ImagePaths = Annotated[
    list[Path], Parameter(allow_leading_hyphen=True, converter=paths_or_stdin)
]

app = App(
    name="keras-cait",
    version=__version__,
    default_parameter=Parameter(negative=()),
)
format_options = Group(validator=validators.MutuallyExclusive())


@app.default
def classify(
    images: ImagePaths,
    /,
    *,
    model: ModelSource = "S24",
    variant: Variant = None,
    image_size: ImageSize = None,
    labels: Labels = None,
    top: Count = 5,
    attention: Path | None = None,
    force: bool = False,
    output: Path | None = None,
    json: Annotated[bool, Parameter(group=format_options)] = False,
    csv: Annotated[bool, Parameter(group=format_options)] = False,
    batch_size: BatchSize = 8,
) -> int:
    """Classify images with CaiT.

    The exit status is 0 if all images were classified, 1 after a failure or if
    images were skipped, and 2 after wrong usage.

    Args:
        images: Image files, folders of images (with their subfolders), or - for
            one image on standard input.
        top: Classes per image.
        attention: Draw the class attention to this file, or for several images
            into this folder.
        force: Let --attention replace existing files.
        output: New file for the results. Default: standard output.
        json: Write one JSON object per image and line, with scores in 0...1.
        csv: Write CSV with one line per class, with scores in 0...1.
    """
    sources = list(find_sources(images))
    if output:
        new_path(output)
    if attention:
        check_attention(attention, images, sources, force)
    classifier = load_classifier(model, variant=variant, image_size=image_size)
    if attention and classifier.model is None:
        raise ValueError(
            f"--attention needs a Keras model, and {model!r} is an exported "
            "file."
        )
    names = class_names(model, labels, classifier.classes)
    predict = compiled(classifier, batch_size)
    report = Report(total=len(sources))

    with ExitStack() as stack:
        stream = sys.stdout
        if output:
            path = stack.enter_context(new_output(output))
            stream = stack.enter_context(
                path.open("w", encoding="utf-8", errors="backslashreplace")
            )
        writer = (
            JsonWriter(stream)
            if json
            else CsvWriter(stream)
            if csv
            else TableWriter(stream)
        )
        for batch, pixels in read(
            sources, classifier.image_size, batch_size, report
        ):
            scores = predict(pixels)
            report.clear()
            for source, image_scores in zip(batch, scores, strict=True):
                writer.write(source.path, best(image_scores, names, top))
            if attention:
                draw(classifier.model, batch, pixels, attention, force, report)
            report.add(len(batch))
    report.clear()
    return 1 if report.problems else 0


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command and exits.

    Args:
        argv: arguments. `None` is those of the process.
    """
    run(app, argv)


class Source(NamedTuple):
    """An image to read, and its path inside the folder that was given."""

    path: Path
    inner_path: Path


class Prediction(NamedTuple):
    """One line of the result for an image."""

    index: int
    wordnet_id: str
    label: str
    score: float


def find_sources(paths: Sequence[Path]) -> Iterator[Source]:
    """Lists the images in files and folders.

    Raises:
        ValueError: a path does not exist, or a folder has no images.
    """
    if paths.count(STANDARD_INPUT) > 1:
        raise ValueError("- (standard input) can be given only once.")
    for path in paths:
        if path == STANDARD_INPUT:
            yield Source(path, Path("stdin"))
            continue
        for file in image_files([path]):
            is_inside = path.is_dir()
            inner = file.relative_to(path) if is_inside else Path(file.name)
            yield Source(file, inner)


def check_attention(
    attention: Path,
    images: Sequence[Path],
    sources: Sequence[Source],
    force: bool,
) -> None:
    """Checks `--attention` before the model is loaded.

    Raises:
        ValueError: it is neither a folder nor one image's new figure, or two
            images would share a figure.
        OSError: it cannot be written.
    """
    if find_spec("matplotlib") is None:
        raise ValueError("--attention needs matplotlib: pip install matplotlib")
    if is_figure(attention):
        folder = attention.parent
        if not folder.exists():
            raise ValueError(
                f"Cannot write --attention into {str(folder)!r}: there is no "
                "such folder."
            )
        if len(images) > 1 or images[0].is_dir():
            raise ValueError(
                f"--attention {str(attention)!r} can show one image only. For "
                "several images, give a folder."
            )
        if attention.exists() and not force:
            raise ValueError(
                f"--attention {str(attention)!r} already exists. Choose "
                "another path, or replace it with --force."
            )
    else:
        folder = attention
        if folder.exists() and not folder.is_dir():
            raise ValueError(
                f"--attention {str(folder)!r} is neither a folder nor a file "
                f"that ends in {', '.join(FIGURE_SUFFIXES)}."
            )
        drawn: dict[Path, Path] = {}
        for path, inner_path in sources:
            first = drawn.setdefault(inner_path, path)
            if first != path:
                raise ValueError(
                    f"--attention {str(folder)!r} cannot hold the figures of "
                    f"both {str(first)!r} and {str(path)!r}: their names are "
                    "the same. Give a folder that contains both."
                )
    folder_path(folder)


def is_figure(path: Path) -> bool:
    """Whether `--attention` is a file for one figure."""
    return path.suffix.lower() in FIGURE_SUFFIXES and not path.is_dir()


def class_names(
    model: str, labels: Path | None, classes: int
) -> list[tuple[str, str]]:
    """WordNet identifier (empty except for ImageNet) and name of each class."""
    if labels is None and find_labels(model) is None:
        if classes == 1000:
            return [
                (identifier, name) for identifier, name in imagenet_labels()
            ]
        return [("", str(index)) for index in range(classes)]
    return [("", label) for label in load_labels(model, labels, classes)]


def compiled(
    classifier: Classifier, batch_size: int
) -> Callable[[np.ndarray], np.ndarray]:
    """The classifier as a function of uint8 images that returns an array.

    All full batches share one compiled graph. For a few images, compiling takes
    longer than it saves.
    """
    graph = None

    def predict(pixels: np.ndarray) -> np.ndarray:
        nonlocal graph
        images = pixels.astype("float32")
        if classifier.model is None or not len(images) == batch_size > 1:
            return keras.ops.convert_to_numpy(classifier.predict(images))
        if graph is None:
            inputs = keras.Input(images.shape[1:])
            graph = keras.Model(inputs, classifier.predict(inputs))
            graph.jit_compile = keras.backend.backend() == "jax"
        return graph.predict_on_batch(images)

    return predict


def best(
    scores: np.ndarray, names: list[tuple[str, str]], top: int
) -> list[Prediction]:
    """The most probable classes of one image, best first."""
    indices = np.argsort(-scores, kind="stable")[:top]
    return [
        Prediction(int(index), *names[index], score=float(scores[index]))
        for index in indices
    ]


def read(
    sources: Sequence[Source],
    image_size: tuple[int, int],
    batch_size: int,
    report: "Report",
) -> Iterator[tuple[list[Source], np.ndarray]]:
    """Reads images in batches of uint8 arrays; reports unreadable ones."""
    batch: list[Source] = []
    images: list[np.ndarray] = []
    for source in sources:
        is_stdin = source.path == STANDARD_INPUT
        try:
            content = sys.stdin.buffer.read() if is_stdin else source.path
            images.append(resize_and_crop(load_image(content), image_size))
        except (ValueError, OSError) as error:
            where = "standard input: " if is_stdin else ""
            report.problem(f"skipped: {where}{one_line(error)}")
            continue
        batch.append(source)
        if len(batch) == batch_size:
            yield batch, np.stack(images)
            batch, images = [], []
    if batch:
        yield batch, np.stack(images)


def draw(
    model: Any,
    batch: Sequence[Source],
    pixels: np.ndarray,
    attention: Path,
    force: bool,
    report: "Report",
) -> None:
    """Writes a figure of the class attention for each image."""
    maps = class_attention_maps(model, pixels)
    for source, image, image_maps in zip(batch, pixels, maps, strict=True):
        path = attention
        if not is_figure(path):
            path = attention / f"{source.inner_path}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not force:
                report.problem(
                    f"not replaced without --force: {printable(str(path))}"
                )
                continue
        figure(image, image_maps).savefig(path, dpi=120)


class TableWriter:
    """Writes a table with bars for each image."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        try:
            "█".encode(stream.encoding or "ascii")
            self.bar = "█"
        except UnicodeEncodeError:
            self.bar = "#"

    def write(self, path: Path, predictions: list[Prediction]) -> None:
        print(printable(str(path)), file=self.stream)
        for _, wordnet_id, label, score in predictions:
            bar = self.bar * round(20 * score)
            line = f"  {score:6.1%}  {bar:20}  {label}  {wordnet_id}"
            print(printable(line.rstrip()), file=self.stream)


class JsonWriter:
    """Writes one JSON object per image and line."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, path: Path, predictions: list[Prediction]) -> None:
        rows = [prediction._asdict() for prediction in predictions]
        line = json.dumps({"image": str(path), "predictions": rows})
        print(line, file=self.stream)


class CsvWriter:
    """Writes CSV with one line per class."""

    def __init__(self, stream: TextIO):
        self.writer = csv.writer(stream, lineterminator="\n")
        self.writer.writerow(("image", "rank", *Prediction._fields))

    def write(self, path: Path, predictions: list[Prediction]) -> None:
        for rank, prediction in enumerate(predictions, 1):
            self.writer.writerow((path, rank, *prediction))


class Report:
    """Problems on stderr, and on a terminal how many images are done.

    Args:
        total: number of images. A single one has no progress to show.
    """

    def __init__(self, total: int):
        self.problems = 0
        self.done = 0
        self.started = time.monotonic()
        self.shows_progress = total > 1 and sys.stderr.isatty()

    def problem(self, message: str) -> None:
        self.clear()
        self.problems += 1
        print(message, file=sys.stderr)

    def add(self, count: int) -> None:
        self.done += count
        if self.shows_progress:
            sys.stdout.flush()
            rate = self.done / (time.monotonic() - self.started)
            line = f"{self.done} images, {rate:.1f} per second"
            print(line, end="", flush=True, file=sys.stderr)

    def clear(self) -> None:
        if self.shows_progress:
            print("\r\x1b[K", end="", flush=True, file=sys.stderr)


if __name__ == "__main__":
    main()
