"""The table of evaluations, with the figures of timm and of the authors."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from keras_cait.files import read_json
from keras_cait.pretrained import PRETRAINED

# timm's top-1 and top-5 of the published models in percent, by dataset; those
# on imagenet2012 are in PRETRAINED. From results-imagenet-real.csv and
# results-imagenetv2-matched-frequency.csv of huggingface/pytorch-image-models.
MEASURED = {
    "imagenet2012": {
        key: (row.measured_top_1, row.measured_top_5)
        for key, row in PRETRAINED.items()
    },
    "imagenet2012_real": {
        ("XXS24", 224): (85.240, 96.714),
        ("XXS24", 384): (87.414, 97.619),
        ("XXS36", 224): (86.323, 97.113),
        ("XXS36", 384): (88.161, 97.899),
        ("XS24", 384): (89.169, 98.285),
        ("S24", 224): (88.447, 97.950),
        ("S24", 384): (89.510, 98.362),
        ("S36", 384): (89.829, 98.431),
        ("M36", 384): (90.049, 98.484),
        ("M48", 448): (90.181, 98.480),
    },
    "imagenet_v2": {
        ("XXS24", 224): (67.29, 87.51),
        ("XXS24", 384): (70.55, 89.77),
        ("XXS36", 224): (68.37, 88.60),
        ("XXS36", 384): (72.14, 90.78),
        ("XS24", 384): (74.11, 91.92),
        ("S24", 224): (73.01, 91.20),
        ("S24", 384): (75.38, 92.52),
        ("S36", 384): (76.01, 92.92),
        ("M36", 384): (76.37, 93.04),
        ("M48", 448): (76.84, 93.35),
    },
}

# What `table` shows of a result.
RESULT_KEYS = (
    *("model", "published", "data", "images", "top1", "top5", "ece"),
    "images_per_second",
)


def table(results: Sequence[dict[str, Any]]) -> str:
    """Results as a Markdown table, beside the figures of timm and the authors.

    Args:
        results: as in `measure`.

    Returns:
        Percent, and differences in points.
    """
    rows = [
        "| model | dataset | images | top-1 | timm | difference | authors "
        "| top-5 | timm | difference | ECE | images/s |",
        "|" + "---|" * 12,
    ]
    for result in results:
        timm, authors = (None, None), None
        if result["published"]:
            key = tuple(result["published"])
            timm = MEASURED.get(result["data"], {}).get(key, timm)
            if result["data"] == "imagenet2012":
                authors = PRETRAINED[key].published_top_1
        cells = [
            result["model"],
            result["data"],
            images(result),
            *beside(100 * result["top1"], timm[0]),
            number(authors, ".1f"),
            *beside(100 * result["top5"], timm[1]),
            f"{100 * result['ece']:.2f}",
            number(result["images_per_second"], ".1f"),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def images(result: dict[str, Any]) -> str:
    """The number of images, and of those that were left out."""
    left_out = len(result.get("unreadable", []))
    count = f"{result['images']:,}"
    return f"{count} ({left_out} unreadable left out)" if left_out else count


def beside(ours: float, theirs: float | None) -> list[str]:
    """Our figure, another one and the difference, as text."""
    difference = None if theirs is None else ours - theirs
    return [
        number(ours, ".3f"),
        number(theirs, ".3f"),
        number(difference, "+.3f"),
    ]


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def all_results(folder: Path) -> list[dict[str, Any]]:
    """The results in a folder, which may also hold other JSON files."""
    results = []
    for file in sorted(folder.glob("*.json")):
        with suppress(ValueError):
            results.append(read_json(file, RESULT_KEYS))
    return results
