"""How a run stops early: on a signal, or because another worker is gone.

Without TensorFlow, which `training.train` imports late.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopSignal:
    """Whether SIGTERM or Ctrl-C asked the run to stop.

    The current step is completed first. A second Ctrl-C stops at once, or when
    a checkpoint that is being written is complete.

    Attributes:
        received: whether one of the signals has arrived.
    """

    def __init__(self) -> None:
        self.received = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True


@contextmanager
def lost_workers() -> Iterator[None]:
    """Explains the failure when another worker has died or hangs.

    Raises:
        ConnectionError: TensorFlow stopped waiting for another worker.
    """
    try:
        yield
    except Exception as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "OpError" not in kinds or "Collective" not in str(error):
            raise
        raise ConnectionError(
            "Another worker died or hangs; see its log. Start all workers "
            "again to resume from the last checkpoint. TensorFlow's message: "
            f"{' '.join(str(error).split())}"
        ) from error
