"""What each recipe of quantisation costs and brings on this machine.

    python -m benchmarks.litert --variants XXS24 S24 --output litert.json

Time of one image on one and two threads, size, operations and partitions of
XNNPACK for the file of each recipe, beside timm (eager and compiled) and ONNX
Runtime on timm's exported model, where they are installed, in turns in one run.
The weights are random: accuracy is what `python -m export verify` measures.
"""

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.inference import onnx_runtime_contestant, timm_contestant
from benchmarks.record import show, write
from benchmarks.turns import take_turns

THREADS = (1, 2)


def write_files(variant, folder):
    """A file of each recipe: the size of its pictures, and its facts."""
    import keras_cait
    from export.inference_graph import InferenceModel
    from export.litert import convert
    from export.litert_report import operations
    from export.quantization import RECIPES, quantize

    model = getattr(keras_cait, f"CaiT_{variant}")(weights=None)
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (4, *model.image_shape)).astype("float32")
    float32 = convert(InferenceModel(model))
    facts = {}
    for recipe in RECIPES:
        path = Path(folder, f"{recipe}.tflite")
        path.write_bytes(quantize(float32, recipe, images))
        count, left_out, partitions = operations(path)
        facts[recipe] = {
            "megabytes": path.stat().st_size / 1e6,
            "operations": count,
            "left_out_by_xnnpack": left_out,
            "partitions": partitions,
        }
    return model.image_shape[0], facts


def litert_contestant(variant, folder, recipe, threads):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(f"{folder}/{recipe}.tflite", num_threads=threads)
    runner = interpreter.get_signature_runner()
    ((name, details),) = runner.get_input_details().items()
    image = np.zeros(details["shape"], details["dtype"])
    return lambda: runner(**{name: image})


def timm_in_turn(variant, folder, compiled):
    return timm_contestant(variant, 1, compiled)


def onnx_runtime_in_turn(variant, folder):
    return onnx_runtime_contestant(variant, 1)


def contestants(recipes):
    ours = {
        f"{recipe}, {threads}": (
            "ai_edge_litert",
            partial(litert_contestant, recipe=recipe, threads=threads),
        )
        for recipe in recipes
        for threads in THREADS
    }
    return ours | {
        "timm eager": ("timm", partial(timm_in_turn, compiled=False)),
        "timm compiled": ("timm", partial(timm_in_turn, compiled=True)),
        "ONNX Runtime": ("onnxruntime", onnx_runtime_in_turn),
    }


def rows(facts, results):
    timm = results["timm eager"].get("seconds")
    found = {}
    for recipe, fact in facts.items():
        one, two = (results[f"{recipe}, {n}"]["seconds"] for n in THREADS)
        found[recipe] = {
            "ms, 2 threads": 1e3 * two,
            "ms, 1 thread": 1e3 * one,
            "timm eager = 1": timm and timm / two,
            "MB": fact["megabytes"],
            "operations": fact["operations"],
            "not XNNPACK's": fact["left_out_by_xnnpack"],
            "parts": fact["partitions"],
        }
    for name in ("timm eager", "timm compiled", "ONNX Runtime"):
        seconds = results[name].get("seconds")
        found[name] = {
            "ms, 2 threads": 1e3 * seconds
            if seconds
            else results[name]["error"],
            "timm eager = 1": seconds and timm and timm / seconds,
        }
    return found


def parser():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    arguments.add_argument("--variants", nargs="+", default=["XXS24"])
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--output", type=Path, help="JSON file to write")
    return arguments


def main():
    arguments = parser().parse_args()
    tables = {}
    for variant in arguments.variants:
        with tempfile.TemporaryDirectory() as folder:
            size, facts = write_files(variant, folder)
            results = take_turns(
                contestants(facts), (variant, folder), arguments.rounds
            )
        title = f"CaiT-{variant} at {size}, one image"
        tables[title] = rows(facts, results)
        show(title, tables[title])
    write(tables, arguments.output)


if __name__ == "__main__":
    main()
