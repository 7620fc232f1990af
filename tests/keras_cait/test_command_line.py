"""Every command ends in one style: one line on stderr, and an exit status."""

import gc
import os
import signal
import time

import pytest
from cyclopts import App

from keras_cait.command_line import BatchSize, run

app = App(name="tool")


@app.command
def work(what: str, batch_size: BatchSize = 8):
    raise {
        "value": ValueError("got 3,\n  expected 4."),
        "escapes": ValueError("got \x1b[2J\x9b, expected a name."),
        "missing": FileNotFoundError(2, "No such file or directory", "a.jpg"),
        "stop": KeyboardInterrupt(),
        "saved": KeyboardInterrupt("Stopped at step 3, which is saved."),
        "bug": AssertionError("a bug"),
    }.get(what) or SystemExit(0)


@pytest.mark.parametrize(
    "arguments, status, message",
    [
        ("work value", 1, "got 3, expected 4."),
        ("work escapes", 1, "got ?[2J?, expected a name."),
        ("work missing", 1, "No such file or directory: 'a.jpg'."),
        ("work stop", 130, "Interrupted."),
        ("work saved", 130, "Stopped at step 3, which is saved."),
        ("work value --batch-size x", 2, "--batch-size"),
        ("work value --nonsense", 2, "--nonsense"),
        ("work", 2, "--what"),
        ("nonsense", 2, "nonsense"),
    ],
)
def test_failures_are_one_line(arguments, status, message, capsys):
    with pytest.raises(SystemExit) as end:
        run(app, arguments.split())
    out, err = capsys.readouterr()
    assert end.value.code == status
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


def test_a_command_collects_garbage_again(monkeypatch):
    monkeypatch.setattr("gc.freeze", lambda: None)
    gc.disable()  # as `keras_cait.startup`
    with pytest.raises(SystemExit):
        run(app, ["work", "nothing"])
    assert gc.isenabled()


@pytest.fixture
def interruptible():
    """Python leaves SIGINT ignored in the background job of a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("number", "status", "message"),
    [
        (signal.SIGINT, 130, "Interrupted.\n"),
        (signal.SIGTERM, 143, "Terminated.\n"),
    ],
)
@pytest.mark.parametrize("where", ["command", "destructor", "native code"])
def test_signals_stop_a_command(
    where, number, status, message, capsys, interruptible
):
    class Destroyed:
        def __del__(self):  # Python drops exceptions that are raised in here
            signal.raise_signal(number)

    class Unfinished:
        def __del__(self):  # of what the signal has cut short
            raise AttributeError("half made")

    tool = App(name="tool")

    @tool.default
    def wait():
        if where == "command":
            signal.raise_signal(number)
        elif where == "destructor":
            Destroyed()
        else:  # as pybind11 does
            unfinished = Unfinished()
            try:
                signal.raise_signal(number)
            except KeyboardInterrupt:
                raise RuntimeError("MISMATCH of exceptions") from None
            del unfinished
        time.sleep(10)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        run(tool, [])
    assert end.value.code == status
    assert capsys.readouterr().err == message
    assert handlers == (
        signal.getsignal(signal.SIGINT),
        signal.getsignal(signal.SIGTERM),
    )


def test_a_bug_is_not_hidden():
    with pytest.raises(AssertionError, match="a bug"):
        run(app, ["work", "bug"])


def test_help_goes_to_stdout(capsys):
    with pytest.raises(SystemExit) as end:
        run(app, ["work", "--help"])
    out, err = capsys.readouterr()
    assert (end.value.code, err) == (0, "")
    assert "--batch-size" in out and os.linesep in out
