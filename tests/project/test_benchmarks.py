"""Results are stored, printed and drawn; measured tables come from them."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import (
    gpu,
    inference,
    report,
    results,
    rewrites,
    scale,
    tables,
)
from benchmarks.interleave import Timing, interleave
from training.recipes import SUMMARIES


def quick(arguments):
    return lambda: arguments


def broken(arguments):
    raise RuntimeError("out of order\nat line 3")


def test_runners_are_timed_and_failures_are_named():
    timings = interleave(
        {
            "quick": ("json", quick),
            "broken": ("json", broken),
            "missing": ("no_such_package", quick),
        },
        ("image",),
        rounds=2,
    )
    assert isinstance(timings["quick"], Timing)
    assert timings["quick"].seconds > 0 and timings["quick"].peak_bytes > 1e6
    assert timings["broken"] == "RuntimeError: out of order"
    assert timings["missing"] == "no_such_package is not installed"


def test_a_table_shows_every_number(tmp_path, capsys):
    timings = {
        "matrix product": Timing(0.5, 0),
        "keras-cait, XLA": Timing(0.081, 1_234_500_000),
        "timm eager": "timm is not installed",
    }
    rows = inference.rows("XXS24", 1, timings)
    results.show("A model, batch 1", rows)
    printed = capsys.readouterr().out
    for line in (
        "| Run | images/s | timm eager = 1 | % of a matrix product | peak MB |",
        "| keras-cait, XLA | 12.3 |  | 182 | 1,234 |",
        "| timm eager | timm is not installed |  |  |  |",
    ):
        assert line in printed
    path = tmp_path / "inference.json"
    results.write({"A model, batch 1": rows}, path)
    record = results.read("inference", tmp_path)
    assert record["tables"] == json.loads(
        json.dumps({"A model, batch 1": rows})
    )
    assert {"date", "machine", "versions"} < record.keys()
    report.draw(record, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_runs_on_a_gpu_are_compared_with_timm():
    keras_cait, timm = (
        gpu.Case(name, "S24", "inference", 64)
        for name in ("keras-cait", "timm compiled")
    )
    found = {
        timm: gpu.Timing(0.016, 0.0, 1),
        keras_cait: gpu.Timing(0.008, 0.02, 10**9),
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
