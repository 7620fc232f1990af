"""Checkpoints: how long writing one pauses a run, and how long it takes.

*In the loop*, TensorFlow writes the state of model, EMA and AdamW while the run
waits, and writes it again if it is also the best. *In the background*, the run
waits for a copy in host memory alone. Where the variables are in host memory,
too, the next step copies them as it changes them; that time is included.
"""

import tempfile
import time
from pathlib import Path

from benchmarks.command import Output, Rounds, benchmark_app, run
from benchmarks.interleave import Timing
from benchmarks.results import Rows, show, write

VARIANTS = ("XXS24", "M24")


def measure(variant: str, rounds: int) -> tuple[float, Rows]:
    """Gigabytes of a checkpoint, and seconds of the ways to write it."""
    import numpy as np

    from benchmarks.training import make_trainer
    from training.loop.checkpoints import Checkpoints, read
    from training.recipes import RECIPES

    state = make_trainer(RECIPES[f"{variant.lower()}-224"].resolved()).state
    held: dict[str, list[float]] = {}
    written: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        Checkpoints(state, folder, keep=1) as checkpoints,
    ):
        for step in range(rounds):
            for name, is_best in (("", False), (", also the best", True)):
                start = time.perf_counter()
                for _ in range(1 + is_best):
                    state.write(f"{folder}/in-the-loop")
                seconds = time.perf_counter() - start
                held.setdefault(f"in the loop{name}", []).append(seconds)
                written.setdefault(f"in the loop{name}", []).append(seconds)

                start = time.perf_counter()
                for value in read(state).values():
                    np.array(value.numpy())
                copied = time.perf_counter() - start
                start = time.perf_counter()
                checkpoints.save(step, is_best)
                saved = time.perf_counter() - start
                checkpoints.wait()
                seconds = time.perf_counter() - start
                background = f"in the background{name}"
                held.setdefault(background, []).append(saved + copied)
                written.setdefault(background, []).append(seconds)
        size = sum(
            file.stat().st_size for file in Path(folder).glob("in-the-loop.*")
        )
    return size / 1e9, {
        name: {
            **Timing(tuple(held[name])).columns("seconds held", lambda s: s),
            "in all": Timing(tuple(written[name])).median,
        }
        for name in held
    }


app = benchmark_app("checkpoints", __doc__)


@app.default
def main(*, rounds: Rounds = 5, output: Output = None) -> None:
    """Times checkpoints of XXS24 and M24."""
    tables = {}
    for variant in VARIANTS:
        size, rows = measure(variant, rounds)
        title = f"A checkpoint of {variant}, {size:.1f} GB"
        show(title, rows)
        tables[title] = rows
    write(tables, output, rounds)


if __name__ == "__main__":
    run(app)
