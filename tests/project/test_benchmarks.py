"""The page of numbers says what was measured."""

import json

from benchmarks import record, report


def test_the_page_tells_every_number(tmp_path, capsys):
    rows = {
        "ours": {"images/s": 12.3456, "peak MB": 1234.5},
        "timm eager": {"images/s": "timm is not installed"},
        "ONNX Runtime": {"images/s": 9.0, "parts": 30},
    }
    record.show("A model, batch 1", rows)
    printed = capsys.readouterr().out
    results = tmp_path / "results"
    results.mkdir()
    record.write({"A model, batch 1": rows}, results / "inference.json")
    page = report.page(results, tmp_path)
    lines = [
        "|  | images/s | peak MB | parts |",
        "| ours | 12.3 | 1,234 |  |",
        "| timm eager | timm is not installed |  |  |",
        "| ONNX Runtime | 9.00 |  | 30 |",
    ]
    for line in lines:
        assert line in page
        assert line in printed
    written = json.loads((results / "inference.json").read_text())
    assert written["date"] in page
    assert f"keras {written['versions']['keras']}" in page
    assert "## Training" not in page  # was not measured
    figure = (tmp_path / "benchmark-inference.png").read_bytes()
    assert figure.startswith(b"\x89PNG")


def test_the_page_is_that_of_the_results(tmp_path):
    """docs/benchmarks.md is made, not written."""
    page = report.page(report.ROOT / "benchmarks" / "results", tmp_path)
    assert (report.ROOT / "docs" / "benchmarks.md").read_text() == page
