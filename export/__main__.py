"""`python -m export`: from a trained Keras model to deployed files."""

import os
from collections.abc import Sequence
from typing import NoReturn

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # errors are raised

from cyclopts import App, Parameter

from export.commands.classify import classify
from export.commands.litert import litert
from export.commands.predict import predict
from export.commands.saved_model import saved_model
from export.commands.verify import verify
from export.commands.web import web
from keras_cait.command_line import run

app = App(
    name="python -m export",
    help="Export a trained model to TensorFlow Serving, phones and browsers.",
    version_flags=[],
    default_parameter=Parameter(negative=()),
)
for command in (saved_model, litert, verify, web, classify, predict):
    app.command(command)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits.

    Args:
        argv: arguments; `None` takes those of the process.
    """
    run(app, argv)


if __name__ == "__main__":
    main()
