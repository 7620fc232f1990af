"""Imports Keras without the log that TensorFlow writes when it starts.

TensorFlow writes some of it before it reads TF_CPP_MIN_LOG_LEVEL, so stderr is
closed to it meanwhile. Only for the command, and not if that variable is set.
"""

import os

if "TF_CPP_MIN_LOG_LEVEL" not in os.environ:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        import keras  # noqa: F401
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
