"""Checkpoints of a run: written whole, and the newest good one is taken."""

import tempfile

import tensorflow as tf


class Checkpoints:
    """The checkpoints in a run's folder.

    Args:
        state: `tf.train.Checkpoint` of all that makes a run go on exactly.
        folder: path; it is made.
        step: int64 variable. Its value names a checkpoint.
        is_chief: bool. Whether this process writes for all; the others take
            part in writing, as they must, but to a folder that is thrown away.
        keep: int. Number of checkpoints to keep.
    """

    def __init__(self, state, folder, step, is_chief=True, keep=3):
        self.state = state
        self.folder = folder
        self.others = None
        target = folder
        if not is_chief:
            self.others = tempfile.TemporaryDirectory()
            target = self.others.name
        self.manager = tf.train.CheckpointManager(
            state, target, max_to_keep=keep, step_counter=step
        )

    def save(self):
        """Writes a checkpoint of the present step."""
        self.manager.save()

    def restore(self):
        """Goes back to the newest checkpoint that is whole.

        Returns:
            Its path, or `None` where there is none.

        Raises:
            ValueError: there are checkpoints, and all are damaged.
        """
        record = tf.train.get_checkpoint_state(self.folder)
        paths = record.all_model_checkpoint_paths if record else []
        for path in reversed(paths):
            try:
                # TensorFlow compares the checksum of every tensor it reads.
                self.state.restore(path).assert_existing_objects_matched()
                return path
            except (tf.errors.OpError, AssertionError, ValueError) as error:
                reason = str(error).partition("\n")[0]
                print(f"{path} is damaged and left out: {reason}", flush=True)
        if paths:
            raise ValueError(
                f"No checkpoint in {self.folder} is whole. Delete the run's "
                "folder to start afresh."
            )
        return None

    @property
    def newest(self):
        """Path of the newest checkpoint, for messages; `None` without one."""
        return self.manager.latest_checkpoint
