"""Scale: hours, cost, memory, network and input cores of large trainings.

Computed, not measured, from the model's multiply-adds, published figures of
accelerators, and the measurements `gpu` and `reading`.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from benchmarks.command import benchmark_app, run
from benchmarks.cost import multiply_adds, parameters
from benchmarks.results import Rows, read, show

IMAGES = 1_281_167
# Share of a pod's measured rate that is planned with: requests come in bursts.
UTILIZATION = 0.7
MIN_PODS = 2  # one may be drained


@dataclass(frozen=True)
class System:
    """Accelerators and the machines that they are in.

    Attributes:
        devices, hosts: numbers of accelerators and machines.
        peak: operations per second in bfloat16, of a device.
        memory: bytes of a device.
        link: bytes per second that a device sends to another of its machine
            or slice.
        network: bytes per second that a machine sends to another; `None` where
            devices are all linked.
        threads: hardware threads of all machines (vCPUs), two per core.
        price: US dollars per hour, for all.
    """

    devices: int
    hosts: int
    peak: float
    memory: float
    link: float
    network: float | None
    threads: int
    price: float


SYSTEMS = {
    "8 x H100": System(8, 1, 989e12, 80e9, 450e9, None, 192, 55.04),
    "TPU v5e-64": System(64, 16, 197e12, 16e9, 100e9, None, 16 * 112, 64 * 1.2),
    "2 x 8 A100": System(16, 2, 312e12, 80e9, 300e9, 50e9, 2 * 96, 2 * 27.45),
}
RUNS = ("s24-224", "m48-448")


class Estimate(NamedTuple):
    """What a training takes on a system.

    Attributes:
        images_per_second: of all devices.
        step: seconds.
        all_reduce: bytes that a device sends in a step.
        waiting: share of a step in which devices wait for the all-reduce, if
            nothing is computed meanwhile.
        memory: bytes of a device.
        rematerialize: whether the memory needs it.
        hours, price: of the whole training; the price in US dollars.
        cores: processor cores that feed it.
    """

    images_per_second: float
    step: float
    all_reduce: float
    waiting: float
    memory: float
    rematerialize: bool
    hours: float
    price: float
    cores: float


def training_on_gpu() -> Rows:
    """Training steps of S24 as they were measured on an H200."""
    return read("gpu_training")["tables"]["CaiT-S24, training, batch 256"]


def utilization() -> float:
    """Share of the peak that these steps reached without the kernel."""
    return training_on_gpu()["keras-cait, without the kernel"]["MFU, %"] / 100


def input_seconds(image_size: int) -> float:
    """Time of a core for an image; all but reading and decoding per pixel."""
    stages = read("reading")["tables"]["Stages of s24-224"]
    once = sum(
        stages[name]["core ms per image"]
        for name in ("read", "decode, crop, resize")
    )
    per_pixel = stages["all"]["core ms per image"] - once
    return (once + per_pixel * (image_size / 224) ** 2) / 1000


def estimate(recipe_name: str, system: System) -> Estimate:
    """Estimates a training of ImageNet.

    Args:
        recipe_name: key of `training.recipes.RECIPES`.
        system: where it runs.

    Example:
    >>> found = estimate("s24-224", SYSTEMS["8 x H100"])
    >>> found.rematerialize, round(found.all_reduce / 1e6)
    (False, 328)
    """
    from training.loop.overview import estimated_memory
    from training.recipes import RECIPES

    recipe = replace(RECIPES[recipe_name], precision="mixed_bfloat16")
    size = recipe.image_size
    weights = parameters(recipe.variant, size)
    memory = estimated_memory(recipe, weights, system.devices)
    rematerialize = memory > system.memory
    if rematerialize:
        recipe = replace(recipe, rematerialize=True)
        memory = estimated_memory(recipe, weights, system.devices)
    # Forward, and twice as much backward; rematerialized, forward once more.
    passes = 4 if rematerialize else 3
    operations = 2 * passes * multiply_adds(recipe.variant, size)
    batch = recipe.global_batch_size
    speed = system.devices * system.peak * utilization() / operations
    # A ring sends every gradient, in float32, nearly twice.
    gradient = 4 * weights
    sent = 2 * (system.devices - 1) / system.devices * gradient
    reducing = sent / system.link
    if system.network:
        between = 2 * (system.hosts - 1) / system.hosts * gradient
        reducing += between / system.network
    step = batch / speed + reducing
    rate = batch / step
    hours = recipe.epochs * IMAGES / rate / 3600
    return Estimate(
        rate,
        step,
        sent,
        reducing / step,
        memory,
        rematerialize,
        hours,
        hours * system.price,
        rate * input_seconds(size),
    )


def system_rows() -> Rows:
    """What is assumed of each system."""
    return {
        name: {
            "TFLOP/s": f"{system.peak / 1e12:.0f}",
            "GB": f"{system.memory / 1e9:.0f}",
            "link, GB/s": f"{system.link / 1e9:.0f}",
            "network, GB/s": f"{system.network / 1e9:.0f}"
            if system.network
            else "none",
            "vCPUs": system.threads,
            "USD per hour": f"{system.price:.2f}",
        }
        for name, system in SYSTEMS.items()
    }


def training_rows() -> Rows:
    """Each training on each system."""
    rows = {}
    for recipe in RUNS:
        for name, system in SYSTEMS.items():
            found = estimate(recipe, system)
            memory = f"{found.memory / 1e9:.0f} of {system.memory / 1e9:.0f}"
            rows[f"`{recipe}`, {name}"] = {
                "images/s": f"{found.images_per_second:,.0f}",
                "hours": f"{found.hours:,.0f}",
                "USD": f"{found.price:,.0f}",
                "GB": memory + " †" * found.rematerialize,
                "step, ms": f"{1e3 * found.step:,.0f}",
                "all-reduce, MB": f"{found.all_reduce / 1e6:,.0f}",
                "waiting": f"{100 * found.waiting:.1f} %",
                "input cores": f"{found.cores:,.0f} of {system.threads // 2}",
            }
    return rows


def input_rows() -> Rows:
    """Cores that feed S24 at its measured speed on one and eight GPUs."""
    measured = training_on_gpu()
    rows = {}
    for label, name in (
        ("as `training.train`, without the kernel", "without the kernel"),
        ("with the kernel (JAX)", ""),
    ):
        row = measured[f"keras-cait{name and ', ' + name}"]
        for count in (1, 8):
            rate = count * row["images/s"]
            rows[f"{count} x H200, {label}"] = {
                "images/s": f"{rate:,.0f}",
                "cores": f"{rate * input_seconds(224):,.0f}",
            }
    return rows


def pods(requests_per_second: float, pod: float) -> int:
    """Pods of a server for a rate of requests.

    Args:
        requests_per_second: that are expected at most.
        pod: requests per second of one pod, as in `benchmarks.serving`.

    Example:
    >>> pods(100, pod=9.0)
    16
    """
    return max(MIN_PODS, math.ceil(requests_per_second / (UTILIZATION * pod)))


def pod_rows() -> Rows:
    """Pods of S24 for some rates, from the benchmark of serving."""
    row = read("serving")["tables"]["CaiT-S24, batch 8"]
    pod = row["keras-cait, JPEG bytes"]["images/s"]
    return {
        f"{rate:,} requests/s": {
            "pods": pods(rate, pod),
            "cores": 2 * pods(rate, pod),
        }
        for rate in (10, 100, 1000)
    }


app = benchmark_app("scale", __doc__)


@app.default
def main() -> None:
    """Prints the tables of docs/scale.md."""
    show("Training", training_rows())
    show("Input", input_rows())
    show("Serving", pod_rows())


if __name__ == "__main__":
    run(app)
