"""Which devices a run uses: one, all of a machine, a TPU, or many hosts."""

import contextlib
import faulthandler
import os

import tensorflow as tf


def make_strategy(name="auto", timeout=300):
    """The strategy of a run; the first thing that a process makes.

    Args:
        name: str. `"one"` device; `"mirrored"`, all GPUs of this machine;
            `"workers"`, the processes that `TF_CONFIG` names; `"tpu"`; or
            `"auto"`, whichever of these the environment asks for.
        timeout: float. Seconds after which a worker that does not start, or
            hangs, makes the others stop with the reason.

    Returns:
        `tf.distribute.Strategy`.

    Raises:
        ValueError: the name is unknown, or `TF_CONFIG` is missing.

    Example:
    >>> make_strategy("one").num_replicas_in_sync
    1
    """
    if name == "auto":
        if "TF_CONFIG" in os.environ:
            name = "workers"
        elif "TPU_NAME" in os.environ:
            name = "tpu"
        elif len(tf.config.list_physical_devices("GPU")) > 1:
            name = "mirrored"
        else:
            name = "one"
    if name == "one":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        # Without GPUs: logical CPUs, where they were set up.
        kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
        return tf.distribute.MirroredStrategy(
            [device.name for device in tf.config.list_logical_devices(kind)]
        )
    if name == "workers":
        return _workers(timeout)
    if name == "tpu":
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver()
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    raise ValueError(
        "The strategy must be one of auto, one, mirrored, workers and tpu. "
        f"Received: {name!r}."
    )


def _workers(timeout):
    if "TF_CONFIG" not in os.environ:
        raise ValueError(
            "Many workers need TF_CONFIG, which names them all and this one. "
            "training/cluster/ has examples."
        )

    print(
        f"Waiting at most {timeout} seconds for all workers. Without them this "
        "one then ends with Timeout; look at their logs, and start all again. "
        f"TF_CONFIG={os.environ['TF_CONFIG']}",
        flush=True,
    )
    # TensorFlow waits in native code, which no Python thread can interrupt.
    faulthandler.dump_traceback_later(timeout, exit=True)
    try:
        # The time-out also ends the wait for a worker that is alive but stuck.
        return tf.distribute.MultiWorkerMirroredStrategy(
            communication_options=tf.distribute.experimental.CommunicationOptions(
                timeout_seconds=timeout
            )
        )
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def lost_workers():
    """Says in one line that another worker died or hangs.

    Raises:
        ConnectionError: TensorFlow gave up on waiting for another worker.
    """
    try:
        yield
    except tf.errors.OpError as error:
        if "Collective" not in error.message:
            raise
        raise ConnectionError(
            "Another worker died or hangs; its log may say why. Start all "
            "workers again, and they go on from the last checkpoint. "
            f"TensorFlow says: {' '.join(error.message.split())}"
        ) from error


def is_chief(strategy):
    """Whether this process writes the files of the run."""
    resolver = strategy.cluster_resolver
    return resolver is None or not resolver.task_id


def worker_count(strategy):
    """Number of processes that take part."""
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return strategy.cluster_resolver.cluster_spec().num_tasks("worker")
    return 1


def sum_of_workers(strategy, number):
    """The sum of a number that every worker knows its own of."""

    @tf.function
    def add(number):
        return strategy.reduce(
            tf.distribute.ReduceOp.SUM,
            strategy.run(tf.identity, args=(number,)),
            axis=None,
        )

    return add(tf.constant(number))
