"""Loads weights from files and the hub into models, and saves them."""

import json
import logging
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_cait.conversion import (
    from_reference,
    is_finite,
    layer_of,
    listed,
    to_reference,
)
from keras_cait.files import atomically
from keras_cait.hub import fetch
from keras_cait.initializers import filled_later
from keras_cait.layers import resample_positions
from keras_cait.pretrained import PRETRAINED, PretrainedWeights
from keras_cait.pytorch_files import read_pth
from keras_cait.safetensors_files import checksum, read_safetensors

logger = logging.getLogger(__name__)

Tensors = Mapping[str, Any]
Grid = tuple[int, int]


def load_weights(model: keras.Model, path: str | PathLike[str]) -> keras.Model:
    """Loads the weights of a file into a model.

    Everything is checked before the first weight changes. Positions of another
    grid are resampled to the model's (antialiased bicubic, as in timm). A model
    without a head ignores the head of the file. One with `pooling="avg"`
    ignores class attention and the head that reads it, keeps its own head, and
    a warning is logged. Nothing else may differ. A `.weights.h5` file must
    match exactly.

    Args:
        model: `CaiT`, or `baselines.ViT`, which also loads files of timm's
            `vision_transformer.py` (ViT, DeiT, DeiT III).
        path: path of a file:
            `.safetensors` with timm's names, as `save_weights` writes it;
            `.pth` of the official code or timm;
            `.weights.h5` or `.keras` of Keras.

    Returns:
        The model.

    Raises:
        ValueError: the file does not exist, is of another kind, is damaged, has
            weights that are not finite, or does not fit the model.

    Example:
    >>> load_weights(model, "model.safetensors")  # doctest: +SKIP

    Reference: timm's `cait.py` for names and resampling. `save_weights` records
    the grid of the positions; in other files, as in all published ones, the
    grid is square.
    """
    return _load(model, Path(path), with_head=True)


def save_weights(
    model: keras.Model, path: str | PathLike[str], overwrite: bool = True
) -> None:
    """Saves the weights of a model as `.safetensors` with timm's names.

    The file loads here, and that of a `CaiT` also in timm, bit for bit. It is
    written atomically: if writing fails, an existing file is unchanged.

    Args:
        model: `CaiT` or `baselines.ViT`.
        path: path that ends in `.safetensors`.
        overwrite: whether to replace an existing file, as in `model.save`.

    Raises:
        ValueError: `model` is neither, has LoRA or is quantized, the path has
            another suffix, or the file exists and `overwrite=False`.

    Example:
    >>> save_weights(model, "model.safetensors")  # doctest: +SKIP
    >>> timm.create_model(  # doctest: +SKIP
    ...     "cait_s24_224", checkpoint_path="model.safetensors"
    ... )
    """
    from safetensors.numpy import save_file

    path = Path(path)
    _check_model(model)
    if path.suffix != ".safetensors":
        raise ValueError(
            "save_weights writes .safetensors files. Received: "
            f"{str(path)!r}. Change the suffix, or use model.save."
        )
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder. Choose another path.")
    if path.exists() and not overwrite:
        raise ValueError(
            f"{str(path)!r} already exists. Choose another path, or pass "
            "overwrite=True."
        )
    foreign = [
        weight.path
        for weight in model.weights
        if weight.path.endswith(("/lora_kernel_a", "_scale"))
    ]
    if foreign:
        raise ValueError(
            "save_weights cannot write LoRA or quantized weights, which timm "
            f"lacks. Received: a model with {listed(foreign)}. Use model.save; "
            "keras.saving.load_model merges LoRA into the kernels."
        )
    rows, columns = _grid(model)
    tensors = to_reference(model.weights)
    notes = {
        "format": "pt",  # tells PyTorch libraries that the layouts are theirs
        "grid_size": f"{rows}x{columns}",
        "crc32": checksum(tensors),
    }
    with atomically(path) as unfinished:
        unfinished.touch()
        mode = unfinished.stat().st_mode
        save_file(tensors, unfinished, notes)
        # safetensors makes it readable only to its owner.
        unfinished.chmod(mode)


def load_pretrained(model: keras.Model, row: PretrainedWeights) -> keras.Model:
    """Downloads pretrained weights, if necessary, and loads them.

    Args:
        model: `CaiT` of the row's variant. With another number of classes or
            `pooling="avg"`, its head stays as it is, and a warning is logged.
        row: row of `PRETRAINED`.

    Returns:
        The model.

    Raises:
        OSError: the file is not in the cache and cannot be downloaded.
        ValueError: the file is not the published one, or does not fit.

    Example:
    >>> load_pretrained(model, PRETRAINED["S24", 224])  # doctest: +SKIP
    """
    return _load(model, fetch(row), with_head=model.classes == 1000)


def read_tensors(path: Path) -> tuple[Tensors, Grid | None]:
    """Reads a `.safetensors` or `.pth` file.

    Args:
        path: path of the file.

    Returns:
        The tensors by their names in the file, which `np.asarray` reads; and
        the grid of the positions, if the file has it.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged or of another kind.

    Example:
    >>> tensors, grid = read_tensors(Path("S24_224.pth"))  # doctest: +SKIP
    """
    if path.suffix == ".pth":
        return read_pth(path), None
    return read_safetensors(path)


def read_keras(path: Path) -> keras.Model:
    """Reads the model of a `.keras` file, without its optimizer.

    Args:
        path: path of the file.

    Raises:
        ValueError: the file is damaged, holds code, or declares far more
            weights than it holds.

    Example:
    >>> model = read_keras(Path("photos.keras"))  # doctest: +SKIP
    """
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))["config"]
            stored = archive.getinfo("model.weights.h5").file_size
        # Others are not models of ours: Keras says what they are.
        if {"embed_dim", "depth", "classes"} <= config.keys():
            check_declared(config, stored)
        with filled_later():
            return keras.saving.load_model(path, compile=False)
    except Exception as error:  # damage shows in many ways: zip, JSON, HDF5
        raise ValueError(str(error).strip().partition("\n")[0]) from None


def check_declared(config: Mapping[str, Any], stored: int) -> None:
    """Refuses a file that declares far more weights than it holds.

    Building its model would take all memory before the weights are read.

    Args:
        config: arguments of the `CaiT` or `baselines.ViT`.
        stored: bytes of the weights.

    Raises:
        ValueError: not even weights of half a byte would fit.

    Example:
    >>> sizes = {"input_shape": (32, 32, 3), "classes": 10**6}
    >>> model = CaiT(48, 1, 1, **sizes, include_top=False)
    >>> check_declared(model.get_config(), 4 * model.count_params())
    """
    width, patch_size = config["embed_dim"], config["patch_size"]
    *size, channels = config["input_shape"]
    rows, columns = config.get("grid_size") or (
        side // patch_size for side in size
    )
    depth = config["depth"]
    if config["pooling"] != "avg":
        depth += config["class_attention_depth"]
    block = (4 + 2 * config["mlp_ratio"]) * width**2
    vectors = rows * columns + channels * patch_size**2
    if config.get("include_top", True):
        vectors += config["classes"]
    declared = int(depth * block + width * vectors)
    # Quantized weights take half a byte at least.
    if declared > 2 * stored:
        raise ValueError(
            f"it declares at least {declared:,} weights, but holds "
            f"{stored:,} bytes"
        )


# Former public names.
CHECKPOINTS = PRETRAINED
load_checkpoint = load_weights
save_checkpoint = save_weights


def _load(model: keras.Model, path: Path, with_head: bool) -> keras.Model:
    _check_model(model)
    is_h5 = path.name.endswith(".weights.h5")
    if not is_h5 and path.suffix not in (".safetensors", ".pth", ".keras"):
        raise ValueError(
            "weights must be None or the path of a .safetensors, .pth, "
            f".weights.h5 or .keras file. Received: {str(path)!r}. "
            'Only the variants, such as CaiT_S24, have weights="imagenet".'
        )
    if not path.is_file():
        raise ValueError(f"There is no file {str(path)!r}.")
    with explaining(model, path):
        if is_h5:
            _load_h5(model, path)
        elif path.suffix == ".keras":
            source = read_keras(path)
            _check_model(source)
            tensors = to_reference(source.weights)
            fill(model, tensors, _grid(source), with_head)
        else:
            fill(model, *read_tensors(path), with_head)
    return model


@contextmanager
def explaining(model: keras.Model, path: Path) -> Iterator[None]:
    """Names file and model if a file does not load.

    Args:
        model: the model to fill.
        path: the file.

    Raises:
        ValueError: the block has raised one.

    Example:
    >>> with explaining(model, path):  # doctest: +SKIP
    ...     fill(model, *read_tensors(path))
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"Cannot load {str(path)!r} into {model.name!r}, whose weights "
            f"are unchanged: {error}"
        ) from None


def fill(
    model: keras.Model,
    tensors: Tensors,
    grid: Grid | None,
    with_head: bool = True,
) -> None:
    """Fills a model from reference tensors, as `read_tensors` reads them.

    Args:
        model: as in `load_weights`.
        tensors: reference tensors by name.
        grid: grid of their positions, if it is known.
        with_head: whether a head is filled, too.

    Raises:
        ValueError: the tensors do not fit; the model is unchanged.

    Example:
    >>> fill(model, *read_tensors(path))  # doctest: +SKIP
    """
    has_class_attention = any(
        name.startswith("blocks_token_only.") for name in tensors
    )
    if grid is None and not has_class_attention:
        tensors = _merge_class_position(tensors)
    variables = model.weights
    layers = _layer_names(model)
    if has_class_attention and "class_token" not in layers:
        tensors = _without(tensors, "blocks_token_only.", "cls_token")
        with_head = False  # the file's reads the class token
    if not with_head and "head" in layers:
        logger.warning(
            "%s: all weights but those of the head are loaded. The file's head "
            "reads the class token or has other classes; the model keeps its "
            "own.",
            model.name,
        )
    if not with_head or "head" not in layers:
        variables = [v for v in variables if layer_of(v.path) != "head"]
        tensors = _without(tensors, "head.")
    positions = tensors.get("pos_embed")
    if positions is not None and len(positions.shape) == 3:
        side = math.isqrt(positions.shape[1])
        if grid is None and side * side == positions.shape[1]:
            grid = (side, side)
        if grid is not None and math.prod(grid) != positions.shape[1]:
            raise ValueError(
                f"It has {positions.shape[1]} positions, but says that their "
                f"grid is {grid[0]}x{grid[1]}: it is damaged."
            )
        if grid is not None and grid != _grid(model):
            resampled = resample_positions(
                keras.ops.convert_to_tensor(_float32(positions)),
                grid,
                _grid(model),
            )
            tensors = {
                **tensors,
                "pos_embed": keras.ops.convert_to_numpy(resampled),
            }
    from_reference(variables, tensors)


def _without(tensors: Tensors, *prefixes: str) -> Tensors:
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(prefixes)
    }


def _merge_class_position(tensors: Tensors) -> Tensors:
    """Adds the position of a ViT's class token to the token itself.

    ViT only ever uses their sum; our models have no such position.
    """
    tensors = {
        re.sub(r"\.ls(\d)\.gamma$", r".gamma_\1", name): tensor
        for name, tensor in tensors.items()
    }
    positions = tensors.get("pos_embed")
    if (
        positions is None
        or "cls_token" not in tensors
        or len(positions.shape) != 3
    ):
        return tensors
    patches = positions.shape[1] - 1
    if patches < 1 or math.isqrt(patches) ** 2 != patches:
        return tensors
    positions = _float32(positions)
    class_token = _float32(tensors["cls_token"]) + positions[:, :1]
    return {**tensors, "cls_token": class_token, "pos_embed": positions[:, 1:]}


def _load_h5(model: keras.Model, path: Path) -> None:
    import h5py

    shapes = []

    def note_shape(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and "seed_generator" not in name:
            shapes.append(item.shape)

    try:
        with h5py.File(path) as file:
            file["layers"].visititems(note_shape)
    except Exception as error:  # damage surfaces in many ways
        reason = " ".join(str(error).split())
        raise ValueError(
            f"It is not a .weights.h5 file of Keras, or is damaged ({reason})."
        ) from None
    # Keras would silently load a part of a deeper model, and stop halfway at a
    # wrong shape.
    if sorted(shapes) != sorted(
        tuple(v.shape) for v in model.weights if "seed_gen" not in v.path
    ):
        raise ValueError(
            "A .weights.h5 file must have exactly the shapes of the model, "
            "including head and positions. Build the model it was saved from, "
            "or use the more flexible files of save_weights."
        )
    before = model.get_weights()
    try:
        model.load_weights(path)
        if not all(map(is_finite, model.get_weights())):
            raise ValueError("a weight is not finite")
    except Exception as error:
        model.set_weights(before)
        reason = " ".join(str(error).split())
        raise ValueError(f"It is damaged ({reason}).") from None


def _check_model(model: Any) -> None:
    # By layers: clones and rebuilt models are not instances of CaiT.
    if not {"patch_embedding", "position_embedding"} <= _layer_names(model):
        raise ValueError(
            "Expected a CaiT, or a model with its layers. Received: "
            f"{type(model).__name__} {getattr(model, 'name', '')!r}. If it "
            "contains a CaiT, pass that."
        )


def _layer_names(model: Any) -> set[str]:
    return {layer.name for layer in getattr(model, "layers", ())}


def _grid(model: keras.Model) -> Grid:
    rows, columns = model.get_layer("position_embedding").grid_size
    return rows, columns


def _float32(tensor: Any) -> np.ndarray:
    return np.asarray(tensor).astype("float32")
