"""Configuration files of TensorFlow Serving for the versions of one model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from export.serving.memory import BATCH_THREADS, Memory

TEMPLATES = Path(__file__).parent / "templates"
# Its image is known to exist: the newest that tensorflow/serving announced.
SERVER = "2.20.0"
LEAST_CPUS = 4  # that one server may use


def configuration(
    name: str,
    versions: Sequence[int],
    labels: Mapping[str, int],
    batch_sizes: Sequence[int],
    xla: bool,
    parts: int,
    memory: Memory,
) -> dict[str, str]:
    """Fills the templates.

    Args:
        name: name of the served model, which is also its folder's.
        versions: all versions to serve.
        labels: versions by their labels, `stable` among them.
        batch_sizes: sizes to which the server pads its batches.
        xla: whether any version needs XLA, which the server disables by
            default. Only its code is faster with more threads per operation.
        parts: the most cores that a request of any version keeps busy.
        memory: memory of the server.

    Returns:
        Texts by file name.

    Example:
    >>> memory = Memory(request=1500, limit=12000)
    >>> labels = {"stable": 2, "canary": 3}
    >>> files = configuration("cait", [2, 3], labels, [1, 8], False, 2, memory)
    >>> "value: 2" in files["models.config"]
    True
    """
    values = {
        "model": name,
        # Kubernetes allows neither capitals nor underscores.
        "resource": name.lower().replace("_", "-"),
        "versions": " ".join(f"versions: {version}" for version in versions),
        "labels": "\n    ".join(
            f"version_labels {{ key: {json.dumps(label)} value: {version} }}"
            for label, version in labels.items()
        ),
        "max_batch_size": max(batch_sizes),
        "batch_threads": BATCH_THREADS,
        "allowed_batch_sizes": "\n".join(
            f"allowed_batch_sizes: {size}" for size in sorted(batch_sizes)
        ),
        "xla": str(xla).lower(),
        "server": SERVER,
        "intra_op": 0 if xla else 1,  # 0 is one for each core
        "cpus": max(LEAST_CPUS, BATCH_THREADS * parts),
        "memory_request": memory.request,
        "memory_limit": memory.limit,
    }
    return {
        file.name: Template(file.read_text()).substitute(values)
        for file in sorted(TEMPLATES.iterdir())
    }


def read_config(
    models_config: str, name: str
) -> tuple[list[int], dict[str, int]]:
    """The versions in a `models.config`, and those with labels by the label.

    The versions are empty if the policy names none, such as `latest`.

    Args:
        models_config: the text.
        name: name of the served model.

    Raises:
        ValueError: the text is not valid, serves another model, or no version
            has the label `stable`.

    Example:
    >>> memory = Memory(request=1500, limit=12000)
    >>> labels = {"stable": 2, "canary": 3}
    >>> files = configuration("cait", [2, 3], labels, [1, 8], False, 2, memory)
    >>> read_config(files["models.config"], "cait")
    ([2, 3], {'canary': 3, 'stable': 2})
    """
    try:
        config = text_format.Parse(models_config, ModelServerConfig())
    except text_format.ParseError as error:
        raise ValueError(
            f"Cannot read models.config, line:column {str(error).rstrip('.')}. "
            "Fix this line."
        ) from None
    models = config.model_config_list.config
    others = [repr(model.name) for model in models if model.name != name]
    if others:  # clients would no longer find them
        raise ValueError(
            f"models.config serves {', '.join(others)}, but an export serves "
            f"only {name!r}, the name of its folder. Give the folder by the "
            "name of the model, or change models.config."
        )
    for model in models:
        if "stable" in model.version_labels:
            policy = model.model_version_policy
            labels = sorted(model.version_labels.items())
            return [*policy.specific.versions], dict(labels)
    raise ValueError(
        "models.config has no version with the label stable. Restore the "
        'line: version_labels { key: "stable" value: VERSION }'
    )
