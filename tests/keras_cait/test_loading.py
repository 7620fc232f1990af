"""The one loader: every kind of source gives the same predictions."""

import json
import zipfile
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

import keras_cait
from keras_cait.labels import MAX_BYTES, find_labels, load_labels, read_labels
from keras_cait.loading import (
    classifier,
    load_classifier,
    load_model,
    published,
    verified_manifest,
)
from keras_cait.weights import read_tensors
from tests.helpers.models import randomise, small


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A finished run of a small model, and its weights in every format."""
    folder = tmp_path_factory.mktemp("run")
    model = randomise(small(input_shape=(32, 48, 3)))
    model.save(folder / "model.keras")
    keras_cait.save_checkpoint(model, folder / "weights.safetensors")
    (folder / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    return folder, model


@pytest.mark.parametrize("source", ["", "model.keras", "weights.safetensors"])
def test_every_source_gives_the_same_predictions(run_folder, source):
    folder, model = run_folder
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 48, 3))
    classifier = load_classifier(folder / source)
    assert (classifier.image_size, classifier.classes) == ((32, 48), 5)
    np.testing.assert_allclose(
        classifier.predict(images.astype("float32")),
        model(images),
        rtol=1e-5,  # the same graph, built twice
        atol=1e-7,
    )
    assert load_labels(folder / source, classes=5) == list("abcde")


@pytest.mark.parametrize("kind", ["surgery", "sequential", "nested", "softmax"])
def test_a_head_of_logits_gives_probabilities(run_folder, kind):
    _, model = run_folder
    features = model.get_layer("pooling").output
    logits = keras.Model(model.input, keras.layers.Dense(3)(features))
    if kind == "sequential":
        body = keras.Model(model.input, features)
        logits = keras.Sequential([body, keras.layers.Dense(3)])
    elif kind == "nested":
        logits = keras.Sequential([keras.layers.RandomFlip(), logits])
        logits.build((None, 32, 48, 3))
    whole = logits
    if kind == "softmax":
        whole = keras.Model(model.input, keras.ops.softmax(logits.output))
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 48, 3))
    np.testing.assert_allclose(
        classifier(whole).predict(images),
        keras.ops.softmax(logits(images, training=False)),
        rtol=1e-5,
    )


def test_models_change_size_and_precision(run_folder):
    folder, _ = run_folder
    model = load_model(folder, image_size=32, precision="bfloat16")
    assert model.input.shape == (None, 32, 32, 3)  # of 32 x 48
    assert model.dtype_policy.name == "bfloat16"
    assert keras.config.dtype_policy().name == "float32"


def test_models_of_your_own_run_in_float32(tmp_path):
    mixed, exact = (
        randomise(small(size=16, depth=1, dtype=dtype))
        for dtype in ("mixed_float16", "float32")
    )
    keras.Sequential([keras.Input((16, 16, 3)), mixed]).save(
        tmp_path / "model.keras"
    )
    images = np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3))
    loaded = load_classifier(tmp_path / "model.keras", precision="float32")
    np.testing.assert_array_equal(loaded.predict(images), exact(images))


def test_policies_of_single_layers_keep_to_another_size(tmp_path):
    policies = keras.dtype_policies.DTypePolicyMap(default_policy="bfloat16")
    policies["norm"] = keras.dtype_policies.DTypePolicy("float32")
    small(depth=1, dtype=policies).save(tmp_path / "model.keras")
    model = load_model(tmp_path / "model.keras", image_size=16)
    dtypes = [model.get_layer(n).compute_dtype for n in ("norm", "class_token")]
    assert dtypes == ["float32", "bfloat16"]


def test_layers_before_a_model_fix_its_size_and_normalize(tmp_path):
    images = keras.Input((48, 48, 3))
    resized = keras.layers.Resizing(16, 16)(images)
    model = small(depth=1, input_tensor=resized, include_preprocessing=False)
    model.save(tmp_path / "before.keras")
    assert not load_model(tmp_path / "before.keras").include_preprocessing
    with pytest.raises(ValueError, match=r"before\.keras.*Omit --image-size"):
        load_model(tmp_path / "before.keras", image_size=32)


def test_average_pooling_is_inferred(tmp_path):
    model = randomise(small(size=16, depth=1, pooling="avg"))
    keras_cait.save_weights(model, tmp_path / "average.safetensors")
    loaded = load_model(tmp_path / "average.safetensors")
    images = np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3))
    np.testing.assert_allclose(loaded(images), model(images), rtol=1e-6)


def test_a_model_without_preprocessing_gets_it(tmp_path):
    """Evaluation, embeddings and teachers all give RGB in 0...255."""
    model = randomise(small(include_preprocessing=False))
    model.save(tmp_path / "plain.keras")
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3))
    np.testing.assert_allclose(
        load_model(tmp_path / "plain.keras")(images),
        model(keras_cait.preprocess_input(images)),
        rtol=1e-5,
    )


def test_published_names():
    assert published("S24").image_size == 224
    assert published("M48").image_size == 448
    assert published("S24-384").image_size == 384
    assert published("runs/S24") is None
    with pytest.raises(ValueError, match="No published weights are named"):
        published("S24-512")


def test_a_model_without_known_inputs_is_named(tmp_path):
    path = tmp_path / "unbuilt.keras"
    layers = [keras.layers.RandomFlip(), small(input_shape=(32, 48, 3))]
    keras.Sequential(layers).save(path)
    with pytest.raises(ValueError, match=r"unbuilt.*with keras\.Input"):
        load_classifier(path)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("classes", 10**12, "declares at least"),
        ("grid_size", [99999, 99999], "declares at least"),
        ("depth", 10**9, "declares at least"),
        ("mlp_ratio", 1e12, "declares at least"),
        ("class_attention_depth", 10**9, "declares at least"),
        ("input_shape", [28, 28, 10**9], "declares at least"),
        ("num_heads", 7, "divisible by the number of heads"),
        ("embed_dim", "wide", "Cannot load a Keras model"),
    ],
)
def test_absurd_sizes_are_refused_at_once(
    run_folder, tmp_path, field, value, message
):
    folder, _ = run_folder
    path = tmp_path / "absurd.keras"
    with (
        zipfile.ZipFile(folder / "model.keras") as source,
        zipfile.ZipFile(path, "w") as target,
    ):
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
                config = json.loads(content)
                config["config"][field] = value
                content = json.dumps(config)
            target.writestr(name, content)
    with pytest.raises(ValueError, match=message) as error:
        load_model(path)
    assert "absurd.keras" in str(error.value)
    assert "\n" not in str(error.value)


def test_tensors_of_an_impossible_model_name_their_file(run_folder, tmp_path):
    tensors, _ = read_tensors(run_folder[0] / "weights.safetensors")
    kept = {n: np.asarray(t) for n, t in tensors.items() if "gamma" not in n}
    save_file(kept, tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match=r"cut\.safetensors.*depth must be"):
        load_model(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("head.weight", (10**12, 0), "declares at least"),
        ("blocks.0.mlp.fc1.weight", (10**12, 0), "declares at least"),
        ("patch_embed.proj.weight", (0, 3, 10**6, 10**6), "declares at least"),
        ("pos_embed", (1, 4, 0), "embed_dim must be"),
    ],
)
def test_tensors_without_values_take_no_memory(
    run_folder, tmp_path, name, shape, message
):
    tensors, _ = read_tensors(run_folder[0] / "weights.safetensors")
    tensors = {n: np.asarray(t) for n, t in tensors.items()}
    tensors[name] = np.empty(shape, "float32")
    save_file(tensors, tmp_path / "empty.safetensors")
    with pytest.raises(ValueError, match=rf"empty\.safetensors.*{message}"):
        load_model(tmp_path / "empty.safetensors")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("suffix", [".keras", ".safetensors"])
def test_weights_that_are_not_finite_are_refused(tmp_path, value, suffix):
    model = keras_cait.CaiT(24, 1, 2, patch_size=8, input_shape=(32, 32, 3))
    weight = model.get_layer("norm").gamma
    weight.assign(np.full(24, value))
    path = tmp_path / f"model{suffix}"
    if suffix == ".keras":
        model.save(path)
    else:
        keras_cait.save_checkpoint(model, path)
    with pytest.raises(ValueError, match="norm/gamma is not finite"):
        load_model(path)
    model.save_weights(tmp_path / "model.weights.h5")
    weight.assign(np.ones(24))
    for file in (path, tmp_path / "model.weights.h5"):
        with pytest.raises(ValueError, match="is not finite"):
            keras_cait.load_weights(model, file)
    np.testing.assert_array_equal(weight, np.ones(24))


def test_labels_may_begin_with_a_byte_order_mark(tmp_path):
    text = "\ufeffcat\ndog\n"
    (tmp_path / "labels.txt").write_text(text, encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "model.tflite", "w") as archive:
        archive.writestr("labels.txt", text)
    assert read_labels(tmp_path / "labels.txt") == ["cat", "dog"]
    assert find_labels(tmp_path / "model.tflite") == ["cat", "dog"]


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (b"caf\xe9", "utf-8"),
        ("cat".encode("utf-16-le"), "control characters"),
        (b"cat\x1b[2J", "control characters"),
        (bytes(MAX_BYTES + 1), "more than"),
    ],
)
def test_labels_that_are_no_text_are_refused(labels, reason, tmp_path):
    path = tmp_path / "model.tflite"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.txt", labels)
    with pytest.raises(ValueError, match=f"model.tflite.*{reason}"):
        find_labels(path)


@pytest.mark.parametrize("name", ["/", "../model"])
def test_a_manifest_names_files_of_its_folder(name, tmp_path):
    content = {"image_size": [8, 8], "sha256": {name: ""}}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="outside it"):
        verified_manifest(tmp_path)


@pytest.mark.parametrize(
    ("image_size", "outputs", "reason"),
    [
        ([8, 8], ["features"], "probabilities"),
        (8, ["probabilities"], "not iterable"),
        ([8, None], ["probabilities"], "NoneType"),
    ],
)
def test_saved_models_of_others_are_named(
    tmp_path, monkeypatch, image_size, outputs, reason
):
    (tmp_path / "saved_model.pb").touch()
    (tmp_path / "manifest.json").write_text(
        json.dumps({"image_size": image_size})
    )
    found = dict.fromkeys(outputs, np.empty((1, 5)))
    layer = SimpleNamespace(
        call_endpoint_fn=SimpleNamespace(structured_outputs=found)
    )
    monkeypatch.setattr(keras.layers, "TFSMLayer", lambda *_, **__: layer)
    with pytest.raises(ValueError, match=f"Cannot load .*{reason}"):
        load_classifier(tmp_path)
