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
from export.saved_model import Signatures, write_saved_model
from keras_cait.decoding import decode_batch
from keras_cait.preprocessing import load_image, resize_and_crop
from tests.helpers.models import LABELS, randomise, small
from tests.helpers.reference import ENCODED, IMAGES


@pytest.fixture(scope="module")
def model():
    return randomise(small())


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
        "serving_default": (["image_bytes"], ["classes", "error", "scores"]),
        "pixels": (["images"], ["logits", "probabilities"]),
        "embedding": (["image_bytes"], ["embedding", "error"]),
        "attention": (
            ["image_bytes"],
            ["attention", "classes", "error", "scores"],
        ),
        "classify": (["inputs"], ["classes", "scores"]),
    }


@pytest.mark.parametrize("count", [1, 3, 6])
def test_encoded_images(signatures, expected, count):
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


def example(**feature):
    """A serialized `tf.Example` with `image/encoded`."""
    features = {"image/encoded": tf.train.Feature(**feature)}
    return tf.train.Example(
        features=tf.train.Features(feature=features)
    ).SerializeToString()


def example_of(*encoded):
    return example(bytes_list=tf.train.BytesList(value=encoded))


def test_classify(signatures, expected):
    examples = [example_of(encoded) for encoded in ENCODED]
    result = signatures["classify"](inputs=tf.constant(examples))
    assert_best(result, expected)


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


JUNK = [
    *(b"", b"no image", b"\xff\xd8\xff", ENCODED[2][:300]),
    image_files.animation("WEBP"),
    image_files.oversized()["PNG of 20000 x 20000"],
    image_files.bombs()["PNG, 100,000 empty chunks"],
]
JUNK_EXAMPLES = [
    *map(example_of, JUNK),
    *(b"", b"\xff\xff", example_of(), example_of(*ENCODED[:2])),
    example(int64_list=tf.train.Int64List(value=[1])),
]


@pytest.mark.parametrize(
    "name, key, good, junk",
    [
        ("serving_default", "image_bytes", ENCODED, JUNK),
        ("attention", "image_bytes", ENCODED, JUNK),
        ("embedding", "image_bytes", ENCODED, JUNK),
        (
            *("classify", "inputs"),
            *([example_of(encoded) for encoded in ENCODED], JUNK_EXAMPLES),
        ),
    ],
)
def test_junk_leaves_the_others_of_a_batch_as_they_are(
    signatures, name, key, good, junk
):
    """Their answers are equal to the last bit."""
    with_junk = [*good[:2], *junk, *good[2:]]
    without = [*good[:2], *(good[0] for _ in junk), *good[2:]]
    is_junk = np.repeat([False, True, False], [2, len(junk), len(good) - 2])
    results = signatures[name](**{key: tf.constant(with_junk)})
    expected = signatures[name](**{key: tf.constant(without)})
    for output in results:
        np.testing.assert_array_equal(
            results[output][~is_junk], expected[output][~is_junk]
        )
    for output, value in results.items():
        value = value.numpy()[is_junk]
        if output == "error":
            assert all(value) and not any(expected["error"].numpy())
        elif output == "classes":
            assert np.all(value == b"")
        else:
            assert np.all(np.isnan(value))


def test_junk_alone(signatures):
    result = signatures["serving_default"](image_bytes=tf.constant([b"", b"a"]))
    assert result["error"].numpy().tolist() == [
        b"Not a JPEG, PNG, GIF or BMP image, but empty.",
        b"Not a JPEG, PNG, GIF or BMP image.",
    ]


def test_a_strict_model_refuses_the_call(model, expected):
    strict = Signatures(InferenceModel(model), LABELS, 3, strict=True)
    assert_best(strict.classify_bytes(tf.constant(ENCODED)), expected)
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match=r"image_bytes at\] \[1 3\] \[Not a .* The PNG is truncated.\]",
    ):
        strict.classify_bytes(
            tf.constant([ENCODED[0], b"", ENCODED[1], ENCODED[2][:300]])
        )
    with pytest.raises(tf.errors.InvalidArgumentError, match="image/encoded"):
        strict.classify_examples(tf.constant([b""]))


def test_large_jpegs_can_be_decoded_fast(model):
    encoded = [image_files.encode(image_files.example(200, 300), "JPEG")]
    images = decode_batch(tf.constant(encoded), (32, 32), fast_jpeg=True)
    assert np.any(images != decode_batch(tf.constant(encoded), (32, 32)))
    served = Signatures(InferenceModel(model), LABELS, fast_jpeg=True)
    np.testing.assert_allclose(
        served.classify_bytes(tf.constant(encoded))["scores"],
        tf.sort(model(images), direction="DESCENDING"),
        rtol=1e-4,
        atol=1e-6,
    )


def test_too_many_pixels_are_refused(model):
    served = Signatures(InferenceModel(model), LABELS, max_megapixels=1)
    images = [image_files.png(1000, 1000), image_files.png(1001, 1000)]
    result = served.classify_bytes(tf.constant(images))
    assert result["error"].numpy().tolist() == [
        b"",
        b"The image has more than 1 megapixels (height, width): [1001 1000]",
    ]


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


@pytest.mark.parametrize(
    ("name", "key", "tensor"),
    [
        # Cut or read in another order, both have as many patches.
        ("pixels", "images", tf.zeros((1, 33, 32, 3), tf.uint8)),
        ("pixels", "images", tf.zeros((1, 16, 64, 3), tf.uint8)),
        ("serving_default", "image_bytes", tf.constant(ENCODED[0])),
    ],
)
def test_a_tensor_of_another_shape_is_refused(signatures, name, key, tensor):
    message = rf"Shape of tensor {key} \[.* is not compatible with expected"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        signatures[name](**{key: tensor})


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
        small(depth=1, class_attention_depth=1)
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


@pytest.mark.parametrize("parts", [0, 17])
def test_no_more_parts_than_patches(model, tmp_path, parts):
    with pytest.raises(ValueError, match=f"at most 16.*Got {parts}"):
        write_saved_model(
            InferenceModel(model), LABELS, tmp_path / "1", parts=parts
        )
