"""Checkpoints of a run: written whole, restored from the newest intact one."""

import tempfile
from pathlib import Path

import keras
import tensorflow as tf


class Checkpoints:
    """The checkpoints in a run's folder.

    Args:
        state: everything that a run needs to resume exactly.
        folder: folder of the checkpoints, which is created.
        is_chief: whether this process writes for all. The others must take
            part in writing, but write to a folder that is thrown away.
        keep: number of checkpoints to keep, besides the best one.

    Attributes:
        newest: newest intact checkpoint, without the suffixes of its files;
            `None` if there is none.
    """

    def __init__(
        self,
        state: tf.train.Checkpoint,
        folder: str | Path,
        is_chief: bool = True,
        keep: int = 3,
    ):
        self.state = state
        self.folder = Path(folder)
        self.newest: Path | None = None
        target = self.folder
        if not is_chief:
            self.discarded = tempfile.TemporaryDirectory()
            target = Path(self.discarded.name)
        self.manager = tf.train.CheckpointManager(state, target, keep)
        self.best = tf.train.CheckpointManager(state, target / "best", 1)

    def save(self, step: int, is_best: bool = False) -> None:
        """Writes a checkpoint named after its step, the best one twice."""
        self.manager.save(step)
        self.newest = self.folder / f"ckpt-{step}"
        if is_best:
            self.best.save(step)

    def restore(self) -> Path | None:
        """Restores the newest intact checkpoint.

        Returns:
            Its path; `None` if there are no checkpoints.

        Raises:
            ValueError: there are checkpoints, and all of them are damaged.
        """
        # Not by TensorFlow's list of them, which may be damaged itself.
        paths = [path.with_suffix("") for path in self.folder.rglob("*.index")]
        for path in sorted(paths, key=self._age, reverse=True):
            try:
                # TensorFlow compares the checksum of every tensor it reads.
                self.state.restore(path).assert_existing_objects_matched()
            except Exception as error:  # of many kinds
                reason = str(error).partition("\n")[0]
                print(f"Skipping damaged checkpoint {path}: {reason}")
            else:
                self.newest = path
                return path
        if paths:
            raise ValueError(
                f"All checkpoints in {self.folder} are damaged. Delete the "
                "run's folder to start again."
            )
        return None

    def _age(self, path: Path) -> tuple[int, bool]:
        """Sorts checkpoints by step, the best one before its twin."""
        return int(path.name.rpartition("-")[2]), path.parent == self.folder


def restore_raw_weights(model: keras.Model, run: str | Path) -> None:
    """Replaces a trained model's EMA weights by those of the last step.

    Args:
        model: the model of the run.
        run: folder of a finished run.

    Raises:
        ValueError: the folder has no checkpoints.
    """
    # Not by TensorFlow's list of them, which has absolute paths.
    last = max(
        (Path(run) / "checkpoints").glob("*.index"),
        key=lambda file: int(file.stem.rpartition("-")[2]),
        default=None,
    )
    if last is None:
        raise ValueError(
            f"{str(run)!r} has no checkpoints, which hold the raw weights. "
            "Omit --raw to use its EMA weights, or give the folder of a run."
        )
    status = tf.train.Checkpoint(model=model).read(str(last.with_suffix("")))
    status.assert_existing_objects_matched().expect_partial()
