"""Files for wrong command lines, and what such a command line may print."""

import json
import os
import re

import keras
import numpy as np
from PIL import Image

import keras_cait
from tests.helpers.models import randomise

CLASSES = ("one", "two", "three", "four", "five")
# What TensorFlow and TensorFlow Datasets print by themselves.
OF_LIBRARIES = re.compile(
    r"[IWEF]\d{4} |WARNING: All log|WARNING:absl|Matplotlib |mkdir -p failed"
)


def write_workspace(folder):
    """Writes good, damaged and foreign files; `new` does not exist."""
    write_models(folder)
    write_images(folder)
    write_folders(folder)
    (folder / "file").write_text("a file")
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "pipe.keras")
    for name, labels in {
        "five": CLASSES,
        "two": CLASSES[:2],
        "equal": (*CLASSES[:4], "one"),
        "blank": (*CLASSES[:3], "", "five"),
    }.items():
        (folder / f"{name}.txt").write_text("\n".join(labels) + "\n")


def write_models(folder):
    def cait(side=32, channels=3, **arguments):
        return keras_cait.CaiT(
            8, 1, 1, 8, input_shape=(side, side, channels), **arguments
        )

    model = randomise(cait(classes=5))
    model.save(folder / "small.keras")
    model.save_weights(folder / "small.weights.h5")
    content = (folder / "small.keras").read_bytes()
    (folder / "small.txt").write_bytes(content)
    (folder / "cut.keras").write_bytes(content[: len(content) // 2])
    (folder / "empty.keras").touch()
    for suffix in ("keras", "pth", "safetensors", "tflite"):
        (folder / f"text.{suffix}").write_text("not a model")
    cait(include_top=False).save(folder / "headless.keras")
    cait(channels=1).save(folder / "gray.keras")
    cait(side=None).save(folder / "any.keras")
    model.set_weights([weight * np.nan for weight in model.get_weights()])
    model.save(folder / "nan.keras")
    dense = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    dense.save(folder / "dense.keras")


def write_images(folder):
    generator = np.random.default_rng(0)

    def image(name):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = generator.integers(0, 255, (32, 32, 3), "uint8")
        Image.fromarray(noise).save(path)
        return path

    content = image("photo.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("not an image")
    for name in CLASSES:
        for i in range(5):
            image(f"photos/{name}/{i}.png")
            image(f"damaged/{name}/{i}.png").write_text(f"no image {name}{i}")
    for data, names in {
        "single": CLASSES[:1],
        "pair": CLASSES[:2],
        "hollow": CLASSES[:2],
    }.items():
        for name in names:
            for i in range(5):
                image(f"{data}/{name}/{i}.png")


def write_folders(folder):
    def write(name, text=""):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    (folder / "empty").mkdir()
    (folder / "hollow" / "three").mkdir()
    write("unfinished/recipe.json", "{}")
    for name, text in (
        ("started", '{"epochs": 3}'),
        ("foreign_text", "not JSON"),
        ("foreign_list", "[1]"),
    ):
        write(f"{name}/recipe.json", text)
        write(f"{name}/checkpoints/ckpt-1.index")
    content = (folder / "small.keras").read_bytes()
    confusion = np.diag([1] * 5).tolist()
    for name, summary in (
        ("finished", {"confusion": confusion, "top1": 1.0, "top5": 1.0}),
        ("foreign_run", {"anything": 1}),
    ):
        write(f"{name}/summary.json", json.dumps(summary))
        write(f"{name}/recipe.json", '{"data": "digits", "epochs": 1}')
        write(f"{name}/labels.txt", "\n".join(CLASSES))
        history = "epoch,loss,accuracy,val_accuracy\n0,1.0,0.5,0.5\n"
        write(f"{name}/history.csv", history)
        (folder / name / "model.keras").write_bytes(content)
    for name in CLASSES:
        write(f"finished/validation/{name}/0.png")
        photo = (folder / "photo.png").read_bytes()
        (folder / f"finished/validation/{name}/0.png").write_bytes(photo)
    result = "folder_photos_small_keras_float32.json"
    write(f"foreign_result/{result}", '{"anything": 1}')
    write("foreign_models/1/saved_model.pb")
    write("foreign_models/models.config", "not a configuration")


def snapshot(folder):
    """Size and time of change of every file and folder."""
    return {
        str(path): (
            path.is_file() and path.stat().st_size,
            path.stat().st_mtime,
        )
        for path in folder.rglob("*")
    }


def one_line_of(text):
    """The only line that is not a library's."""
    (line,) = (x for x in text.splitlines() if not OF_LIBRARIES.match(x))
    assert not re.match(r"\w*(Error|Exception|Traceback)\b", line)
    return line
