"""Downloads pretrained weights from the Hugging Face hub and verifies them."""

import logging
import re
from pathlib import Path

from keras_cait.files import sha256
from keras_cait.pretrained import PretrainedWeights

logger = logging.getLogger(__name__)


def fetch(row: PretrainedWeights) -> Path:
    """Downloads pretrained weights, or finds them in the hub's cache.

    What is in the cache is taken without asking the hub. The client is
    `huggingface_hub`. Its environment variables apply: `HF_HOME` is the
    location of the cache, `HF_ENDPOINT` is the address of the hub, and
    `HF_HUB_OFFLINE=1` forbids network access.

    Args:
        row: row of `PRETRAINED`.

    Returns:
        Path of the file, whose SHA-256 is verified.

    Raises:
        OSError: the file is not in the cache and cannot be downloaded.
        ValueError: the file has another SHA-256 than published.

    Example:
    >>> fetch(PRETRAINED["S24", 224])  # doctest: +SKIP
    """
    # Imported here to keep `import keras_cait` fast.
    from huggingface_hub import (
        constants,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )
    from huggingface_hub.utils import logging as client_logging

    address = hf_hub_url(row.repository, row.file)
    verbosity = client_logging.get_verbosity()
    # By default, the client would bury the one error below under a warning for
    # each attempt. A user who sets HF_HUB_VERBOSITY still sees all of them.
    if verbosity == logging.WARNING:
        client_logging.set_verbosity_error()
    try:
        path = try_to_load_from_cache(row.repository, row.file)
        if not isinstance(path, str):
            path = hf_hub_download(
                row.repository, row.file, library_name="keras-cait"
            )
    # The client passes on the errors of all its libraries: sockets, TLS, HTTP,
    # disk. None of their tracebacks would help.
    except Exception as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise OSError(
            f"Could not download {row.file} of {row.repository} from {address} "
            f"({reason.rstrip('.')}), and {constants.HF_HUB_CACHE} has no "
            "usable copy. Try again with a network connection and enough disk "
            "space; set HF_HOME to a folder with space or with a copied cache; "
            "unset HF_HUB_OFFLINE if it is set; set HF_ENDPOINT to a mirror; "
            "or download the file yourself and pass "
            f"weights='path/to/{row.file}'. weights=None needs no file."
        ) from None
    finally:
        client_logging.set_verbosity(verbosity)
    _verify(Path(path), row, address)
    return Path(path)


def _verify(path: Path, row: PretrainedWeights, address: str) -> None:
    """Raises ValueError if a file is not the published one.

    The cache names a large file by the SHA-256 that the hub has on record and
    links to it, so the record is known offline as well.
    """
    expected = row.sha256 or (path.readlink().name if path.is_symlink() else "")
    if not re.fullmatch("[0-9a-f]{64}", expected):
        logger.warning(
            "%s is not verified: the cache has no SHA-256 on record.", path
        )
        return
    digest = sha256(path)
    if digest != expected:
        raise ValueError(
            f"{str(path)!r} is not the file published at {address}: its "
            f"SHA-256 is {digest}, expected {expected}. It was altered or cut "
            f"off. Delete {str(path.resolve())!r} and load again."
        )
