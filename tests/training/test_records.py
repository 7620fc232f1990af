"""Datasets of TensorFlow Datasets: any format, one order, damage is named."""

import io

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

import export.batch.parts as export
from keras_cait.datasets import open_dataset
from keras_cait.decoding.readable import reader_of_records
from training.data.datasets import load, with_labels

COUNT = 30


def png(value):
    encoded = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, "uint8")).save(encoded, "PNG")
    encoded.seek(0)
    return encoded


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The same dataset in both formats: their folders, by format."""
    folders = {}
    for file_format in ("tfrecord", "array_record"):
        folders[file_format] = tmp_path_factory.mktemp(file_format)
        tfds.dataset_builders.store_as_tfds_dataset(
            "made",
            "1.0.0",
            tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=3),
                }
            ),
            {
                "train": [
                    (i, {"image": png(i), "label": i % 3}) for i in range(COUNT)
                ]
            },
            data_dir=folders[file_format],
            file_format=file_format,
            download_config=tfds.download.DownloadConfig(num_shards=4),
        )
    return folders


def content(examples):
    pairs = tf.data.Dataset.range(examples.count).map(examples.read)
    return [(i, int(label)) for i, label in pairs.as_numpy_iterator()]


def test_records_are_read_in_the_order_of_array_records(prepared):
    first, second = (
        load("made", "train", folder) for folder in prepared.values()
    )
    assert content(first) == content(second)
    assert len(set(content(first))) == COUNT
    # Without TensorFlow, too; and without Python.
    dataset = open_dataset("made", "train", prepared["tfrecord"])
    assert [(i, int(label)) for i, label in dataset] == content(first)
    graph = tf.function(first.read).get_concrete_function(
        tf.TensorSpec((), tf.int64)
    )
    kinds = {operation.type for operation in graph.graph.get_operations()}
    assert not kinds & {"PyFunc", "PyFuncStateless", "EagerPyFunc"}


def test_places_of_records_are_kept_until_the_files_change(
    prepared, monkeypatch
):
    folder = prepared["tfrecord"]
    before = content(load("made", "train", folder))
    assert [*folder.rglob(".train.keras-cait-index")]
    with monkeypatch.context() as patch:
        patch.setattr("keras_cait.records._starts", None)  # is not called
        assert content(load("made", "train", folder)) == before
    (path, *_) = folder.rglob("*tfrecord-00000-*")
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-3])
        with pytest.raises(ValueError, match="is truncated"):
            load("made", "train", folder)
        path.write_bytes(b"")
        with pytest.raises(ValueError, match="records, expected 30"):
            load("made", "train", folder)
        # A wrong bit is found where it is read, even in the first record.
        path.write_bytes(whole[:12] + bytes([whole[12] ^ 1]) + whole[13:])
        examples = load("made", "train", folder)
        with pytest.raises(tf.errors.DataLossError):
            content(examples)
        assert len(with_labels(examples).labels) == COUNT - 1
        monkeypatch.setattr("keras_cait.decoding.readable._decode", id)
        bad = load("made", "train", folder, max_unreadable=1).unreadable
        found = export.Examples("made", "train", folder, 0, COUNT).read()
        errors = [i.name for i in found if isinstance(i.content, OSError)]
        assert len(bad) == 1 and errors == [*bad]
    finally:
        path.write_bytes(whole)


def test_some_records_can_be_selected(prepared):
    records = open_dataset("made", "train", prepared["tfrecord"]).records
    read, read_some = map(reader_of_records, (records, records.select([29, 4])))
    assert [read_some(i)[0] for i in (0, 1)] == [read(i)[0] for i in (29, 4)]


@pytest.mark.parametrize(
    ("kind", "label", "message"),
    [
        (tfds.features.ClassLabel(names=["/a/abbey", "/c/c_d"]), 1, None),
        (
            tfds.features.ClassLabel(num_classes=2),
            -1,
            "train of 'other' has no labels",
        ),
        (tfds.features.Text(), "abbey", "image: Image, label: Text"),
        (
            tfds.features.Sequence(tfds.features.ClassLabel(num_classes=3)),
            [0, 2],
            "image: Image, label: Sequence",
        ),
    ],
)
def test_labels_are_classes_whose_names_folders_can_have(
    kind, label, message, tmp_path
):
    image = tfds.features.Image(encoding_format="png")
    tfds.dataset_builders.store_as_tfds_dataset(
        "other",
        "1.0.0",
        tfds.features.FeaturesDict({"image": image, "label": kind}),
        {"train": [(0, {"image": png(0), "label": label})]},
        data_dir=tmp_path,
    )
    if message:
        with pytest.raises(ValueError, match=message):
            open_dataset("other", "train", tmp_path)
    else:
        dataset = open_dataset("other", "train", tmp_path)
        assert dataset.class_names == ("a-abbey", "c-c_d")
