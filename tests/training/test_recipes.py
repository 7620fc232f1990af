"""Every recipe on a real `imagenet2012` of TensorFlow Datasets, a small one."""

import dataclasses
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import get_args

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_cait
from keras_cait.models import VARIANTS
from keras_cait.pretrained import PRETRAINED
from tests.helpers.commands import exit_status
from training import prepare, train
from training.data.datasets import Examples
from training.data.pipeline import evaluation_batches, training_batches
from training.loop.model import check_weights
from training.loop.run_folder import settled
from training.loop.strategies import make_strategy
from training.recipe import Recipe, Variant, override, read_recipe
from training.recipes import FIGURES, RECIPES, summary

SYNSETS = ("n01440764", "n01443537", "n02099601", "n07753592")
TRAINING_IMAGES, VALIDATION_IMAGES = 6, 8  # per class; in all


def jpeg(random):
    height, width = random.integers(40, 80, 2)
    image = random.integers(0, 256, (height, width, 3), "uint8")
    encoded = io.BytesIO()
    keras.utils.array_to_img(image, scale=False).save(encoded, "JPEG")
    return encoded.getvalue()


def archive(files):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """The folder of `imagenet2012`, prepared from archives as the official."""
    random = np.random.default_rng(0)
    manual = tmp_path_factory.mktemp("archives")
    synsets = {
        f"{synset}.tar": archive(
            {f"{synset}_{i}.JPEG": jpeg(random) for i in range(TRAINING_IMAGES)}
        )
        for synset in SYNSETS
    }
    validation = {
        f"ILSVRC2012_val_{i + 1:08}.JPEG": jpeg(random)
        for i in range(VALIDATION_IMAGES)
    }
    (manual / "ILSVRC2012_img_train.tar").write_bytes(archive(synsets))
    (manual / "ILSVRC2012_img_val.tar").write_bytes(archive(validation))
    data_dir = tmp_path_factory.mktemp("tensorflow_datasets")
    options = ("--data-dir", data_dir, "--manual-dir", manual)
    assert exit_status(prepare.app, "imagenet2012", *options) == 0
    return data_dir


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of images, one subfolder per class."""
    random = np.random.default_rng(1)
    folder = tmp_path_factory.mktemp("photos")
    for name in ("cats", "dogs"):
        (folder / name).mkdir()
        for i in range(15 if name == "cats" else 25):
            (folder / name / f"{i}.jpg").write_bytes(jpeg(random))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of 1000 classes: what is fine-tuned, and a teacher."""
    path = tmp_path_factory.mktemp("trained") / "model.keras"
    tiny = RECIPES["xxs24-224"].resolved()
    keras_cait.CaiT(
        **{"embed_dim": 16, "depth": 1, "num_heads": 2},
        class_attention_depth=1,
        input_shape=(32, 32, 3),
        init_values=tiny.init_values,
    ).save(path)
    return path


def shrunk(recipe):
    """A recipe for a tiny model and 3 steps; all else is as it was."""
    return dataclasses.replace(
        recipe,
        image_size=32,
        patch_size=16,
        embed_dim=16,
        depth=1,
        num_heads=2,
        class_attention_depth=1,
        init_values=0.1,
        drop_path_rate=0.0 if recipe.drop_path_rate == 0.0 else 0.1,
        data=recipe.data.partition(":")[0],
        epochs=1,
        warmup_epochs=min(recipe.warmup_epochs, 0.5),
        global_batch_size=8,
        mixing_batch_size=4,
        xla=False,
    )


# Between them every part of a recipe; the others, with --large, take minutes.
KINDS = ("m48-448-distilled", "finetune")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            id=f"{name}-{recipe.precision}",
            marks=() if name in KINDS else pytest.mark.large,
        )
        for name, recipe in RECIPES.items()
    ],
)
def test_every_recipe_trains_and_evaluates(
    name, imagenet, photos, trained, tmp_path
):
    recipe = shrunk(RECIPES[name])
    data = {"digits": "digits", "folder": f"folder:{photos}"}
    recipe = dataclasses.replace(
        recipe,
        data=data.get(recipe.data, "imagenet2012"),
        weights=recipe.weights and str(trained),
        teacher=str(trained) if recipe.distillation != "none" else "",
    )
    output = tmp_path / "run"
    if name == "finetune":  # of 12 cats and 20 dogs
        recipe = dataclasses.replace(recipe, balance_classes=True)
    if name == "quickstart":
        recipe = dataclasses.replace(recipe, global_batch_size=1000)
    train.train(recipe, output, data_dir=imagenet, strategy="one")
    summary = json.loads((output / "summary.json").read_text())
    assert summary["steps"] >= 3
    assert np.sum(summary["confusion"]) >= 6  # validation
    model = keras.models.load_model(output / "model.keras")
    start = keras.models.load_model(trained)
    for weight in model.weights:
        assert np.isfinite(keras.ops.convert_to_numpy(weight)).all()
    if recipe.weights:  # the body starts as the one that was given
        ours, theirs = (
            m.get_layer("patch_embedding").get_weights()[0]
            for m in (model, start)
        )
        np.testing.assert_allclose(ours, theirs, atol=0.02)


# Devices and workers: one, two mirrored, two workers, eight workers.
SYSTEMS = ((1, 1), (2, 1), (2, 2), (8, 8))


def last_worker(recipe, devices, workers):
    """Its images of step 1: their numbers, and the seed of their group."""
    examples = Examples(2000, ("a",), lambda index: (index, index))

    def mix(images, labels, seed):
        return images, tf.fill(tf.shape(labels), seed[1])

    batches = training_batches(
        *(examples, lambda image, seed: image, mix, recipe, 1),
        tf.distribute.InputContext(workers, workers - 1, devices),
    )
    return np.concatenate([*batches.take(devices // workers)], axis=1)


def test_the_same_images_are_mixed_on_all_devices():
    recipe = RECIPES["finetune"]
    numbers, seeds = whole = last_worker(recipe, 1, 1)
    assert len({*numbers.tolist()}) == 16
    assert np.unique(seeds, return_counts=True)[1].tolist() == [2] * 8
    for devices, workers in SYSTEMS:
        images = last_worker(recipe, devices, workers)
        assert images.shape == (2, 16 // workers)
        np.testing.assert_array_equal(images, whole[:, -16 // workers :])


def test_workers_evaluate_every_image_once():
    examples = Examples(10, ("a",), lambda index: (index, index))
    found = [
        int(label)
        for worker in range(2)
        for _, *batch in evaluation_batches(
            *(examples, tf.identity, 4),
            tf.distribute.InputContext(2, worker, 2),
        )
        for label, weight in zip(*batch, strict=True)
        if weight
    ]
    assert sorted(found) == list(range(10))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_on_all_devices(name):
    for system in SYSTEMS:
        RECIPES[name].check_devices(*system)


@pytest.mark.parametrize(
    ("changes", "system", "unit"),
    [
        ({"global_batch_size": 60}, (8, 1), 8),
        ({"accumulation_steps": 16}, (8, 1), 128),
        ({"mixing_batch_size": 16}, (2, 2), 32),
        ({}, (3, 1), 12),
    ],
)
def test_a_batch_that_devices_do_not_divide_is_refused(changes, system, unit):
    recipe = override(RECIPES["finetune"], **{"mixing_batch_size": 4} | changes)
    with pytest.raises(ValueError, match=f"Choose a multiple of {unit},"):
        recipe.check_devices(*system)


@pytest.mark.parametrize("name", RECIPES)
def test_a_larger_size_starts_from_weights_at_224_pixels(name):
    recipe = RECIPES[name].resolved()
    if recipe.image_size > 224:
        peak = recipe.learning_rate * recipe.global_batch_size / 512
        assert peak <= recipe.min_learning_rate  # constant
        assert recipe.weights == f"{recipe.variant}-224"
        if (recipe.variant, 224) not in PRETRAINED:
            with pytest.raises(ValueError, match=r"Give --weights .* S24-224,"):
                check_weights(recipe.weights)
            return
    check_weights(recipe.weights)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_read_from_the_file_of_a_run(name, tmp_path):
    published = RECIPES[name].resolved()
    folder = f"{published.variant}-photos"  # of a run
    path = tmp_path / "recipe.json"
    for recipe in (published, dataclasses.replace(published, weights=folder)):
        path.write_text(json.dumps(dataclasses.asdict(recipe)))
        assert read_recipe(path).resolved() == recipe


def test_a_recipe_from_a_file_is_changed_by_options(tmp_path, monkeypatch):
    path = tmp_path / "recipe.json"
    record = dataclasses.asdict(RECIPES["s24-384"].resolved())
    del record["ema_warmup"]  # as in earlier versions
    path.write_text(json.dumps(record))
    trained = []
    monkeypatch.setattr(train, "train", lambda *values: trained.append(values))
    options = ("--epochs", 4, "--variant", "XXS24", "--warmup-epochs", 1)
    options += ("--output", "runs/small")
    assert exit_status(train.main, path, *options) == 0
    ((recipe, output, *_),) = trained
    assert recipe == override(RECIPES["xxs24-384"], epochs=4, warmup_epochs=1.0)
    assert output == Path("runs/small")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        pytest.param(10**5 * "[", "is not JSON", id="nested too deep"),
        ('{"top1": 0.9, "epochs": 4}', "unknown fields top1."),
        ('{"epochs": "4"}', "epochs must be a whole number. Got '4'."),
        ('{"epochs": 4.0}', "epochs must be a whole number. Got 4.0."),
        ('{"xla": 1}', "xla must be true or false. Got 1."),
        ('{"learning_rate": null}', "learning_rate must be a number."),
        ('{"depth": "24"}', "depth must be a whole number or null."),
        ('{"variant": "S25"}', "variant must be one of XXS24, "),
        ('{"precision": "float8"}', "precision must be one of auto, float32"),
        ('{"epochs": 0}', "epochs must be at least 1. Got 0."),
        (None, "No such file"),
    ],
)
def test_a_wrong_recipe_file_ends_in_one_line(
    content, message, tmp_path, capsys
):
    path = tmp_path / "recipe.json"
    if content:
        path.write_text(content)
    assert exit_status(train.main, path, "--output", tmp_path / "run") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ([], "float32"),
        ([(7, 5)], "mixed_float16"),  # T4
        ([(8, 0)], "mixed_bfloat16"),  # A100
        ([(9, 0), (7, 5)], "mixed_float16"),
        ([None], "mixed_float16"),
    ],
)
def test_automatic_precision_is_that_of_the_devices_or_of_the_run(
    capabilities, precision, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        tf.config, "list_physical_devices", lambda kind: capabilities
    )
    monkeypatch.setattr(
        tf.config.experimental,
        "get_device_details",
        lambda found: {"compute_capability": found} if found else {},
    )
    recipe = RECIPES["finetune"].resolved()
    assert recipe.precision == "auto"
    strategy = tf.distribute.get_strategy()
    assert settled(recipe, tmp_path, strategy).precision == precision
    # A run that is resumed keeps its own.
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "ckpt-1.index").touch()
    (tmp_path / "recipe.json").write_text('{"precision": "mixed_bfloat16"}')
    assert settled(recipe, tmp_path, strategy).precision == "mixed_bfloat16"


@pytest.mark.parametrize(("gpus", "threads"), [([], []), (["GPU"], [1])])
def test_cpus_split_operations_unless_gpus_train(gpus, threads, monkeypatch):
    found = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.setattr(
        tf.config.threading,
        "set_intra_op_parallelism_threads",
        found.append,
    )
    make_strategy.__wrapped__("one")
    assert found == threads


def test_missing_archives_are_named(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"ILSVRC2012_img_train\.tar.*img_val"):
        prepare.prepare("imagenet2012", data_dir=tmp_path, manual_dir=tmp_path)


@pytest.mark.parametrize("name", RECIPES)
def test_a_variant_sets_the_whole_architecture(name):
    recipe = override(RECIPES[name], variant="XXS24").resolved()
    row = VARIANTS["XXS24"]
    assert recipe.embed_dim == row.embed_dim
    assert recipe.depth == row.depth
    assert recipe.num_heads == row.num_heads
    assert recipe.init_values == row.init_values
    assert recipe.class_attention_depth == 2
    assert recipe.weights in ("", "XXS24", "XXS24-224")
    deeper = override(RECIPES[name], variant="XXS24", depth=3).resolved()
    assert (deeper.depth, deeper.embed_dim) == (3, row.embed_dim)


def test_a_recipe_is_the_papers_by_default():
    assert Recipe() == RECIPES["s24-224"]
    row = VARIANTS["S24"]
    recipe = Recipe().resolved()
    assert (recipe.depth, recipe.drop_path_rate) == (24, row.drop_path_rate)
    with pytest.raises(ValueError, match=r"Without a variant.*embed_dim"):
        Recipe(variant=None)
    with pytest.raises(ValueError, match="variant must be one of"):
        Recipe(variant="XXL24")


def test_help_tells_size_and_accuracy_of_every_recipe():
    assert get_args(Variant) == tuple(VARIANTS) == tuple(FIGURES)
    for (variant, size), row in PRETRAINED.items():
        figures = FIGURES[variant]
        assert figures.parameters == round(row.parameters / 1e6)
        top1 = row.published_top_1 or round(row.measured_top_1, 1)
        assert figures.distilled_top1[size > 224] == top1


def test_help_does_not_wait_for_tensorflow():
    code = (
        "import sys; from training.train import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: assert not {'keras', 'tensorflow'} & {*sys.modules}"
    )
    for arguments in ([], ["--help"], ["quickstart", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        words = " ".join(done.stdout.replace("│", " ").split())
        if "quickstart" in arguments:
            assert "Width of a token. [default: 96]" in words
            assert "Passes over the training images. [default: 36]" in words
        else:
            assert "xxs24-224 12M parameters, 2 h on 8 A100, 77.6 %" in words
            for name in RECIPES:  # each on one line
                lines = done.stdout.splitlines()
                assert any(
                    line.startswith(f"│ {name} ") and summary(name) in line
                    for line in lines
                )
