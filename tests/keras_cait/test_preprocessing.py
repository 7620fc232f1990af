"""Pixels against torchvision's, files of every kind, labels."""

import io
import os
import struct
import time
import zlib

import keras
import numpy as np
import pytest
from PIL import Image

import keras_cait
from benchmarks import image_files
from keras_cait import preprocessing
from tests.helpers.reference import REFERENCE

FOLDER = REFERENCE / "preprocess"
# Recorded from torchvision and timm on Pillow: `<image>_<transform>_u8`,
# every other row and column of 224 x 224, every fourth of the others.
EXPECTED = dict(np.load(FOLDER / "expected.npz"))
TRANSFORMS = {
    "224": (224, 1.0, 2),
    "384": (384, 1.0, 4),
    "224_pct0.875": (224, 0.875, 4),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(
    "path", sorted(FOLDER.glob("*.png")), ids=lambda p: p.stem
)
def test_pixels_equal_torchvision(path, transform):
    size, crop_ratio, stride = TRANSFORMS[transform]
    expected = EXPECTED[f"{path.stem}_{transform}_u8"]
    image = keras_cait.load_image(path)
    pixels = preprocessing.resize_and_crop(image, size, crop_ratio)
    np.testing.assert_array_equal(pixels[::stride, ::stride], expected)


def test_normalization_equals_torchvision_and_the_model():
    image = keras_cait.load_image(FOLDER / "landscape_500x375.png")
    pixels = preprocessing.resize_and_crop(image, 224)
    normalized = keras_cait.preprocess_input(pixels)
    np.testing.assert_array_equal(
        normalized[::16, ::16], EXPECTED["landscape_500x375_224_norm"]
    )
    tensor = keras_cait.preprocess_input(keras.ops.convert_to_tensor(pixels))
    np.testing.assert_allclose(tensor, normalized, atol=1e-6)
    model = keras_cait.CaiT(8, 1, 1, 32)
    in_model = model.get_layer("normalization")(pixels[None])[0]
    np.testing.assert_allclose(in_model, normalized, atol=1e-6)


@pytest.mark.parametrize("height, width", [(20, 200), (200, 20), (7, 5)])
def test_crop_of_other_shapes_is_the_centre(height, width):
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, 0 * rows], -1).astype("uint8")
    crop = preprocessing.resize_and_crop(image, (32, 48))
    assert crop.shape == (32, 48, 3)
    np.testing.assert_allclose(
        crop[..., :2].mean((0, 1)), [(height - 1) / 2, (width - 1) / 2], atol=1
    )


def encoded(image, format="png", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_load_image_from_path_bytes_pillow_and_array():
    path = FOLDER / "small_64x48.png"
    expected = np.array(Image.open(path))
    for source in (
        path,
        str(path),
        path.read_bytes(),
        Image.open(path),
        expected,
        np.dstack([expected, np.zeros((48, 64), "uint8")]),
        expected.astype("uint16") * 257,
    ):
        np.testing.assert_array_equal(keras_cait.load_image(source), expected)


def pillow(image, size, crop_ratio):
    """The transform on whole images, columns first as before Pillow 13."""
    height, width = image.shape[:2]
    new_height, new_width, top, left = preprocessing.geometry(
        height, width, size, crop_ratio, max
    )
    resized = Image.fromarray(image)
    for new_size in ((new_width, height), (new_width, new_height)):
        resized = resized.resize(new_size, Image.Resampling.BICUBIC)
    return np.array(resized)[top : top + size[0], left : left + size[1]]


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1000),
        (1000, 1),
        (3, 2000),
        (701, 2),
        (40, 4000),
        (3001, 37),
        (90, 9),
    ],
)
def test_long_and_narrow_images_are_resized_as_by_pillow(shape):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 2, (*shape, 3), "uint8") * 255
    for size, crop_ratio in (((32, 32), 1.0), ((31, 40), 0.875)):
        np.testing.assert_array_equal(
            preprocessing.resize_and_crop(image, size, crop_ratio),
            pillow(image, size, crop_ratio),
        )


@pytest.mark.parametrize(
    "shape", [(1, 5000), (5000, 1), (1, 50_000), (50, 10**6), (10**6, 50)]
)
def test_long_and_narrow_images_are_resized_at_once(shape):
    image = np.ones((*shape, 3), "uint8")
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        pixels = preprocessing.resize_and_crop(image, 224)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5
    assert pixels.shape == (224, 224, 3) and np.all(pixels == 1)


def gray_ramp():
    return np.arange(256, dtype="uint8").reshape(16, 16)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode):
    gray = gray_ramp() // 128 * 255 if mode == "1" else gray_ramp()
    if mode == "I;16":
        data = encoded(Image.fromarray(gray.astype("uint16") * 257))
    elif mode == "CMYK":
        image = Image.fromarray(gray).convert("RGB").convert(mode)
        data = encoded(image, "tiff")
    else:
        image = Image.fromarray(gray).convert(mode)
        if mode in ("LA", "RGBA"):
            image.putalpha(7)
        # Bytes of transparency, where Pillow warns about RGB.
        options = {"transparency": bytes(range(256))} if mode == "P" else {}
        data = encoded(image, **options)
    pixels = keras_cait.load_image(data)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.repeat(gray[..., None], 3, -1))


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_images_are_turned_upright(orientation):
    upright = gray_ramp()[:8]
    turns = {3: 2, 6: 1, 8: 3}[
        orientation
    ]  # stored so many quarters to the left
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(upright, turns)))
    pixels = keras_cait.load_image(encoded(stored, exif=exif))
    np.testing.assert_array_equal(pixels[..., 0], upright)


def test_broken_images_are_named(tmp_path):
    whole = (FOLDER / "small_64x48.png").read_bytes()
    for name, data, message in (
        ("cut.png", whole[:2000], "cut.png' cannot be read as an image: "),
        ("text.png", b"no image", "text.png' is not an image"),
        ("empty.png", b"", "empty.png' is not an image"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=message):
            keras_cait.load_image(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe.png' is not a file"):
        keras_cait.load_image(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"no image at .*missing.png"):
        keras_cait.load_image(tmp_path / "missing.png")
    with pytest.raises(ValueError, match="is not a file"):
        keras_cait.load_image(tmp_path)
    with pytest.raises(ValueError, match=r"\(8 bytes\) is not an image"):
        keras_cait.load_image(b"no image")
    with pytest.raises(ValueError, match="Pillow image cannot be read"):
        keras_cait.load_image(Image.open(io.BytesIO(whole[:2000])))


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: keras_cait.load_image(np.zeros((4, 4, 3))),
            r"An image must be .* Received: float64 of shape \(4, 4, 3\)",
        ),
        (
            lambda: keras_cait.load_image(np.zeros((4, 4, 5), "uint8")),
            r"Received: uint8 of shape \(4, 4, 5\)",
        ),
        (
            lambda: keras_cait.load_image(None),
            r"An image must be .* Received: object",
        ),
        (
            lambda: keras_cait.load_image(Image.new("F", (4, 4))),
            "^The Pillow image holds floating-point pixels",
        ),
        (
            lambda: keras_cait.load_image(Image.new("I", (4, 4), 2**16)),
            "^The Pillow image holds 32-bit pixels",
        ),
        (
            lambda: keras_cait.load_image(Image.new("L", (0, 4))),
            "^The Pillow image has no pixels",
        ),
        (
            lambda: keras_cait.load_image(b"P2 1 1 255\n" + b"#\n" * 10**6),
            "holds its pixels as text, .* Convert it to PNG",
        ),
        (
            lambda: keras_cait.load_image("https://example.org/cat.jpg"),
            "no image at 'https://example.org/cat.jpg'. Download it first.",
        ),
        (
            lambda: preprocessing.resize_and_crop(np.zeros((4, 4, 3)), 224),
            "image must be a uint8 array .* load_image makes one",
        ),
        (
            lambda: preprocessing.resize_and_crop(np.zeros((0, 4, 3), "u1"), 8),
            r"image must be .* Received: uint8 of shape \(0, 4, 3\)",
        ),
        (
            lambda: preprocessing.resize_and_crop(np.zeros((4, 4, 3), "u1"), 0),
            "size must be an integer greater than 0, .* size=0",
        ),
        (
            lambda: preprocessing.resize_and_crop(
                np.zeros((4, 4, 3), "u1"), (1, 2, 3)
            ),
            r"or a pair of them .* size=\(1, 2, 3\)",
        ),
        (
            lambda: preprocessing.resize_and_crop(
                np.zeros((4, 4, 3), "u1"), 8, 87.5
            ),
            "crop_ratio must be greater than 0 .* crop_ratio=87.5",
        ),
        (
            lambda: keras_cait.preprocess_input(np.zeros((4, 4, 1))),
            r"of RGB, .* shape \(4, 4, 1\)",
        ),
        (
            lambda: keras_cait.preprocess_input([[1, 2, 3]]),
            r"needs an array or tensor of RGB, .* list of shape \(\)",
        ),
        (
            lambda: keras_cait.decode_predictions(np.zeros((2, 10))),
            r"\(batch, 1000\). Received: shape \(2, 10\)",
        ),
        (
            lambda: keras_cait.decode_predictions(np.zeros(1000)),
            r"Received: shape \(1000,\)",
        ),
        (
            lambda: keras_cait.decode_predictions(np.zeros((2, 1000)), top=0),
            r"top must be an integer in 1...1000. Received: top=0",
        ),
    ],
)
def test_errors_say_what_and_how(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name, data", image_files.oversized(2).items())
def test_too_many_pixels_are_refused(name, data):
    with pytest.raises(ValueError, match=r" megapixels.* Shrink it, or raise"):
        keras_cait.load_image(data, max_megapixels=2)


def test_the_limit_of_pixels_can_be_raised():
    data = image_files.png(1001, 1000)
    with pytest.raises(ValueError, match="1000 x 1001 pixels, more than 1 meg"):
        keras_cait.load_image(data, max_megapixels=1)
    with pytest.raises(ValueError, match="The Pillow image has 1000 x 1001"):
        keras_cait.load_image(Image.open(io.BytesIO(data)), max_megapixels=1)
    assert keras_cait.load_image(data, 1.1).shape == (1001, 1000, 3)
    # Pillow's own limit is another.
    data = image_files.png(16320, 12240, bits=1)
    with pytest.raises(ValueError, match=r"179 megapixels.*MAX_IMAGE_PIXELS"):
        keras_cait.load_image(data, max_megapixels=250)


def tiff(tags, data):
    """A TIFF of 16 x 16 pixels."""
    tags = {256: 16, 257: 16, **tags}
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags)
    )
    start = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags))
    return start + entries + bytes(4) + data


def test_a_large_tile_of_a_small_image_is_refused():
    tile = zlib.compress(bytes(4000 * 3000))
    tags = {258: 8, 259: 8, 262: 1, 277: 1, 322: 4000, 323: 3000, 324: 134}
    data = tiff({**tags, 325: len(tile)}, tile)
    assert keras_cait.load_image(data).shape == (16, 16, 3)
    with pytest.raises(
        ValueError, match="4000 x 3000 pixels, more than 10 meg"
    ):
        keras_cait.load_image(data, max_megapixels=10)


@pytest.mark.parametrize(
    "tags, other",
    [
        pytest.param({258: 8, 262: 1, 254: 1}, {330: 8}, id="raw image"),
        pytest.param({258: 16, 262: 1}, {262: 0}, id="16 bits, white is 0"),
        pytest.param({258: 8, 262: 1}, {339: 2}, id="signed bytes"),
        pytest.param({258: 16, 262: 2, 277: 3}, {284: 2}, id="16 bits, planar"),
    ],
)
def test_a_tiff_that_pillow_misreads_is_refused(tags, other):
    tags = {273: 8, **tags}
    image = keras_cait.load_image(tiff(tags, bytes(2000)))
    assert image.shape == (16, 16, 3)
    with pytest.raises(ValueError, match="is a TIFF of a rare kind"):
        keras_cait.load_image(tiff({**tags, **other}, bytes(2000)))


def test_a_bmp_that_pillow_misreads_is_refused():
    """Black and white in 8 bits, which it takes for 1 bit."""
    data = bytearray(image_files.bmp(9, 60, 8))
    data[46:50], data[54:62] = b"\2\0\0\0", b"\0\0\0\0\xff\xff\xff\0"
    with pytest.raises(ValueError, match="is a BMP of a rare kind"):
        keras_cait.load_image(bytes(data))


def test_a_jpeg_of_many_scans_is_refused():
    for count, side in ((101, 64), (2000, 500)):
        with pytest.raises(ValueError, match="JPEG of more than 100 scans"):
            keras_cait.load_image(image_files.many_scans(count, side))
    # What a phone appends to a JPEG, such as a film, is not a scan.
    film = image_files.encode(image_files.example(), "JPEG") + 200 * b"\xff\xda"
    assert keras_cait.load_image(film).shape == (121, 163, 3)


def test_a_jpeg_with_exif_in_many_parts_is_refused(tmp_path):
    jpeg = image_files.encode(image_files.example(), "JPEG")
    many = jpeg[:2] + 101 * b"\xff\xe1\0\x09Exif\0\0." + jpeg[2:]
    (tmp_path / "many.jpg").write_bytes(many)
    for source in (many, tmp_path / "many.jpg"):
        with pytest.raises(ValueError, match="EXIF in more than 100 parts"):
            keras_cait.load_image(source)


def test_only_formats_for_images_are_read():
    for format in ("EPS", "ICO", "PCX"):
        with pytest.raises(ValueError, match=r"Expected AVIF, .* such as HEIC"):
            keras_cait.load_image(encoded(Image.new("RGB", (16, 16)), format))


def test_labels_and_their_order():
    labels = preprocessing.imagenet_labels()
    identifiers, names = zip(*labels, strict=True)
    assert len(set(identifiers)) == len(set(map(str.lower, names))) == 1000
    assert list(identifiers) == sorted(identifiers)
    assert labels[281] == ("n02123045", "tabby")
    scores = np.zeros((2, 1000), "float32")
    scores[0, [1, 999, 281]] = 0.5, 0.3, 0.2
    scores[1, [3, 900]] = 1  # of equal scores, the first is best
    best, other = keras_cait.decode_predictions(scores, top=3)
    assert [label for _, label, _ in best] == [
        "goldfish",
        "toilet tissue",
        "tabby",
    ]
    assert best[0] == ("n01443537", "goldfish", 0.5)
    assert other[0] == ("n01491361", "tiger shark", 1.0) and len(other) == 3


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float16"])
def test_scores_of_any_dtype_are_decoded(dtype):
    scores = np.full((1, 1000), -100 if dtype == "int8" else 0, dtype)
    scores[0, 1] = 100
    ((best,),) = keras_cait.decode_predictions(scores, top=np.int64(1))
    assert best == ("n01443537", "goldfish", 100.0)
