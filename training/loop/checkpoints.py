"""Checkpoints of a run: written whole, and the newest good one is taken."""

import tempfile
from pathlib import Path

import tensorflow as tf


class Checkpoints:
    """The checkpoints in a run's folder.

    Args:
        state: `tf.train.Checkpoint` of all that makes a run go on exactly.
        folder: path; it is made.
        is_chief: bool. Whether this process writes for all; the others take
            part in writing, as they must, but to a folder that is thrown away.
        keep: int. Number of checkpoints to keep, besides the best.

    Attributes:
        newest: path of the newest good checkpoint, without the endings of its
            files; `None` without one.
    """

    def __init__(self, state, folder, is_chief=True, keep=3):
        self.state = state
        self.folder = Path(folder)
        self.newest = None
        target = folder
        if not is_chief:
            self.others = tempfile.TemporaryDirectory()
            target = self.others.name
        self.manager, self.best = (
            tf.train.CheckpointManager(state, path, max_to_keep=count)
            for path, count in ((target, keep), (Path(target) / "best", 1))
        )

    def save(self, step, is_best=False):
        """Writes a checkpoint named after a step, the best one also apart."""
        self.manager.save(step)
        self.newest = self.folder / f"ckpt-{step}"
        if is_best:
            self.best.save(step)

    def restore(self):
        """Goes back to the newest checkpoint that is whole.

        Returns:
            Its path, or `None` where there is none.

        Raises:
            ValueError: there are checkpoints, and all are damaged.
        """
        # Not by TensorFlow's list of them, which may be damaged itself.
        paths = [path.with_suffix("") for path in self.folder.rglob("*.index")]
        for path in sorted(paths, key=self._age, reverse=True):
            try:
                # TensorFlow compares the checksum of every tensor it reads.
                self.state.restore(path).assert_existing_objects_matched()
            except Exception as error:  # of many kinds
                reason = str(error).partition("\n")[0]
                print(f"{path} is damaged and left out: {reason}", flush=True)
            else:
                self.newest = path
                return path
        if paths:
            raise ValueError(
                f"No checkpoint in {self.folder} is whole. Delete the run's "
                "folder to start afresh."
            )
        return None

    def _age(self, path):
        """Orders checkpoints by step, the best behind its twin."""
        return int(path.name.rpartition("-")[2]), path.parent == self.folder


def write_whole(path, text):
    """Writes a file that is never there in part."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text)
    unfinished.rename(path)
