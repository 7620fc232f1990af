"""Weights from files and the hub and to files; what is refused."""

import logging
import math
import os
import pickle
import re
import resource
import subprocess
import sys

import keras
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub import constants

import keras_cait
from benchmarks.cost import parameters
from keras_cait import PRETRAINED, load_weights, save_weights
from keras_cait.conversion import to_reference
from keras_cait.hub import fetch
from keras_cait.pretrained import nearest_pretrained
from keras_cait.weights import load_pretrained
from tests.helpers.hub import Hub, point_client_to
from tests.helpers.models import randomise, small
from tests.helpers.oracle_weights import make_input, state_dict
from tests.helpers.pth import PROTOCOL, dictionary, write_pth, write_zip
from tests.helpers.reference import REFERENCE, reference

XXS24 = PRETRAINED["XXS24", 224]


def snapshot(model):
    return {name: a.copy() for name, a in to_reference(model.weights).items()}


def assert_equal_weights(model, tensors):
    weights = to_reference(model.weights)
    assert weights.keys() == tensors.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(array, tensors[name], name)


def spread(actual, expected):
    return np.max(np.abs(actual - expected)) / np.max(np.abs(expected))


# Files.


@pytest.mark.parametrize("file", ["tiny.safetensors", "tiny.pth"])
def test_reference_files_give_the_recorded_logits(file):
    info, arrays = reference("tiny")
    model = keras_cait.CaiT(
        embed_dim=48,
        depth=3,
        num_heads=4,
        patch_size=8,
        input_shape=(32, 32, 3),
        classes=10,
        classifier_activation=None,
        include_preprocessing=False,
        weights=REFERENCE / file,
    )
    # Compare values as well: some biases cancel in the softmax.
    case = info["case"]
    assert_equal_weights(
        model, state_dict(info["state_dict_shapes"], case["seed"])
    )
    images = make_input(info["input_shape_nhwc"], case["input_seed"])
    error = spread(np.asarray(model(images)), arrays["logits"])
    assert error <= 4 * info["float32_vs_float64"]["logits"]


@pytest.mark.parametrize(
    "ending", [".safetensors", ".pth", ".keras", ".weights.h5"]
)
def test_round_trip_is_bit_equal(small_model, tmp_path, ending):
    path = tmp_path / f"small{ending}"
    tensors = snapshot(small_model)
    if ending == ".safetensors":
        save_weights(small_model, path)
        assert safetensors.numpy.load_file(path).keys() == tensors.keys()
    elif ending == ".pth":
        write_pth(path, tensors)
    elif ending == ".keras":
        small_model.save(path)
    else:
        small_model.save_weights(path)
    assert_equal_weights(small(weights=path), tensors)


@pytest.mark.parametrize(
    "dtype, prefix",
    [
        ("float16", "module."),
        ("bfloat16", "_orig_mod."),
        ("float64", "module._orig_mod."),
    ],
)
def test_files_of_other_precisions(small_model, tmp_path, dtype, prefix):
    path = tmp_path / "small.safetensors"
    dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    tensors = {
        name: array.astype(dtype)
        for name, array in snapshot(small_model).items()
    }
    wrapped = {f"{prefix}{name}": t for name, t in tensors.items()}
    safetensors.numpy.save_file(wrapped, path)
    write_pth(path.with_suffix(".pth"), wrapped)
    expected = {name: t.astype("float32") for name, t in tensors.items()}
    for ending in (".safetensors", ".pth"):
        model = small(weights=path.with_suffix(ending))
        assert_equal_weights(model, expected)


def test_a_model_of_half_precision_round_trips(tmp_path):
    model = randomise(small(dtype="bfloat16"))
    save_weights(model, tmp_path / "small.safetensors")
    again = small(dtype="bfloat16", weights=tmp_path / "small.safetensors")
    assert_equal_weights(again, snapshot(model))


def test_saving_is_whole_or_not_at_all(small_model, tmp_path, monkeypatch):
    path = tmp_path / "small.safetensors"
    save_weights(small_model, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="overwrite=True"):
        save_weights(small_model, path, overwrite=False)
    with pytest.raises(ValueError, match="Change the suffix"):
        save_weights(small_model, path.with_suffix(".h5"))

    def crash(tensors, path, metadata):
        path.write_bytes(b"half a file")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.numpy, "save_file", crash)
        with pytest.raises(OSError, match="No space"):
            save_weights(small_model, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "usual").touch()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode
    save_weights(randomise(small_model, seed=1), path)
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    "arguments, unused",
    [
        ({"include_top": False}, "head"),
        (
            {"pooling": "avg", "include_top": False},
            ("blocks_token_only", "cls_token", "head"),
        ),
    ],
)
def test_a_model_leaves_out_what_it_lacks(
    small_model, tmp_path, arguments, unused
):
    tensors = snapshot(small_model)
    save_weights(small_model, tmp_path / "small.safetensors")
    small_model.save(tmp_path / "small.keras")
    without = {k: v for k, v in tensors.items() if not k.startswith(unused)}
    for file in tmp_path.iterdir():
        model = small(weights=file, **arguments)
        assert_equal_weights(model, without)


def test_a_model_with_a_head_needs_one(small_model, tmp_path):
    tensors = snapshot(small_model)
    model = small(include_top=False)
    save_weights(model, tmp_path / "headless.safetensors")
    with pytest.raises(ValueError, match=r"Missing: head.bias, head.weight\."):
        load_weights(small_model, tmp_path / "headless.safetensors")
    assert_equal_weights(small_model, tensors)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
def test_weights_that_timm_lacks_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)  # after each kernel: 15 s
    path = tmp_path / "small.safetensors"
    lora, quantized = small(depth=1), small(depth=1)
    lora.self_attention_blocks[0].attention.qkv.enable_lora(2)
    quantized.quantize("int8")
    for model, weight in (
        (lora, "qkv/lora_kernel_a"),
        (quantized, "fc1/kernel_scale"),
    ):
        with pytest.raises(ValueError, match=f"LoRA or quant.*{weight}"):
            save_weights(model, path)
        assert not path.exists()


def test_a_grid_that_is_not_that_of_the_positions_is_named(
    small_model, tmp_path
):
    path = tmp_path / "small.safetensors"
    save_weights(small_model, path)
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(tensors, path, {"grid_size": "3x3"})
    with pytest.raises(ValueError, match="says that their grid is 3x3"):
        load_weights(small_model, path)


def test_name_scopes_stay_out_of_the_file(small_model, tmp_path):
    with keras.name_scope("student"):
        inside = randomise(small(), seed=1)
    save_weights(inside, tmp_path / "inside.safetensors")
    load_weights(small_model, tmp_path / "inside.safetensors")
    for ours, theirs in zip(small_model.weights, inside.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_clones_load_but_other_models_do_not(small_model, tmp_path):
    path = tmp_path / "small.safetensors"
    save_weights(small_model, path)
    clone = keras.models.clone_model(small_model)
    load_weights(clone, path)
    assert_equal_weights(clone, snapshot(small_model))
    for other in (keras.Sequential([small_model]), "small_model"):
        with pytest.raises(ValueError, match="Expected a CaiT"):
            load_weights(other, path)
        with pytest.raises(ValueError, match="Expected a CaiT"):
            save_weights(other, path)


def test_a_loaded_model_is_not_part_of_its_file(small_model, tmp_path):
    path = tmp_path / "small.safetensors"
    save_weights(small_model, path)
    model = small(weights=path)
    path.write_bytes(bytes(path.stat().st_size))  # in place, not a new file
    assert_equal_weights(model, snapshot(small_model))


class Harmful:
    def __reduce__(self):
        return os.system, ("echo harm",)


def spoil(kind, path, tensors):
    """Writes a file that must be refused; returns a part of the message."""
    if kind == "truncated":
        safetensors.numpy.save_file(tensors, path)
        path.write_bytes(path.read_bytes()[:-1])
        return "damaged"
    if kind == "not safetensors":
        path.write_bytes(b"<html>Sign in to the network</html>")
        return "damaged"
    if kind == "a tensor renamed":
        tensors["blocks.0.attn.other"] = tensors.pop("blocks.0.attn.proj.bias")
        safetensors.numpy.save_file(tensors, path)
        return r"blocks\.0\.attn\.proj\.bias.*blocks\.0\.attn\.other"
    if kind == "a tensor more":
        tensors["blocks.2.gamma_1"] = tensors["blocks.1.gamma_1"]
        safetensors.numpy.save_file(tensors, path)
        return r"Missing: none\. Not in the model: blocks\.2\.gamma_1"
    if kind == "a shape":
        tensors["head.weight"] = tensors["head.weight"].T.copy()
        safetensors.numpy.save_file(tensors, path)
        return r"head\.weight is \(24, 5\), expected \(5, 24\).*include_top"
    if kind == "integers":
        tensors["head.bias"] = tensors["head.bias"].astype("int8")
        safetensors.numpy.save_file(tensors, path)
        return "tensors of I8"
    if kind == "code":
        path.write_bytes(pickle.dumps(Harmful(), protocol=2))
        return "refused"
    if kind == "no names":
        write_zip(path, PROTOCOL + dictionary({"model": b"]"}) + b".")
        return "does not hold named tensors"
    if kind == "deeper":
        small(depth=3).save_weights(path)
        return "exactly the shapes"
    if kind == "wider":
        small(embed_dim=32).save(path)
        return "another size"
    if kind == "another model":
        keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(path)
        return "Expected a CaiT"
    path.write_bytes(b"nothing of Keras")
    return "not a zip file" if path.suffix == ".keras" else "Keras"


@pytest.mark.parametrize(
    "ending, kind",
    [
        (".safetensors", "truncated"),
        (".safetensors", "not safetensors"),
        (".safetensors", "a tensor renamed"),
        (".safetensors", "a tensor more"),
        (".safetensors", "a shape"),
        (".safetensors", "integers"),
        (".pth", "code"),
        (".pth", "no names"),
        (".weights.h5", "deeper"),
        (".weights.h5", "damaged"),
        (".keras", "wider"),
        (".keras", "another model"),
        (".keras", "damaged"),
    ],
)
def test_refused_with_nothing_loaded(
    small_model, tmp_path, capfd, ending, kind
):
    before = snapshot(small_model)
    path = tmp_path / f"file{ending}"
    message = spoil(kind, path, snapshot(small_model))
    with pytest.raises(ValueError, match=message) as error:
        load_weights(small_model, path)
    assert str(path) in str(error.value)
    assert_equal_weights(small_model, before)
    assert "harm" not in capfd.readouterr().out


def test_errors_of_paths(small_model, tmp_path):
    with pytest.raises(ValueError, match="There is no file"):
        load_weights(small_model, tmp_path / "no.safetensors")
    with pytest.raises(ValueError, match=r"Received: 'weights\.bin'"):
        small(weights="weights.bin")


# Positions.


CASES = reference("resample")[0]["cases"]


@pytest.mark.parametrize("case", CASES, ids=[c["name"] for c in CASES])
def test_positions_are_resampled_as_timm_does(case, tmp_path):
    _, arrays = reference("resample")
    table, expected = (arrays[case["name"] + end] for end in ("_in", "_timm"))

    def build(grid, **arguments):
        return keras_cait.CaiT(
            case["dim"],
            depth=1,
            num_heads=1,
            patch_size=4,
            classes=2,
            **{"input_shape": (4 * grid[0], 4 * grid[1], 3), **arguments},
        )

    path = tmp_path / "file.safetensors"
    tensors = snapshot(randomise(build(case["src"])))
    tensors["pos_embed"] = table
    safetensors.numpy.save_file(tensors, path)
    loaded = build(case["dst"], weights=path)
    assert spread(snapshot(loaded)["pos_embed"], expected) <= 2e-6
    # Our own files store their grid, square or not.
    save_weights(loaded, path)
    again = build(case["dst"], weights=path)
    assert_equal_weights(again, snapshot(loaded))
    # In the graph of a model of any size.
    any_size = build(
        case["src"], input_shape=(None, None, 3), grid_size=case["src"]
    )
    layer = any_size.get_layer("position_embedding")
    layer.position_embedding.assign(table)
    patches = keras.Input((None, None, case["dim"]))
    positions = keras.Model(patches, layer(patches)).predict(
        np.zeros((1, *case["dst"], case["dim"])), verbose=0
    )
    assert spread(positions, expected) <= 2e-6


def test_equal_counts_of_another_grid_are_resampled(small_model, tmp_path):
    path = tmp_path / "file.safetensors"
    save_weights(small_model, path)  # grid (4, 4)
    wide = small(input_shape=(16, 64, 3), weights=path)  # grid (2, 8)
    before, after = (snapshot(m)["pos_embed"] for m in (small_model, wide))
    assert spread(before, after) > 0.1
    save_weights(wide, path)
    back = small(input_shape=(16, 64, 3), weights=path)
    assert_equal_weights(back, snapshot(wide))


# The hub.


@pytest.fixture(scope="session")
def published():
    """A file for XXS24 at 224 pixels with the weights of the reference."""
    info, _ = reference("cait_xxs24_224")
    case = info["case"]
    return safetensors.numpy.save(
        state_dict(
            info["state_dict_shapes"],
            case["seed"],
            case.get("embed_scale", 1.0),
        )
    )


@pytest.fixture
def hub(published, monkeypatch, tmp_path):
    with Hub({f"{XXS24.repository}/{XXS24.file}": published}) as hub:
        point_client_to(hub.address, tmp_path / "hub", monkeypatch)
        yield hub


def assert_clear(error, row=XXS24):
    """One error without a chain of others: address, cache and ways out."""
    assert error.value.__suppress_context__ and error.value.__cause__ is None
    message = str(error.value)
    address = f"{constants.ENDPOINT}/{row.repository}/resolve/main/"
    for part in (
        address + row.file,
        constants.HF_HUB_CACHE,
        "HF_HOME",
        "weights='path/to/model.safetensors'",
        "\n",
    ):
        assert (part in message) == (part != "\n"), part


def test_imagenet_weights_from_hub_to_logits(hub, caplog, monkeypatch):
    info, arrays = reference("cait_xxs24_224")
    case = info["case"]
    model = keras_cait.CaiT_XXS24(
        classifier_activation=None, include_preprocessing=False
    )
    assert model.input_shape == (None, 224, 224, 3)
    images = make_input(info["input_shape_nhwc"], case["input_seed"])
    logits = keras.ops.convert_to_numpy(model(images))
    error = spread(logits, arrays["logits"])
    assert error <= 4 * info["float32_vs_float64"]["logits"]
    assert model.count_params() == XXS24.parameters
    tensors = snapshot(model)

    # From the cache, at another size and with another number of classes.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with caplog.at_level(logging.WARNING, "keras_cait"):
        model = keras_cait.CaiT_XXS24(input_shape=(64, 96, 3), classes=7)
    assert "all weights but those of the head" in caplog.text
    assert model.output_shape == (None, 7)
    for name, array in snapshot(model).items():
        if not name.startswith(("head.", "pos_embed")):
            np.testing.assert_array_equal(array, tensors[name], name)
    assert len(hub.downloads()) == 1


@pytest.mark.parametrize("is_published", [True, False])
def test_a_head_of_the_token_does_not_read_the_mean(
    is_published, tmp_path, monkeypatch, caplog
):
    path = tmp_path / "published.safetensors"
    published = randomise(small(classes=1000, depth=1, size=16))
    save_weights(published, path)
    monkeypatch.setattr("keras_cait.weights.fetch", lambda row: path)
    for pooling in ("token", "avg"):
        model = small(classes=1000, pooling=pooling, depth=1, size=16)
        if is_published:
            load_pretrained(model, XXS24)
        else:
            load_weights(model, path)
        assert ("keeps its own" in caplog.text) == (pooling == "avg")
        for layer, is_equal in (("norm", True), ("head", pooling == "token")):
            loaded, expected = (
                m.get_layer(layer).get_weights()[0] for m in (model, published)
            )
            assert np.array_equal(loaded, expected) == is_equal


def test_the_client_is_set_by_the_environment(hub, tmp_path):
    code = (
        "from keras_cait.hub import fetch\n"
        "from keras_cait.pretrained import PRETRAINED\n"
        "print(fetch(PRETRAINED['XXS24', 224]))"
    )
    environment = {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(tmp_path / "hf"),
        "KERAS_BACKEND": "numpy",  # is imported fastest
    }
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.startswith(str(tmp_path / "hf"))
    assert len(hub.downloads()) == 1


def test_the_hub_is_not_asked_for_cached_files(hub, published):
    path = fetch(XXS24)
    assert path.read_bytes() == published
    asked = len(hub.requests)
    assert fetch(XXS24) == path
    assert len(hub.requests) == asked


def test_a_cut_connection_is_resumed(hub, published):
    hub.cut_after = len(published) // 2
    assert fetch(XXS24).read_bytes() == published
    (_, _, whole), (_, _, rest) = hub.downloads()
    assert whole is None
    assert 0 < int(rest.removeprefix("bytes=").rstrip("-")) <= len(published)


def test_offline_without_a_cached_file(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="offline mode is enabled") as error:
        keras_cait.CaiT_XXS24()
    assert_clear(error)
    assert not hub.requests


@pytest.mark.parametrize("level", [logging.WARNING, logging.INFO])
def test_no_network(monkeypatch, tmp_path, caplog, level):
    point_client_to("http://127.0.0.1:9", tmp_path, monkeypatch)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: 0)
    client = logging.getLogger("huggingface_hub")
    monkeypatch.setattr(client, "propagate", True)  # to caplog
    caplog.set_level(level, client.name)
    with pytest.raises(OSError, match="onnection refused") as error:
        fetch(XXS24)
    assert_clear(error)
    # Only our error, unless the client was configured to log more.
    assert ("Retrying" in caplog.text) == (level == logging.INFO)
    assert client.level == level


def test_not_on_the_hub(hub):
    row = PRETRAINED["M48", 448]
    with pytest.raises(OSError, match="404") as error:
        fetch(row)
    assert_clear(error, row)


def test_altered_on_the_way(hub, published):
    hub.altered = True
    for _ in range(2):  # the altered file in the cache is refused as well
        with pytest.raises(ValueError, match="altered or cut off") as error:
            fetch(XXS24)
    assert hub.records[f"{XXS24.repository}/{XXS24.file}"] in str(error.value)
    # The fix that the error suggests.
    hub.altered = False
    os.remove(str(error.value).split("Delete '")[1].split("'")[0])
    assert fetch(XXS24).read_bytes() == published


def test_the_published_hash_outranks_that_of_the_hub(hub):
    row = XXS24._replace(sha256="0" * 64)
    with pytest.raises(ValueError, match="expected 0000"):
        fetch(row)


def test_disk_full(hub, published, tmp_path):
    """Writes beyond 1 MB fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            fetch(XXS24)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_clear(error)
    left = [f for f in (tmp_path / "hub").rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in left) < 1000
    assert fetch(XXS24).read_bytes() == published


# The table.


def test_former_names_still_work():
    assert keras_cait.CHECKPOINTS is PRETRAINED
    assert keras_cait.load_checkpoint is load_weights
    assert keras_cait.save_checkpoint is save_weights


def test_the_table_is_that_of_the_variants():
    assert len(PRETRAINED) == 10
    for (variant, size), row in PRETRAINED.items():
        assert row.sha256 is None or re.fullmatch("[0-9a-f]{64}", row.sha256)
        assert row.repository == (
            f"timm/cait_{variant.lower()}_{size}.fb_dist_in1k"
        )
        assert row.parameters == parameters(variant, size)
        gap = (row.published_top_1 or row.measured_top_1) - row.measured_top_1
        assert math.fabs(gap) < 0.1


@pytest.mark.parametrize(
    "variant, image_size, expected",
    [
        ("S24", (224, 224), 224),
        ("S24", (320, 320), 384),
        ("S24", (304, 304), 384),
        ("S24", (128, 512), 224),
        ("M48", (224, 224), 448),
    ],
)
def test_the_nearest_size_is_taken(variant, image_size, expected):
    assert nearest_pretrained(variant, image_size).image_size == expected


@pytest.mark.parametrize("variant", ["XS36", "S48", "M24"])
def test_unpublished_variants_name_the_published(variant):
    with pytest.raises(ValueError, match=f"CaiT_{variant}.*XXS24.*S24.*M48"):
        getattr(keras_cait, f"CaiT_{variant}")(weights="imagenet")


def test_what_imagenet_weights_cannot_be():
    with pytest.raises(ValueError, match=r"RGB images.*\(224, 224, 4\)"):
        keras_cait.CaiT_S24(input_shape=(224, 224, 4))
    with pytest.raises(ValueError, match=r'CaiT_S24\(weights="imagenet"\)'):
        small(weights="imagenet")


def test_images_of_any_size_keep_the_published_grid():
    model = keras_cait.CaiT_XS24(weights=None, input_shape=(None, None, 3))
    assert model.grid_size == (24, 24)
