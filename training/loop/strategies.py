"""The devices of a run: one, all GPUs of a machine, a TPU, or many workers."""

import faulthandler
import json
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import Any

import tensorflow as tf

from training.options import StrategyName

# Steps after which workers agree on whether one of them was asked to stop.
AGREEMENT_STEPS = 10


@cache  # two of a kind in one process would collide
def make_strategy(
    name: StrategyName = "auto", timeout: float = 300
) -> tf.distribute.Strategy:
    """Creates the strategy of a run, before anything else uses TensorFlow.

    Args:
        name: `"one"` device; `"mirrored"`, all GPUs of this machine;
            `"workers"`, the processes in `TF_CONFIG`; `"tpu"`; or `"auto"`,
            whichever of these the environment asks for.
        timeout: seconds after which the other workers give up on a worker that
            does not start, or hangs.

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
    if name == "tpu" or tf.config.list_physical_devices("GPU"):
        _one_thread_per_operation()
    if name == "one":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        # Without GPUs: logical CPUs, if there are several.
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
        "The strategy must be auto, one, mirrored, workers or tpu. Got "
        f"{name!r}."
    )


def _one_thread_per_operation() -> None:
    """For CPUs that only prepare images, as many at a time as they have cores.

    To split the operations of an image, too, takes a quarter more time in all.
    """
    with suppress(RuntimeError):  # TensorFlow is in use, as in a notebook
        tf.config.threading.set_intra_op_parallelism_threads(1)


def _workers(timeout: float) -> tf.distribute.Strategy:
    if "TF_CONFIG" not in os.environ:
        raise ValueError(
            "--strategy workers needs the environment variable TF_CONFIG, "
            "which names all workers and this one. See the examples in "
            "training/cluster/."
        )
    print(
        f"Waiting up to {timeout} seconds for all workers. If one is missing, "
        "this one ends with a timeout: look at the logs of all, then start "
        f"all again. TF_CONFIG={os.environ['TF_CONFIG']}",
        flush=True,
    )
    # TensorFlow waits in native code, which no Python thread can interrupt.
    faulthandler.dump_traceback_later(timeout, exit=True)
    try:
        # The timeout also ends the wait for a worker that is alive but stuck.
        options = tf.distribute.experimental.CommunicationOptions(
            timeout_seconds=timeout
        )
        return tf.distribute.MultiWorkerMirroredStrategy(
            communication_options=options
        )
    finally:
        faulthandler.cancel_dump_traceback_later()


def best_precision(strategy: tf.distribute.Strategy) -> str:
    """The fastest dtype policy of the devices in which training is stable.

    Returns:
        `"mixed_bfloat16"` on a TPU, or where all GPUs have compute capability 8
        (Ampere); `"mixed_float16"` on other GPUs; `"float32"` on a CPU.
    """
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return "mixed_bfloat16"
    capabilities = [
        tf.config.experimental.get_device_details(gpu).get("compute_capability")
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    if not capabilities:
        return "float32"
    has_bfloat16 = all(found and found >= (8, 0) for found in capabilities)
    return "mixed_bfloat16" if has_bfloat16 else "mixed_float16"


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the files of the run."""
    resolver = strategy.cluster_resolver
    return resolver is None or not resolver.task_id


def worker_count(strategy: tf.distribute.Strategy) -> int:
    """Number of processes that take part."""
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return strategy.cluster_resolver.cluster_spec().num_tasks("worker")
    return 1


def any_worker(
    strategy: tf.distribute.Strategy, asked: bool, step: int
) -> bool:
    """Whether any worker was asked to stop; all agree at the same step.

    Args:
        strategy: the strategy of the run.
        asked: whether this worker was asked.
        step: the current step. Many workers only agree at every tenth.
    """
    if worker_count(strategy) == 1:
        return asked
    if step % AGREEMENT_STEPS:
        return False
    return float(sum_of_workers(strategy, float(asked))) > 0


def check_alike(
    strategy: tf.distribute.Strategy, facts: Mapping[str, Any]
) -> None:
    """Checks that all workers are about to do the same.

    Args:
        strategy: the strategy of the run.
        facts: what must be alike on all workers, as JSON holds it.

    Raises:
        ValueError: another worker has other facts.
    """
    if worker_count(strategy) == 1:
        return
    # Small, so that float32 adds up those of a thousand replicas exactly.
    number = zlib.crc32(json.dumps(facts).encode()) % 2**14
    total = float(sum_of_workers(strategy, float(number)))
    if total != number * strategy.num_replicas_in_sync:
        raise ValueError(
            f"The workers differ in {' or '.join(facts)}. Start all with the "
            "same command, data and versions, and with an --output on a disk "
            "that they share."
        )


def sum_of_workers(
    strategy: tf.distribute.Strategy, number: float
) -> tf.Tensor:
    """The sum of one number of each replica."""
    return _adder(strategy)(tf.constant(number))


@cache  # a new function would be traced, and kept, at every call
def _adder(strategy: tf.distribute.Strategy) -> Any:
    @tf.function
    def add(number: tf.Tensor) -> tf.Tensor:
        return strategy.reduce(
            tf.distribute.ReduceOp.SUM,
            strategy.run(tf.identity, args=(number,)),
            axis=None,
        )

    return add
