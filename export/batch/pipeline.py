"""Reads and decodes images, classifies them, and gathers whole parts.

Each step runs in processes of its own on the machines of a Ray cluster:

    decode (a task per part)  ->  Classify (actors)  ->  gather (here)

Images travel as uint8 pixels in blocks of about `BLOCK_BYTES`, and Ray holds
the decoders back while the models are busy: memory does not grow with the
number of images.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from export.batch.parts import Part
from export.options import Device

T = TypeVar("T")

BLOCK_BYTES = 64 << 20
# Where a row is: its part, its number there, and whether it is the last one.
POSITION = ("part", "index", "last")


class Model(NamedTuple):
    """What the machines need to load a model and classify.

    Attributes:
        load: function of `threads` that loads the model, as
            `export.predictors.load_pixel_predictor`.
        labels: names of its classes.
        top: number of classes per image.
        size: height and width of the images in pixels.
        batch_size: images per run of the model.
        identity: as in `keras_cait.loading.identity`.
    """

    load: Callable[..., Callable[[np.ndarray], dict[str, np.ndarray]]]
    labels: Sequence[str]
    top: int
    size: tuple[int, int]
    batch_size: int
    identity: str = ""


def describe(
    source: str,
    variant: str | None,
    image_size: int | None,
    labels: str | Path | None,
    *,
    top: int,
    embedding: bool,
    batch_size: int,
) -> Model:
    """Loads a model once, to refuse what workers could not run.

    Args:
        source, variant, image_size, labels: as in
            `export.exportable.load_exportable`; also exported models.
        top, batch_size: as in `Model`.
        embedding: whether rows have the embedding.

    Raises:
        ValueError: the model cannot be loaded, has no embedding, or has another
            number of classes than there are labels.
        OSError: published weights are neither in the cache nor reachable.
    """
    from export.predictors import embedder, load_pixel_predictor
    from keras_cait.labels import find_labels, load_labels, read_labels
    from keras_cait.loading import identity, load_classifier, published

    names = read_labels(labels) if labels else find_labels(source)
    classes = len(names) if names else None
    loaded = load_classifier(
        source, variant=variant, image_size=image_size, classes=classes
    )
    if embedding:
        embedder(source, loaded)
    return Model(
        partial(
            load_pixel_predictor,
            source if published(source) else os.path.abspath(source),
            variant,
            image_size,
            classes,
            embedding,
        ),
        load_labels(source, labels, loaded.classes),
        top,
        loaded.image_size,
        batch_size,
        identity(source),
    )


def predict_parts(
    parts: Mapping[int, Part],
    model: Model,
    workers: int,
    device: Device,
    watch: Callable[[Iterable[pa.Table]], Iterable[pa.Table]],
    threads: int | None = None,
) -> Iterator[tuple[int, pa.Table]]:
    """Classifies images on Ray, which must be connected.

    Args:
        parts: the parts by number.
        model: the model.
        workers: models that run at a time.
        device: where they run; each takes one GPU.
        watch: function through which blocks of predictions pass.
        threads: CPU threads per model; `None` is the default of its format.

    Yields:
        Number and predictions of each part, as they are finished. Rows have
        `image`, `classes`, `scores`, `embedding` (if asked), `label` (of
        labeled data) and `error`; they are in the order of the images.

    Raises:
        OSError: a worker fails.
    """
    import ray.data
    from ray.exceptions import RayError

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    context.target_max_block_size = BLOCK_BYTES  # smaller ones are merged
    rows = [{"number": n, "part": part} for n, part in parts.items()]
    blocks = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map_batches(
            partial(decode, size=model.size, rows=model.batch_size),
            batch_size=1,
            batch_format="numpy",
            num_cpus=1,
            # Decoding needs no TensorFlow, which takes seconds to import.
            runtime_env={"env_vars": {"KERAS_BACKEND": "numpy"}},
        )
        .map_batches(
            Classify,
            batch_size=None,
            batch_format="numpy",
            fn_constructor_args=(model, threads),
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
            num_gpus=1 if device == "gpu" else 0,
        )
        .iter_batches(batch_size=None, batch_format="pyarrow")
    )
    try:
        yield from gather(watch(blocks), parts)
    except RayError as error:
        raise OSError(f"Ray has lost a worker: {error}") from None


def decode(
    batch: dict[str, np.ndarray], size: tuple[int, int], rows: int
) -> Iterator[dict[str, np.ndarray]]:
    """Reads the images of a part, and yields blocks of them as pixels.

    An image that cannot be read is black, and has an error.

    Args:
        batch: `number` and `part` of one part.
        size: height and width in pixels.
        rows: blocks are a multiple of it.
    """
    ((number, part),) = zip(batch["number"], batch["part"], strict=True)
    rows *= 1 + BLOCK_BYTES // (3 * size[0] * size[1] * rows)
    block: list[tuple[np.ndarray, str, int, str]] = []
    for count, (image, is_last) in enumerate(mark_last(part.read()), 1):
        pixels, error = to_pixels(image.content, size)
        # File names can be any bytes.
        name = image.name.encode(errors="backslashreplace").decode()
        label = -1 if image.label is None else image.label
        block.append((pixels, name, label, error))
        if is_last or len(block) == rows:
            pixels, names, labels, errors = zip(*block, strict=True)
            last = np.zeros(len(block), bool)
            last[-1] = is_last
            yield {
                "pixels": np.stack(pixels),
                "part": np.full(len(block), number),
                "index": np.arange(count - len(block), count),
                "last": last,
                "image": np.array(names, object),
                "label": np.array(labels),
                "error": np.array(errors, object),
            }
            block = []


def mark_last(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Each item, and whether it is the last one.

    Example:
    >>> list(mark_last("ab"))
    [('a', False), ('b', True)]
    """
    iterator = iter(items)
    for item in iterator:
        for following in iterator:
            yield item, False
            item = following
        yield item, True


def to_pixels(
    content: bytes | np.ndarray | Exception, size: tuple[int, int]
) -> tuple[np.ndarray, str]:
    """An image as uint8 `(height, width, 3)`, and why that is impossible.

    Example:
    >>> pixels, error = to_pixels(b"no image", (8, 8))
    >>> int(pixels.max()), error.partition(",")[0]
    (0, 'The source (8 bytes) is not an image of a known format')
    """
    from keras_cait.command_line import one_line
    from keras_cait.preprocessing import load_image, resize_and_crop

    try:
        if isinstance(content, Exception):
            raise content
        return resize_and_crop(load_image(content), size), ""
    except (OSError, ValueError) as error:
        return np.zeros((*size, 3), "uint8"), one_line(error)


class Classify:
    """Classifies blocks of pixels; Ray makes one per worker."""

    def __init__(self, model: Model, threads: int | None):
        self.predict = model.load(threads=threads)
        self.labels = pa.array(model.labels)
        self.top = model.top
        self.batch_size = model.batch_size

    def __call__(self, block: dict[str, np.ndarray]) -> pa.Table:
        pixels, bad = block["pixels"], block["error"] != ""
        batches = [
            self.run(pixels[start : start + self.batch_size])
            for start in range(0, len(pixels), self.batch_size)
        ]
        outputs = {
            name: np.concatenate([batch[name] for batch in batches])
            for name in batches[0]
        }
        probabilities = outputs.pop("probabilities")
        best = top_classes(probabilities, self.top)
        classes = self.labels.take(pa.array(best.ravel()))
        outputs["scores"] = np.take_along_axis(probabilities, best, axis=1)
        columns: dict[str, Any] = {name: block[name] for name in POSITION}
        columns["image"] = pa.array(block["image"], pa.string())
        columns["classes"] = lists(classes, bad)
        for name in ("scores", "embedding"):
            if name in outputs:
                columns[name] = lists(outputs[name].ravel(), bad)
        label = pa.array(block["label"], mask=block["label"] < 0)
        columns["label"] = self.labels.take(label)
        columns["error"] = pa.array(block["error"], pa.string(), mask=~bad)
        return pa.table(columns)

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the model on a batch of a fixed size, for which it is made."""
        padding = [(0, self.batch_size - len(pixels)), *[(0, 0)] * 3]
        outputs = self.predict(np.pad(pixels, padding))
        return {name: values[: len(pixels)] for name, values in outputs.items()}


def top_classes(probabilities: np.ndarray, count: int) -> np.ndarray:
    """The most probable classes of each image, best first.

    Of equal scores, the first comes first, as in evaluation.

    Example:
    >>> top_classes(np.array([[0.2, 0.5, 0.1, 0.2]]), 2)
    array([[1, 0]])
    """
    left = -probabilities
    if count > 16:
        return left.argsort(axis=1, kind="stable")[:, :count]
    # Sorting all takes longer than a GPU; a partition takes any of equal ones.
    best, rows = [], np.arange(len(left))
    for _ in range(min(count, left.shape[1])):
        best.append(left.argmin(axis=1))
        left[rows, best[-1]] = np.inf
    return np.stack(best, axis=1)


def lists(values: Any, missing: np.ndarray) -> pa.Array:
    """Equally long lists of consecutive values, some of them missing.

    Example:
    >>> lists(np.arange(4), np.array([True, False])).to_pylist()
    [None, [2, 3]]
    """
    length = len(values) // len(missing)
    offsets = np.arange(len(missing) + 1, dtype="int32") * length
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(values), mask=pa.array(missing)
    )


def gather(
    blocks: Iterable[pa.Table], parts: Mapping[int, Part]
) -> Iterator[tuple[int, pa.Table]]:
    """Whole parts out of blocks in any order, some of which may come twice.

    Raises:
        OSError: images are missing at the end.
    """
    found: dict[int, list[pa.Table]] = {}
    done: set[int] = set()
    for block in blocks:
        for number in pc.unique(block["part"]).to_pylist():
            if number in done:
                continue
            rows = block.filter(pc.equal(block["part"], number))
            found.setdefault(number, []).append(rows)
            whole = assemble(found[number])
            if whole is not None:
                yield number, whole
                done.add(number)
                del found[number]
    if lost := parts.keys() - done:
        raise OSError(
            f"Ray has lost images of {len(lost)} parts. Repeat the command "
            "with --resume."
        )


def assemble(blocks: Sequence[pa.Table]) -> pa.Table | None:
    """The rows of a part in order; `None` if some are still missing.

    Example:
    >>> block = {"part": [0], "index": [0], "image": ["cat.jpg"]}
    >>> assemble([pa.table(block | {"last": [False]})]) is None
    True
    >>> assemble([pa.table(block | {"last": [True]})]).to_pylist()
    [{'image': 'cat.jpg'}]
    """
    rows = pa.concat_tables(blocks)
    index, places = np.unique(rows["index"].to_numpy(), return_index=True)
    ends = rows["index"].filter(rows["last"])
    if not len(ends) or len(index) <= ends[0].as_py():
        return None
    return rows.take(pa.array(places)).drop_columns(list(POSITION))
