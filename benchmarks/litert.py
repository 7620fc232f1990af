"""LiteRT: latency and size of one image in each quantization scheme.

Baselines are timm (eager and compiled) and ONNX Runtime with timm's exported
model. The weights are random; `python -m export verify` measures accuracy, and
`benchmarks/engines.py` counts operations.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.command import Output, Rounds, benchmark_app, run
from benchmarks.inference import (
    Case,
    Run,
    onnx_runtime_runner,
    timm_runner,
)
from benchmarks.interleave import Runner, Timing, interleave, relative
from benchmarks.results import Rows, show, write
from training.recipe import Variant

THREADS = (1, 2)


def write_files(
    variant: str, folder: str
) -> tuple[int, dict[str, dict[str, Any]]]:
    """Writes a file in each scheme; returns the image size and file facts."""
    import numpy as np

    import keras_cait
    from export.inference_graph import InferenceModel
    from export.litert import convert
    from export.quantization import SCHEMES, quantize

    model = getattr(keras_cait, f"CaiT_{variant}")(weights=None)
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (4, *model.image_shape)).astype("float32")
    float32 = convert(InferenceModel(model))
    facts = {}
    for scheme in SCHEMES:
        path = Path(folder, f"{scheme}.tflite")
        path.write_bytes(quantize(float32, scheme, list(images)))
        facts[scheme] = {"MB": path.stat().st_size / 1e6}
    return model.image_shape[0], facts


def litert_runner(case: Case, scheme: str, threads: int) -> Run:
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(
        f"{case.folder}/{scheme}.tflite", num_threads=threads
    )
    runner = interpreter.get_signature_runner()
    ((name, details),) = runner.get_input_details().items()
    image = np.zeros(details["shape"], details["dtype"])
    return lambda: runner(**{name: image})


BASELINES: dict[str, Runner] = {
    "timm eager": ("timm", partial(timm_runner, compiled=False)),
    "timm compiled": ("timm", partial(timm_runner, compiled=True)),
    "ONNX Runtime": ("onnxruntime", onnx_runtime_runner),
}


def milliseconds(seconds: float) -> float:
    return 1e3 * seconds


def rows(
    facts: dict[str, dict[str, Any]], timings: dict[str, Timing | str]
) -> Rows:
    """Milliseconds per image, and the facts of each file."""
    timm = timings["timm eager"]
    found = {}
    for scheme, file_facts in facts.items():
        one, two = (timings[f"{scheme}, {count}"] for count in THREADS)
        if isinstance(one, str) or isinstance(two, str):
            found[scheme] = {"ms, 2 threads": str(two), **file_facts}
            continue
        found[scheme] = {
            **two.columns("ms, 2 threads", milliseconds),
            "ms, 1 thread": milliseconds(one.median),
            "timm eager = 1": relative(timm, two),
            **file_facts,
        }
    for name in BASELINES:
        timing = timings[name]
        if isinstance(timing, str):
            found[name] = {"ms, 2 threads": timing}
        else:
            found[name] = {
                **timing.columns("ms, 2 threads", milliseconds),
                "timm eager = 1": relative(timm, timing),
            }
    return found


app = benchmark_app("litert", __doc__)


@app.default
def main(
    *,
    variants: tuple[Variant, ...] = ("XXS24",),
    rounds: Rounds = 7,
    output: Output = None,
) -> None:
    """Times a .tflite file of each scheme on one and two threads.

    Args:
        variants: Models to time, such as XXS24 S24.
    """
    tables = {}
    for variant in variants:
        with tempfile.TemporaryDirectory() as folder:
            size, facts = write_files(variant, folder)
            runners = {
                f"{scheme}, {threads}": (
                    "ai_edge_litert",
                    partial(litert_runner, scheme=scheme, threads=threads),
                )
                for scheme in facts
                for threads in THREADS
            }
            case = Case(variant, size, 1, folder)
            timings = interleave(runners | BASELINES, (case,), rounds)
        title = f"CaiT-{variant} at {size}, one image"
        tables[title] = rows(facts, timings)
        show(title, tables[title])
    write(tables, output, rounds)


if __name__ == "__main__":
    run(app)
