"""Speed, time left, and the line that shows how far a run is."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.text import Text

from training.recipe import Recipe

NOTABLE_WAIT = 0.1  # share of the time that is spent without data


class Moment(NamedTuple):
    """A point in a run.

    Attributes:
        step: optimizer steps done.
        seconds: time of training so far.
        waited: seconds of it that were spent waiting for data.
    """

    step: int
    seconds: float
    waited: float


class Meter:
    """Measures speed, the share of time without data, and the time left.

    Args:
        recipe: the resolved recipe.
        steps_per_epoch: optimizer steps per epoch.
        validation_images: number of validation images.
    """

    def __init__(
        self, recipe: Recipe, steps_per_epoch: int, validation_images: int
    ):
        self.recipe = recipe
        self.steps_per_epoch = steps_per_epoch
        self.validation_images = validation_images
        self.waited = 0.0
        self.outside = 0.0  # seconds between epochs
        self.paused_at: float | None = None
        self.evaluations: list[float] = []  # seconds

    def at(self, step: int) -> Moment:
        """This moment, in which so many steps are done."""
        now = time.perf_counter() if self.paused_at is None else self.paused_at
        return Moment(step, now - self.outside, self.waited)

    def pause(self) -> None:
        """Stops the clock until data is waited for again."""
        self.paused_at = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time of its block as waiting for data."""
        start = time.perf_counter()
        if self.paused_at is not None:
            self.outside += start - self.paused_at
            self.paused_at = None
        yield
        self.waited += time.perf_counter() - start

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Notes the time of its block as that of an evaluation."""
        start = time.perf_counter()
        yield
        self.evaluations.append(time.perf_counter() - start)

    def speed(self, start: Moment, end: Moment) -> dict[str, float]:
        """Images per second and share of waiting between two moments.

        Not a number without a step between them.
        """
        seconds = end.seconds - start.seconds
        if end.step == start.step:
            return {"images_per_second": math.nan, "data_wait": math.nan}
        images = (end.step - start.step) * self.recipe.global_batch_size
        return {
            "images_per_second": images / seconds,
            "data_wait": (end.waited - start.waited) / seconds,
        }

    def seconds_left(self, step: int, images_per_second: float) -> float:
        """Seconds that the remaining steps and evaluations take.

        The first evaluation compiles, so it is not counted on. Until the
        second one, evaluation is assumed to be as fast as training.
        """
        steps = self.recipe.epochs * self.steps_per_epoch - step
        every = self.recipe.evaluation_epochs * self.steps_per_epoch
        if len(self.evaluations) > 1:
            evaluation = self.evaluations[-1]
        else:
            evaluation = self.validation_images / images_per_second
        training = steps * self.recipe.global_batch_size / images_per_second
        return training + math.ceil(steps / every) * evaluation


def duration(seconds: float) -> str:
    """A time as people say it.

    Example:
    >>> [duration(seconds) for seconds in (48.3, 754, 4337, 187000)]
    ['48 s', '13 min', '1 h 12 min', '2 d 4 h']
    """
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"


def described(values: dict[str, float]) -> str:
    """Values of a run as words; what is not known is left out.

    Args:
        values: of `loss`, `accuracy`, `val_accuracy`, `val_raw_accuracy`,
            `images_per_second`, `data_wait` and `seconds_left`, any.

    Example:
    >>> described({"loss": 0.91204, "accuracy": 0.713, "data_wait": 0.02})
    'loss 0.912, accuracy 71.3%'
    """
    known = {
        name: value
        for name, value in values.items()
        if math.isfinite(value)
        and (name != "data_wait" or value >= NOTABLE_WAIT)
        and (name != "seconds_left" or value > 0)
    }
    texts = {
        "loss": lambda x: f"loss {x:.3f}",
        "accuracy": lambda x: f"accuracy {x:.1%}",
        "val_accuracy": lambda x: f"validation {x:.1%} (EMA)",
        "val_raw_accuracy": lambda x: f"{x:.1%} (raw)",
        "images_per_second": lambda x: (
            f"{x:,.0f} images/s" if x >= 10 else f"{x:.1f} images/s"
        ),
        "data_wait": lambda x: f"{x:.0%} of the time waiting for images",
        "seconds_left": lambda x: f"{duration(x)} left",
    }
    return ", ".join(
        text(known[name]) for name, text in texts.items() if name in known
    )


class ProgressLine:
    """Lines on the terminal: the last one changes, the others stay.

    Elsewhere, as in the log of a job, the changing one is printed when there
    was no other for five minutes.
    """

    def __init__(self) -> None:
        self.is_live = sys.stdout.isatty()
        self.interval = 1.0 if self.is_live else 300.0  # seconds
        self.shown = -math.inf
        # It moves the prints of others above itself.
        self.live = Live(console=Console(), auto_refresh=False, transient=True)

    def __enter__(self) -> "ProgressLine":
        if self.is_live:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    @property
    def is_due(self) -> bool:
        """Whether it is time to change the last line."""
        return time.monotonic() - self.shown >= self.interval

    def show(self, text: str) -> None:
        """Changes the last line."""
        if self.is_live:
            line = Text(text, no_wrap=True, overflow="ellipsis")
            self.live.update(line, refresh=True)
        elif self.is_due:
            print(text, flush=True)
        self.shown = time.monotonic()

    def keep(self, text: str) -> None:
        """Prints a line that stays."""
        if self.is_live:
            self.live.update("", refresh=True)
        print(text, flush=True)
        self.shown = time.monotonic()
