"""Ray: an embedded one that starts and ends with the command, or a cluster."""

import logging
import os
import re
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from export.options import Device

# Read when Ray is imported.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
os.environ["RAY_COLOR_PREFIX"] = "0"
# After a failure, a thread of Ray Data would start another Ray.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
# That a worker died is said twice; this line is longer than a screen.
os.environ["RAY_DEDUP_LOGS_SKIP_REGEX"] = "^A worker died or was killed"
# Decoders that waited for a second would end, and take seconds to start again.
os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "3600000")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# TensorFlow leaves oneDNN off on processors without VNNI.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

# Where workers find this package.
PYTHONPATH = os.pathsep.join(
    filter(
        None,
        [os.path.abspath(f"{__file__}/../../.."), os.getenv("PYTHONPATH")],
    )
)
# Shared memory per process, for images on their way to the model.
STORE_BYTES = 256 << 20


def check_command(words: Sequence[str]) -> None:
    """Refuses a command that Ray cannot keep, before work is spent on it.

    Raises:
        ValueError: a word is not UTF-8.

    Example:
    >>> check_command(["predict", "--input", "cat.jpg"])
    """
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"Ray only accepts commands in UTF-8. Got {word!r}. Give a "
                "folder or a glob, such as 'photos/cat*.jpg', or rename it."
            ) from None


@contextmanager
def connect(address: str | None, workers: int) -> Iterator[None]:
    """Connects to a cluster, or starts Ray on this computer alone.

    The embedded Ray listens on loopback only, keeps its files in a folder that
    is removed at the end, and dies with this process, if that is killed within
    two minutes. Neither sends usage statistics.

    Args:
        address: of a cluster, which this computer is a part of; `"auto"`
            finds it. `None` starts Ray.
        workers: models that will run at a time.

    Raises:
        OSError: the cluster cannot be reached, or Ray does not start.
    """
    if address is None:
        # Ray listens on the network unless it takes this for a laptop.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # Otherwise it writes one to the home, which may be read-only.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex())
    import ray

    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    before = signal.getsignal(signal.SIGTERM)
    with tempfile.TemporaryDirectory(
        prefix="ray-", dir=_short_folder(), ignore_cleanup_errors=True
    ) as folder:
        try:
            with _silent(os.path.join(folder, "stderr")):
                if address is not None:
                    _check_reachable(address)
                    ray.init(address, **quiet)
                else:
                    # A worker computes while every core decodes.
                    processes = (os.cpu_count() or 1) + workers
                    ray.init(
                        "local",
                        num_cpus=processes,
                        object_store_memory=processes * STORE_BYTES,
                        include_dashboard=False,
                        runtime_env={"env_vars": {"PYTHONPATH": PYTHONPATH}},
                        _temp_dir=folder,
                        **quiet,
                    )
        except Exception as error:  # of many kinds
            reason = str(error).strip().partition("\n")[0]
            what = f"connect to Ray at {address}" if address else "start Ray"
            raise OSError(f"Cannot {what}: {reason}") from None
        finally:
            with suppress(TypeError):  # Ray replaces the handler
                signal.signal(signal.SIGTERM, before)
        try:
            yield
        finally:
            ray.shutdown()


def choose_device(
    device: Device | None, workers: int | None, source: str, address: str | None
) -> tuple[Device, int]:
    """Where models run and how many, on the cluster that is connected.

    Args:
        device, workers: what the user wants; `None` is the default.
        source: the model; `.tflite` files run on CPUs.
        address: as in `connect`.

    Raises:
        ValueError: there is no GPU, nor can the cluster grow.
    """
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0))
    if device == "gpu" and not gpus and address is None:
        raise ValueError("Ray finds no GPU on this computer. Omit --device.")
    if device is None:
        device = "cpu" if source.endswith(".tflite") or not gpus else "gpu"
    return device, workers or (max(gpus, 1) if device == "gpu" else 1)


def threads_per_model(workers: int) -> int:
    """CPU threads for each of the models that share this computer.

    Example:
    >>> threads_per_model(1) == os.cpu_count()
    True
    """
    return max(1, (os.cpu_count() or 1) // workers)


def _short_folder() -> str:
    """A folder of temporary files in which Ray's sockets fit.

    Paths of sockets have at most 107 bytes (103 on macOS); Ray adds up to 77.
    """
    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(folder)) <= 26 else "/tmp"


def _check_reachable(address: str) -> None:
    """Raises OSError at once where Ray would wait for minutes."""
    place = re.fullmatch(r"(.+):(\d+)", address)
    if place:
        socket.create_connection((place[1], int(place[2])), 30).close()


@contextmanager
def _silent(path: str) -> Iterator[None]:
    """Sends what native code prints to stderr to a file."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with open(path, "w") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
