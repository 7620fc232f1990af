"""How much of each exported file each engine runs.

Operations of the graph, and how many of them XNNPACK, LiteRT's GPU engine and
OpenVINO leave out. The engine needs a GPU, or a software driver of Vulkan:

    VK_ICD_FILENAMES=.../vk_swiftshader_icd.json python -m benchmarks.engines
"""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.command import Output, benchmark_app, run
from benchmarks.results import Rows, show, write
from training.recipe import Variant


def rows(model: Any, images: Any, folder: Path) -> Rows:
    """A row for each file of a model.

    Args:
        model: the `CaiT`.
        images: float32 array `(images, height, width, 3)`.
        folder: to which the files are written.
    """
    from export.inference_graph import InferenceModel
    from export.litert import convert
    from export.litert_report import operations
    from export.quantization import SCHEMES, quantize
    from export.saved_model import write_saved_model

    expected = model.predict(images, verbose=0)
    inference = InferenceModel(model)
    float32 = convert(inference)
    found: dict[str, dict[str, float | str]] = {}
    for scheme in SCHEMES:
        path = folder / f"{scheme}.tflite"
        path.write_bytes(quantize(float32, scheme, list(images)))
        count, outside, partitions = operations(path)
        found[f"{scheme}.tflite"] = {
            "operations": count,
            "outside XNNPACK": outside,
            "partitions": partitions,
            **gpu_facts(path, images, expected),
            **openvino_facts(path, images, expected),
        }
    labels = [str(index) for index in range(model.classes)]
    write_saved_model(inference, labels, folder / "1", signatures=["pixels"])
    found["SavedModel of pixels"] = openvino_facts(
        folder / "1", images.astype("uint8"), expected
    )
    return found


def gpu_facts(path: Path, images: Any, expected: Any) -> dict[str, Any]:
    """Operations outside LiteRT's GPU engine, and its largest difference."""
    from export.gpu import run_on_gpu

    run = run_on_gpu(path, images, timeout=1800)
    if run is None:
        return {"outside the GPU": "no GPU"}
    facts: dict[str, Any] = {"outside the GPU": run.left_out}
    if run.scores is not None:
        facts["GPU, difference"] = difference(run.scores, expected)
    return facts


def openvino_facts(path: Path, images: Any, expected: Any) -> dict[str, Any]:
    """Operations of OpenVINO's model, and its largest difference."""
    import numpy as np
    import openvino

    try:
        model = openvino.convert_model(path)
    except openvino.frontend.GeneralFailure:
        return {"OpenVINO": "refused"}
    precision = {"INFERENCE_PRECISION_HINT": "f32"}
    run = openvino.compile_model(model, "CPU", precision)
    probabilities = run.outputs[-1]
    scores = [run(image[None])[probabilities][0] for image in images]
    return {
        "OpenVINO": len(model.get_ops()),
        "OpenVINO, difference": difference(np.array(scores), expected),
    }


def difference(found: Any, expected: Any) -> float:
    """Largest difference, relative to the largest expected value."""
    return float(abs(found - expected).max() / expected.max())


app = benchmark_app("engines", __doc__)


@app.default
def main(
    *, variants: tuple[Variant, ...] = ("XXS24",), output: Output = None
) -> None:
    """Asks the engines for a model that has learned, and for variants.

    Args:
        variants: Models of 224 x 224 pixels, with random weights.
    """
    import numpy as np

    import keras_cait
    from benchmarks.explanations import WEIGHTS, canvases, model

    learned = model()
    keras_cait.load_weights(learned, WEIGHTS)
    digits = canvases("validation", digits=1, count=4, seed=0).images
    models = {"Digits at 84": (learned, digits)}
    for variant in variants:
        shape = (224, 224, 3)
        build = getattr(keras_cait, f"CaiT_{variant}")
        random = build(weights=None, input_shape=shape)
        for weights in random.weights:
            if "layer_scale" in weights.path:  # no block is without effect
                weights.assign(np.ones(weights.shape))
        noise = np.random.default_rng(0).integers(0, 256, (1, *shape))
        models[f"CaiT-{variant} at 224"] = (random, noise)
    tables = {}
    for title, (one, images) in models.items():
        with tempfile.TemporaryDirectory() as folder:
            tables[title] = rows(one, images.astype("float32"), Path(folder))
        show(title, tables[title])
    write(tables, output)


if __name__ == "__main__":
    run(app)
