"""A model's folder for TF Serving: numbered versions and their configuration.

models/cait_s24/
  1/, 2/ ...                       SavedModels, never written again
    assets.extra/                  labels and warm-up requests
    manifest.json                  what this version is made of
  models.config                    the versions that are served, labelled
  batching_parameters.txt, monitoring.config, prometheus.yaml,
  compose.yaml, kubernetes.yaml
"""

import json
import re
import shutil
from pathlib import Path

import tensorflow as tf

from export.inference_graph import InferenceModel
from export.saved_model import write_saved_model
from export.serving.configuration import serving_files, stable_version
from export.serving.manifest import describe
from export.serving.warmup import write_warmup

BATCH_SIZES = (1, 2, 4, 8)


def write_version(
    model,
    labels,
    output,
    top=5,
    precision="float32",
    xla=False,
    batch_sizes=BATCH_SIZES,
    accuracy=None,
    check=lambda version: None,
):
    """Writes the next version of a served model, whole or not at all.

    The label `stable` stays at the version it points to, `canary` moves to the
    new one; at the first version both are 1.

    Args:
        model: `CaiT`.
        labels: list of str, by class.
        output: path of the model's folder; its name is the model's name.
        top: int > 0. How many classes the answer to a picture holds.
        precision: `"float32"` or `"bfloat16"`.
        xla: bool. Whether XLA compiles the model, once for each batch size.
        batch_sizes: ints > 0, to which the server pads its batches.
        accuracy: what the manifest says of it, as of
            `export.model_card.measured_accuracy`.
        check: function of the path of the finished version, called before it
            appears; when it raises, nothing is written.

    Returns:
        Path of the new version.

    Raises:
        ValueError: an argument is out of its range, or two do not fit.
        OSError: the files cannot be written.

    Example:
    >>> write_version(model, labels, "models/cait_s24")  # doctest: +SKIP
    PosixPath('models/cait_s24/1')
    """
    output = Path(output)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", output.name):
        raise ValueError(
            "The folder's name is the name of the served model: letters, "
            f"digits, _ and -. Received: {output.name!r}."
        )
    batch_sizes = sorted(set(batch_sizes))
    if batch_sizes[0] < 1:
        raise ValueError(
            f"Batch sizes must be at least 1. Received: {batch_sizes}."
        )
    versions = existing_versions(output)
    version = max(versions, default=0) + 1
    config = output / "models.config"
    stable = stable_version(config.read_text()) if config.exists() else version

    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f".{output.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    folder = unfinished / str(version)
    folder.parent.mkdir()
    try:
        inference = InferenceModel(model, precision)
        write_saved_model(inference, labels, folder, top, xla)
        write_warmup(folder, output.name, model.image_shape[:2], batch_sizes)
        notes = {
            "accuracy": accuracy,
            "precision": precision,
            "xla": xla,
            "top": top,
        }
        manifest = describe(model, folder) | notes
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
        files = serving_files(
            output.name,
            [*versions, version],
            stable,
            batch_sizes,
            xla or any(needs_xla(output / str(one)) for one in versions),
        )
        for name, text in files.items():
            (unfinished / name).write_text(text)
        check(folder)
        if output.exists():
            folder.rename(output / folder.name)
            for name in files:
                (unfinished / name).replace(output / name)
        else:
            unfinished.rename(output)
    except tf.errors.OpError as error:
        raise OSError(f"Could not write {output}: {error.message}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return output / folder.name


def existing_versions(output):
    """The versions in a model's folder, from the oldest to the newest."""
    folders = Path(output).glob("*/saved_model.pb")
    names = [file.parent.name for file in folders]
    return sorted(int(name) for name in names if name.isdecimal())


def needs_xla(folder):
    """Whether a version was exported for XLA."""
    return json.loads((folder / "manifest.json").read_text())["xla"]
