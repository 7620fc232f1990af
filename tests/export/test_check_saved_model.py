"""A SavedModel is checked in a process without Keras."""

import json
import shutil

import pytest

from export.__main__ import main
from export.check_saved_model import (
    LARGEST_BATCH,
    check_saved_model,
    checks_table,
    run_signatures,
)
from export.serving.model_folder import write_version
from export.serving.warmup import example_image
from tests.helpers.commands import exit_status
from tests.helpers.models import LABELS, randomise, small
from tests.helpers.reference import ENCODED


def build(seed=0):
    return randomise(small(classifier_activation="sigmoid"), seed)


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def version(model, tmp_path_factory):
    output = tmp_path_factory.mktemp("models") / "cait"
    return write_version(model, LABELS, output, batch_sizes=(1, 2))


@pytest.fixture(scope="module")
def outputs(version):
    """Outputs of the SavedModel; the new process takes seconds."""
    return run_signatures(version, (LARGEST_BATCH * ENCODED)[:LARGEST_BATCH])


@pytest.fixture
def known_outputs(outputs, monkeypatch):
    monkeypatch.setattr(
        "export.check_saved_model.run_signatures", lambda *_: dict(outputs)
    )


def test_every_signature_at_every_batch_size(model, version, known_outputs):
    checks = check_saved_model(version, model, ENCODED)
    assert {(check.signature, check.output) for check in checks} == {
        ("serving_default", "scores"),
        ("pixels", "logits"),
        ("pixels", "probabilities"),
        ("embedding", "embedding"),
        ("attention", "attention"),
        ("attention", "scores"),
        ("classify", "scores"),
    }
    assert len(checks) == 3 * 7
    assert {check.batch_size for check in checks} == {1, 3, 8}
    for check in checks:
        assert check.mean_difference <= check.max_difference < 1e-5
        assert check.top1 in (None, 1.0)
        assert check.top5 in (None, 1.0)
    lines = checks_table(checks).splitlines()
    assert len(lines) == 1 + len(checks)
    assert len(set(map(len, lines))) == 1


def test_other_weights_are_found_out(version, known_outputs):
    with pytest.raises(ValueError, match="differs from the Keras model"):
        check_saved_model(version, build(seed=1), ENCODED)


def test_a_shape_that_is_not_the_manifest_s(model, version, tmp_path):
    other = shutil.copytree(version, tmp_path / "1")
    manifest = json.loads((other / "manifest.json").read_text())
    outputs = manifest["signatures"]["embedding"]["outputs"]
    outputs["embedding"]["shape"] = [None, 48]
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"'embedding' returns.*24.*48"):
        check_saved_model(other, model, ENCODED)


@pytest.mark.parametrize(
    "file", ["saved_model.pb", "assets.extra/tf_serving_warmup_requests"]
)
def test_damaged_files(model, version, tmp_path, file):
    other = shutil.copytree(version, tmp_path / "1")
    content = (other / file).read_bytes()
    (other / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="does not run without Keras"):
        check_saved_model(other, model, ENCODED)


def test_what_fails_the_check_is_not_written(model, tmp_path, monkeypatch):
    model.save(tmp_path / "model.keras")
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))

    def refuse(*_):
        raise ValueError("other outputs")

    monkeypatch.setattr("export.check_saved_model.run_signatures", refuse)
    command = ["saved-model", "--model", tmp_path / "model.keras"]
    output = tmp_path / "models/cait"
    assert exit_status(main, *command, "--output", output) == 1
    assert not list(tmp_path.glob("models/*"))


def test_example_images_are_of_the_size_of_photos():
    sizes = [len(example_image(seed)) for seed in range(3)]
    assert len(set(sizes)) == 3
    assert all(10_000 < size < 100_000 for size in sizes)
