"""The training program: order, augmentation, decay, runs that resume."""

import csv
import dataclasses
import hashlib
import json
import os
import re
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import training.data.datasets as datasets
import training.loop.run_folder as run_folder
import training.loop.strategies as strategies
import training.train as program
from keras_cait.datasets import SPLITS
from keras_cait.files import write_text
from keras_cait.loading import load_model
from keras_cait.weights import save_weights
from tests.helpers.commands import exit_status
from training import report
from training.data.augmentation import random_affine
from training.data.datasets import Examples, content, load
from training.data.pipeline import (
    evaluation_batches,
    mixing,
    training_batches,
    training_transform,
)
from training.folds import train_folds
from training.loop.checkpoints import restore_raw_weights
from training.loop.distillation import make_loss
from training.loop.model import build, start_from
from training.loop.optimizers import make_optimizer
from training.loop.run_folder import check_data, claimed, settled
from training.loop.stack_traces import one_stack_trace
from training.loop.tensorboard import TensorBoard
from training.loop.trainer import Trainer
from training.recipe import override
from training.recipes import QUICKSTART, RECIPES

TINY = dataclasses.replace(
    QUICKSTART,
    patch_size=14,
    embed_dim=8,
    depth=1,
    num_heads=2,
    class_attention_depth=1,
    drop_path_rate=0.2,
    epochs=3,
    warmup_epochs=1,
    xla=False,
    global_batch_size=20,
)


@pytest.fixture
def few_digits(monkeypatch):
    """Training and evaluation on 100 of the real digits."""

    def few(name, split, data_dir, **part):
        examples = load(name, split)
        stride = examples.count // 100
        return Examples(
            100, examples.class_names, lambda i: examples.read(i * stride)
        )

    monkeypatch.setattr(datasets, "load", few)


def test_digits_are_split_by_class_and_share_no_image():
    splits = {}
    for split, count in (("train", 400), ("validation", 100)):
        digits = load("digits", split)
        (batch,) = evaluation_batches(digits, tf.identity, digits.count)
        images, labels, _ = (tensor.numpy() for tensor in batch)
        assert np.bincount(labels).tolist() == [count] * 10
        assert images.shape[1:] == (28, 28, 3)
        assert images.dtype == np.uint8
        splits[split] = {image.tobytes() for image in images}
    assert not splits["train"] & splits["validation"]


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="must be 'train' or 'validation'"):
        load("digits", "x")


def test_a_doubtful_split_is_explained(tmp_path):
    def write(name, content=None):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content or name)

    def notes(data):
        return datasets.notes_on_split(
            load(f"folder:{data}", "train"),
            load(f"folder:{data}", "validation"),
        )

    for i in range(10):
        write(f"cat/{i}")
        write(f"dog/{i}")
    (tmp_path / "cat/10.jfif").write_text("JPEG")
    assert notes(tmp_path) == []
    for name in ("a.WEBP", "b.webp", "c.heic", ".d.webp", "notes.txt"):
        (tmp_path / "cat" / name).touch()
    (unread,) = notes(tmp_path)
    assert "cannot read: 3 (.heic, .webp). Convert" in unread
    for file in tmp_path.glob("cat/[abc]*"):
        file.unlink()
    (tmp_path / "cat/10.jfif").unlink()
    write("cat/copy", "cat/3")
    (note,) = notes(tmp_path)
    assert "Copies of other images: 1," in note and "cat/3.png and " in note
    write("dog/cat", "cat/3")
    write("elk/only")
    missing, uneven, doubtful = notes(tmp_path)
    assert "Classes have 1 (elk) to 9 (cat) training images." in uneven
    assert "No validation image of elk:" in missing
    assert "Images in two classes: 1." in doubtful
    assert "cat/3.png" in doubtful

    for i in range(5):
        write(f"own/train/cat/{i}")
        write(f"own/val/cat/{i}", f"own/train/cat/{i}")
    (leak,) = notes(tmp_path / "own")
    assert "for both training and validation: 5." in leak
    assert leak.count("; ") == 3 and "own/val/cat/2.png; ..." in leak


def test_batches_are_functions_of_the_position():
    numbers = Examples(12, ("a",), lambda i: (tf.cast(i, tf.float32), i))

    def jitter(image, seed):
        return image + tf.random.stateless_uniform((), seed, maxval=0.5)

    def batches(start, seed=3):
        recipe = dataclasses.replace(TINY, global_batch_size=4, seed=seed)
        batches = training_batches(
            numbers, jitter, lambda x, y, _: (x, y), recipe, start
        )
        return list(batches.take(6 - start % 6))

    whole = batches(0)
    labels = np.array([labels for _, labels in whole])
    images = np.array([images for images, _ in whole])
    for epoch in (labels[:3], labels[3:]):
        assert sorted(epoch.ravel()) == list(range(12))
    assert labels[:3].tolist() != labels[3:].tolist()
    np.testing.assert_array_equal(
        images[4:], [images for images, _ in batches(4)]
    )
    # An example is augmented differently in every epoch.
    order = np.argsort(labels[:3].ravel()), np.argsort(labels[3:].ravel())
    first, second = images[:3].ravel()[order[0]], images[3:].ravel()[order[1]]
    assert (first != second).all()
    # 256 seeds or epochs later, the lowest 8 bits are the same.
    for other in (batches(0, seed=3 + 256), batches(256 * 3)):
        assert labels.tolist() != [y.numpy().tolist() for _, y in other]


def test_random_affine_moves_an_image_within_its_bounds():
    image = np.zeros((28, 28, 3), "uint8")
    image[13:15, 13:15] = 255
    same = random_affine(image, (1, 2), 0.0, 0.0, 0.0)
    np.testing.assert_array_equal(same, image)
    recipe = dataclasses.replace(TINY, max_zoom=0.02, max_shift=0.1)
    augment = training_transform(recipe)
    centers = []
    for seed in range(50):
        moved = augment(image, (seed, 0)).numpy()[..., 0]
        again = augment(image, (seed, 0)).numpy()[..., 0]
        np.testing.assert_array_equal(moved, again)
        rows, columns = np.indices(moved.shape)
        total = moved.sum()
        centers.append([(rows * moved).sum(), (columns * moved).sum()] / total)
    shifts = np.array(centers) - 13.5
    # Shifted by 2.8 pixels each way, then turned and enlarged by 1 / 0.98.
    assert np.hypot(*shifts.T).max() <= 2.8 * 2**0.5 / 0.98 + 0.1
    assert (shifts.max(0) > 1).all() and (shifts.min(0) < -1).all()


def test_kernels_alone_decay(small_model):
    recipe = dataclasses.replace(
        TINY, learning_rate=25.6, warmup_epochs=0, weight_decay=0.05
    )
    before = {v.path: np.array(v) for v in small_model.trainable_variables}
    optimizer = make_optimizer(recipe, small_model, 10)
    optimizer.apply(
        [tf.zeros(v.shape) for v in small_model.trainable_variables]
    )
    for v in small_model.trainable_variables:
        factor = 0.95 if v.path.endswith("kernel") else 1.0
        np.testing.assert_allclose(v, factor * before[v.path], rtol=1e-6)


def test_operations_share_the_stack_trace_that_tensorflow_would_copy():
    def double_negative(x):
        with one_stack_trace():
            x = -x
            x = 2 * x
        return x + 1

    graph = (
        tf.function(double_negative)
        .get_concrete_function(tf.TensorSpec(()))
        .graph
    )
    of_type = {op.type: op.traceback for op in graph.get_operations()}
    shared = list(of_type["Neg"])
    assert shared and shared == list(of_type["Mul"])
    assert shared != list(of_type["AddV2"])


@pytest.mark.parametrize("warmup", [False, True])
def test_ema_weights_are_the_average_that_the_recipe_says(warmup, few_digits):
    recipe = dataclasses.replace(TINY, ema_momentum=0.3, ema_warmup=warmup)
    examples = datasets.load(recipe.data, "train", None)
    model, ema_model = build(recipe, 10), build(recipe, 10)
    strategy = tf.distribute.get_strategy()
    optimizer = make_optimizer(recipe, model, 5)
    trainer = Trainer(
        recipe, strategy, model, ema_model, optimizer, make_loss(recipe, 10)
    )
    batches = training_batches(
        examples, training_transform(recipe), mixing(recipe, 10), recipe
    )
    average = model.get_weights()[0]
    # At step 4, (1 + t) / (10 + t) is 0.36.
    for step, batch in enumerate(batches.take(6)):
        trainer.train_step(*batch)
        momentum = min(0.3, (1 + step) / (10 + step)) if warmup else 0.3
        weights = model.get_weights()[0]
        average = momentum * average + (1 - momentum) * weights
    np.testing.assert_allclose(
        ema_model.get_weights()[0], average, rtol=1e-4, atol=1e-7
    )


def test_no_two_seeds_drop_the_same_branches():
    generators = [tf.Variable([0, 0], dtype=tf.int64) for _ in range(2)]
    keys = []
    for seed in (0, 1, 2**32 - 1):
        of_seed = SimpleNamespace(
            recipe=dataclasses.replace(TINY, seed=seed),
            strategy=tf.distribute.get_strategy(),
            generators=generators,
            _step=tf.constant(4, tf.int64),
        )
        Trainer._seed(of_seed, tf.constant(0))
        keys += [int(state[0]) for state in generators]
    assert len({*keys}) == 6


def test_a_model_that_tells_no_class_from_another_has_the_accuracy_of_chance():
    """Of EMA weights, in the last evaluation; the raw ones know each class."""
    equal, labels = tf.zeros((12, 10)), tf.range(12, dtype=tf.int64) % 10
    trainer = SimpleNamespace(
        predict=lambda images: (equal, 9 * tf.one_hot(labels, 10)),
        evaluation=[keras.metrics.Mean(name) for name in "abcde"],
        evaluation_step=lambda *batch: Trainer._replica_evaluation(
            trainer, *batch
        ),
        _confusion=tf.Variable(equal[:10]),
    )
    weights = tf.constant([1.0] * 10 + [0.0] * 2)  # the rest is padding
    for known in ((labels + 1) % 10, labels):
        found = Trainer.evaluate(trainer, [(equal, known, weights)])
    loss = [np.log(10), np.log1p(9 * np.exp(-9))]
    expected = [0.1, 0.5, loss[0], 1, loss[1]]
    assert [*found.values()] == pytest.approx(expected, rel=1e-3)
    confusion = trainer._confusion.numpy()
    assert (confusion[:, 0] == 1).all() and confusion.sum() == 10


def test_a_run_shows_and_sums_up_what_it_did(
    tmp_path, few_digits, monkeypatch, capsys
):
    recipe = dataclasses.replace(TINY, epochs=4, evaluation_epochs=3)
    # Accuracies by which the raw weights of the end are the best.
    ema, raw = iter([0.5, 0.25]), iter([0.25, 0.75])

    def evaluate(self, batches, evaluate=Trainer.evaluate):
        found = evaluate(self, batches)
        found |= {"val_accuracy": next(ema), "val_raw_accuracy": next(raw)}
        return found

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    program.train(recipe, tmp_path, profile=(19, 30))

    with (tmp_path / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    evaluated = [row["val_accuracy"] != "NA" for row in rows]
    assert evaluated == [False, False, True, True]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["epochs"] == 4 and summary["steps"] == 20
    assert len(summary["classes"]) == 10
    row, counts = summary["classes"][3], summary["confusion"][3]
    assert row["name"] == "3" and row["validation_images"] == sum(counts) == 10
    assert row["accuracy"] == counts[3] / 10
    accuracies = [row["accuracy"] for row in summary["classes"]]
    assert summary["balanced_accuracy"] == pytest.approx(np.mean(accuracies))
    right = np.trace(summary["confusion"])
    assert summary["top1"] == pytest.approx(right / 100)
    assert len(list((tmp_path / "validation").rglob("*.png"))) == 100
    assert summary["weights"] == "raw"
    assert (summary["ema_top1"], summary["raw_top1"]) == (0.25, 0.75)
    model = keras.models.load_model(tmp_path / "model.keras")
    saved = model.get_weights()
    restore_raw_weights(model, tmp_path)
    for ours, raw in zip(saved, model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, raw)
    (best,) = (tmp_path / "checkpoints" / "best").glob("*.index")
    assert best.stem == "ckpt-20"

    shown = {
        run: {
            (event.step, value.tag)
            for events in (tmp_path / "tensorboard" / run).glob("*.v2")
            for event in tf.compat.v1.train.summary_iterator(str(events))
            for value in event.summary.value
        }
        for run in ("train", "validation", "validation_raw")
    }
    block = "self_attention_block_0"
    assert shown["train"] >= {
        (0, "recipe"),
        *((step, "loss/step") for step in range(1, 21)),
        *((step, "accuracy/epoch") for step in (5, 10, 15, 20)),
        *((20, f"optimizer/{x}") for x in ("learning_rate", "gradient_norm")),
        *((20, f"gammas/{block}/layer_scale_{i}") for i in (1, 2)),
    }
    assert {s for s, tag in shown["train"] if "images_per" in tag} == {
        *range(2, 21)  # the first step compiles
    }
    assert {(15, "training images"), (20, "training images")} < shown["train"]
    assert shown["validation"] == {
        (step, tag)
        for step in (15, 20)
        for tag in (
            *("loss/epoch", "accuracy/epoch", "accuracy/epoch_top5"),
            *("confusion matrix", "predictions and attention"),
        )
    }
    assert (20, "loss/epoch") in shown["validation_raw"]
    assert any((tmp_path / "tensorboard/plugins/profile").iterdir())

    out = capsys.readouterr().out
    assert len(re.findall(r"^Epoch \d/4: loss \d", out, re.MULTILINE)) == 4
    *_, saved, last = out.splitlines()
    assert "raw" in saved
    assert last == f"The report is {tmp_path / 'report.html'}"
    page = (tmp_path / "report.html").read_text()
    assert "Exported files" not in page
    row = {"name": "small.tflite", "top1": 0.25, "agreement": 0.75}
    row |= {"max_difference": 1e-3, "milliseconds": 1.5, "megabytes": 0.1}
    (tmp_path / "verify.json").write_text(json.dumps([row]))
    assert exit_status(report.app, tmp_path) == 0
    page = (tmp_path / "report.html").read_text()
    assert f"<dd>{summary['top1']:.1%}</dd>" in page
    assert f"--model {tmp_path} " in page
    assert "small.tflite" in page and "75.0%" in page
    # In one file, which loads nothing.
    assert set(re.findall(r'src="([^,"]*)', page)) == {"data:image/png;base64"}
    assert not re.search(r'url\((?!#)|href="(?!#|data:)|<script', page)


@pytest.mark.large
def test_a_run_out_of_patience_ends_with_its_best_weights(
    tmp_path, few_digits, monkeypatch, capsys
):
    recipe = dataclasses.replace(
        TINY, epochs=9, evaluation_epochs=1, patience=2
    )
    ema = [0.2, 0.3, 0.4, 0.5]  # by epoch
    raw = [0.1, 0.5, 0.3, 0.2]
    noted = []

    def evaluate(self, batches, evaluate=Trainer.evaluate):
        found = evaluate(self, batches)
        epoch = self.step // 5
        if epoch == 2:
            noted.extend(self.model.get_weights())
        found["val_accuracy"] = ema[epoch - 1]
        return found | {"val_raw_accuracy": raw[epoch - 1]}

    def killed(*_):
        raise KeyboardInterrupt("killed")

    # Interrupted with one evaluation left, and again when all is trained.
    asked = iter([False] * 16 + [True])
    monkeypatch.setattr(report, "write_report", lambda folder: folder)
    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    monkeypatch.setattr(strategies, "any_worker", lambda *_: next(asked, False))
    with pytest.raises(KeyboardInterrupt, match="step 17"):
        program.train(recipe, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_folder, "finish", killed)
        program.train(recipe, tmp_path)
    (tmp_path / "history.csv").rename(tmp_path / "moved.csv")
    with pytest.raises(ValueError, match=r"history\.csv lacks epochs"):
        program.train(recipe, tmp_path)
    (tmp_path / "moved.csv").rename(tmp_path / "history.csv")
    program.train(recipe, tmp_path)

    said = (
        "Stopped after epoch 4: no better accuracy in 2 evaluations. The best "
        "was epoch 2's."
    )
    assert capsys.readouterr().out.count(said) == 2
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["epochs"] == 4 and summary["steps"] == 20
    assert summary["best_epoch"] == 2 and summary["weights"] == "raw"
    assert (summary["ema_top1"], summary["raw_top1"]) == (0.3, 0.5)
    model = keras.models.load_model(tmp_path / "model.keras")
    for ours, best in zip(model.get_weights(), noted, strict=True):
        np.testing.assert_array_equal(ours, best)


def test_folds_are_summed_up_and_resumed(tmp_path, capsys):
    recipe = dataclasses.replace(
        TINY,
        data=f"folder:{tmp_path / 'photos'}",
        precision="auto",
        global_batch_size=4,
    )
    for name in ("cat", "dog"):
        write_photos(tmp_path / "photos" / name, *"0123")
    devices = tf.distribute.get_strategy()
    confusions = [[[3, 1], [0, 1]], [[4, 0], [1, 0]]]
    trained = []

    def train(fold, folder):
        if len(trained) == 1:
            trained.append("stopped")
            raise KeyboardInterrupt
        trained.append((folder.name, fold.fold, fold.validation_fraction))
        data = {s: content(load(fold.data, s, **fold.split())) for s in SPLITS}
        start(folder, settled(fold.resolved(), folder, devices), **data)
        confusion = confusions[fold.fold]
        summary = {
            **{"top1": np.trace(confusion) / 5, "top5": 1.0},
            "confusion": confusion,
            "classes": [{"name": "cat"}, {"name": "dog"}],
        }
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "model.keras").touch()

    output = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_folds(recipe, 2, output, train, devices)
    assert not (output / "summary.json").exists()
    train_folds(recipe, 2, output, train, devices)
    assert trained == [("fold-0", 0, 0.5), "stopped", ("fold-1", 1, 0.5)]

    summary = json.loads((output / "summary.json").read_text())
    assert summary["folds"] == [0.8, 0.8]
    assert (summary["top1"], summary["top1_deviation"]) == (0.8, 0)
    assert summary["confusion"] == [[7, 1], [1, 1]]
    assert summary["balanced_accuracy"] == (7 / 8 + 1 / 2) / 2
    row = {"name": "cat", "validation_images": 8, "accuracy": 7 / 8}
    assert summary["classes"][0] == row
    said = capsys.readouterr().out
    assert "of 2 folds: 80.0% ± 0.0%" in said
    assert "classes: 68.8%. Lowest: dog 50.0% of 2, cat 87.5% of 8" in said

    other = dataclasses.replace(recipe, depth=2)
    with pytest.raises(ValueError, match=re.escape("depth 1 (now 2)")):
        train_folds(other, 2, output, train, devices)
    write_photos(tmp_path / "photos/dog", "new")
    with pytest.raises(ValueError, match="fold-0 holds a run on other data"):
        train_folds(recipe, 2, output, train, devices)
    large = dataclasses.replace(recipe, global_batch_size=5)
    with pytest.raises(ValueError, match=r"has 4 images, fewer .* 4$"):
        train_folds(large, 2, tmp_path / "uneven", train, devices)
    assert len(trained) == 3  # of 5 and 4 images, none is trained on
    (tmp_path / "photos/dog/new.png").unlink()
    photos = (tmp_path / "photos/cat").iterdir()
    bad = [file.rename(file.with_suffix(".jpg")) for file in photos]
    for file in bad:
        file.write_text(f"no image {file}")
    with pytest.raises(ValueError, match="cannot be read") as error:
        train_folds(recipe, 2, tmp_path / "bad", train, devices)
    assert all(str(file) in str(error.value) for file in bad)
    assert len(trained) == 3
    with pytest.raises(ValueError, match="at most --folds 4"):
        train_folds(recipe, 5, tmp_path / "five", train, devices)
    with pytest.raises(ValueError, match="holds the folds of a cross-valid"):
        start(output, recipe)
    for read in (load_model, report.write_report):
        with pytest.raises(ValueError, match="ive one of its folds"):
            read(output)
    start(tmp_path / "single", recipe)
    with pytest.raises(ValueError, match="holds a single run"):
        train_folds(recipe, 2, tmp_path / "single", train, devices)
    with pytest.raises(ValueError, match="which has its own validation images"):
        train_folds(TINY, 2, output, train, devices)


def test_the_head_of_other_classes_is_not_taken(tmp_path):
    first, second = build(TINY, 2), build(TINY, 2)
    save_weights(first, tmp_path / "first.safetensors")
    (tmp_path / "labels.txt").write_text("cat\ndog\n")

    def differing(names):
        start_from(second, str(tmp_path / "first.safetensors"), names)
        weights = (first.trainable_weights, second.trainable_weights)
        pairs = zip(*weights, strict=True)
        return [a.path for a, b in pairs if not np.array_equal(a, b)]

    assert differing(["elk", "fox"]) == ["head/kernel"]
    assert differing(["cat", "dog"]) == []


def test_images_of_a_run_are_named_after_their_files(tmp_path):
    file = tmp_path / f"{'写' * 83}.jpg"  # 253 bytes
    file.touch()
    image = tf.zeros((2, 2, 3))
    examples = Examples(
        1, ("cat",), lambda index: (image, 0), lambda index: str(file)
    )
    run_folder.write_images(examples, tmp_path / "validation")
    (written,) = (tmp_path / "validation/cat").iterdir()
    assert written.name == f"0000_{'写' * 50}.png"


def test_a_path_may_be_in_another_encoding(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    (folder / "cat").mkdir(parents=True)
    (folder / "cat/1.jpg").write_bytes(b"JPEG")
    data = f"folder:{folder}"
    image, _ = load(data, "train").read(tf.constant(0, tf.int64))
    assert image == b"JPEG"
    TensorBoard(tmp_path, 0, 1).recipe(override(QUICKSTART, data=data))
    write_text(tmp_path / "report.html", data)
    assert "caf\\udce9" in (tmp_path / "report.html").read_text()


def start(output, recipe, **data):
    """Claims a run's folder, and writes something like a checkpoint."""
    check_data(output, data)
    with claimed(output, recipe, data):
        (output / "checkpoints").mkdir(exist_ok=True)
        (output / "checkpoints" / "ckpt-1.index").touch()


def test_runs_are_never_overwritten(tmp_path, few_digits):
    other = dataclasses.replace(TINY, depth=2)
    with claimed(tmp_path, other, {}):  # leaves nothing to lose
        pass
    with pytest.raises(ValueError, match="To resume it, repeat the command"):
        report.write_report(tmp_path)
    start(tmp_path, TINY)
    with pytest.raises(ValueError, match=re.escape("depth 1 (now 2)")):
        start(tmp_path, other)
    (tmp_path / "model.keras").touch()
    missing = "holds a finished run.* missing: python -m training.report"
    with pytest.raises(ValueError, match=missing):
        start(tmp_path, TINY)
    (tmp_path / "report.html").touch()
    with pytest.raises(ValueError, match=r"to start again\.$"):
        start(tmp_path, TINY)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda photos: write_photos(photos / "cat", "new"),
            "17 images of cat",
        ),
        (lambda photos: (photos / "cat/0.png").unlink(), "15 images of cat"),
        (lambda photos: (photos / "dog").rename(photos / "ant"), "of ant, cat"),
        (lambda photos: write_photos(photos / "elk", "0"), "cat, dog, elk"),
        (
            lambda photos: (photos / "cat/0.png").rename(photos / "cat/x.png"),
            "16 images of cat, dog",
        ),
    ],
)
def test_a_run_is_resumed_on_the_same_data(change, said, tmp_path):
    def data():
        return {"train": content(load(f"folder:{photos}", "train"))}

    photos = tmp_path / "photos"
    for name in ("train/cat", "train/dog", "val/cat", "val/dog"):
        write_photos(photos / name, *"01234567")
    start(tmp_path / "run", TINY, **data())
    start(tmp_path / "run", TINY, **data())
    change(photos / "train")
    with pytest.raises(
        ValueError, match=rf"on other data: train .*now.*{said}"
    ):
        start(tmp_path / "run", TINY, **data())
    (tmp_path / "run/data.json").unlink()  # as of an earlier version
    start(tmp_path / "run", TINY, **data())


def write_photos(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        pixels = hashlib.sha256(f"{folder}{name}".encode()).digest()
        image = Image.frombytes("L", (8, 4), pixels)
        image.save(folder / f"{name}.png")


@pytest.mark.parametrize("output", ["photos", "photos/cat/../run", "link/run"])
def test_a_run_is_not_written_among_its_data(output, tmp_path):
    (tmp_path / "photos/cat").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    recipe = dataclasses.replace(TINY, data=f"folder:{tmp_path / 'photos'}")
    with pytest.raises(ValueError, match="is in the data folder"):
        start(tmp_path / output, recipe)
    with pytest.raises(ValueError, match="is in the data folder"):
        devices = tf.distribute.get_strategy()
        train_folds(recipe, 2, tmp_path / output, start, devices)
    assert [*tmp_path.glob("photos/*")] == [tmp_path / "photos/cat"]


def test_runs_of_earlier_versions_can_be_resumed(tmp_path):
    """Their recipe.json lacks fields, which had what is now the default."""
    recipe = RECIPES["s24-224"].resolved()
    start(tmp_path, recipe)
    record = json.loads((tmp_path / "recipe.json").read_text())
    del record["variant"], record["ema_warmup"]
    (tmp_path / "recipe.json").write_text(json.dumps(record))
    start(tmp_path, recipe)
    with pytest.raises(ValueError, match=r"embed_dim 384 \(now 192\)"):
        start(tmp_path, override(recipe, variant="XXS24").resolved())
