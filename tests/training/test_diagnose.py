"""The report of what happens inside a model."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_cait
from keras_cait.attention_maps import self_attention_maps
from keras_cait.baselines import ViT
from tests.helpers.commands import exit_status
from tests.helpers.models import gradients, randomise
from training.diagnose import app
from training.diagnosis import diagnose, distance

LABELS = np.array([3, 1])


def of_labels(probabilities):
    return tf.gather(probabilities, LABELS, batch_dims=1, axis=1)


@pytest.fixture
def rows(small_model, images):
    """Of two images, in two batches; the second ends with padding.

    What the model has frozen makes no difference.
    """
    keras_cait.freeze(small_model, "head")
    images = tf.cast(images, tf.float32)
    padded = tf.stack([images[1], images[0]])
    ones, labels = tf.ones(1), tf.constant(LABELS)
    found = diagnose(
        small_model,
        [
            (images[:1], labels[:1], ones),
            (padded, labels[::-1], tf.constant([1.0, 0.0])),
        ],
    )
    keras_cait.freeze(small_model, "all")
    return found


def test_activations_and_branches(rows, small_model, images):
    names = [f"self_attention_block_{i}" for i in range(2)]
    names += [f"class_attention_block_{i}" for i in range(2)]
    assert [row["block"] for row in rows] == names
    features = keras_cait.intermediate_features(small_model, names)(images)
    for row, feature in zip(rows, features, strict=True):
        expected = np.mean(np.square(feature)) ** 0.5
        assert row["activation"] == pytest.approx(expected, rel=1e-5)
    before, after = features[:2]
    block = small_model.get_layer(names[1])
    branch = block.layer_scale_1(block.attention(block.norm1(before)))
    between = before + branch
    for key, added, to in (
        ("attention_share", branch, before),
        ("mlp_share", after - between, between),
    ):
        expected = np.linalg.norm(added) / np.linalg.norm(to)
        assert rows[1][key] == pytest.approx(expected, rel=1e-4)


def test_gradients(rows, small_model, images):
    images = images.astype("float32")
    _, by_weights, _ = gradients(
        small_model,
        images,
        lambda found: -tf.reduce_mean(tf.math.log(of_labels(found))),
    )
    for row in rows:
        for part in ("attention", "mlp"):
            squares = [
                np.sum(gradient**2)
                for path, gradient in by_weights.items()
                if path.startswith(f"{row['block']}/{part}/")
            ]
            assert row[f"{part}_gradient"] == pytest.approx(
                sum(squares) ** 0.5, rel=1e-3
            )
    # By the last class embedding: what norm and head send back, by hand.
    upstream = keras_cait.intermediate_features(
        small_model, "class_attention_block_1"
    )(images)
    with tf.GradientTape() as tape:
        tape.watch(upstream)
        normed = small_model.get_layer("norm")(upstream[:, 0])
        found = small_model.get_layer("head")(normed)
        loss = -tf.reduce_sum(tf.math.log(of_labels(found)))
    by_image = np.sum(tape.gradient(loss, upstream) ** 2, axis=(1, 2))
    assert rows[-1]["activation_gradient"] == pytest.approx(
        by_image.mean() ** 0.5, rel=1e-3
    )


def test_attention(rows, small_model, images):
    maps = np.abs(self_attention_maps(small_model, images, 1))
    places = np.stack(np.meshgrid(range(4), range(4), indexing="ij"), -1)
    apart = np.hypot(
        *np.moveaxis(places[:, :, None, None] - places[None, None], -1, 0)
    )
    means = (maps * apart).sum(axis=(-1, -2)) / maps.sum(axis=(-1, -2))
    np.testing.assert_allclose(
        rows[1]["distance"], means.mean(axis=(0, 2, 3)), rtol=1e-4
    )
    maps = keras_cait.class_attention_maps(small_model, images)[:, 0]
    patches = maps.reshape(2, 2, 16)
    own = 1 - patches.sum(axis=-1, keepdims=True)
    scores = np.concatenate([own, patches], axis=-1)
    entropies = -np.sum(scores * np.log(scores), axis=-1) / np.log(17)
    np.testing.assert_allclose(
        rows[2]["entropy"], entropies.mean(axis=0), rtol=1e-3
    )
    # Whoever looks at itself alone, class token or not, looks nowhere else.
    assert distance(np.eye(17)[None, None], (4, 4)).item() == 0


def test_gammas(rows, small_model):
    scale = small_model.get_layer("self_attention_block_0").layer_scale_2
    low, middle, high = rows[0]["gammas_2"]
    assert middle == pytest.approx(np.median(np.abs(scale.gamma)))
    assert low < middle < high


def test_models_in_bfloat16_are_measured_and_diverged_ones_refused(images):
    sizes = {"embed_dim": 8, "depth": 1, "num_heads": 2, "patch_size": 8}
    shape = {"input_shape": images.shape[1:], "classes": 5}
    model = ViT(**sizes, **shape, dtype="bfloat16")
    images = tf.cast(images, tf.float32)
    batches = [(images, tf.constant(LABELS), tf.ones(len(images)))]
    (row,) = diagnose(model, batches)
    assert row["activation"] > 0
    model.get_layer("norm").gamma.assign([np.inf] * 8)
    with pytest.raises(ValueError, match="training has diverged"):
        diagnose(model, batches)


def test_another_model_than_ours_is_refused(tmp_path, capsys):
    layers = [keras.layers.Flatten(), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((28, 28, 3)), *layers])
    model.save(tmp_path / "dense.keras")
    options = ("--model", tmp_path / "dense.keras", "--data", "digits")
    assert exit_status(app, *options) == 1
    assert "Got Sequential 'sequential" in capsys.readouterr().err


def test_every_model_has_a_folder_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sizes = {"embed_dim": 8, "depth": 1, "num_heads": 2, "patch_size": 7}
    for name in ("lr0.1", "lr0.01"):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        model = ViT(**sizes, input_shape=(28, 28, 3), classes=10)
        model.save(run / "model.keras")
        options = ("--model", f"runs/{name}", "--data", "digits")
        assert exit_status(app, *options, "--images", 2) == 0
    folders = sorted(path.name for path in tmp_path.glob("diagnostics/*"))
    assert folders == ["runs_lr0_01", "runs_lr0_1"]


@pytest.mark.parametrize(
    "model",
    [
        lambda **sizes: keras_cait.CaiT(init_values=0.1, **sizes),
        lambda **sizes: ViT(class_token_depth=1, **sizes),
    ],
)
def test_the_command_writes_a_report(model, tmp_path, capsys):
    sizes = {"embed_dim": 8, "depth": 2, "num_heads": 2, "patch_size": 7}
    model = randomise(model(**sizes, input_shape=(28, 28, 3), classes=10))
    model.save(tmp_path / "tiny.keras")
    output = tmp_path / "report"
    options = ("--model", tmp_path / "tiny.keras", "--data", "digits")
    options += ("--images", 30, "--output", output)
    assert exit_status(app, *options) == 0
    assert f"The report is {output / 'report.md'}" in capsys.readouterr().out
    result = json.loads((output / "diagnostics.json").read_text())
    assert result["images"] == 30
    report = (output / "report.md").read_text()
    has_gammas = isinstance(model, keras_cait.CaiT)
    assert ("gammas.png" in report) == has_gammas
    for row in result["blocks"]:
        assert f"| {row['block']} | {row['activation']:.3g} |" in report
        assert (row["gammas_1"] is not None) == has_gammas
    figures = {path.name for path in output.glob("*.png")}
    assert figures == {"norms.png", "attention.png"} | (
        {"gammas.png"} if has_gammas else set()
    )
    assert all(f"({name})" in report for name in figures)
