"""How a run stops early: on a signal, or because another worker is gone.

Without TensorFlow, which `training.train` imports late.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopSignal:
    """Whether SIGTERM or Ctrl-C asked the run of its block to stop.

    The current step is completed first. A second Ctrl-C stops at once, or when
    a checkpoint that is being written is complete.

    Attributes:
        received: whether one of the signals has arrived.

    Raises:
        KeyboardInterrupt: one has arrived, and the block is at its end.
    """

    def __enter__(self) -> "StopSignal":
        self.received = False
        self.handlers = {
            number: signal.signal(number, self._receive)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if self.received and kind is None:
            raise KeyboardInterrupt("Stopped after the run was finished.")

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
