"""Quantization schemes for `.tflite` files.

Only dense layers and the patch convolution are quantized, per output channel:
they hold nearly all weights and do most of the work. Products of activations
(scores, head mixing, values), softmax, LayerNorm and the residual stream stay
in float32. LayerScale is already folded into the weights, so tiny gammas are
never rounded.

Fixed activation ranges hurt most in the class stage, whose single token varies
more between images than the patches do. The static schemes therefore use them
only in the dense layers of self-attention blocks, which do nearly all the work;
other layers compute their ranges at run time.
"""

import io
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, get_args

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from litert_quantizer.calibrator import Calibrator
from litert_quantizer.qtyping import TFLOperationName
from litert_quantizer.quantizer import AlgorithmName, Quantizer
from litert_quantizer.recipe_manager import RecipeManager
from litert_quantizer.utils.qsv_utils import min_max_update

from export.options import Scheme
from keras_cait.datasets import folder_of, open_dataset
from keras_cait.files import image_files
from keras_cait.preprocessing import load_image, resize_and_crop

SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
LAYERS = (TFLOperationName.FULLY_CONNECTED, TFLOperationName.CONV_2D)
# All but the mixing of heads, a convolution of activations with a tiny matrix.
DENSE_LAYERS = r"^(?!.*/proj_(logits|weights)/)"
CALIBRATED_TOGETHER = 10  # images between two lines of progress
STATIC_LAYERS = r"self_attention_block_\d+/.*"  # names in the graph
# Heads are split and joined as int8, in a quarter of the bytes.
HEAD_LAYOUT = (
    TFLOperationName.RESHAPE,
    TFLOperationName.TRANSPOSE,
    TFLOperationName.SPLIT,
)
HEADS = r"self_attention_block_\d+/[^/]*$"


def quantize(
    tflite: bytes, scheme: Scheme, calibration: Sequence[np.ndarray] = ()
) -> bytes:
    """Quantizes a float32 `.tflite` model.

    | scheme | weights | activations in dense layers |
    |---|---|---|
    | `float32` | float32 | float32 |
    | `float16` | float16, converted to float32 | float32 |
    | `dynamic-int8` | int8 | int8, ranges computed at run time |
    | `static-int8` | int8 | int8, ranges from calibration |
    | `static-int8-int16` | int8 | int16, ranges from calibration |

    The static schemes treat patch embedding, class stage and head as
    `dynamic-int8` does. Their ranges hold all values that occur in calibration.

    Args:
        tflite: model written by `export.litert.convert`.
        scheme: one of `SCHEMES`.
        calibration: images `(height, width, 3)` in 0...255 like those the
            model will see, for the static schemes; 100 to 200 are enough.

    Returns:
        The quantized model. Inputs and outputs stay float32.

    Raises:
        ValueError: the scheme is unknown, or a static one has no images.

    Example:
    >>> quantize(tflite, "dynamic-int8")  # doctest: +SKIP
    """
    check_schemes([scheme], len(calibration) > 0)
    if scheme == "float32":
        return tflite
    manager = RecipeManager()
    for layer in LAYERS:
        if scheme == "float16":
            manager.add_weight_only_config(
                DENSE_LAYERS,
                layer,
                16,
                algorithm_key=AlgorithmName.FLOAT_CASTING,
            )
        else:
            manager.add_dynamic_config(DENSE_LAYERS, layer, num_bits=8)
    if scheme.startswith("static"):
        manager.add_static_config(
            STATIC_LAYERS,
            TFLOperationName.FULLY_CONNECTED,
            activation_num_bits=16 if scheme.endswith("int16") else 8,
            weight_num_bits=8,
        )
    if scheme == "static-int8":
        for operation in HEAD_LAYOUT:
            manager.add_static_config(
                HEADS, operation, activation_num_bits=8, weight_num_bits=8
            )
    quantizer = Quantizer(bytearray(tflite), manager.get_quantization_recipe())
    ranges = None
    if quantizer.need_calibration:
        ranges = calibrate(tflite, manager, scheme, calibration)
    with quiet():
        return bytes(quantizer.quantize(ranges).quantized_model)


def calibrate(
    tflite: bytes,
    manager: RecipeManager,
    scheme: Scheme,
    images: Sequence[np.ndarray],
) -> dict[str, Any]:
    """Ranges of the activations on all images, with a line of progress."""
    interpreter = Interpreter(model_content=tflite)
    (details,) = interpreter.get_input_details()
    signatures = interpreter.get_signature_list()
    # Its default, a moving average, cuts off the largest values of most images:
    # even int16 would lose more than dynamic-int8.
    with quiet():
        calibrator = Calibrator(
            bytearray(tflite), qsv_update_func=min_max_update
        )
    for start in range(0, len(images), CALIBRATED_TOGETHER):
        part = images[start : start + CALIBRATED_TOGETHER]
        done = start + len(part)
        batches = [
            {"images": np.broadcast_to(image, details["shape"])}
            for image in part
        ]
        with quiet():
            calibrator.calibrate(dict.fromkeys(signatures, batches), manager)
        is_last = done == len(images)
        if is_last or sys.stderr.isatty():  # not one long line in a log
            print(
                f"Calibrated {scheme} on {done} of {len(images)} images",
                end="\n" if is_last else "\r",
                file=sys.stderr,
            )
    return calibrator.get_model_qsvs()


@contextmanager
def quiet() -> Iterator[None]:
    """Drops what the quantizer prints and logs.

    These are bars, sizes, advice on memory, and a line for each weight that
    signatures share.
    """
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def check_schemes(schemes: Sequence[str], is_calibrated: bool) -> None:
    """Checks schemes before any work.

    Raises:
        ValueError: there are no schemes, one is unknown, or a static one has no
            calibration images.

    Example:
    >>> check_schemes(["float16", "dynamic-int8"], is_calibrated=False)
    """
    if not schemes:
        raise ValueError(f"Give at least one scheme: {', '.join(SCHEMES)}.")
    for scheme in schemes:
        if scheme not in SCHEMES:
            raise ValueError(
                f"The scheme must be one of {', '.join(SCHEMES)}. Got "
                f"{scheme!r}."
            )
        if scheme.startswith("static") and not is_calibrated:
            raise ValueError(
                f"{scheme} needs images like those the model will see, to "
                "find the ranges of its activations. Add --calibration DATA."
            )


def calibration_images(
    data: str,
    image_size: tuple[int, int],
    count: int = 200,
    data_dir: str | Path | None = None,
    max_unreadable: int = 0,
    **part: Any,
) -> list[np.ndarray]:
    """Training images from all over a dataset.

    Args:
        data: as in `keras_cait.datasets.open_dataset`; `folder:PATH` may also
            be a folder of images without subfolders, as labels are not used.
        image_size: height and width in pixels.
        count: int > 0. Maximum number of images.
        data_dir: folder in which TensorFlow Datasets keeps its files.
        max_unreadable: maximum number of them to leave out because they cannot
            be read; they are printed.
        **part: `validation_fraction` and `fold`, as in `open_dataset`.

    Returns:
        float32 arrays `(height, width, 3)`, RGB in 0...255.

    Raises:
        ValueError: there is no such dataset, it has no images, or too many
            cannot be read; the message names one and counts the others.
    """
    folder = folder_of(data)
    if folder and is_flat(folder):
        files = image_files([folder])
        images = [str(file) for file in spread(files, count)]
        named = ((image, image) for image in images)
    else:
        dataset = open_dataset(data, "train", data_dir, **part)
        named = (
            (dataset[index][0], dataset.name(index))
            for index in spread(range(len(dataset)), count)
        )
    prepared, unreadable = [], []
    for image, name in named:
        try:
            prepared.append(prepare(image, name, image_size))
        except ValueError as error:
            unreadable.append(str(error))
    if len(unreadable) > max_unreadable:
        more = f" {len(unreadable) - 1} more cannot be used, either."
        raise ValueError(unreadable[0] + more * (len(unreadable) > 1))
    if not prepared:
        raise ValueError(f"None of the {len(unreadable)} images can be read.")
    for message in unreadable:
        print(f"Skipping an unreadable image: {message}", flush=True)
    return prepared


def is_flat(folder: Path) -> bool:
    """Whether a folder exists and has no subfolders."""
    return folder.is_dir() and not any(one.is_dir() for one in folder.iterdir())


def spread(items: Sequence, count: int) -> Sequence:
    """At most `count` evenly spaced items.

    Example:
    >>> spread(range(10), 3)
    range(0, 10, 4)
    """
    return items[:: -(-len(items) // count)]


def prepare(
    image: str | bytes | np.ndarray, name: str, image_size: tuple[int, int]
) -> np.ndarray:
    """Reads, resizes and crops one image."""
    try:
        pixels = resize_and_crop(load_image(image), image_size)
    except ValueError as error:
        raise ValueError(f"Cannot use {name!r}: {error}") from None
    return pixels.astype("float32")
