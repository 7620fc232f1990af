"""Startup: time to import, to build a model, and from an image to its labels.

Each measurement is a process of its own. The command and timm's script read
the same image and weights file of S24; their times include the start of Python.
"""

import subprocess
import sys
import tempfile

from benchmarks.command import Output, Rounds, benchmark_app, run
from benchmarks.interleave import Timing
from benchmarks.results import Rows, show, write

BUILD_AND_CLASSIFY = """
import resource, time, numpy as np, keras, keras_cait
start = time.perf_counter()
model = keras_cait.CaiT_{variant}(weights=None)
built = time.perf_counter() - start
model(np.zeros((1, *model.input.shape[1:]), "float32"))
print(built, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
BUILD_FROM_FILE = """
import resource, time, keras, keras_cait
start = time.perf_counter()
keras_cait.CaiT_S24(weights={path!r})
built = time.perf_counter() - start
print(built, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
IMPORT = """
import keras, time
start = time.perf_counter()
import keras_cait
print(time.perf_counter() - start, 0)
"""
COMMAND = """
import resource, subprocess, time
start = time.perf_counter()
subprocess.run({command!r}, check=True, capture_output=True)
seconds = time.perf_counter() - start
print(seconds, 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
TIMM = """
import sys, timm, torch
from PIL import Image

path, file = sys.argv[1:]
model = timm.create_model("cait_s24_224", checkpoint_path=path).eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
image = transform(Image.open(file).convert("RGB"))
with torch.inference_mode():
    scores, indices = model(image[None]).softmax(-1)[0].topk(5)
labels = timm.data.ImageNetInfo()
for score, index in zip(scores.tolist(), indices.tolist()):
    print(f"{score:6.1%} {labels.index_to_description(index)}")
"""


def image_to_labels(
    path: str, image: str, python: str, timm_python: str
) -> dict[str, str]:
    """The command and timm's script, each with its Python."""
    commands = {
        "python -m keras_cait": [
            *(python, "-m", "keras_cait"),
            *(image, "--model", path),
        ],
        "timm's script": [timm_python, "-c", TIMM, path, image],
    }
    return {
        f"image to labels: {name}": COMMAND.format(command=command)
        for name, command in commands.items()
    }


def measure(programs: dict[str, str], rounds: int) -> dict[str, Timing]:
    """The seconds and bytes that programs print, in interleaved rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    peaks: dict[str, int] = {}
    for _ in range(rounds):
        for name, program in programs.items():
            printed = subprocess.run(
                [sys.executable, "-c", program],
                capture_output=True,
                check=True,
                text=True,
            ).stdout.split()
            seconds[name].append(float(printed[-2]))
            peaks[name] = int(printed[-1])
    return {
        name: Timing(tuple(seconds[name]), peaks[name]) for name in programs
    }


def rows(timings: dict[str, Timing]) -> Rows:
    """Seconds and peak memory."""
    return {
        name: {
            **timing.columns("seconds", lambda s: s),
            "peak MB": timing.peak_bytes / 1e6 or None,
        }
        for name, timing in timings.items()
    }


app = benchmark_app("startup", __doc__)


@app.default
def main(
    *,
    python: str = sys.executable,
    timm_python: str = sys.executable,
    rounds: Rounds = 5,
    output: Output = None,
) -> None:
    """Times the import of keras_cait, its models, and the command.

    Args:
        python: For the command. TensorFlow and Keras also import JAX and
            scikit-learn where they are installed: an environment of
            keras-cait alone starts as it does for its users.
        timm_python: For timm's script.
    """
    import numpy as np
    from PIL import Image

    import keras_cait

    programs = {"import keras_cait, after keras": IMPORT} | {
        f"build {variant}, classify one image": BUILD_AND_CLASSIFY.format(
            variant=variant
        )
        for variant in ("S24", "M48")
    }
    title = "Import, build and classify"
    with tempfile.TemporaryDirectory() as folder:
        path, image = f"{folder}/S24.safetensors", f"{folder}/image.jpg"
        keras_cait.save_weights(keras_cait.CaiT_S24(weights=None), path)
        Image.fromarray(np.full((375, 500, 3), 128, "uint8")).save(image)
        programs["build S24 from a file"] = BUILD_FROM_FILE.format(path=path)
        programs |= image_to_labels(path, image, python, timm_python)
        tables = {title: rows(measure(programs, rounds))}
    show(title, tables[title])
    write(tables, output, rounds)


if __name__ == "__main__":
    run(app)
