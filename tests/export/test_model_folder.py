"""The folder of a served model: whole, numbered and as the server reads it."""

import json
import re
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

import keras_cait
from export.__main__ import main
from export.model_card import measured_accuracy
from export.serving.manifest import nodes, weights_hash
from export.serving.model_folder import (
    check_output,
    check_served_name,
    read_manifest,
    write_version,
)
from keras_cait.loading import existing_versions
from tests.helpers.commands import exit_status
from tests.helpers.models import LABELS, randomise, small


@pytest.fixture(scope="module")
def model():
    return randomise(small())


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    """Two versions, exported one after the other."""
    output = tmp_path_factory.mktemp("models") / "cait_tiny"
    for _ in range(2):
        write_version(model, LABELS, output, batch_sizes=(2, 1))
    return output


@pytest.fixture
def copied(served, monkeypatch):
    """Versions are copies of one SavedModel, which takes seconds to make."""
    monkeypatch.setattr(
        "export.serving.model_folder.write_saved_model",
        lambda model, labels, path, *_: shutil.copytree(
            served / "1",
            path,
            ignore=shutil.ignore_patterns("tf_serving_warmup_requests"),
        ),
    )


def files(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_versions_are_numbered_and_stay(model, served, tmp_path):
    assert list(existing_versions(served)) == [1, 2]
    assert {path.name for path in served.iterdir()} == {
        *("1", "2", "models.config", "batching_parameters.txt"),
        *("monitoring.config", "prometheus.yaml"),
        *("compose.yaml", "kubernetes.yaml", "kserve.yaml"),
        *("autoscaling.yaml", "alerts.yaml", "dashboard.json"),
    }
    assert not [p for p in served.parent.iterdir() if p != served]


def test_models_config_labels_stable_and_canary(served):
    text = (served / "models.config").read_text()
    config = text_format.Parse(text, ModelServerConfig())
    (model,) = config.model_config_list.config
    assert model.name == "cait_tiny"
    assert model.base_path == "/models/cait_tiny"
    assert list(model.model_version_policy.specific.versions) == [1, 2]
    assert dict(model.version_labels) == {"stable": 1, "canary": 2}


def test_a_promoted_version_and_labels_of_ones_own_stay(
    model, copied, tmp_path
):
    output = tmp_path / "cait"
    for _ in range(2):
        write_version(model, LABELS, output, batch_sizes=(1,))
    config = output / "models.config"
    own = 'version_labels { key: "own" value: 1 }'
    promoted = config.read_text().replace(
        'version_labels { key: "stable" value: 1 }',
        'version_labels { key: "stable" value: 2 } ' + own,
    )
    config.write_text(promoted)
    write_version(model, LABELS, output, batch_sizes=(1,))
    labels = {"stable": 2, "own": 1, "canary": 3}
    assert parsed_config(output) == ([1, 2, 3], labels)


def memory_limit(output):
    """MiB of a pod."""
    text = (output / "kubernetes.yaml").read_text()
    return int(re.search(r"limits: .*memory: (\d+)Mi", text)[1])


def parsed_config(output):
    text = (output / "models.config").read_text()
    (model,) = text_format.Parse(
        text, ModelServerConfig()
    ).model_config_list.config
    return (
        list(model.model_version_policy.specific.versions),
        dict(model.version_labels),
    )


def test_a_version_removed_from_the_config_stays_removed(
    model, copied, tmp_path
):
    """It needs neither memory nor XLA; its folder may stay, or go."""
    output = tmp_path / "cait"
    for xla in (True, False, False):
        write_version(model, LABELS, output, xla=xla, batch_sizes=(1,))
    config = output / "models.config"
    text = config.read_text().replace('"stable" value: 1', '"stable" value: 2')
    config.write_text(text.replace("versions: 1 ", ""))
    before = memory_limit(output)
    write_version(model, LABELS, output, batch_sizes=(1,))
    assert parsed_config(output) == ([2, 3, 4], {"stable": 2, "canary": 4})
    assert memory_limit(output) == before
    flag = "--xla_cpu_compilation_enabled=false"
    assert flag in (output / "compose.yaml").read_text()


@pytest.mark.parametrize("gone", [[2], [1, 2, 3]], ids=str)
def test_a_stable_version_that_is_gone_is_refused(
    gone, model, copied, tmp_path
):
    output = tmp_path / "cait"
    for _ in range(3):
        write_version(model, LABELS, output, batch_sizes=(1,))
    config = output / "models.config"
    text = config.read_text().replace('"stable" value: 1', '"stable" value: 2')
    config.write_text(text)
    for number in gone:
        shutil.rmtree(output / str(number))
    instead = "delete it" if len(gone) == 3 else "point stable to one of 1, 3"
    with pytest.raises(ValueError, match=f"Restore version 2, or {instead}"):
        check_output(output)


def test_a_version_is_written_on_the_disk_of_its_folder(model, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "cait").symlink_to(disk)
    unfinished = []
    write_version(
        *(model, LABELS, tmp_path / "cait"),
        signatures=["pixels"],
        check=lambda version: unfinished.append(version.resolve()),
    )
    assert unfinished[0].is_relative_to(disk)
    assert {"1", "models.config"} < {path.name for path in disk.iterdir()}
    assert not list(disk.glob(".*"))


def test_numbers_that_are_taken_are_left_out(model, copied, tmp_path):
    """By a folder that is no version, a file, and a version named 007."""
    output = tmp_path / "cait"
    first = write_version(model, LABELS, output, batch_sizes=(1,))
    first.rename(output / "007")
    config = output / "models.config"
    config.write_text(
        re.sub(r"(versions:|value:) 1", r"\1 7", config.read_text())
    )
    (output / "8").mkdir()
    (output / "9").touch()
    assert write_version(model, LABELS, output, batch_sizes=(1,)).name == "10"
    assert parsed_config(output) == ([7, 10], {"stable": 7, "canary": 10})


def test_the_server_is_told_of_xla(model, served, copied, tmp_path):
    """It refuses to compile for the CPU otherwise; versions may be mixed."""
    flags = (
        "--xla_cpu_compilation_enabled={}\n"
        "      - --tensorflow_intra_op_parallelism={}\n"
    )
    assert flags.format("false", 1) in (served / "compose.yaml").read_text()
    output = tmp_path / "cait"
    for xla in (True, False):
        write_version(model, LABELS, output, xla=xla, batch_sizes=(1,))
        assert flags.format("true", 0) in (output / "compose.yaml").read_text()


@pytest.mark.parametrize(
    ("options", "parts", "cpus"),
    [({}, 2, 4), ({"parts": 3}, 3, 6), ({"xla": True}, 1, 4)],
    ids=str,
)
def test_a_request_keeps_a_core_busy_for_each_part(
    tmp_path, options, parts, cpus
):
    model = randomise(small(depth=1, class_attention_depth=1))
    version = write_version(
        model, LABELS, tmp_path / "cait", signatures=("pixels",), **options
    )
    operations = [node.op for node in nodes(version)]
    class_attention_and_head = 2
    assert operations.count("Softmax") == parts + class_attention_and_head
    assert read_manifest(version)["parts"] == parts
    limits = (tmp_path / "cait/compose.yaml").read_text()
    assert f'limits: {{cpus: "{cpus}"' in limits


def test_memory_suits_all_versions(model, copied, tmp_path):
    """The largest image that any served version accepts decides."""
    limits = []
    for megapixels in (10, 20, 10):
        write_version(
            model,
            LABELS,
            tmp_path / "cait",
            batch_sizes=(1,),
            max_megapixels=megapixels,
        )
        limits.append(memory_limit(tmp_path / "cait"))
    graph = 256  # MiB of one more version
    larger_images = 2 * 4 * 3 * 10e6 / 2**20
    assert limits[1] - limits[0] == pytest.approx(graph + larger_images, abs=5)
    assert limits[2] - limits[1] == pytest.approx(graph, abs=5)


def test_warmup_asks_every_signature_at_every_batch_size(served):
    path = served / "2/assets.extra/tf_serving_warmup_requests"
    asked = set()
    for record in tf.data.TFRecordDataset(str(path)):
        log = PredictionLog.FromString(record.numpy())
        if log.HasField("classify_log"):
            request = log.classify_log.request
            count = len(request.input.example_list.examples)
        else:
            request = log.predict_log.request
            (value,) = request.inputs.values()
            count = tf.make_ndarray(value).shape[0]
        assert request.model_spec.name == "cait_tiny"
        asked.add((request.model_spec.signature_name, count))
    names = tf.saved_model.load(str(served / "2")).signatures
    assert asked == {(name, count) for name in names for count in (1, 2)}


def test_manifest(model, served):
    manifest = json.loads((served / "2/manifest.json").read_text())
    assert manifest["weights_sha256"] == weights_hash(model)
    assert manifest["versions"]["tensorflow"] == tf.__version__
    assert manifest["signatures"]["pixels"]["inputs"] == {
        "images": {"dtype": "uint8", "shape": [None, 32, 32, 3]}
    }
    kinds = ("Jpeg", "Png", "Gif", "Bmp")
    assert {f"Decode{kind}" for kind in kinds} <= set(manifest["operations"])
    assert (
        manifest["bytes"]["saved_model.pb"]
        == (served / "2/saved_model.pb").stat().st_size
    )


def test_the_manifest_tells_what_the_training_run_measured(model, tmp_path):
    model.save(tmp_path / "model.keras")
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    summary = {"top1": 0.75, "top5": 1.0, "steps": 3}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "recipe.json").write_text('{"image_size": 32}')
    output = tmp_path / "models/cait"
    command = ["saved-model", "--model", tmp_path / "model.keras"]
    assert exit_status(main, *command, "--output", output) == 0
    manifest = json.loads((output / "1/manifest.json").read_text())
    assert manifest["accuracy"]["top1"] == 0.75
    assert measured_accuracy(tmp_path, small(size=64)) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_hash_is_that_of_the_weights(dtype, tmp_path):
    model, other = small(dtype=dtype), small(dtype=dtype)
    keras_cait.save_checkpoint(model, tmp_path / "model.safetensors")
    assert weights_hash(other) != weights_hash(model)
    keras_cait.load_checkpoint(other, tmp_path / "model.safetensors")
    assert weights_hash(other) == weights_hash(model)


@pytest.mark.parametrize("is_new", [True, False])
def test_a_failure_leaves_all_as_it_was(
    model, served, copied, tmp_path, is_new
):
    output = tmp_path / "cait" if is_new else served
    before = files(output.parent)

    def interrupt(version):
        assert version.is_dir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_version(model, LABELS, output, batch_sizes=(1,), check=interrupt)
    assert files(output.parent) == before


@pytest.mark.parametrize("limit", [2_000, 60_000, 300_000])
def test_a_full_disk_is_one_clear_error(model, tmp_path, capfd, limit):
    """No file may grow beyond a limit: graph, variables or warm-up fail."""
    model.save(tmp_path / "model.keras")
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        command = ["saved-model", "--model", tmp_path / "model.keras"]
        output = tmp_path / "models/cait"
        status = exit_status(main, *command, "--output", output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capfd.readouterr().err
    assert status == 1, error
    assert error.count("\n") == 1
    assert error.startswith("Cannot write")
    assert not list(tmp_path.glob("models/*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output": "models/of mine"}, "name of the served model"),
        ({"batch_sizes": (0, 1)}, "at least 1"),
        ({"max_megapixels": 0.1}, "max_megapixels must be at least 0.2"),
        ({"max_megapixels": float("nan")}, "must be at least 0.2"),
        ({"top": 0}, "top must be at least 1. Got 0"),
        ({"labels": ["one"]}, "1 labels for 5 classes"),
    ],
    ids=str,
)
def test_bad_arguments_write_nothing(model, tmp_path, arguments, message):
    arguments = {"labels": LABELS, "output": "cait"} | arguments
    arguments["output"] = tmp_path / arguments["output"]
    with pytest.raises(ValueError, match=message):
        write_version(model, **arguments)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "1",
            "1cait",
            "_cait",
            "cait_",
            "cait-",
            "a.b",
            "a b",
            "löwe",
            "a/.b",
        ),
        *("on", "NO", "null", "True", "y", "c" * 64, "-", ".cait"),
    ],
)
def test_names_that_yaml_or_kubernetes_refuse(name, capsys, tmp_path):
    options = ["--model", "S24", "--output", tmp_path / name]
    assert exit_status(main, "saved-model", *options) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "must start with a letter, end with a letter or digit" in error
    assert repr(Path(name).name) in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["cait", "m", "CaiT_S24-384", "c" * 63])
def test_names_that_are_served(name):
    check_served_name(name)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("models.config", "model_config_list {}", "no version with the label"),
        ("1/manifest.json", "{", "Cannot read .*manifest.json"),
    ],
)
def test_a_damaged_folder_is_left_as_it_is(
    model, served, tmp_path, name, text, message
):
    output = shutil.copytree(served, tmp_path / served.name)
    (output / name).write_text(text)
    before = files(output)
    with pytest.raises(ValueError, match=message):
        write_version(model, LABELS, output)
    assert files(output) == before


def test_a_weights_file_is_exported_as_its_variant(tmp_path, monkeypatch):
    received = []
    monkeypatch.setattr(
        "export.serving.model_folder.write_version",
        lambda *arguments, **_: received.extend(arguments),
    )
    model = keras_cait.CaiT_XXS24(
        weights=None, input_shape=(32, 32, 3), classes=3
    )
    model.save_weights(tmp_path / "model.weights.h5")
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    options = ["--model", tmp_path / "model.weights.h5"]
    options += ["--variant", "XXS24", "--image-size", "32"]
    options += ["--output", tmp_path / "models/m"]
    assert exit_status(main, "saved-model", *options) == 0
    loaded, labels, *_ = received
    assert labels == ["a", "b", "c"]
    assert loaded.image_shape == (32, 32, 3)
    np.testing.assert_array_equal(
        loaded.get_layer("head").get_weights()[0],
        model.get_layer("head").get_weights()[0],
    )
