"""Reads the `.safetensors` files of `save_weights` and timm."""

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_cait.file_tensors import FileTensor, map_file, unwrapped

# safetensors dtype | NumPy dtype
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bfloat16"}


def read_safetensors(
    path: Path,
) -> tuple[dict[str, FileTensor], tuple[int, int] | None]:
    """Reads the named tensors of a `.safetensors` file.

    Args:
        path: path of the file.

    Returns:
        The tensors by name, as in `read_pth`; their values stay in the file
        until `np.asarray` reads them. And the grid of the positions, if the
        file has it.

    Raises:
        ValueError: the file is damaged or of another kind, or holds other
            dtypes than a CaiT.

    Example:
    >>> tensors, grid = read_safetensors(  # doctest: +SKIP
    ...     Path("model.safetensors")
    ... )
    """
    from safetensors import SafetensorError, safe_open

    # `safe_open` validates the file. Reading with it would copy every tensor
    # once more, which takes as long as everything else.
    try:
        with safe_open(path, "numpy"):
            mapping = map_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"It is not a .safetensors file, or is damaged ({error})."
        ) from None
    start = 8 + int.from_bytes(mapping[:8], "little")
    header = json.loads(mapping[8:start])
    notes = header.pop("__metadata__", None) or {}
    grid = re.fullmatch(r"(\d+)x(\d+)", notes.get("grid_size", ""))
    unknown = {entry["dtype"] for entry in header.values()} - DTYPES.keys()
    if unknown:
        raise ValueError(
            f"It holds tensors of {', '.join(sorted(unknown))}. Expected "
            f"{', '.join(DTYPES)}."
        )
    tensors = {
        unwrapped(name): FileTensor(
            mapping,
            start + entry["data_offsets"][0],
            tuple(entry["shape"]),
            DTYPES[entry["dtype"]],
        )
        for name, entry in header.items()
    }
    if "crc32" in notes and notes["crc32"] != checksum(tensors):
        raise ValueError("It is damaged: its checksum is wrong.")
    return tensors, grid and (int(grid[1]), int(grid[2]))


def checksum(tensors: Mapping[str, Any]) -> str:
    """CRC-32 of the values of all tensors, in the order of their names.

    The format has no checksum of its own. `save_weights` stores this one in
    the metadata of the file.

    Example:
    >>> checksum({"gamma": np.ones(3, "float32")})
    'dc7c4e94'
    """
    crc = 0
    for _, tensor in sorted(tensors.items()):
        values = np.asarray(tensor).reshape(-1).view("uint8")
        crc = zlib.crc32(values.data, crc)
    return f"{crc:08x}"
