"""The SavedModel results as the Keras model, and lives on after bad input."""

import ctypes
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_cait
from benchmarks import image_files
from export.inference_graph import InferenceModel
from export.saved_model import write_saved_model
from keras_cait.decoding import decode_batch
from keras_cait.preprocessing import load_image, resize_and_crop
from tests.helpers.models import randomise
from tests.helpers.reference import REFERENCE

LABELS = [f"class {i}" for i in range(5)]
IMAGES = sorted((REFERENCE / "preprocess").rglob("*.png"))
ENCODED = [file.read_bytes() for file in IMAGES]


@pytest.fixture(scope="module")
def model():
    return randomise(
        keras_cait.CaiT(
            24, 2, 2, patch_size=8, input_shape=(32, 32, 3), classes=5
        )
    )


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved_model") / "1"
    write_saved_model(InferenceModel(model), LABELS, path, top=3)
    return path


@pytest.fixture(scope="module")
def signatures(folder):
    return tf.saved_model.load(str(folder)).signatures


@pytest.fixture(scope="module")
def expected(model):
    """Probabilities of the Keras model on the images."""
    images = [resize_and_crop(load_image(file), 32) for file in IMAGES]
    return model.predict(np.stack(images), verbose=0)


def assert_best(result, probabilities, tolerance=1e-3):
    """The classes and scores are the best three."""
    order = np.argsort(-probabilities, axis=-1)[:, :3]
    names = [
        [name.decode() for name in row] for row in result["classes"].numpy()
    ]
    assert names == [[LABELS[i] for i in row] for row in order]
    np.testing.assert_allclose(
        result["scores"],
        np.take_along_axis(probabilities, order, 1),
        atol=tolerance,
    )


def test_signatures_have_their_names(signatures):
    names = {
        name: (
            list(signature.structured_input_signature[1]),
            sorted(signature.structured_outputs),
        )
        for name, signature in signatures.items()
    }
    assert names == {
        "serving_default": (["image_bytes"], ["classes", "scores"]),
        "pixels": (["images"], ["logits", "probabilities"]),
        "embedding": (["image_bytes"], ["embedding"]),
        "attention": (["image_bytes"], ["attention", "classes", "scores"]),
        "classify": (["inputs"], ["classes", "scores"]),
    }


@pytest.mark.parametrize("count", [1, 3, 6])
def test_encoded_pictures(signatures, expected, count):
    result = signatures["serving_default"](
        image_bytes=tf.constant(ENCODED[:count])
    )
    assert_best(result, expected[:count])


def test_pixels(signatures, model, images):
    result = signatures["pixels"](images=tf.constant(images))
    np.testing.assert_allclose(
        result["probabilities"], model.predict(images, verbose=0), atol=1e-6
    )
    np.testing.assert_allclose(
        tf.nn.softmax(result["logits"]), result["probabilities"], atol=1e-6
    )


def test_embedding_and_attention(signatures, model):
    encoded = tf.constant(ENCODED)
    images = decode_batch(encoded, (32, 32))
    embedding = keras.Model(model.input, model.get_layer("head").input)
    np.testing.assert_allclose(
        signatures["embedding"](image_bytes=encoded)["embedding"],
        embedding(images),
        rtol=1e-4,
        atol=1e-5,
    )
    result = signatures["attention"](image_bytes=encoded)
    np.testing.assert_allclose(
        result["attention"],
        keras_cait.class_attention_maps(model, images),
        atol=1e-6,
    )
    assert_best(result, model(images).numpy(), 1e-6)


def test_classify(signatures, folder, expected):
    examples = [
        tf.train.Example(
            features=tf.train.Features(
                feature={
                    "image/encoded": tf.train.Feature(
                        bytes_list=tf.train.BytesList(value=[encoded])
                    )
                }
            )
        ).SerializeToString()
        for encoded in ENCODED
    ]
    result = signatures["classify"](inputs=tf.constant(examples))
    assert_best(result, expected)
    with pytest.raises(tf.errors.InvalidArgumentError, match="image/encoded"):
        signatures["classify"](
            inputs=tf.constant([tf.train.Example().SerializeToString()])
        )


def test_the_server_s_loader(folder):
    """The Session of the server has the signatures and their methods."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        graph = tf.compat.v1.saved_model.load(session, ["serve"], str(folder))
        methods = {
            name: signature.method_name
            for name, signature in graph.signature_def.items()
            if not name.startswith("__")
        }
        signature = graph.signature_def["classify"]
        default = graph.signature_def["serving_default"]
        scores = session.run(
            default.outputs["scores"].name,
            {default.inputs["image_bytes"].name: ENCODED},
        )
    predict = "tensorflow/serving/predict"
    assert methods.pop("classify") == "tensorflow/serving/classify"
    assert set(methods.values()) == {predict} and len(methods) == 4
    assert list(signature.inputs) == ["inputs"]
    assert scores.shape == (6, 3)


def test_the_loader_of_the_c_api(folder):
    """The C++ function with which the server loads, without Python."""
    library = Path(tf.__file__).parent / "libtensorflow_cc.so.2"
    c = ctypes.CDLL(str(library))
    for name in (
        "TF_NewStatus",
        "TF_NewGraph",
        "TF_NewSessionOptions",
        "TF_LoadSessionFromSavedModel",
    ):
        getattr(c, name).restype = ctypes.c_void_p
    c.TF_Message.restype = ctypes.c_char_p
    status, graph, options = (
        ctypes.c_void_p(make())
        for make in (c.TF_NewStatus, c.TF_NewGraph, c.TF_NewSessionOptions)
    )
    tags = (ctypes.c_char_p * 1)(b"serve")
    session = c.TF_LoadSessionFromSavedModel(
        options, None, bytes(folder), tags, 1, graph, None, status
    )
    assert c.TF_GetCode(status) == 0, c.TF_Message(status)
    c.TF_CloseSession(ctypes.c_void_p(session), status)
    c.TF_DeleteSession(ctypes.c_void_p(session), status)


@pytest.mark.parametrize("signature", ["serving_default", "attention"])
def test_broken_pictures_are_named_and_the_rest_goes_on(
    signatures, signature, expected
):
    broken = [ENCODED[0], b"", ENCODED[1], ENCODED[2][:300], b"\xff\xd8\xff"]
    broken.append(image_files.animation("WEBP"))
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"image_bytes at\] \[1 3 4 5\]"
    ):
        signatures[signature](image_bytes=tf.constant(broken))
    result = signatures[signature](image_bytes=tf.constant(ENCODED))
    assert_best(result, expected)


def test_large_jpegs_can_be_decoded_fast(model, tmp_path):
    path = tmp_path / "1"
    write_saved_model(InferenceModel(model), LABELS, path, fast_jpeg=True)
    encoded = tf.constant(
        [image_files.encode(image_files.example(200, 300), "JPEG")]
    )
    served = tf.saved_model.load(str(path)).signatures["serving_default"]
    images = decode_batch(encoded, (32, 32), fast_jpeg=True)
    assert np.any(images != decode_batch(encoded, (32, 32)))
    scores = tf.sort(model(images), direction="DESCENDING")
    np.testing.assert_allclose(
        served(image_bytes=encoded)["scores"], scores, rtol=1e-4, atol=1e-6
    )


def test_too_many_pixels_are_refused(model, tmp_path):
    large = image_files.png(1001, 1000)
    write_saved_model(
        InferenceModel(model), LABELS, tmp_path / "1", max_megapixels=1
    )
    signature = tf.saved_model.load(str(tmp_path / "1")).signatures
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match=r"More than 1 megapixels: image_bytes at\] \[1\] "
        r"\[of \(height, width\)\] \[\[1001 1000\]\]",
    ):
        signature["serving_default"](
            image_bytes=tf.constant([ENCODED[0], large])
        )


@pytest.mark.parametrize(
    ("name", "key", "dtype", "shape"),
    [
        ("serving_default", "image_bytes", tf.string, (0,)),
        ("pixels", "images", tf.uint8, (0, 32, 32, 3)),
        ("embedding", "image_bytes", tf.string, (0,)),
        ("attention", "image_bytes", tf.string, (0,)),
        ("classify", "inputs", tf.string, (0,)),
    ],
)
def test_an_empty_batch(signatures, name, key, dtype, shape):
    results = signatures[name](**{key: tf.zeros(shape, dtype)})
    assert all(result.shape[0] == 0 for result in results.values())


def test_no_operation_needs_more_than_tensorflow(folder):
    from export.serving.manifest import operations

    kinds = operations(folder)
    assert "MatMul" in kinds
    assert not {kind for kind in kinds if "PyFunc" in kind}


@pytest.mark.parametrize(
    "precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.large)]
)
def test_xla(tmp_path, precision):
    model = randomise(  # of one block of each kind, which compiles fast
        keras_cait.CaiT(
            24,
            1,
            2,
            patch_size=8,
            class_attention_depth=1,
            input_shape=(32, 32, 3),
            classes=5,
        )
    )
    write_saved_model(
        InferenceModel(model, precision), LABELS, tmp_path / "1", 3, xla=True
    )
    signatures = tf.saved_model.load(str(tmp_path / "1")).signatures
    for count in (1, 3):
        images = decode_batch(tf.constant(ENCODED[:count]), (32, 32))
        result = signatures["pixels"](images=tf.cast(images, tf.uint8))
        np.testing.assert_allclose(
            result["probabilities"],
            model(images),
            atol=1e-3 if precision == "float32" else 0.05,
        )


def test_labels_fit_the_model(model, tmp_path):
    with pytest.raises(ValueError, match="4 labels for 5 classes"):
        write_saved_model(InferenceModel(model), LABELS[1:], tmp_path / "1")
    with pytest.raises(ValueError, match="Got 0"):
        write_saved_model(InferenceModel(model), LABELS, tmp_path / "1", 0)
