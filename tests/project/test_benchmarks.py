"""Results are stored, printed and drawn; measured tables come from them."""

import json
import os
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import (
    gpu,
    inference,
    litert,
    pipeline,
    report,
    results,
    rewrites,
    scale,
    serving,
    tables,
    training,
)
from benchmarks.interleave import Timing, interleave, relative
from keras_cait import load_image
from training.recipes import SUMMARIES


def test_runners_are_timed_and_failures_are_named():
    # Of the standard library, so that their processes do not import this file.
    quick = partial(partial, len)
    broken = partial(exec, 'raise RuntimeError("out of order\\nat line 3")')
    timings = interleave(
        {
            "quick": ("json", quick),
            "broken": ("json", broken),
            "dead": ("json", partial(exec, "import os; os._exit(1)")),
            "missing": ("no_such_package", quick),
        },
        ({},),
        rounds=2,
    )
    quickly = timings["quick"]
    assert isinstance(quickly, Timing)
    assert len(quickly.seconds) == 2 and 0 < quickly.best <= quickly.median
    # Not that of this process, which is much larger.
    assert 1e6 < quickly.peak_bytes < 1e8
    assert timings["broken"] == "RuntimeError: out of order"
    assert timings["dead"] == "stopped"
    assert timings["missing"] == "no_such_package is not installed"


@pytest.mark.parametrize(
    "seconds, ratio",
    [
        ([0.5, 0.5, 0.5, 0.5, 0.4, 0.4, 0.4], 2.0),
        ([0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 1.1], "≈ 1.11"),
        ([1.0] * 7, 1.0),  # itself
        ([0.8] * 9 + [1.1], 1.25),  # one of ten may differ
    ],
)
def test_a_difference_within_the_noise_is_marked(seconds, ratio):
    reference, timing = Timing((1.0,) * len(seconds)), Timing(tuple(seconds))
    assert relative(reference, timing) == ratio
    assert relative("timm is not installed", timing) is None


def test_noise_that_reaches_all_cancels_out():
    reference, timing = Timing((1.0, 4.0, 2.0)), Timing((0.9, 3.6, 1.8))
    assert relative(reference, timing) == pytest.approx(1 / 0.9)


def test_a_table_shows_every_number(tmp_path, capsys):
    timings = {
        "matrix product": Timing((0.5,) * 3),
        "keras-cait, XLA": Timing((0.081, 0.1, 0.08), 1_234_500_000),
        "timm eager": "timm is not installed",
    }
    rows = inference.rows(inference.Case("XXS24", 224, 1, ""), timings)
    results.show("A model, batch 1", rows)
    printed = capsys.readouterr().out
    for line in (
        "| Run | images/s | best | spread, % | timm eager = 1 "
        "| % of a matrix product | peak MB |",
        "| keras-cait, XLA | 12.3 | 12.5 | 24.7 |  | 182 | 1,234 |",
        "| timm eager | timm is not installed |  |  |  |  |  |",
    ):
        assert line in printed
    path = tmp_path / "inference.json"
    results.write({"A model, batch 1": rows}, path, rounds=3)
    record = results.read("inference", tmp_path)
    assert record["tables"] == json.loads(
        json.dumps({"A model, batch 1": rows})
    )
    assert {"date", "machine", "versions"} < record.keys()
    assert record["shows"] == "Medians of 3 rounds."
    record["tables"]["Words"] = {"PNG": {"read": "yes"}, "GIF": {"read": "no"}}
    report.draw(record, tmp_path / "figure.png")
    drawn = load_image(tmp_path / "figure.png")
    assert drawn.shape[1] == 616  # one panel


@pytest.mark.parametrize(
    "flags, name",
    [
        ("avx avx2 fma", "AVX2"),
        ("avx2 avx512f avx512dq", "AVX-512"),
        ("avx2 avx512f avx512_vnni", "AVX-512 with VNNI"),
        ("avx2 avx512f avx512_vnni amx_int8", "AVX-512 with VNNI and AMX"),
        ("", ""),
    ],
)
def test_instruction_sets_are_named(flags, name):
    assert results.instruction_set(flags) == name


def test_a_record_states_threads_and_a_limit_of_onednn(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    machine = results.this_machine()
    assert machine.endswith(f"{os.cpu_count()} threads, oneDNN limited to AVX2")


def test_contestants_are_in_the_requirements():
    requirements = (report.ROOT / "requirements/benchmark.txt").read_text()
    contestants = (
        inference.RUNNERS
        | serving.RUNNERS
        | training.RUNNERS
        | litert.BASELINES
        | pipeline.PIPELINES
    )
    needed = {package for package, _ in contestants.values()}
    needed -= {"tensorflow"}  # of the project itself
    assert needed <= set(re.findall(r"^[\w-]+", requirements, re.M))


def test_runs_on_a_gpu_are_compared_with_timm():
    keras_cait, timm = (
        gpu.Case(name, "S24", "inference", 64)
        for name in ("keras-cait", "timm compiled")
    )
    found = {
        timm: Timing((0.016,), 1),
        keras_cait: Timing((0.008,), 10**9),
        timm._replace(task="training"): "out of memory",
    }
    (rows,) = gpu.tables_of(found).values()
    assert list(rows) == ["keras-cait", "timm compiled"]
    assert rows["keras-cait"]["images/s"] == 8000
    assert rows["keras-cait"]["timm compiled = 1"] == 2
    # 9.35 G multiply-adds per image.
    assert rows["keras-cait"]["MFU, %"] == pytest.approx(15.1, rel=1e-2)


@pytest.mark.parametrize("path", report.DOCUMENTS, ids=lambda path: path.name)
def test_generated_regions_are_up_to_date(path):
    text = path.read_text()
    assert text.count("<!-- generated:") == len(report.REGION.findall(text))
    assert report.fill(text) == text, "Run: python -m benchmarks.report"


def test_every_benchmark_is_on_the_page():
    page = (report.ROOT / "docs/benchmarks.md").read_text()
    named = re.findall(r"<!-- generated: benchmark (\w+) -->", page)
    stored = {path.stem for path in results.RESULTS.glob("*.json")}
    assert set(named) == set(report.BENCHMARKS) <= stored


def test_graphs_without_a_rewrite_compute_the_same(small_model, images):
    functions = rewrites.functions_of_images(small_model)
    logits = functions["all rewrites"](images)
    for name, function in functions.items():
        expected = logits
        if name == "Keras model":
            expected = tf.nn.softmax(logits)
        np.testing.assert_allclose(
            function(images), expected, rtol=1e-4, atol=1e-5, err_msg=name
        )


def test_a_training_is_computed_from_its_parts():
    system = scale.System(4, 2, 1e15, 40e9, 100e9, 50e9, 64, 10.0)
    found = scale.estimate("s24-224", system)
    weights, macs = 46_916_200, 9.35e9  # published
    speed = 4 * 1e15 * scale.utilization() / (6 * macs)
    reducing = 1.5 * 4 * weights / 100e9 + 4 * weights / 50e9
    assert found.step == pytest.approx(1024 / speed + reducing, rel=1e-3)
    assert found.hours == pytest.approx(
        400 * 1_281_167 / (1024 / found.step) / 3600
    )
    assert found.price == pytest.approx(10 * found.hours)
    assert not found.rematerialize
    tight = replace(system, memory=20e9)
    assert scale.estimate("m48-448", tight).rematerialize
    assert scale.pods(1, pod=100) == 2


def test_help_of_the_quickstart_shows_the_measured_accuracy():
    assert f"{tables.quickstart_top_1()} top-1" in SUMMARIES["quickstart"]
