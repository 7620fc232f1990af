"""Batch prediction: every image one row, whatever its kind and what happens."""

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import keras
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from PIL import Image

import keras_cait
from export.__main__ import main
from export.batch import cluster, pipeline
from export.batch.cluster import check_command
from export.batch.images import parts_of_dataset, parts_of_input
from export.batch.job import open_job
from export.batch.parts import count, digest
from export.batch.pipeline import (
    Classify,
    decode,
    describe,
    gather,
    top_classes,
)
from export.inference_graph import InferenceModel
from export.litert import convert
from export.predictors import embedder, load_pixel_predictor
from export.serving.model_folder import write_version
from keras_cait.loading import classifier, load_classifier
from keras_cait.preprocessing import load_image, resize_and_crop
from tests.helpers.commands import exit_status
from tests.helpers.models import LABELS, randomise, small
from training import evaluate

ROOT = Path(__file__).parents[2]
COUNT = 20
BAD = {4: b"no image", 11: b""}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of JPEGs of several sizes, two of them damaged."""
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for i in range(COUNT):
        pixels = noise.integers(0, 256, (30 + i, 50 - i, 3), "uint8")
        Image.fromarray(pixels).save(folder / f"{i:02d}.jpg")
    for i, content in BAD.items():
        (folder / f"{i:02d}.jpg").write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The same model as Keras file, SavedModel and .tflite file."""
    folder = tmp_path_factory.mktemp("models")
    model = randomise(
        keras_cait.CaiT(
            24, 1, 2, patch_size=8, input_shape=(32, 32, 3), classes=5
        )
    )
    model.save(folder / "model.keras")
    (folder / "labels.txt").write_text("\n".join(LABELS))
    write_version(model, LABELS, folder / "served", batch_sizes=(1,))
    tflite = convert(
        InferenceModel(model), batch_size=2, signatures=("embedding",)
    )
    (folder / "model.tflite").write_bytes(tflite)
    return folder


@pytest.fixture(scope="module")
def labeled(images, tmp_path_factory):
    """The same images as a dataset of five classes."""
    folder = tmp_path_factory.mktemp("labeled")
    for i, file in enumerate(sorted(images.iterdir())):
        place = folder / "validation" / LABELS[i % 5]
        place.mkdir(parents=True, exist_ok=True)
        os.link(file, place / file.name)
    return folder


def read(parts):
    return [image for part in parts for image in part.read()]


def parts_of(*inputs, part_size=8, column=None, folder=""):
    return parts_of_input(map(str, inputs), part_size, column, str(folder))


def described(source, **options):
    options = {"top": 3, "embedding": False, "batch_size": 8} | options
    return describe(str(source), None, None, None, **options)


def predict_here(parts, model):
    """The rows of all parts, without Ray."""
    classify = Classify(model, None)
    blocks = [
        classify(block)
        for number, part in enumerate(parts)
        for block in decode(
            {"number": np.array([number]), "part": np.array([part])},
            model.size,
            model.batch_size,
        )
    ]
    np.random.default_rng(0).shuffle(blocks)
    tables = dict(gather([*blocks, blocks[0]], dict(enumerate(parts))))
    return pa.concat_tables(tables[i] for i in range(len(parts))).to_pylist()


def files_of_every_kind(images, folder):
    """The same images in other containers, each as the input to give."""
    files = sorted(images.iterdir())
    contents = [file.read_bytes() for file in files]
    paths = [str(file) for file in files]
    table = {"id": range(COUNT), "bytes": contents}
    pq.write_table(pa.table(table), folder / "bytes.parquet", row_group_size=3)
    pq.write_table(pa.table({"path": paths}), folder / "path.parquet")
    structs = [{"bytes": content} for content in contents]
    table = pa.table({"image": structs})
    pq.write_table(table, folder / "struct.parquet", row_group_size=3)
    with tf.io.TFRecordWriter(str(folder / "a.tfrecord")) as writer:
        for content in contents:
            value = tf.train.Feature(
                bytes_list=tf.train.BytesList(value=[content])
            )
            features = tf.train.Features(feature={"image/encoded": value})
            example = tf.train.Example(features=features)
            writer.write(example.SerializeToString())
    return [
        *(images, images / "*.jpg", images / "**" / "??.jpg"),
        *(f"file://{images}", f"file://{images}/*.jpg"),
        *sorted(folder.iterdir()),
    ]


def test_every_container_has_the_same_images(images, tmp_path):
    expected = [file.read_bytes() for file in sorted(images.iterdir())]
    for given in files_of_every_kind(images, tmp_path):
        parts = parts_of(given)
        found = read(parts)
        assert [image.content for image in found] == expected, given
        assert len({image.name for image in found}) == COUNT, given
        assert count(parts) in (COUNT, None)
        sizes = [part.count for part in parts]
        assert sizes in ([8, 8, 4], [9, 9, 2], [COUNT], [None]), given


def test_a_file_is_read_once(images, monkeypatch):
    monkeypatch.chdir(images.parent)
    given = [images.name, f"./{images.name}/*", str(images), f"file://{images}"]
    assert len(read(parts_of_input(given, 8, None, os.getcwd()))) == COUNT


def test_a_dataset_has_labels():
    parts, names = parts_of_dataset("digits", "validation", "data", 256)
    assert parts[0].data_dir.is_absolute()  # workers start in other folders
    found = read(parts)
    assert len(found) == count(parts) == 1000
    assert names == tuple("0123456789")
    assert [image.label for image in found[99:101]] == [0, 1]


def dictionary(kind):
    return pa.dictionary(pa.int32(), kind)


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.large_binary(), pa.binary_view(), dictionary(pa.binary())),
        *(pa.large_string(), pa.string_view(), dictionary(pa.string())),
    ],
    ids=str,
)
def test_every_type_of_a_parquet_column_is_read(kind, images, tmp_path):
    file = images / "00.jpg"
    content = file.read_bytes()
    values = [str(file)] if "string" in str(kind) else [content]
    table = pa.table({"path": pa.array(values, kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    (image,) = read(parts_of(tmp_path))
    assert image.content == content


IMAGE = pa.array([b"x"])


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ({"id": pa.array([7]), "image": IMAGE}, "7"),
        ({"id": pa.array(["a"], dictionary(pa.string())), "image": IMAGE}, "a"),
        ({"id": IMAGE}, "a.parquet#0"),
        ({"id": IMAGE, "path": pa.array(["a"])}, "a"),
        ({"id": pa.array([0.5]), "image": IMAGE}, "a.parquet#0"),
        ({"id": pa.nulls(1, pa.int64()), "image": IMAGE}, "a.parquet#0"),
    ],
)
def test_an_id_is_text_or_an_integer(columns, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table(columns), "a.parquet")
    (image,) = read(parts_of("a.parquet"))
    assert (image.name, image.content) == (name, b"x")


def test_columns_of_the_same_name(tmp_path, monkeypatch):
    """No id, but the number of the row; and no image."""
    monkeypatch.chdir(tmp_path)
    columns = [[1] * 200, [2] * 200, [b"x"] * 200]
    table = pa.table(columns, ["id", "id", "image"])
    pq.write_table(table, "a.parquet", row_group_size=150)
    names = [image.name for image in read(parts_of("a.parquet"))]
    assert names == [f"a.parquet#{row}" for row in range(200)]
    table = pa.table([IMAGE, IMAGE], ["image", "image"])
    pq.write_table(table, "a.parquet")
    with pytest.raises(ValueError, match="several columns 'image'"):
        parts_of("a.parquet", column="image")


def test_text_in_the_place_of_images_names_no_file(tmp_path):
    column = pa.array([{"bytes": "/etc/hostname"}])
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
    for name, message in ((None, "has 0 columns"), ("image", "Expected")):
        with pytest.raises(ValueError, match=message):
            parts_of(tmp_path, column=name)


CUT = struct.pack("<Q", 9) + b"crc." + b"short"
NO_TFRECORD = (
    "The file is compressed, damaged here, or no TFRecord file. What follows "
    "in it is not read."
)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tfrecord", CUT, NO_TFRECORD),
        ("a.tfrecord", b"text", NO_TFRECORD),
        ("a.tfrecord", bytes(99), NO_TFRECORD),
        ("a.parquet", pa.table({"x": [None, b"x"]}), "The row has no image."),
    ],
)
def test_what_cannot_be_read_says_why(name, content, message, tmp_path):
    if isinstance(content, pa.Table):
        pq.write_table(content, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    first = read(parts_of(tmp_path))[0]
    assert first.name.endswith(f"{name}#0")
    assert str(first.content) == message


def test_an_empty_record_does_not_end_its_file(tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        writer.write(b"")
        writer.write(tf.train.Example().SerializeToString())
        writer.write(b"no example")
    (tmp_path / "b.tfrecord").touch()  # has no part, which no resuming awaits
    (part,) = parts_of(tmp_path)
    assert len(read([part])) == 3


@pytest.mark.parametrize("given", [".", "*", "**", "file://{}", "file://{}/**"])
@pytest.mark.parametrize("output", ["new", "./new/", "file://{}/new"])
def test_an_output_inside_the_input_is_left_out(
    given, output, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("a.parquet", "new.parquet", "new/part-00000.parquet"):
        Path(name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": [b"x"]}), name)
    given, output = given.format(tmp_path), output.format(tmp_path)
    parts = parts_of_input([given], 8, None, "", output)
    assert [Path(part.file).name for part in parts] == [
        *("a.parquet", "new.parquet")
    ]


@pytest.mark.parametrize("name", ["a.parquet", "a.tfrecord"])
def test_a_file_with_other_contents_is_another_input(name, tmp_path):
    file = tmp_path / name

    def write(content):
        if name == "a.parquet":
            pq.write_table(pa.table({"image": [content]}), file)
        else:
            file.write_bytes(content)
        os.utime(file, (0, 0))

    def digests():
        return [digest(parts_of(one)) for one in (file, f"file://{file}")]

    write(b"image")
    before = digests()
    assert digests() == before
    os.utime(file, (0, 100))  # other contents of the same size
    changed = digests()
    write(b"another image")
    for now in (changed, digests()):
        assert all(a != b for a, b in zip(before, now, strict=True))


def test_names_can_be_any_bytes(images, models, tmp_path):
    """Of files, and in the settings of a job."""
    photos = tmp_path / "photos"
    photos.mkdir()
    content = (images / "00.jpg").read_bytes()
    (photos / os.fsdecode(b"a\xff.jpg")).write_bytes(content)
    (photos / os.fsdecode(b"b\xff.jpg")).symlink_to("nowhere.jpg")
    table = tmp_path / os.fsdecode(b"\xff.parquet")
    with table.open("wb") as file:
        pq.write_table(pa.table({"image": [content]}), file)
    assert [image.content for image in read(parts_of(table))] == [content]
    good, bad = predict_here(
        parts_of(photos), described(models / "model.keras")
    )
    assert good["image"] == f"{photos}/a\\udcff.jpg"
    assert good["classes"] and "No such file" in bad["error"]
    with pytest.raises(ValueError, match="Give a folder or a glob"):
        check_command(["--input", str(table)])
    settings = {"input": [str(table)]}
    for resume in (False, True):
        with open_job(str(tmp_path / "new"), settings, "jsonl", resume):
            pass


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_brackets_in_a_name(scheme, tmp_path):
    (tmp_path / "a[1]").mkdir()
    (tmp_path / "a[1]/b.jpg").write_bytes(b"x")
    given = f"{scheme}{tmp_path}/a[1]/*.jpg"
    with pytest.raises(ValueError, match=r"write \[\[\] for \[\.$"):
        parts_of(given)
    (image,) = read(parts_of(given.replace("[", "[[]")))
    assert image.content == b"x"


def test_a_broken_link_is_an_image_with_an_error(tmp_path):
    (tmp_path / "a.jpg").symlink_to("nowhere.jpg")
    (image,) = read(parts_of(tmp_path))
    assert isinstance(image.content, FileNotFoundError)


@pytest.mark.parametrize("name", ["model.keras", "served", "model.tflite"])
def test_a_row_is_what_the_model_says(name, models, images, monkeypatch):
    """In parts of several blocks, on a machine in another folder."""
    monkeypatch.setattr(pipeline, "BLOCK_BYTES", 0)
    monkeypatch.chdir(models)
    model = described(name, embedding=True, batch_size=3)
    monkeypatch.chdir("/")
    rows = predict_here(parts_of(images), model)
    files = sorted(map(str, images.iterdir()))
    assert [row["image"] for row in rows] == files
    for i in BAD:
        assert "is not an image of a known format" in rows[i]["error"]
        assert rows[i]["classes"] is rows[i]["scores"] is None
    good = [i for i in range(COUNT) if i not in BAD]
    pixels = np.stack(
        [resize_and_crop(load_image(files[i]), 32) for i in good]
    ).astype("float32")
    expected = np.asarray(load_classifier(models / name).predict(pixels))
    model = load_classifier(models / "model.keras").model
    embed = keras.Model(model.input, model.get_layer("head").input)
    for i, scores, embedding in zip(
        good, expected, embed.predict_on_batch(pixels), strict=True
    ):
        best = np.argsort(-scores)[:3]
        assert rows[i]["classes"] == [LABELS[j] for j in best]
        np.testing.assert_allclose(rows[i]["scores"], scores[best], atol=1e-5)
        np.testing.assert_allclose(rows[i]["embedding"], embedding, atol=2e-3)
        assert rows[i]["error"] is rows[i]["label"] is None


def test_embeddings_of_a_model_in_bfloat16_are_float32():
    model = small(8, 1, 1, class_attention_depth=1, dtype="bfloat16")
    embed = embedder("model.keras", classifier(model))
    assert embed(np.zeros((1, 32, 32, 3), "float32")).dtype == "float32"


ROW = {
    "image": "cat.jpg",
    "classes": list("abcde"),
    "scores": [0.2] * 5,
    "label": "b",
    "error": None,
}
JOB = {
    "model": "S24",
    "data": "digits",
    "split": "train",
    "parts": 1,
    "top": 5,
    "weights": "",
    "image_size": [224, 224],
}


@pytest.mark.parametrize(
    ("job", "row", "message"),
    [
        ({"data": None}, {}, "no labels. Repeat them with --data"),
        ({"parts": 2}, {}, "1 of 2 files. Repeat the command"),
        ({"top": 3}, {}, "3 classes per image. Repeat them with --top 5"),
        ({}, {"label": None}, "no label, or several"),
        ({}, {"error": "damaged"}, "1 images cannot be read"),
    ],
)
def test_predictions_that_give_no_accuracy_are_refused(
    job, row, message, tmp_path, capfd
):
    for name, changes in (("good", {}), ("bad", row)):
        settings = JOB | {"format": "jsonl"} | (job if name == "bad" else {})
        with open_job(f"{tmp_path}/{name}", settings, "jsonl", False) as opened:
            opened.write(0, pa.Table.from_pylist([ROW | changes]))
    command = ("--output", tmp_path / "new", "--predictions")
    assert exit_status(evaluate.app, *command, tmp_path / "bad") == 1
    assert message in capfd.readouterr().err
    assert exit_status(evaluate.app, *command, tmp_path / "good") == 0
    (path,) = (tmp_path / "new").glob("*.json")
    result = json.loads(path.read_text())
    assert (result["data"], result["model"]) == ("digits train", "S24-224")
    assert (result["top1"], result["top5"], result["images"]) == (0, 1, 1)


@pytest.mark.parametrize("count", [1, 5, 20, 50])
def test_of_equal_scores_the_first_is_best(count):
    scores = np.random.default_rng(0).integers(0, 3, (9, 40)).astype("float32")
    expected = tf.math.top_k(scores, min(count, 40)).indices
    np.testing.assert_array_equal(top_classes(scores, count), expected)


def test_a_lost_block_is_noticed(images):
    parts = dict(enumerate(parts_of(images)))
    row = pa.table({"part": [0], "index": [1], "last": [True]})
    with pytest.raises(OSError, match="lost images of 3 parts"):
        dict(gather([row], parts))


def test_a_job_is_continued_only_by_itself(tmp_path):
    output = str(tmp_path / "new")
    with (
        pytest.raises(RuntimeError),
        open_job(output, {"model": "S24"}, "jsonl", False) as job,
    ):
        job.write(1, pa.table({"image": ["ä.jpg"], "error": [None]}))
        raise RuntimeError
    (tmp_path / "new" / ".part-00002.jsonl").touch()  # of a process killed
    with open_job(output, {"model": "S24"}, "jsonl", True) as job:
        assert job.finished == {1}
    line = (tmp_path / "new" / "part-00001.jsonl").read_text()
    assert json.loads(line) == {"image": "ä.jpg", "error": None}
    for settings, resume, message in (
        ({"model": "S24"}, False, "already exists. Add --resume"),
        ({"model": "M48"}, True, r"model 'S24' \(now 'M48'\)"),
        ({"model": "S24", "top": 1}, True, r"job: top None \(now 1\)"),
    ):
        with (
            pytest.raises(ValueError, match=message),
            open_job(output, settings, "jsonl", resume),
        ):
            pass


def test_a_job_that_failed_at_once_is_repeated(tmp_path):
    for _ in range(2):
        with (
            pytest.raises(OSError, match="no cluster"),
            open_job(str(tmp_path / "new"), {"model": "S24"}, "jsonl", False),
        ):
            raise OSError("no cluster")


def test_a_job_keeps_the_version_that_it_began_with(
    models, images, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models / "served", "served")
    command = ("predict", "--input", images, "--output", "predictions")

    def interrupt(*_):
        raise OSError("Interrupted.")

    monkeypatch.setattr(cluster, "connect", interrupt)
    assert exit_status(main, *command, "--model", "served") == 1
    shutil.copytree("served/1", "served/2")
    for model, message in (
        ("served", "another job: model 'served/1' (now 'served/2')"),
        ("served/1", "Interrupted."),
    ):
        status = exit_status(main, *command, "--model", model, "--resume")
        assert (status, message in capfd.readouterr().err) == (1, True)


def test_the_command_writes_every_row_and_leaves_no_process(
    models, labeled, tmp_path, capfd, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/dev/null")  # nothing can be written there
    # Longer than a socket's path may be.
    monkeypatch.setattr(tempfile, "tempdir", f"{tmp_path}{30 * '/.'}")
    source, data = models / "model.tflite", f"folder:{labeled}"
    command = (
        *("predict", "--model", source, "--data", data),
        *("--output", "predictions", "--part-size", 16),
    )
    assert exit_status(main, *command) == 0
    assert "Wrote predictions" in capfd.readouterr().out
    assert not living_processes(tmp_path)
    import ray  # after export.batch.cluster, which configures it

    with pytest.raises(Exception, match="Ray has not been started"):
        ray.put("what a thread does after a failure")
    parts, _ = parts_of_dataset(data, "validation", None, 16)
    expected = predict_here(parts, described(source, top=5))
    assert pq.read_table("predictions").to_pylist() == expected
    assert exit_status(main, *command, "--resume") == 0
    assert "All predictions are in" in capfd.readouterr().out

    for options in (
        ("--predictions", "predictions"),
        ("--model", source, "--data", data),
    ):
        command = (*options, "--output", "results", "--max-unreadable")
        assert exit_status(evaluate.app, *command, 1) == 1
        assert "2 images cannot be read" in capfd.readouterr().err
        assert exit_status(evaluate.app, *command, 2) == 0
    direct, predicted = (
        json.loads(path.read_text())
        for path in sorted(Path("results").glob("*.json"))
    )
    assert len(predicted.pop("unreadable")) == len(direct["unreadable"]) == 2
    assert predicted.pop("images_per_second") is None
    assert predicted.items() <= direct.items()


def processes_in(folder):
    """Other processes with a current folder, which Ray's inherit."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended
            is_there = process.cwd() == str(folder)
            if is_there and process.pid != os.getpid():
                yield process


def living_processes(folder, seconds=180):
    """What is left in a folder after the time that it takes to end."""
    deadline = time.monotonic() + seconds
    while found := list(processes_in(folder)):
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return found


@pytest.mark.large
@pytest.mark.parametrize("victim", ["driver", "worker"])
def test_a_killed_job_loses_and_repeats_nothing(
    victim, models, images, tmp_path
):
    """Ray restarts a worker; the command is repeated."""
    (tmp_path / "many").mkdir()
    names = [f"{i:04d}.jpg" for i in range(2000)]
    for name, file in zip(names, cycle(sorted(images.iterdir())), strict=False):
        os.link(file, tmp_path / "many" / name)
    source, output = models / "model.tflite", tmp_path / "predictions"
    command = (
        *(sys.executable, "-m", "export", "predict", "--model", str(source)),
        *("--input", "many", "--output", "predictions", "--resume"),
        *("--part-size", "16", "--batch-size", "4", "--top", "3"),
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, cwd=tmp_path)
    while len(list(output.glob("part-*"))) < 10:
        assert process.poll() is None
        time.sleep(0.05)
    if victim == "driver":
        process.kill()
        process.wait()
        assert not living_processes(tmp_path)
        done = {file: file.stat() for file in output.glob("part-*")}
        assert len(done) < 125
        subprocess.run(command, env=environment, cwd=tmp_path, check=True)
        assert all(file.stat() == stat for file, stat in done.items())
    else:
        (model,) = (
            one
            for one in processes_in(tmp_path)
            if "Classify" in " ".join(one.cmdline())
        )
        model.kill()
        assert process.wait(600) == 0
    rows = pq.read_table(output).to_pylist()
    assert [row["image"] for row in rows] == [f"many/{name}" for name in names]
    assert not list(output.glob(".*"))
    expected = predict_here(parts_of(images), described(source))
    for row, right in zip(rows, cycle(expected), strict=False):
        assert row["classes"] == right["classes"]


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        ("serving_default", "lacks the signature pixels"),
        ("pixels", r"has no embedding.*--signatures pixels embedding"),
    ],
)
def test_a_missing_signature_is_named(models, tmp_path, signature, message):
    model = keras.saving.load_model(models / "model.keras")
    write_version(
        model, LABELS, tmp_path, batch_sizes=(1,), signatures=[signature]
    )
    with pytest.raises(ValueError, match=message):
        load_pixel_predictor(str(tmp_path), embedding=True)
