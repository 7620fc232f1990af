"""Checkpoints of a run: written while it continues, restored if intact.

A checkpoint holds the state of one step. Only copying the state to host memory
holds the run; a thread writes the copy. TensorFlow's own asynchronous
checkpoints do not take Keras 3's variables: the second one fails.
"""

import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_cait.files import write_text

KEPT = 3  # checkpoints, besides the best one


class Checkpoints:
    """The checkpoints in a run's folder; a block that ends when all is written.

    Args:
        state: everything that a run needs to resume exactly.
        folder: folder of the checkpoints, which is created.
        is_chief: whether this process writes for all. Every worker has the
            whole state, so the others have nothing to write.
        keep: number of checkpoints to keep, besides the best one.

    Attributes:
        newest: newest checkpoint that is known to be intact, without the
            suffixes of its files; `None` if there is none.
    """

    def __init__(
        self,
        state: tf.train.Checkpoint,
        folder: str | Path,
        is_chief: bool = True,
        keep: int = KEPT,
    ):
        self.state = state
        self.folder = Path(folder)
        self.is_chief = is_chief
        self.keep = keep
        self.newest: Path | None = None
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.writing: Future[Path] | None = None
        if is_chief:
            for unfinished in self.folder.rglob("ckpt-*_temp"):  # by a kill
                shutil.rmtree(unfinished)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self.thread.shutdown()
        if kind is None:
            self.wait()

    def save(self, step: int, is_best: bool = False) -> None:
        """Copies the state, and starts to write it as the checkpoint of a step.

        Args:
            step: optimizer steps done.
            is_best: whether it also becomes the best checkpoint.

        Raises:
            OSError, tf.errors.OpError: as in `wait`, for the one before.
        """
        self.wait()
        path = self.folder / f"ckpt-{step}"
        if self.is_chief:
            values = read(self.state)
            self.writing = self.thread.submit(
                self._write, path, is_best, values
            )
        else:
            self.newest = path

    def wait(self) -> None:
        """Waits until the last checkpoint is written.

        Raises:
            OSError, tf.errors.OpError: it cannot be written.
        """
        if self.writing:
            writing, self.writing = self.writing, None
            self.newest = writing.result()

    def _write(
        self, path: Path, is_best: bool, values: dict[int, tf.Tensor]
    ) -> Path:
        # A best one is written there first: no kill leaves the run ahead of it.
        written = self.folder / "best" / path.name if is_best else path
        # A damaged one. TensorFlow would write into its file, which may be that
        # of the best one, too.
        delete(written)
        written.parent.mkdir(parents=True, exist_ok=True)
        with_values(self.state, values).write(str(written))
        if is_best:
            link(written, path)
            self._tidy(written, 1)
        self._tidy(path, self.keep)
        return path

    def _tidy(self, path: Path, keep: int) -> None:
        """Makes a checkpoint the last of its folder, and deletes old ones."""
        # For `tf.train.latest_checkpoint`.
        write_text(
            path.with_name("checkpoint"),
            f'model_checkpoint_path: "{path.name}"\n',
        )
        # Later ones are damaged: the run has started before them.
        until = [
            other
            for other in checkpoints_in(path.parent)
            if step_of(other) <= step_of(path)
        ]
        for old in until[:-keep]:
            delete(old)

    def restore(self) -> Path | None:
        """Restores the newest intact checkpoint.

        Returns:
            Its path; `None` if there are no checkpoints.

        Raises:
            ValueError: there are checkpoints, and all of them are damaged.
        """
        # Not by TensorFlow's list of them, which may be damaged itself.
        paths = checkpoints_in(self.folder / "best")
        paths += checkpoints_in(self.folder)  # the first of twins to be tried
        self.newest = restore_newest(self.state, sorted(paths, key=step_of))
        if paths and not self.newest:
            raise ValueError(
                f"All checkpoints in {self.folder} are damaged. Delete the "
                "run's folder to start again."
            )
        return self.newest

    def restore_best(self, part: tf.train.Checkpoint) -> int:
        """Restores a part of the state from the best checkpoint.

        Returns:
            Its step.

        Raises:
            ValueError: it is damaged or missing.
        """
        folder = self.folder / "best"
        path = restore_newest(part, checkpoints_in(folder))
        if not path:
            raise ValueError(
                f"The best checkpoint, in {folder}, is damaged or missing. "
                "Delete the run's folder to start again."
            )
        return step_of(path)


def restore_newest(
    state: tf.train.Checkpoint, paths: list[Path]
) -> Path | None:
    """Restores the last intact checkpoint, and returns its path."""
    for path in paths[::-1]:
        try:
            # TensorFlow compares the checksum of every tensor it reads.
            status = state.read(str(path)).assert_existing_objects_matched()
        except Exception as error:  # of many kinds
            reason = str(error).partition("\n")[0]
            print(f"Skipping damaged checkpoint {path}: {reason}")
        else:
            status.expect_partial()  # `state` may be a part of it
            return path
    return None


def read(state: tf.train.Checkpoint) -> dict[int, tf.Tensor]:
    """The present values of a state's variables, by their `id`.

    They are in host memory. Where the variables are, too, nothing is copied
    yet: TensorFlow does so when a variable changes whose value is in use.
    """
    with tf.device("CPU:0"):
        return {
            id(item): tf.identity(item)
            for item in tf.train.TrackableView(state).descendants()
            if isinstance(item, tf.Variable | keras.Variable)
        }


def with_values(
    state: tf.train.Checkpoint, values: dict[int, tf.Tensor]
) -> tf.train.Checkpoint:
    """A checkpoint of the same names as another, with other values.

    Args:
        state: the other one.
        values: as in `read`.
    """
    view = tf.train.TrackableView(state)
    items = view.descendants()
    with tf.device("CPU:0"):
        copies = {
            id(item): tf.Variable(values[id(item)])
            if id(item) in values
            else tf.train.Checkpoint()
            for item in items
        }
    for item in items:
        for name, child in view.children(item).items():
            setattr(copies[id(item)], name, copies[id(child)])
    return copies[id(state)]


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder by step, without the suffixes of files."""
    indices = folder.glob("ckpt-*.index")
    return sorted((file.with_suffix("") for file in indices), key=step_of)


def step_of(path: Path) -> int:
    """The step of a checkpoint.

    Example:
    >>> step_of(Path("checkpoints/best/ckpt-1000"))
    1000
    """
    return int(path.name.rpartition("-")[2])


def files_of(path: Path) -> list[Path]:
    """The files of a checkpoint; last its index, without which it is none."""
    return sorted(path.parent.glob(f"{path.name}.*"))


def delete(path: Path) -> None:
    """Deletes a checkpoint, if it exists."""
    for file in files_of(path)[::-1]:
        file.unlink()


def link(path: Path, other: Path) -> None:
    """Links a checkpoint under a second name, or copies it without links."""
    delete(other)
    other.parent.mkdir(exist_ok=True)
    for file in files_of(path):
        second = other.parent / file.name
        try:
            os.link(file, second)
        except OSError:
            shutil.copyfile(file, second)


def restore_raw_weights(model: keras.Model, run: str | Path) -> None:
    """Replaces a trained model's EMA weights by those of the last step.

    Args:
        model: the model of the run.
        run: folder of a finished run.

    Raises:
        ValueError: the folder has no checkpoints, or the last is damaged.
    """
    # Not by TensorFlow's list of them, which has absolute paths.
    last = checkpoints_in(Path(run) / "checkpoints")[-1:]
    if not last:
        raise ValueError(
            f"{str(run)!r} has no checkpoints, which hold the raw weights. "
            "Omit --raw to use its EMA weights, or give the folder of a run."
        )
    if not restore_newest(tf.train.Checkpoint(model=model), last):
        raise ValueError(
            f"The last checkpoint of {str(run)!r}, which holds the raw "
            "weights, is damaged. Omit --raw to use its EMA weights."
        )
