"""The configuration of stock TF Serving around the versions of one model."""

import re
from pathlib import Path
from string import Template

import tensorflow as tf

TEMPLATES = Path(__file__).parent / "templates"


def serving_files(name, versions, stable, batch_sizes, xla):
    """The texts of the configuration files.

    Args:
        name: str. Name of the model: the folder of its versions.
        versions: list of ints, all that are to be served.
        stable: int. The version of the label `stable`; `canary` is the newest.
        batch_sizes: list of ints, the sizes to which batches are padded.
        xla: bool. Whether any version needs XLA, which the server has turned
            off unless it is told otherwise.

    Returns:
        dict of file name to text.

    Example:
    >>> files = serving_files("cait", [2, 3], 2, [1, 8], xla=False)
    >>> "value: 2" in files["models.config"]
    True
    """
    values = {
        "model": name,
        "resource": name.lower().replace("_", "-"),  # as Kubernetes has it
        "versions": " ".join(f"versions: {version}" for version in versions),
        "stable": stable,
        "canary": max(versions),
        "max_batch_size": max(batch_sizes),
        "allowed_batch_sizes": "\n".join(
            f"allowed_batch_sizes: {size}" for size in sorted(batch_sizes)
        ),
        "xla": str(xla).lower(),
        "tensorflow": tf.__version__,
    }
    return {
        file.name: Template(file.read_text()).substitute(values)
        for file in sorted(TEMPLATES.iterdir())
    }


def stable_version(models_config):
    """The version that the label `stable` points to in a `models.config`."""
    return int(re.search(r'"stable" value: (\d+)', models_config)[1])
