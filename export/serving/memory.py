"""Memory that a server needs for its versions, derived from their manifests.

Rounded up from measurements of XXS24 and S24 at 224 and 448 pixels: a process
with TensorFlow took less than 1 GiB, a loaded version 1.1 times its variables
and 220 MB, and each image of a running batch less than
`_image_bytes`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keras_cait.preprocessing import MAX_MEGAPIXELS, decoding_memory

MIB = 1 << 20
PROCESS = 1024 * MIB
GRAPH = 256 * MIB
# Batches that run at the same time; `batching_parameters.txt` has the same.
BATCH_THREADS = 2
FLOAT32 = 4


@dataclass(frozen=True)
class Memory:
    """Memory of a server in MiB.

    Attributes:
        request: for all versions and their running batches.
        limit: also for the largest accepted image in every running batch.
    """

    request: int
    limit: int


def server_memory(
    manifests: Sequence[dict[str, Any]], batch_size: int
) -> Memory:
    """Memory that a server needs.

    Args:
        manifests: contents of `manifest.json` of all served versions.
        batch_size: largest batch.

    Example:
    >>> manifest = {
    ...     "max_megapixels": 50,
    ...     "bytes": {"variables/variables.data-00000-of-00001": 48_000_000},
    ...     "heads": 4,
    ...     "width": 192,
    ...     "patches": 196,
    ... }
    >>> server_memory([manifest], batch_size=8)
    Memory(request=1446, limit=2686)
    """
    versions = sum(GRAPH + 2 * _variable_bytes(one) for one in manifests)
    batches = BATCH_THREADS * batch_size
    activations = batches * max(map(_image_bytes, manifests))
    request = PROCESS + versions + activations
    megapixels = max(
        one.get("max_megapixels", MAX_MEGAPIXELS) for one in manifests
    )
    # The images of a batch share the limit: large ones are decoded in turn.
    decoding = BATCH_THREADS * decoding_memory(megapixels)
    return Memory(_mib(request), _mib(request + decoding))


def _variable_bytes(manifest: dict[str, Any]) -> int:
    """Bytes of a version's weights."""
    return sum(
        size
        for name, size in manifest["bytes"].items()
        if name.startswith("variables/")
    )


def _image_bytes(manifest: dict[str, Any]) -> int:
    """Bytes of activations per image: attention scores and hidden layers."""
    if "width" in manifest:
        heads, width = manifest["heads"], manifest["width"]
        patches = manifest["patches"]
    else:  # written before versions had a choice of signatures
        found = manifest["signatures"]
        maps = found["attention"]["outputs"]["attention"]["shape"]
        *_, heads, rows, columns = maps
        _, width = found["embedding"]["outputs"]["embedding"]["shape"]
        patches = rows * columns
    return FLOAT32 * (4 * heads * patches**2 + 16 * patches * width)


def _mib(size: float) -> int:
    return -int(-size // MIB)
