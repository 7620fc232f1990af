"""The folder of a served model: numbered versions and their configuration.

models/cait_s24/
  1/, 2/ ...                       SavedModels, never changed
    assets.extra/                  labels and warm-up requests
    manifest.json                  what this version is made of
  models.config                    the served versions and their labels
  batching_parameters.txt, monitoring.config
  compose.yaml, prometheus.yaml    Docker
  kubernetes.yaml, autoscaling.yaml, kserve.yaml
  alerts.yaml, dashboard.json      for Prometheus and Grafana
"""

import json
import math
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

import keras_cait
from export.inference_graph import InferenceModel
from export.model_card import Accuracy
from export.options import (
    LEAST_MEGAPIXELS,
    SERVED_SIGNATURES,
    Precision,
    ServedSignature,
)
from export.saved_model import write_saved_model
from export.serving.configuration import configuration, read_config
from export.serving.manifest import describe_version
from export.serving.memory import server_memory
from export.serving.warmup import write_warmup
from keras_cait.files import folder_path, locked, read_json
from keras_cait.loading import existing_versions
from keras_cait.preprocessing import MAX_MEGAPIXELS

BATCH_SIZES = (1, 2, 4, 8)
PARTS = 2
# Plain words that YAML reads as something else than text.
YAML_WORDS = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")


def write_version(
    model: keras_cait.CaiT,
    labels: Sequence[str],
    output: str | Path,
    top: int = 5,
    precision: Precision = "float32",
    xla: bool = False,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    accuracy: Accuracy | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
    fast_jpeg: bool = False,
    signatures: Sequence[ServedSignature] = SERVED_SIGNATURES,
    strict: bool = False,
    parts: int | None = None,
    check: Callable[[Path], object] = lambda version: None,
) -> Path:
    """Writes the next version of a served model atomically.

    The label `canary` moves to the new version, and the label `stable`, as all
    others, stays where it is. Both start at version 1.

    Args:
        model: the model to serve.
        labels: names of the classes, in order.
        output: the model's folder, whose name is the name of the served model.
        top: int > 0. Number of classes returned per image.
        precision: of weights and matrix products.
        xla: whether XLA compiles the model, once per batch size.
        batch_sizes: ints > 0, to which the server pads its batches.
        accuracy: written to the manifest.
        max_megapixels: the server refuses encoded images of more pixels.
        fast_jpeg: whether the server decodes large JPEGs at a part of their
            size.
        signatures: those to write, as in `export.saved_model`.
        strict: whether a call fails if any of its images is refused; as in
            `write_saved_model`.
        parts: cores that a request keeps busy, one for each part of its
            patches. `None` is 2; with `xla`, which divides the work itself, 1.
        check: called with the path of the finished version before it appears.
            If it raises, nothing is written.

    Returns:
        Path of the new version.

    Raises:
        ValueError: an argument is out of range, or another process is writing
            to the folder.
        OSError: the files cannot be written.

    Example:
    >>> write_version(model, labels, "models/cait_s24")  # doctest: +SKIP
    PosixPath('models/cait_s24/1')
    """
    output = check_output(output)
    batch_sizes = sorted(set(batch_sizes))
    if not batch_sizes or batch_sizes[0] < 1:
        raise ValueError(
            f"Batch sizes must be at least 1. Got {batch_sizes or 'none'}."
        )
    if not LEAST_MEGAPIXELS <= max_megapixels < math.inf:
        raise ValueError(
            f"max_megapixels must be at least {LEAST_MEGAPIXELS}, that of the "
            f"images of the warm-up. Got {max_megapixels}."
        )
    if parts is None:
        parts = 1 if xla else PARTS
    with (
        locked(output),
        tempfile.TemporaryDirectory(
            prefix=f".{output.name}.",
            # On the same disk: the folder may be a link or a mount point.
            dir=output if output.is_dir() else output.parent,
        ) as temporary,
    ):
        unfinished = Path(temporary)
        versions, version_labels = served_versions(output)
        number = next_number(output)
        manifests = [read_manifest(path) for path in versions.values()]
        folder = unfinished / str(number)
        try:
            inference = InferenceModel(model, precision)
            write_saved_model(
                inference,
                labels,
                folder,
                top,
                xla,
                max_megapixels,
                fast_jpeg,
                signatures,
                strict,
                parts,
            )
            size = inference.image_size
            write_warmup(folder, output.name, size, batch_sizes, signatures)
        except tf.errors.OpError as error:
            raise OSError(
                f"Cannot write {str(output)!r}: {error.message}"
            ) from error
        manifest = describe_version(model, folder) | {
            "accuracy": accuracy,
            "precision": precision,
            "xla": xla,
            "top": top,
            "max_megapixels": max_megapixels,
            "fast_jpeg": fast_jpeg,
            "strict": strict,
            "parts": parts,
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
        manifests.append(manifest)
        files = configuration(
            output.name,
            [*versions, number],
            {"stable": number} | version_labels | {"canary": number},
            batch_sizes,
            any(one["xla"] for one in manifests),
            max(one.get("parts", 1) for one in manifests),
            server_memory(manifests, max(batch_sizes)),
        )
        check(folder)
        for name, text in files.items():
            (unfinished / name).write_text(text)
        # The version comes first, then the configuration that names it.
        output.mkdir(exist_ok=True)
        folder.rename(output / str(number))
        for name in files:
            (unfinished / name).replace(output / name)
    return output / str(number)


def check_output(output: str | Path) -> Path:
    """Checks that a version can be written, before work is spent on it.

    Args:
        output: the folder of the served model. Nothing is created.

    Returns:
        The absolute path.

    Raises:
        ValueError: the name cannot be served, the path is not a folder, or
            its `models.config` cannot be continued.
        OSError: there is no permission to write to it.
    """
    output = Path(output).absolute()
    check_served_name(output.name)
    served_versions(folder_path(output))
    return output


def check_served_name(name: str) -> None:
    """Checks that a name suits TensorFlow Serving, YAML and Kubernetes.

    Raises:
        ValueError: it does not; the message states the rule.

    Example:
    >>> check_served_name("cait_s24")
    """
    is_valid = re.fullmatch(r"[A-Za-z]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?", name)
    if not is_valid or name.lower() in YAML_WORDS:
        raise ValueError(
            "The output folder's name is the name of the served model. It "
            "must start with a letter, end with a letter or digit, consist of "
            "letters, digits, _ and -, have at most 63 characters, and must "
            f"not be one of YAML's words ({', '.join(YAML_WORDS)}). Got "
            f"{name!r}."
        )


def served_versions(output: Path) -> tuple[dict[int, Path], dict[str, int]]:
    """The versions to go on serving, and those with labels.

    A version that was removed from `models.config` stays removed.

    Args:
        output: the model's folder.

    Returns:
        Folders by version; and versions by label without `canary`, none before
        the first export.

    Raises:
        ValueError: `models.config` is damaged or serves another model, or a
            version with a label is gone.
    """
    versions = existing_versions(output)
    config = output / "models.config"
    if not config.exists():
        return versions, {}
    listed, labels = read_config(config.read_text(), output.name)
    if listed:
        versions = {n: path for n, path in versions.items() if n in listed}
    labels.pop("canary", None)
    for label, version in labels.items():
        if version in versions:
            continue
        others = ", ".join(map(str, versions))
        instead = f"point {label} to one of {others}" if others else "delete it"
        raise ValueError(
            f"{str(config)!r} has {label} on version {version}, which is gone "
            f"or not in versions. Restore version {version}, or {instead}."
        )
    return versions, labels


def next_number(output: Path) -> int:
    """The number of the next version: after all that are taken."""
    names = (path.name for path in output.glob("*"))
    return max((int(n) for n in names if n.isdecimal()), default=0) + 1


def read_manifest(version: Path) -> dict[str, Any]:
    """The manifest of a version.

    Raises:
        ValueError: it is missing or damaged.
    """
    path = version / "manifest.json"
    try:
        return read_json(path, ["xla"])
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Cannot read {str(path)!r}: {error}. Restore it, or move the "
            "version out of the folder."
        ) from None
