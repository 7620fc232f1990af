"""Decoding in the graph: only safe formats, bounded."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_cait.decoding import decode_image


def animation(size, format):
    rng = np.random.default_rng(0)
    frames = [
        Image.fromarray(rng.integers(0, 256, (size, size, 3), "uint8"))
        for _ in range(4)
    ]
    file = io.BytesIO()
    frames[0].save(file, format, save_all=True, append_images=frames[1:])
    return file.getvalue()


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(animation(16, "WEBP"), id="small animated WebP"),
        pytest.param(animation(64, "WEBP"), id="animated WebP"),
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
    for run in (decode_image, tf.function(decode_image)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="Not a JPEG"):
            run(tf.constant(encoded))
