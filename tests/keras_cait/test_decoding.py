"""Decoding in the graph: the pixels of load_image, or a refusal."""

import io
import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from benchmarks import image_files
from benchmarks.image_files import encode, example
from keras_cait import decoding
from keras_cait.decoding import bmp, gif, jpeg
from keras_cait.decoding.refusals import UNKNOWN
from keras_cait.preprocessing import load_image, resize_and_crop
from tests.helpers.reference import REFERENCE

KINDS = image_files.kinds()
# What the graph refuses and load_image reads.
REFUSED = {
    "JPEG, CMYK without Adobe marker",
    "GIF, first frame beyond the canvas",
    "BMP, 16 bits",
    "BMP, palette of 4 bits",
    "BMP, palette of 1 bit",
    "BMP, compressed",
    "BMP, header of OS/2",
    "WebP",
    "WebP, animation",
    "AVIF",
    "JPEG 2000",
    "TIFF",
    "PPM",
}
ENCODED = tf.TensorSpec((), tf.string)
decode_image = tf.function(decoding.decode_image, input_signature=[ENCODED])


@pytest.fixture(autouse=True)
def deterministic():
    """Nothing here is random; a new seed would discard compiled functions."""


@tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
def decode_batch(image_bytes):
    return decoding.decode_batch(image_bytes, (32, 48), max_megapixels=2)


@tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
def decode_each(image_bytes):
    return decoding.decode_each(image_bytes, (32, 48), max_megapixels=2)


@tf.function(input_signature=[ENCODED, tf.TensorSpec((4,), tf.float32)])
def decode_crop(encoded, shares):
    def choose(height, width):
        sides = tf.cast(tf.stack([height, width]), tf.float32)
        box = tf.concat([shares[:2] * sides, shares[2:] * sides], axis=0)
        return tf.cast(box, tf.int32) + tf.constant([0, 0, 1, 1])

    return decoding.decode_crop(encoded, choose)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_load_image_or_refused(kind):
    encoded = KINDS[kind]
    expected = load_image(encoded)
    if kind in REFUSED:
        with pytest.raises(tf.errors.InvalidArgumentError):
            decode_image(encoded)
        with pytest.raises(tf.errors.InvalidArgumentError):
            decode_batch([encoded])
        return
    difference = np.abs(decode_image(encoded).numpy() - expected.astype(int))
    assert difference.max() <= (1 if kind == "JPEG, CMYK" else 0)
    if kind != "JPEG, CMYK":
        np.testing.assert_array_equal(
            decode_batch([encoded])[0], resize_and_crop(expected, (32, 48))
        )


def test_fast_jpegs_are_close_to_whole_ones():
    """Where a part of the size is whole and large enough, turned or not."""
    image = Image.open(REFERENCE / "preprocess/landscape_500x375.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    decode = tf.function(
        lambda data: decoding.decode_batch(data, (32, 48), fast_jpeg=True),
        input_signature=[tf.TensorSpec((None,), tf.string)],
    )
    for sides, is_whole, options in (
        ((2048, 1536), False, {}),
        ((1200, 900), False, {}),
        ((250, 188), False, {"progressive": True}),
        ((300, 500), False, {"exif": exif.tobytes()}),
        ((500, 375), True, {}),  # odd
        ((190, 126), True, {}),  # less than twice the size
        ((46, 1500), True, {}),
    ):
        encoded = encode(image.resize(sides), "JPEG", quality=90, **options)
        whole = resize_and_crop(load_image(encoded), (32, 48))
        difference = np.abs(decode([encoded])[0].numpy() - whole)
        assert (difference.max() == 0) == is_whole
        assert difference.max() <= 12 and difference.mean() < 1
    png = encode(image, "PNG")
    np.testing.assert_array_equal(decode([png])[0], decode_batch([png])[0])


@pytest.mark.parametrize("endian", "<>")
@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 mean nothing
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_images_are_turned_upright(kind, orientation, endian):
    encoded = image_files.turned(kind, orientation, endian)
    expected = load_image(encoded)
    is_turned = 5 <= orientation <= 8
    assert expected.shape == ((163, 121, 3) if is_turned else (121, 163, 3))
    np.testing.assert_array_equal(decode_image(encoded), expected)
    np.testing.assert_array_equal(
        decoding.image_size(tf.constant(encoded)), (121, 163)
    )
    rng = np.random.default_rng(orientation)
    for _ in range(4):
        top, left = rng.uniform(0, 0.6, 2)
        rows, columns = rng.uniform(0, 0.4, 2)
        height, width = np.float32(expected.shape[:2])
        top, left = np.float32(top), np.float32(left)
        y, x = int(top * height), int(left * width)
        part = expected[
            y : y + 1 + int(np.float32(rows) * height),
            x : x + 1 + int(np.float32(columns) * width),
        ]
        np.testing.assert_array_equal(
            decode_crop(encoded, [top, left, rows, columns]), part
        )


@pytest.mark.filterwarnings("ignore")  # of Pillow
@pytest.mark.parametrize("endian", "<>")
def test_one_short_or_long_integer_turns_an_image(endian):
    start = {"<": b"Exif\0\0II*\0\x08\0\0\0", ">": b"Exif\0\0MM\0*\0\0\0\x08"}
    sizes = {3: "H", 4: "I", 8: "H", 9: "I", 13: "I"}
    turned = set()
    for kind in range(16):
        six = struct.pack(endian + sizes.get(kind, "B"), 6)
        for count in (0, 1, 2, 2**31):
            entry = struct.pack(endian + "HHHI", 1, 0x0112, kind, count)
            exif = start[endian] + entry + six.ljust(4, b"\0") + bytes(4)
            encoded = encode(example(4, 6), "JPEG", exif=exif)
            pixels = decode_image(encoded)
            np.testing.assert_array_equal(pixels, load_image(encoded))
            turned |= {(kind, count)} if len(pixels) == 6 else set()
    assert turned == {(3, 1), (4, 1)}


@pytest.mark.filterwarnings("ignore")  # of Pillow
def test_an_image_is_turned_whatever_else_its_exif_has():
    lost = struct.pack("<HHII", 0x010F, 2, 9, 60_000)  # beyond the end
    six = struct.pack("<HHII", 0x0112, 3, 1, 6)
    exif = b"Exif\0\0II*\0\x08\0\0\0\2\0" + lost + six
    for kind in ("JPEG", "PNG"):
        encoded = encode(example(4, 6), kind, exif=exif)
        pixels = load_image(encoded)
        assert pixels.shape == (6, 4, 3)
        np.testing.assert_array_equal(decode_image(encoded), pixels)


def test_only_exif_turns_an_image():
    """As in browsers."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'
    encoded = encode(example(), "JPEG", xmp=xmp)
    for decode in (decode_image, load_image):
        assert decode(encoded).shape == (121, 163, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0" + 40 * b"\6",
        b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1",
    ],
)
def test_damaged_exif_turns_nothing(kind, exif):
    damaged, plain = encode(example(), kind, exif=exif), encode(example(), kind)
    np.testing.assert_array_equal(decode_image(damaged), decode_image(plain))
    np.testing.assert_array_equal(load_image(damaged), load_image(plain))


def test_a_short_marker_of_adobe_is_none():
    """To libjpeg, which then does not invert CMYK as Pillow does."""
    encoded = KINDS["JPEG, CMYK"]
    start = encoded.index(b"\xff\xee\0\x0eAdobe")
    short = (
        encoded[:start] + b"\xff\xee\0\x09Adobe\0\x64" + encoded[start + 16 :]
    )
    load_image(short)
    with pytest.raises(tf.errors.InvalidArgumentError, match="unsupported"):
        decode_image(short)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_crop_of_a_jpeg_is_a_part_of_it(subsampling, progressive):
    encoded = encode(
        example(), "JPEG", subsampling=subsampling, progressive=progressive
    )
    whole = load_image(encoded)
    for top, left in ((0, 0), (17, 23), (40, 99), (81, 113)):
        box = tf.constant([top, left, 40, 50])
        part = decoding.decode_crop(tf.constant(encoded), lambda h, w: box)  # noqa: B023
        expected = whole[top : top + 40, left : left + 50]
        np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize(
    "shape",
    [(48, 64), (375, 500), (500, 33), (101, 1000), (1, 1), (2, 3000), (900, 4)],
)
@pytest.mark.parametrize("crop_ratio", [1.0, 0.8])
def test_resizing_in_a_graph_is_that_of_pillow(shape, crop_ratio):
    @tf.function(input_signature=[tf.TensorSpec((None, None, None), tf.uint8)])
    def resize(image):
        return decoding.resize_and_crop_in_graph(image, (96, 160), crop_ratio)

    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), "uint8")
    for one in (image, image // 128 * 255):  # noise, and noise of 0 and 255
        np.testing.assert_array_equal(
            resize(one), resize_and_crop(one, (96, 160), crop_ratio)
        )


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(image_files.animation("WEBP", 16), id="small WebP"),
        pytest.param(image_files.animation("WEBP", 64), id="WebP"),
        pytest.param(b"\xff\x0a" + bytes(100), id="JPEG XL"),
        pytest.param(
            b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100), id="JPEG XL box"
        ),
        pytest.param(b"II*\0" + bytes(100), id="TIFF"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xd8", id="two bytes"),
    ],
)
def test_other_formats_never_reach_a_decoder(encoded):
    """TensorFlow's decoders corrupt the heap on an animated WebP."""
    for run in (decoding.decode_image, decode_image, decoding.image_size):
        with pytest.raises(tf.errors.InvalidArgumentError, match="Not a JPEG"):
            run(tf.constant(encoded))


@pytest.mark.parametrize("name, encoded", image_files.oversized(2).items())
def test_too_many_pixels_are_refused(name, encoded):
    if name == "PNG of 2^31 - 1":
        encoded = image_files.png(1, 2_000_001, rows=0)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="more than 2 megapixels"
    ):
        decoding.decode_image(tf.constant(encoded), 2)
    good = encode(example(), "PNG")
    height, width = decoding.image_size(tf.constant(encoded)).numpy()
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match=r"Refused image_bytes at\] \[1 3\] \[The image has more than 2 "
        rf"megapixels \(height, width\): \[{height} {width}\]",
    ):
        decode_batch([good, encoded, good, encoded])


def test_the_unreadable_of_a_batch_are_listed():
    good = encode(example(), "PNG")
    batch = [good, KINDS["WebP, animation"], good[:300], good, b"\xff\xd8\xff"]
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"image_bytes at\] \[1 2 4\]"
    ):
        decode_batch(batch)
    assert decode_batch([good] * 3).shape == (3, 32, 48, 3)
    assert decode_batch(tf.zeros(0, tf.string)).shape == (0, 32, 48, 3)


def test_every_image_of_a_batch_is_decoded_for_itself():
    files = KINDS | image_files.liars() | image_files.oversized(2)
    files |= dict(image_files.damaged(count=3))
    batch = list(files.values())
    images, errors = decode_each(batch)
    assert 60 < np.count_nonzero(errors != "") < len(batch) - 60
    assert not np.any(images[errors != ""])
    others = decode_each(batch[::-1])
    np.testing.assert_array_equal(images[::-1], others[0])
    np.testing.assert_array_equal(errors[::-1], others[1])
    for index in range(0, len(batch), 9):
        (alone,), (reason,) = decode_each([batch[index]])
        np.testing.assert_array_equal(images[index], alone)
        assert errors[index] == reason


@pytest.mark.parametrize(
    "encoded, reason",
    [
        (KINDS["WebP"], f"{UNKNOWN}, but a WebP."),
        (KINDS["AVIF"], f"{UNKNOWN}, but an AVIF."),
        (KINDS["TIFF"], f"{UNKNOWN}, but a TIFF."),
        (b"\0\0\0\x18ftypheic", f"{UNKNOWN}, but a HEIC."),
        (b"<!doctype html>", f"{UNKNOWN}, but text such as SVG or HTML."),
        (b"", f"{UNKNOWN}, but empty."),
        (b"no image", f"{UNKNOWN}."),
        (KINDS["JPEG 4:2:0"][:-999], "The JPEG is truncated."),
        (KINDS["PNG, RGB"][:999], "The PNG is truncated."),
        (KINDS["GIF"][:999], gif.REFUSED),
        (KINDS["BMP, 24 bits"][:999], bmp.REFUSED),
        (KINDS["BMP, header of OS/2"], bmp.REFUSED),
        (KINDS["JPEG, CMYK without Adobe marker"], jpeg.REFUSED),
        (KINDS["JPEG, CMYK without Adobe marker"] + bytes(2), jpeg.REFUSED),
        (image_files.png(0, 8), "The image has no pixels."),
        (
            image_files.png(1, 1).replace(b"\0\0\0\1", b"\xff\0\0\0"),
            "The image has no pixels.",
        ),
        (
            image_files.png(2000, 1500),
            "The image has more than 2 megapixels (height, width): [2000 1500]",
        ),
    ],
)
def test_the_reason_is_named(encoded, reason):
    _, errors = decode_each([encoded])
    assert errors.numpy().tolist() == [reason.encode()]


# Their first header is true, or what a decoder makes of it is bounded.
READ = {
    "JPEG, 20 MB behind the scans",
    "JPEG, data of fewer rows",  # gray, as libjpeg fills the missing rows
    "PNG, data of more rows",
    "GIF, frame of 65535",
    "BMP, data of more rows",
    "PNG, 900 texts of 8 MB",
    "PNG, profile of 8 MB",
    "PNG, text after the data",
    "GIF, 3000 frames",
}
HOSTILE = image_files.liars() | image_files.bombs()
HOSTILE["JPEG, 20 MB behind the scans"] = (
    KINDS["JPEG, progressive"] + 20_000_000 * b"\xff"
)
# Peak memory, less what the process had: reset, decode, read.
DECODE_ALL = """
import json, sys, time
from pathlib import Path
import tensorflow as tf
from benchmarks.images import peak_memory
from keras_cait.decoding import decode_image

decode = tf.function(
    decode_image, input_signature=[tf.TensorSpec((), tf.string)]
)
decode(tf.io.encode_png(tf.zeros((8, 8, 3), tf.uint8)))
for path in sorted(Path(sys.argv[1]).iterdir()):
    encoded = tf.constant(path.read_bytes())
    start = time.process_time()
    with peak_memory() as peak:
        try:
            shape = decode(encoded).shape.as_list()
        except tf.errors.InvalidArgumentError:
            shape = None
    print(json.dumps([shape, time.process_time() - start, peak.megabytes]))
"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """What the graph makes of hostile files: shape, seconds, megabytes."""
    folder = tmp_path_factory.mktemp("hostile")
    for number, encoded in enumerate(HOSTILE.values()):
        (folder / f"{number:03}").write_bytes(encoded)
    process = subprocess.run(
        [sys.executable, "-c", DECODE_ALL, folder],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    return dict(zip(HOSTILE, map(json.loads, lines), strict=True))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_or_bounded(hostile, name):
    shape, seconds, megabytes = hostile[name]
    assert (shape is not None) == (name in READ)
    pixels = np.prod(shape) / 1e6 if shape else 0
    assert megabytes <= 4 * pixels + 50
    assert seconds < 5


@pytest.mark.filterwarnings("ignore")  # of Pillow, about what is damaged
def test_damaged_files_are_refused_or_read_alike():
    for name, encoded in image_files.damaged():
        try:
            pixels = decode_image(encoded)
        except tf.errors.InvalidArgumentError:
            continue
        np.testing.assert_array_equal(pixels, load_image(encoded), name)


def test_importing_the_library_does_not_import_tensorflow():
    code = "import keras_cait, sys; assert 'tensorflow' not in sys.modules"
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.parametrize("transparent", [3, 15, 16, 255])  # of 16 colors
def test_the_canvas_of_a_gif_has_the_transparent_color(transparent):
    data = image_files.gif_with_small_frame()
    frame = data.index(b",", 13 + 3 * 16)
    control = b"!\xf9\4\1\0\0" + bytes([transparent, 0])
    data = data[:frame] + control + data[frame:]
    np.testing.assert_array_equal(decode_image(data), load_image(data))


def test_a_gif_is_decoded_whose_frame_has_its_own_palette():
    frames = [example(20, 30, seed).quantize(8) for seed in range(2)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    data = file.getvalue()
    # The second frame, which has its own palette, as the first one.
    first, last = data.index(b","), data.rindex(b"!\xf9")
    data = data[: data.index(b"!") if b"!" in data else first] + data[last:]
    expected = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data), expected)


def test_a_gray_frame_of_a_gif_does_not_take_the_palette_of_the_file():
    """Pillow forgets a palette of gray where the file has another."""
    gray = example(20, 30).convert("L")
    data = encode(gray, "GIF", interlace=0)
    frame = data.index(b",", 13 + 768)
    own = bytes([data[frame + 9] | 0x87]) + data[13 : 13 + 768]
    blue = bytes([0, 0, 255]) * 256
    data = data[:13] + blue + data[frame : frame + 9] + own + data[frame + 10 :]
    expected = np.array(gray.convert("RGB"))
    np.testing.assert_array_equal(decode_image(data), expected)
    np.testing.assert_array_equal(load_image(data), expected)
