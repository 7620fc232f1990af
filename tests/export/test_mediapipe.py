"""MediaPipe reads an exported file: labels and pixel range."""

import mediapipe
import pytest
from mediapipe.tasks.python import BaseOptions, vision
from PIL import Image

from export.__main__ import main
from keras_cait.preprocessing import load_image, resize_and_crop
from tests.helpers.commands import exit_status
from tests.helpers.reference import REFERENCE

LABELS = ["Apfel", "bicycle", "càt", "dog house", "eel"]


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ([], 1e-4),
        (["--input", "uint8"], 1e-4),
        (["--scheme", "dynamic-int8", "--input", "uint8"], 0.1),
    ],
    ids=["float32", "uint8", "int8"],
)
def test_image_classifier(options, tolerance, small_model, tmp_path):
    model, output = tmp_path / "model.keras", tmp_path / "model.tflite"
    small_model.save(model)
    (tmp_path / "labels.txt").write_text("\n".join(LABELS), encoding="utf-8")
    arguments = ["--model", model, "--output", output, *options]
    assert exit_status(main, "litert", *arguments) == 0

    # At the model's size, because MediaPipe resizes differently, uncropped.
    photo = load_image(REFERENCE / "preprocess/landscape_500x375.png")
    image = resize_and_crop(photo, (32, 32))
    file = tmp_path / "image.png"
    Image.fromarray(image).save(file)
    expected = small_model.predict(image[None], verbose=0)[0]

    with vision.ImageClassifier.create_from_options(
        vision.ImageClassifierOptions(BaseOptions(str(output)))
    ) as classifier:
        result = classifier.classify(
            mediapipe.Image.create_from_file(str(file))
        )
    (found,) = result.classifications
    assert found.categories[0].category_name == LABELS[expected.argmax()]
    scores = {one.category_name: one.score for one in found.categories}
    assert scores == pytest.approx(
        dict(zip(LABELS, expected, strict=True)), abs=tolerance
    )
