"""Weights between files, the Hugging Face hub and models.

`huggingface_hub`, `safetensors` and `torch` are imported by the functions that
use them, so that `import keras_cait` stays fast.
"""

import hashlib
import json
import logging
import math
import mmap
import os
import re
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from keras_cait.conversion import from_reference, to_reference
from keras_cait.layers import resample_positions

logger = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    """A published model and what it is known to reach on ImageNet-1k.

    `published_top_1` is the authors' figure, `None` where they gave none;
    `measured_top_1` and `measured_top_5` are those of timm's evaluation (crop
    ratio 1.0, bicubic). All in percent of the 50 000 validation images.
    """

    variant: str
    image_size: int
    parameters: int
    published_top_1: float | None
    measured_top_1: float
    measured_top_5: float
    licence: str = "Apache-2.0"
    file: str = "model.safetensors"

    @property
    def repository(self):
        name = f"cait_{self.variant.lower()}_{self.image_size}"
        return f"timm/{name}.fb_dist_in1k"


# All were trained by distillation on ImageNet-1k alone, at 224 pixels, those
# of another size then fine-tuned.
CHECKPOINTS = {
    (row.variant, row.image_size): row
    for row in (
        Checkpoint("XXS24", 224, 11_956_264, None, 78.400, 94.326),
        Checkpoint("XXS24", 384, 12_029_224, None, 80.954, 95.638),
        Checkpoint("XXS36", 224, 17_299_720, None, 79.750, 94.866),
        Checkpoint("XXS36", 384, 17_372_680, 82.2, 82.204, 96.148),
        Checkpoint("XS24", 384, 26_670_088, 84.1, 84.064, 96.888),
        Checkpoint("S24", 224, 46_916_200, 83.5, 83.484, 96.586),
        Checkpoint("S24", 384, 47_062_120, 85.1, 85.048, 97.350),
        Checkpoint("S36", 384, 68_366_632, 85.4, 85.458, 97.480),
        Checkpoint("M36", 384, 271_221_352, 86.1, 86.060, 97.732),
        Checkpoint("M48", 448, 356_460_520, 86.5, 86.480, 97.748),
    )
}


def load_checkpoint(model, path):
    """Loads the weights of a file into a model.

    Everything is checked before the first weight changes. Positions of another
    grid are resampled to the model's (antialiased bicubic, as timm), and a
    model without a head leaves the file's head out; nothing else may differ.
    A `.weights.h5` file must fit exactly.

    Args:
        model: `CaiT`, or a `baselines.ViT`, for which files of timm's
            `vision_transformer.py` (ViT, DeiT, DeiT III) are read as well.
        path: str or path of a file:
            `.safetensors` with timm's names, as `save_checkpoint` writes it;
            `.pth` of Facebook's or timm's code, which needs PyTorch;
            `.weights.h5` or `.keras` of Keras.

    Returns:
        The model.

    Raises:
        ValueError: the file does not exist, is of another kind, is damaged, or
            does not fit the model.

    Example:
    >>> load_checkpoint(model, "model.safetensors")  # doctest: +SKIP

    Reference: timm's `cait.py` for names and resampling. The grid of positions
    is taken from the file where `save_checkpoint` noted it; otherwise it is
    square, as in all published files.
    """
    return _load(model, Path(path), with_head=True)


def save_checkpoint(model, path, overwrite=True):
    """Writes the weights of a model as `.safetensors` with timm's names.

    The file loads here and in timm, bit for bit. It appears whole or not at
    all: a crash while writing leaves an earlier file as it was.

    Args:
        model: `CaiT` or `baselines.ViT`.
        path: str or path that ends with `.safetensors`.
        overwrite: bool. Whether to replace an existing file, as in
            `model.save`.

    Raises:
        ValueError: `model` is neither, the path has another ending, or the
            file exists and `overwrite=False`.

    Example:
    >>> save_checkpoint(model, "model.safetensors")  # doctest: +SKIP
    >>> timm.create_model(  # doctest: +SKIP
    ...     "cait_s24_224", checkpoint_path="model.safetensors"
    ... )
    """
    from safetensors.numpy import save_file

    path = Path(path)
    _check_model(model)
    if path.suffix != ".safetensors":
        raise ValueError(
            "save_checkpoint writes .safetensors files. Received: "
            f"{str(path)!r}. Change the ending, or use model.save."
        )
    if path.exists() and not overwrite:
        raise ValueError(
            f"{str(path)!r} exists already. Choose another path, or pass "
            "overwrite=True."
        )
    rows, columns = _grid(model)
    # "pt" tells PyTorch libraries that the layouts are theirs.
    notes = {"format": "pt", "grid_size": f"{rows}x{columns}"}
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.touch()
        mode = unfinished.stat().st_mode
        save_file(to_reference(model.weights), unfinished, notes)
        unfinished.chmod(mode)  # safetensors lets the owner alone read
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def nearest_checkpoint(variant, image_size):
    """The published checkpoint of a variant whose size is nearest.

    Args:
        variant: str, a key of `VARIANTS`.
        image_size: pair of ints, height and width in pixels.

    Returns:
        Checkpoint. Of two that are as near, the larger one.

    Raises:
        ValueError: no checkpoint of this variant was published.

    Example:
    >>> nearest_checkpoint("S24", (320, 320)).image_size
    384
    """
    rows = [row for row in CHECKPOINTS.values() if row.variant == variant]
    if not rows:
        published = dict.fromkeys(name for name, _ in CHECKPOINTS)
        raise ValueError(
            f"No weights of CaiT_{variant} were published. Received: "
            'weights="imagenet". Use weights=None or the path of a file, or '
            f"one of the published variants: {', '.join(published)}."
        )
    side = math.sqrt(math.prod(image_size))
    return min(
        rows, key=lambda row: (abs(row.image_size - side), -row.image_size)
    )


def load_published(model, checkpoint):
    """Fetches a published checkpoint and loads it.

    Args:
        model: `CaiT` of the variant of the checkpoint. With another number of
            classes, its head stays as it is, and the log says so.
        checkpoint: Checkpoint.

    Returns:
        The model.

    Raises:
        OSError: the file is not in the cache and cannot be downloaded.
        ValueError: the file is not the published one, or does not fit.

    Example:
    >>> checkpoint = CHECKPOINTS["S24", 224]
    >>> load_published(model, checkpoint)  # doctest: +SKIP
    """
    path = fetch(checkpoint)
    with_head = not model.include_top or model.classes == 1000
    if not with_head:
        logger.warning(
            "%s: all weights but those of the head are loaded from %s, which "
            "has 1000 classes; the new head of %d classes starts at random.",
            model.name,
            checkpoint.repository,
            model.classes,
        )
    return _load(model, path, with_head)


def fetch(checkpoint):
    """Downloads the file of a checkpoint, or finds it in the hub's cache.

    The client is `huggingface_hub`: `HF_HOME` is where the cache is,
    `HF_ENDPOINT` the address of the hub, `HF_HUB_OFFLINE=1` forbids the
    network.

    Args:
        checkpoint: Checkpoint.

    Returns:
        Path of the file, whose SHA-256 is that of the hub's record.

    Raises:
        OSError: the file is not in the cache and cannot be downloaded.
        ValueError: the file is not the one that the hub has on record.

    Example:
    >>> fetch(CHECKPOINTS["S24", 224])  # doctest: +SKIP
    """
    from huggingface_hub import constants, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import logging as client_logging

    repository, file = checkpoint.repository, checkpoint.file
    address = hf_hub_url(repository, file)
    verbosity = client_logging.get_verbosity()
    # Else a warning for each of its attempts would bury the one error below.
    # Who asks for more than its default (HF_HUB_VERBOSITY) sees all of them.
    if verbosity == client_logging.WARNING:
        client_logging.set_verbosity_error()
    try:
        path = hf_hub_download(repository, file, library_name="keras-cait")
    # The client lets the errors of all its libraries through: sockets, TLS,
    # HTTP, disk. None of their tracebacks would help.
    except Exception as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise OSError(
            f"Could not get {file} of {repository} from {address} "
            f"({reason.rstrip('.')}), and there is no usable copy in "
            f"{constants.HF_HUB_CACHE}. Ways "
            "out: try again with a network and enough disk; set HF_HOME to a "
            "folder with space, or with a cache copied from another machine; "
            "unset HF_HUB_OFFLINE if it is set, or set HF_ENDPOINT to the "
            "address of a mirror; download the address by hand and pass "
            f"weights='path/to/{file}'; weights=None starts at random."
        ) from None
    finally:
        client_logging.set_verbosity(verbosity)
    _verify(Path(path), address)
    return Path(path)


def _verify(path, address):
    """Refuses a file that is not the one the hub has on record.

    The cache names a large file by the SHA-256 of the hub's record and links
    to it, so the record is also known offline.
    """
    record = path.readlink().name if path.is_symlink() else ""
    if not re.fullmatch("[0-9a-f]{64}", record):
        logger.warning(
            "The cache has no SHA-256 on record for %s: not verified.", path
        )
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != record:
        raise ValueError(
            f"{str(path)!r} is not the file that {address} has on record: its "
            f"SHA-256 is {digest}, expected {record}. It was altered or cut "
            f"off. Delete {str(path.resolve())!r} and load again."
        )


def _load(model, path, with_head):
    _check_model(model)
    readers = {
        ".safetensors": _read_safetensors,
        ".pth": _read_pth,
        ".keras": _read_keras,
    }
    is_h5 = path.name.endswith(".weights.h5")
    if not is_h5 and path.suffix not in readers:
        raise ValueError(
            "weights must be None or the path of a .safetensors, .pth, "
            f".weights.h5 or .keras file. Received: {str(path)!r}. "
            '"imagenet" is for the variants, such as CaiT_S24.'
        )
    if not path.is_file():
        raise ValueError(f"There is no file with weights at {str(path)!r}.")
    try:
        if is_h5:
            _load_h5(model, path)
        else:
            tensors, grid = readers[path.suffix](path)
            _fill(model, tensors, grid, with_head)
    except ValueError as error:
        raise ValueError(
            f"Cannot load {str(path)!r} into {model.name!r}, whose weights "
            f"stay as they were: {error}"
        ) from None
    return model


def _fill(model, tensors, grid, with_head):
    """Fills a model from reference tensors, `grid` that of their positions."""
    if grid is None and not any(
        name.startswith("blocks_token_only.") for name in tensors
    ):
        tensors = _as_of_cait(tensors)
    variables = model.weights
    if not with_head or "head" not in _layer_names(model):
        variables = [v for v in variables if not v.path.startswith("head/")]
        tensors = {
            name: tensor
            for name, tensor in tensors.items()
            if not name.startswith("head.")
        }
    table = tensors.get("pos_embed")
    if table is not None and len(table.shape) == 3:
        side = math.isqrt(table.shape[1])
        if grid is None and side * side == table.shape[1]:
            grid = (side, side)
        if grid is not None and grid != _grid(model):
            table = resample_positions(
                keras.ops.convert_to_tensor(np.asarray(table), "float32"),
                grid,
                _grid(model),
            )
            table = keras.ops.convert_to_numpy(table)
            tensors = {**tensors, "pos_embed": table}
    from_reference(variables, tensors)


def _as_of_cait(tensors):
    """The tensors of a ViT, whose class token has a position of its own.

    The two are only ever added up, so here they are one.
    """
    tensors = {
        re.sub(r"\.ls(\d)\.gamma$", r".gamma_\1", name): tensor
        for name, tensor in tensors.items()
    }
    table = tensors.get("pos_embed")
    if table is None or "cls_token" not in tensors or len(table.shape) != 3:
        return tensors
    patches = table.shape[1] - 1
    if patches < 1 or math.isqrt(patches) ** 2 != patches:
        return tensors
    table = np.asarray(table)
    class_token = np.asarray(tensors["cls_token"]) + table[:, :1]
    return {**tensors, "cls_token": class_token, "pos_embed": table[:, 1:]}


# Of .safetensors files, in numpy's words.
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bfloat16"}


class _FileTensor(NamedTuple):
    """A tensor that stays in its mapped `.safetensors` file."""

    mapping: mmap.mmap
    start: int
    shape: tuple
    dtype: str

    def __array__(self, dtype=None, copy=None):
        count = math.prod(self.shape)
        # Else the pages read so far would count as a second copy of the model.
        # A call for each small tensor would take longer than their reading.
        if count > 10_000 and hasattr(mmap, "MADV_DONTNEED"):
            self.mapping.madvise(mmap.MADV_DONTNEED)
        array = np.frombuffer(self.mapping, self.dtype, count, self.start)
        return array.reshape(self.shape)


def _read_safetensors(path):
    import ml_dtypes  # noqa: F401  (teaches numpy bfloat16)
    from safetensors import SafetensorError, safe_open

    # `safe_open` checks the file, but copies every tensor before it is copied
    # into the model, which takes as long as all the rest.
    try:
        with safe_open(path, "numpy"), path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"It is not a .safetensors file, or damaged ({error})."
        ) from None
    start = 8 + int.from_bytes(mapping[:8], "little")
    header = json.loads(mapping[8:start])
    notes = header.pop("__metadata__", None) or {}
    match = re.fullmatch(r"(\d+)x(\d+)", notes.get("grid_size", ""))
    unknown = {entry["dtype"] for entry in header.values()} - DTYPES.keys()
    if unknown:
        raise ValueError(
            f"It holds tensors of {', '.join(sorted(unknown))}. Those of a "
            f"CaiT are of {', '.join(DTYPES)}."
        )
    tensors = {
        name: _FileTensor(
            mapping,
            start + entry["data_offsets"][0],
            tuple(entry["shape"]),
            DTYPES[entry["dtype"]],
        )
        for name, entry in header.items()
    }
    return tensors, match and tuple(map(int, match.groups()))


def _read_pth(path):
    try:
        import torch
    except ImportError:
        raise ValueError(
            "Reading .pth files needs PyTorch (pip install torch). Without "
            "it, use the model's .safetensors file."
        ) from None
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    # Damage shows as an error of zip, pickle or torch.
    except Exception as error:
        raise ValueError(
            "PyTorch cannot read it, or would have to run code from it, which "
            f"is refused ({str(error).partition(chr(10))[0]})"
        ) from None
    # Facebook's files: {"model": {"module.cls_token": ...}}; timm's are flat.
    if isinstance(tensors, dict):
        tensors = tensors.get("model", tensors)
    if not isinstance(tensors, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in tensors.values()
    ):
        raise ValueError(
            'It does not hold named tensors, neither flat nor under "model".'
        )
    # numpy knows no bfloat16 of PyTorch. float32 is not copied.
    return {
        name.removeprefix("module."): tensor.detach().float()
        for name, tensor in tensors.items()
    }, None


def _read_keras(path):
    try:
        model = keras.saving.load_model(path, compile=False)
    # Damage shows as an error of zip, JSON or HDF5.
    except Exception as error:
        raise ValueError(f"Keras cannot read it ({error}).") from None
    _check_model(model)
    return to_reference(model.weights), _grid(model)


def _load_h5(model, path):
    import h5py

    shapes = []

    def note_shape(name, item):
        if isinstance(item, h5py.Dataset) and "seed_generator" not in name:
            shapes.append(item.shape)

    try:
        with h5py.File(path) as file:
            file["layers"].visititems(note_shape)
    except (OSError, KeyError) as error:
        raise ValueError(
            f"It is not a .weights.h5 file of Keras, or damaged ({error})."
        ) from None
    # Keras would take a part of a deeper model without a word, and stop half
    # way at a wrong shape.
    if sorted(shapes) != sorted(
        tuple(v.shape) for v in model.weights if "seed_gen" not in v.path
    ):
        raise ValueError(
            "A .weights.h5 file must have the very shapes of the model, head "
            "and grid of positions included. Build the model it was saved "
            "from; save_checkpoint writes files that are more flexible."
        )
    model.load_weights(path)


def _check_model(model):
    # By layers: clones and rebuilt models are no instances of CaiT.
    if not {"patch_embedding", "position_embedding"} <= _layer_names(model):
        raise ValueError(
            "Expected a CaiT, or a model with its layers. Received: "
            f"{type(model).__name__} {getattr(model, 'name', '')!r}. Of a "
            "model around a CaiT, pass the CaiT itself."
        )


def _layer_names(model):
    return {layer.name for layer in getattr(model, "layers", ())}


def _grid(model):
    return tuple(model.get_layer("position_embedding").grid_size)
