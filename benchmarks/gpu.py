"""GPU: inference and training of keras-cait on JAX and of timm's model.

One CUDA card, bfloat16 products, 224 x 224 pixels. A training step is forward
and backward pass with stochastic depth, cross entropy with soft targets, AdamW
and EMA weights.

Every row has a process of its own. All compile at the same time; then one after
another has the card for itself, and the results are written after each.
"""

import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Literal, NamedTuple

from benchmarks.command import Count, Output, benchmark_app, run
from benchmarks.interleave import Timing
from benchmarks.results import Rows, show, write

SIZE, CLASSES = 224, 1000
# Dense bfloat16 products of an H100 or H200, by the vendor's data sheet.
PEAK_FLOPS = 989e12
ROUND_SECONDS, ROUNDS = 0.12, 7

Task = Literal["inference", "training"]


class Program(NamedTuple):
    """A compiled program that is ready to be timed."""

    # Runs a number of steps and waits for the last.
    run: Callable[[int], None]
    # Called after the runs.
    peak_bytes: Callable[[], int]


class Case(NamedTuple):
    """A cell of the tables."""

    runner: str
    variant: str
    task: Task
    batch_size: int


def keras_cait_program(
    variant: str,
    task: Task,
    batch_size: int,
    kernel: bool = True,
) -> Program:
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    os.environ["XLA_FLAGS"] = ""
    import jax
    import keras

    import keras_cait
    from keras_cait import fused_mixing

    if not kernel:
        fused_mixing.applies = lambda scores: False
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = getattr(keras_cait, f"CaiT_{variant}")(
        weights=None, include_preprocessing=False, classifier_activation=None
    )
    make = jax_inference if task == "inference" else jax_training
    images = jax.random.normal(jax.random.key(0), (batch_size, SIZE, SIZE, 3))
    program, run = make(model, images)
    memory = program.memory_analysis()
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
    return Program(run, partial(int, peak))


def jax_inference(model: Any, images: Any) -> tuple[Any, Any]:
    import jax
    from jax import numpy as jnp

    def in_compute_dtype(variable: Any) -> Any:
        """What the layers cast at every call, cast once."""
        is_product = variable.path.endswith(("/kernel", "/bias"))
        if is_product and not variable.path.startswith("head/"):
            return variable.value.astype(jnp.bfloat16)
        return variable.value

    weights = [in_compute_dtype(v) for v in model.trainable_variables]
    state = [v.value for v in model.non_trainable_variables]

    def forward(weights: Any, state: Any, images: Any) -> Any:
        return model.stateless_call(weights, state, images, training=False)[0]

    program = jax.jit(forward).lower(weights, state, images).compile()

    def run(steps: int) -> None:
        outputs = None
        for _ in range(steps):
            outputs = program(weights, state, images)
        jax.block_until_ready(outputs)

    return program, run


def jax_training(model: Any, images: Any) -> tuple[Any, Any]:
    import jax
    from jax import numpy as jnp

    import keras_cait

    variables = model.trainable_variables
    optimizer = keras_cait.AdamW(5e-4, weight_decay=0.05)
    optimizer.build(variables)
    size = len(images)
    targets = jnp.full((size, CLASSES), 1e-4)
    targets = targets.at[jnp.arange(size), jnp.arange(size)].add(0.9)

    def loss(weights: Any, state: Any, images: Any, targets: Any) -> Any:
        logits, state = model.stateless_call(
            weights, state, images, training=True
        )
        losses = -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)
        return jnp.mean(losses), state

    def step(state: Any, images: Any, targets: Any) -> tuple[Any, Any]:
        weights, ema, moments, others = state
        differentiate = jax.value_and_grad(loss, has_aux=True)
        (value, others), gradients = differentiate(
            weights, others, images, targets
        )
        weights, moments = optimizer.stateless_apply(
            moments, gradients, weights
        )
        ema = [e + 4e-5 * (w - e) for e, w in zip(ema, weights, strict=True)]
        return (weights, ema, moments, others), value

    state = (
        [v.value + 0 for v in variables],
        [v.value + 0 for v in variables],
        [v.value + 0 for v in optimizer.variables],
        [v.value + 0 for v in model.non_trainable_variables],
    )
    # Donated: the new state takes the memory of the old.
    program = jax.jit(step, donate_argnums=0).lower(state, images, targets)
    program = program.compile()
    kept = [state]

    def run(steps: int) -> None:
        value = None
        for _ in range(steps):
            kept[0], value = program(kept[0], images, targets)
        jax.block_until_ready((kept[0], value))

    return program, run


def timm_program(
    variant: str,
    task: Task,
    batch_size: int,
    weights: str = "float32",
    autotune: bool = False,
) -> Program:
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")
    import timm
    import torch
    from torch._inductor.async_compile import shutdown_compile_workers

    from keras_cait.models import VARIANTS

    torch.set_float32_matmul_precision("high")
    dtype = getattr(torch, weights)
    model = timm.create_model(
        f"cait_{variant.lower()}_{SIZE}",
        drop_path_rate=VARIANTS[variant].drop_path_rate,
    )
    model = model.to("cuda", dtype, memory_format=torch.channels_last)
    images = torch.randn(
        (batch_size, 3, SIZE, SIZE), device="cuda", dtype=dtype
    ).contiguous(memory_format=torch.channels_last)
    make = torch_inference if task == "inference" else torch_training
    step = make(model, images, autotune)

    def run(steps: int) -> None:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()

    run(3)  # compiles
    shutdown_compile_workers()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    # Reserved, because memory of CUDA graphs does not count as allocated.
    return Program(run, torch.cuda.max_memory_reserved)


def torch_inference(
    model: Any, images: Any, autotune: bool
) -> Callable[[], object]:
    import torch

    # Both with CUDA graphs.
    forward = torch.compile(
        model.eval(), mode="max-autotune" if autotune else "reduce-overhead"
    )

    def step() -> None:
        with (
            torch.inference_mode(),
            torch.autocast("cuda", torch.bfloat16),
        ):
            forward(images)

    return step


def torch_training(
    model: Any, images: Any, autotune: bool
) -> Callable[[], object]:
    import torch

    parameters = list(model.train().parameters())
    optimizer = torch.optim.AdamW(
        parameters, 5e-4, weight_decay=0.05, fused=True
    )
    ema = [p.detach().clone() for p in parameters]
    # Without the mode's coordinate descent, which compiles for many minutes.
    forward = torch.compile(model, options={"max_autotune": autotune})
    size = len(images)
    targets = torch.full((size, CLASSES), 1e-4, device="cuda")
    targets[range(size), range(size)] += 0.9

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            logits = forward(images)
        losses = -torch.sum(targets * logits.float().log_softmax(-1), -1)
        losses.mean().backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(ema, parameters, 4e-5)

    return step


RUNNERS: dict[str, Callable[..., Program]] = {
    "keras-cait": keras_cait_program,
    "keras-cait, without the kernel": partial(keras_cait_program, kernel=False),
    "timm compiled": timm_program,
    "timm max-autotune": partial(timm_program, autotune=True),
    "timm compiled, bfloat16 weights": partial(
        timm_program, weights="bfloat16"
    ),
}
BATCH_SIZES: dict[Task, list[int]] = {
    "training": [64, 256],
    "inference": [1, 64, 256],
}
# Processes that compile at the same time. XLA and PyTorch time their choices on
# the card, and more would disturb them.
COMPILING = {"keras-cait": 6, "timm": 9}


def cases(variants: Sequence[str], tasks: Sequence[Task]) -> list[Case]:
    """All cells of the tables; those that matter most come first."""
    found = [
        Case(name, variant, task, batch_size)
        for name in RUNNERS
        for task in tasks
        for variant in variants
        for batch_size in reversed(BATCH_SIZES[task])
        # Weights in bfloat16 would not move, and one image has no kernel.
        if not (task == "training" and "bfloat16" in name)
        and not (batch_size == 1 and "kernel" in name)
    ]
    return sorted(found, key=lambda one: one.runner != "timm compiled")


def serve(connection: Connection, turn: Any, case: Case) -> None:
    """Runs in the process of a case."""
    os.setpgrp()
    try:
        with turn:
            program = RUNNERS[case.runner](*case[1:])
        connection.send("ready")
        connection.recv()
        connection.send(measure(program))
    except Exception as error:  # reported in the table
        connection.send(f"{type(error).__name__}: {error}".partition("\n")[0])


def receive(connection: Connection) -> Any:
    """The next message, or `None` if the process has ended."""
    try:
        return connection.recv()
    except EOFError:
        return None


def measure(program: Program) -> Timing:
    program.run(3)
    start = time.perf_counter()
    program.run(2)
    steps = int(2 * ROUND_SECONDS / (time.perf_counter() - start))
    steps = min(max(steps, 1), 300)
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        program.run(steps)
        times.append((time.perf_counter() - start) / steps)
    return Timing(tuple(times), program.peak_bytes())


def timings(
    todo: Sequence[Case], patience: float, end: float
) -> Iterator[tuple[Case, Timing | str]]:
    """Each case and its timing, or why there is none."""
    start = time.monotonic()
    spawn = multiprocessing.get_context("spawn")
    turns = {name: spawn.Semaphore(count) for name, count in COMPILING.items()}
    running = []
    try:
        for case in todo:
            turn = next(turns[k] for k in turns if case.runner.startswith(k))
            connection, child = spawn.Pipe()
            # Not a daemon: PyTorch compiles in processes of its own.
            process = spawn.Process(target=serve, args=(child, turn, case))
            process.start()
            child.close()
            running.append((case, connection, process))
        ready = []
        for case, connection, process in running:
            message: Any = f"not ready in {patience:.0f} s"
            left = start + patience - time.monotonic()
            if connection.poll(max(0.0, left)):
                message = receive(connection) or "stopped"
            else:
                kill(process)
            if message == "ready":
                ready.append((case, connection, process))
            else:
                yield case, message
        for case, connection, process in ready:
            if time.monotonic() > start + end:
                return
            connection.send(True)
            yield case, receive(connection) or "stopped"
            kill(process)  # and its memory
    finally:
        for *_, process in running:
            if process.is_alive():
                kill(process)


def kill(process: Any) -> None:
    """Kills the process of a runner, and those that compile for it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def row(case: Case, timing: Timing) -> dict[str, float | str | None]:
    """The numbers of a run, without those of the others."""
    from benchmarks.cost import multiply_adds

    passes = 3 if case.task == "training" else 1
    flops = 2 * multiply_adds(case.variant, SIZE) * passes
    speed = case.batch_size / timing.median
    return {
        "images/s": speed,
        "timm compiled = 1": None,
        "MFU, %": 100 * flops * speed / PEAK_FLOPS,
        "peak GB": timing.peak_bytes / 1e9,
        "spread, %": 100 * timing.spread,
    }


def tables_of(found: Mapping[Case, Timing | str]) -> dict[str, Rows]:
    """One table for each variant, task and batch size that was measured."""
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    order = list(RUNNERS)
    for case in sorted(found, key=lambda one: (*one[1:], order.index(one[0]))):
        timing = found[case]
        table = tables.setdefault(title(case), {})
        if isinstance(timing, str):
            table[case.runner] = {"images/s": timing}
        else:
            table[case.runner] = row(case, timing)
    for label, table in list(tables.items()):
        if not any("MFU, %" in numbers for numbers in table.values()):
            del tables[label]
            continue
        timm = table.get("timm compiled", {}).get("images/s")
        for numbers in table.values():
            if isinstance(timm, float) and "timm compiled = 1" in numbers:
                numbers["timm compiled = 1"] = numbers["images/s"] / timm
    return tables


def title(case: Case) -> str:
    return f"CaiT-{case.variant}, {case.task}, batch {case.batch_size}"


app = benchmark_app("gpu", __doc__)


@app.default
def main(
    *,
    variants: tuple[Literal["XXS24", "S24"], ...] = ("XXS24", "S24"),
    tasks: tuple[Task, ...] = tuple(BATCH_SIZES),
    runners: tuple[str, ...] = tuple(RUNNERS),
    patience: Count = 600,
    limit: Count = 3600,
    output: Output = None,
) -> None:
    """Times keras-cait on JAX, with and without its kernel, and timm.

    Args:
        variants: Models to time.
        tasks: What they do.
        runners: Rows of the tables.
        patience: Seconds that the rows have to compile.
        limit: Seconds after which no other row starts.
    """
    todo = [case for case in cases(variants, tasks) if case.runner in runners]
    found: dict[Case, Timing | str] = {}
    tables: dict[str, Rows] = {}
    for case, timing in timings(todo, patience, limit):
        print(*case, timing, flush=True)
        found[case] = timing
        tables = tables_of(found)
        write(tables, output, ROUNDS, card())
    for label, table in tables.items():
        show(label, table)


def card() -> str | None:
    """Name of the GPU, `None` without one."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    with suppress(OSError):
        answer = subprocess.run(query, capture_output=True, text=True)
        return answer.stdout.strip() or None
    return None


if __name__ == "__main__":
    run(app)
