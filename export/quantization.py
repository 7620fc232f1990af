"""Smaller and faster `.tflite` files, by the recipes that keep their accuracy.

Only dense layers and the patch convolution are quantised, per output channel:
they hold nearly all weights and most of the work. Products of activations
(scores, head mixing, values), softmax, LayerNorm and the residual stream stay
in float32. LayerScale is folded into the weights, so that no tensor of tiny
gammas is ever rounded.

What ranges that are known beforehand hurt is the class stage, whose one token
differs more from picture to picture than the patches do. So the static recipes
take them for the dense layers of self-attention blocks, which do nearly all the
work; the others find theirs as they run.
"""

import warnings
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from litert_quantizer.qtyping import TFLOperationName
from litert_quantizer.quantizer import AlgorithmName, Quantizer
from litert_quantizer.recipe_manager import RecipeManager

from export.pictures import picture_files
from keras_cait.preprocessing import load_image, resize_and_crop

RECIPES = (
    "float32",
    "float16",
    "dynamic-int8",
    "static-int8",
    "static-int8-int16",
)
LAYERS = (TFLOperationName.FULLY_CONNECTED, TFLOperationName.CONV_2D)
STATIC = r"self_attention_block_\d+/.*"  # of the names in the graph


def quantize(tflite, recipe, calibration=()):
    """A float32 `.tflite` file, quantised.

    | recipe | weights | activations in dense layers |
    |---|---|---|
    | `float32` | float32 | float32 |
    | `float16` | float16, read as float32 | float32 |
    | `dynamic-int8` | int8 | int8, ranges found as it runs |
    | `static-int8` | int8 | int8, ranges of the calibration |
    | `static-int8-int16` | int8 | int16, ranges of the calibration |

    The static recipes treat class stage, head and patches as `dynamic-int8`.

    Args:
        tflite: bytes, as from `export.litert.convert`.
        recipe: str, one of `RECIPES`.
        calibration: images `(height, width, 3)` of 0...255 such as the model
            will see, for the static recipes; a hundred or two are enough.

    Returns:
        bytes. Inputs and outputs stay float32.

    Raises:
        ValueError: there is no such recipe, or a static one lacks images.

    Example:
    >>> quantize(tflite, "dynamic-int8")  # doctest: +SKIP
    """
    check_recipes([recipe], len(calibration) > 0)
    if recipe == "float32":
        return tflite
    manager = RecipeManager()
    for layer in LAYERS:
        if recipe == "float16":
            manager.add_weight_only_config(
                ".*", layer, 16, algorithm_key=AlgorithmName.FLOAT_CASTING
            )
        else:
            manager.add_dynamic_config(".*", layer, num_bits=8)
    if recipe.startswith("static"):
        manager.add_static_config(
            STATIC,
            TFLOperationName.FULLY_CONNECTED,
            activation_num_bits=16 if recipe.endswith("int16") else 8,
            weight_num_bits=8,
        )
    quantizer = Quantizer(bytearray(tflite), manager.get_quantization_recipe())
    ranges = None
    if quantizer.need_calibration:
        interpreter = Interpreter(model_content=tflite)
        (details,) = interpreter.get_input_details()
        batches = [
            {"images": np.broadcast_to(image, details["shape"])}
            for image in calibration
        ]
        signatures = interpreter.get_signature_list()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the memory that this takes
            ranges = quantizer.calibrate(dict.fromkeys(signatures, batches))
    return bytes(quantizer.quantize(ranges).quantized_model)


def check_recipes(recipes, is_calibrated):
    """Raises ValueError for what `quantize` cannot do."""
    for recipe in recipes:
        if recipe not in RECIPES:
            raise ValueError(
                f"A recipe is one of {', '.join(RECIPES)}. Received: "
                f"{recipe!r}."
            )
        if recipe.startswith("static") and not is_calibrated:
            raise ValueError(
                f"{recipe} needs pictures such as the model will see, to find "
                "the ranges of its activations: --calibration FOLDER|DATASET."
            )


def calibration_images(source, size, count=200, data_dir=None):
    """Pictures from all over a folder or data set, as float32 images.

    Args:
        source: path of a folder with pictures, in sub-folders or not; or name
            of a set of TensorFlow Datasets, of which it takes training
            pictures.
        size: pair of ints, `(height, width)` in pixels.
        count: int > 0. How many at most.
        data_dir: path, where TensorFlow Datasets keeps its files; `None` is
            its default.

    Returns:
        List of float32 arrays `(height, width, 3)` in 0...255.

    Raises:
        ValueError: there is neither such a folder nor such a set, it holds no
            pictures, or one cannot be read.
    """
    is_folder = Path(source).is_dir()
    if is_folder:
        all_of_them = picture_files([Path(source)])
    else:
        all_of_them = training_examples(str(source), data_dir)
    stride = -(-len(all_of_them) // count)
    chosen = [all_of_them[i] for i in range(0, len(all_of_them), stride)]
    if not is_folder:
        chosen = [example["image"] for example in chosen]
    return [
        resize_and_crop(load_image(picture), size).astype("float32")
        for picture in chosen
    ]


def training_examples(name, data_dir):
    """Those of a prepared set of TensorFlow Datasets, with encoded images."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(
            name, data_dir=data_dir, file_format="array_record"
        )
    except (tfds.core.DatasetNotFoundError, ValueError):
        raise ValueError(
            "--calibration must be a folder of pictures or the name of a set "
            f"of TensorFlow Datasets. Received: {name!r}."
        ) from None
    if not builder.is_prepared():
        raise ValueError(
            f"{name!r} is not prepared in {str(builder.data_path)!r}. Prepare "
            f"it first: python -m training.prepare {name} --data-dir DIR"
        )
    if "image" not in builder.info.features:
        raise ValueError(
            f"{name!r} of TensorFlow Datasets has no image, but "
            f"{sorted(builder.info.features)}. Choose a set of pictures."
        )
    decoders = {"image": tfds.decode.SkipDecoding()}
    return builder.as_data_source("train", decoders=decoders)
