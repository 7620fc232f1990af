"""What a run shows while it runs: a line, `history.csv` and TensorBoard."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import keras
import tensorflow as tf

from training.data.datasets import Examples
from training.loop.history import History
from training.loop.progress import Meter, ProgressLine, described
from training.loop.tensorboard import TensorBoard
from training.loop.trainer import Trainer, means_of
from training.recipe import Recipe


class Monitor:
    """Measures a run and shows it.

    Reading a value waits for the device, so it is rare: about once per second
    on a terminal, and 1000 times in a run.

    Args:
        recipe: the resolved recipe.
        trainer: the trainer, before the first step of this process.
        validation: validation examples, ready for the model.
        output: folder of the run.
        steps_per_epoch: optimizer steps per epoch.
        line: where the progress is shown.
        is_chief: whether this process is the one that shows anything.
        profile: first and last step to record for the profiler, from 1.

    Raises:
        ValueError: `history.csv` lacks epochs that a recipe with patience
            needs.
    """

    def __init__(
        self,
        recipe: Recipe,
        trainer: Trainer,
        validation: Examples,
        output: Path,
        steps_per_epoch: int,
        line: ProgressLine,
        is_chief: bool = True,
        profile: tuple[int, int] | None = None,
    ):
        self.recipe, self.trainer = recipe, trainer
        self.validation = validation
        self.folder = output / "tensorboard"
        self.steps_per_epoch = steps_per_epoch
        self.meter = Meter(recipe, steps_per_epoch, validation.count)
        self.line = line
        self.is_chief = is_chief
        if not is_chief:
            return
        step, steps = trainer.step, recipe.epochs * steps_per_epoch
        epoch = step // steps_per_epoch
        self.history = History(output / "history.csv", epoch)
        if recipe.patience and len(self.history.rows) < epoch:
            raise ValueError(
                f"{self.history.path} lacks epochs of the run, which "
                "--patience compares. Restore the file, or delete the run's "
                "folder to start again."
            )
        self.tensorboard = TensorBoard(self.folder, step, steps)
        self.tensorboard.recipe(recipe)
        self.line.show("Compiling the first step")
        self.is_compiled = False
        # The totals at the last point of the curves; negative if they have
        # been reset since.
        self.before = trainer.totals()
        self.steps_to_profile = range(0)
        if profile:
            first, last = profile
            self.steps_to_profile = range(first, min(last, steps) + 1)
        self.is_profiled, self.mark = False, ExitStack()
        self._profile(step + 1)

    def waiting(self) -> AbstractContextManager[None]:
        """Counts the time of its block as waiting for data."""
        return self.meter.waiting()

    @contextmanager
    def evaluating(self, step: int) -> Iterator[None]:
        """Its block is an evaluation after so many steps."""
        if self.is_chief:
            self.line.show(f"{self._described(step)}, evaluating")
        with self.meter.evaluating():
            yield

    def after_step(self, step: int) -> None:
        """Shows a step.

        Args:
            step: optimizer steps done.
        """
        if not self.is_chief:
            return
        self._profile(step + 1)
        if not self.is_compiled:
            self.trainer.totals()  # waits for it
            self.is_compiled = True
            self.start = self.point = self.meter.at(step)
        ends_epoch = step % self.steps_per_epoch == 0
        is_point = self.tensorboard.is_point(step)
        if not (ends_epoch or is_point or self.line.is_due):
            return
        totals = self.trainer.totals()
        now = self.meter.at(step)
        rate = self.trainer.optimizer.learning_rate
        rate = {"learning_rate": float(keras.ops.convert_to_numpy(rate))}
        if is_point:
            values = means_of(totals - self.before)
            values |= self.meter.speed(self.point, now) | rate
            self.tensorboard.add_step(step, values)
            self.point, self.before = now, totals
        self.values = means_of(totals) | self.meter.speed(self.start, now)
        self.values |= rate
        if ends_epoch:
            self.before = self.before - totals
            self.meter.pause()
            self.start = self.meter.at(step)
        elif self.line.is_due:
            self.line.show(self._described(step))

    def after_epoch(
        self,
        step: int,
        evaluated: Mapping[str, float],
        images: tf.Tensor,
        targets: tf.Tensor,
    ) -> None:
        """Shows an epoch.

        Args:
            step: optimizer steps done.
            evaluated: as in `Trainer.evaluate`, or nothing.
            images, targets: the last batch, as it is distributed.
        """
        if not self.is_chief:
            return
        self.values |= evaluated
        self.history.add(step // self.steps_per_epoch - 1, self.values)
        self.line.keep(self._described(step))
        show, ema_model = self.tensorboard, self.trainer.ema_model
        since = self.recipe.evaluation_epochs * self.steps_per_epoch
        if evaluated and show.shows_images(step, since):
            names = self.validation.class_names
            show.add_gammas(step, ema_model)
            local = self.trainer.strategy.experimental_local_results
            show.add_training_images(
                step, local(images)[0], local(targets)[0], names
            )
            show.add_predictions(step, ema_model, self.validation)
            if self.trainer.confusion is not None:
                show.add_confusion(step, self.trainer.confusion, names)
        show.add_epoch(step, self.values)

    def _described(self, step: int) -> str:
        """The epoch, the step within it, and the values so far."""
        speed = self.values["images_per_second"]
        left = self.meter.seconds_left(step, speed)
        epoch, place = divmod(step - 1, self.steps_per_epoch)
        text = f"Epoch {epoch + 1}/{self.recipe.epochs}"
        if place + 1 < self.steps_per_epoch:
            text += f", step {place + 1}/{self.steps_per_epoch}"
        return f"{text}: {described(self.values | {'seconds_left': left})}"

    def _profile(self, step: int) -> None:
        """Starts or stops the profiler before a step, and marks the step."""
        self.mark.close()
        is_wanted = step in self.steps_to_profile
        if is_wanted != self.is_profiled:
            self.trainer.totals()  # waits for the steps before
            if is_wanted:
                tf.profiler.experimental.start(str(self.folder))
            else:
                tf.profiler.experimental.stop()
            self.is_profiled = is_wanted
        if is_wanted:
            mark = tf.profiler.experimental.Trace("train", step_num=step, _r=1)
            self.mark.enter_context(mark)
