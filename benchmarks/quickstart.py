"""Quickstart: accuracy of the quickstart's model in every export format.

Run it after `make quickstart`. The columns of the GPU need one, or a software
driver of Vulkan, as `python -m benchmarks.engines` does.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import Output, benchmark_app, run
from benchmarks.results import Rows, write

SCHEMES = (
    *("float32", "float16", "dynamic-int8", "static-int8"),
    "static-int8-int16",
)
TANH = ("float32", "dynamic-int8")  # also with --gelu tanh


def command(*words: object) -> None:
    """Runs a program of the project, with its output on the terminal."""
    subprocess.run([sys.executable, "-m", *map(str, words)], check=True)


def export_files(model: Path, folder: Path) -> list[Path]:
    """Exports the model in every format; returns the .tflite files."""
    command(
        *("export", "saved-model", "--model", model),
        *("--output", folder / "digits"),
    )
    litert = ("export", "litert", "--model", model)
    for name, options in (
        ("erf", ["--scheme", *SCHEMES, "--calibration", "digits"]),
        ("tanh", ["--scheme", *TANH, "--gelu", "tanh"]),
    ):
        command(*litert, "--output", folder / name, *options)
    return [
        *(folder / "erf" / f"{name}.tflite" for name in SCHEMES),
        *(folder / "tanh" / f"{name}.tflite" for name in TANH),
    ]


def evaluate(sources: Sequence[Path], folder: Path) -> dict[Path, Any]:
    """Evaluates models on the validation digits with training.evaluate."""
    found = {}
    for number, source in enumerate(sources):
        output = folder / f"evaluation-{number}"
        command(
            *("training.evaluate", "--model", source),
            *("--data", "digits", "--output", output),
        )
        (result,) = output.glob("*.json")
        found[source] = json.loads(result.read_text())
    return found


def format_rows(results: dict[str, Any]) -> Rows:
    """Accuracy and calibration of each format."""
    return {
        name: {
            "top1": result["top1"],
            "top5": result["top5"],
            "ece": result["ece"],
            "images": result["images"],
        }
        for name, result in results.items()
    }


def scheme_rows(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> Rows:
    """What verify measured of the .tflite files."""
    keys = ("top1", "top5", "agreement", "max_difference", "megabytes")
    return {
        name: {
            **{key: row[key] for key in keys},
            **(engine_facts(row["litert"]) if row["litert"] else {}),
        }
        for name, row in zip(names, rows, strict=True)
    }


def engine_facts(litert: dict[str, Any]) -> dict[str, Any]:
    """What XNNPACK and, where there is a GPU, LiteRT's engine for it take."""
    facts = {
        key: litert[key] for key in ("operations", "left_out", "partitions")
    }
    if litert["gpu"]:
        facts["gpu_left_out"] = litert["gpu"]["left_out"]
        facts["gpu_difference"] = litert["gpu"]["max_difference"]
    return facts


def block_rows(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> Rows:
    """Signal-to-noise ratio in dB after each block, per file."""
    found: dict[str, dict[str, float]] = {}
    for name, row in zip(names, rows, strict=True):
        if row["litert"]:
            for block, difference in row["litert"]["blocks"].items():
                found.setdefault(block, {})[name] = difference["snr"]
    return found


app = benchmark_app("quickstart", __doc__)


@app.default
def main(
    *, model: Path = Path("runs/quickstart"), output: Output = None
) -> None:
    """Exports the model in every format and evaluates each file.

    Args:
        model: Run folder of the quickstart.
    """
    import keras_cait
    from keras_cait.loading import load_model

    trained = load_model(model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = export_files(model, folder)
        weights = folder / "model.safetensors"
        keras_cait.save_weights(trained, weights)
        formats = {
            "run folder": model,
            "`.keras`": model / "model.keras",
            "`.safetensors`": weights,
            "SavedModel": folder / "digits",
            "`.tflite`, `float32`": files[0],
            "`.tflite`, `dynamic-int8`": files[2],
        }
        found = evaluate(list(formats.values()), folder)
        report = folder / "verify.json"
        command(
            *("export", "verify", folder / "digits", *files),
            *("--model", model, "--data", f"folder:{model}"),
            *("--output", report),
        )
        rows = json.loads(report.read_text())
    names = [
        *("Keras model", "SavedModel"),
        *(f"`{scheme}`" for scheme in SCHEMES),
        *(f"`{scheme}`, `--gelu tanh`" for scheme in TANH),
    ]
    tables = {
        "formats": format_rows(
            {title: found[path] for title, path in formats.items()}
        ),
        "schemes": scheme_rows(rows, names),
        "blocks": block_rows(rows, names),
    }
    write(tables, output)


if __name__ == "__main__":
    run(app)
