"""Latency: time for one image, for each published model."""

from benchmarks.command import Output, Rounds, benchmark_app, run
from benchmarks.inference import Run
from benchmarks.interleave import Timing, interleave
from benchmarks.results import Rows, show, write


def keras_cait_runner(variant: str, image_size: int) -> Run:

    import tensorflow as tf

    import keras_cait

    model = getattr(keras_cait, f"CaiT_{variant}")(
        weights=None, input_shape=(image_size, image_size, 3)
    )
    images = tf.random.uniform((1, image_size, image_size, 3), maxval=255.0)
    step = tf.function(
        lambda images: model(images, training=False), jit_compile=True
    )
    return lambda: step(images).numpy()


def row(timing: Timing | str) -> dict[str, float | str]:
    """Milliseconds and peak memory."""
    if isinstance(timing, str):
        return {"ms": timing}
    return {
        **timing.columns("ms", lambda s: 1e3 * s),
        "peak MB": timing.peak_bytes / 1e6,
    }


app = benchmark_app("latency", __doc__)


@app.default
def main(*, rounds: Rounds = 5, output: Output = None) -> None:
    """Times the published models with XLA in float32, from pixels to scores.

    One model at a time: the largest ones need gigabytes.
    """
    from keras_cait import PRETRAINED

    rows: dict[str, dict[str, float | str]] = {}
    for variant, size in PRETRAINED:
        runner = {"model": ("tensorflow", keras_cait_runner)}
        timing = interleave(runner, (variant, size), rounds)["model"]
        rows[f"CaiT-{variant} at {size}"] = row(timing)
        print(variant, size, rows[f"CaiT-{variant} at {size}"], flush=True)
    tables: dict[str, Rows] = {"One image in float32": rows}
    show("One image in float32", rows)
    write(tables, output, rounds)


if __name__ == "__main__":
    run(app)
