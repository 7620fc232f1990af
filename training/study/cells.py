"""The paper's studies: grids of models, each with its recipe."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from keras_cait.baselines import SIZES
from keras_cait.files import file_name
from keras_cait.models import init_values_by_depth
from training.recipe import Recipe
from training.recipes import QUICKSTART, RECIPES


@dataclass(frozen=True)
class Cell:
    """One model of a study and how it is trained.

    Attributes:
        row, column: its place in the table.
        model: arguments of `keras_cait.baselines.ViT`.
        recipe: the recipe; its fields of the model are not used.
        paper: the paper's top-1 in percent; `None` where it is not known.
    """

    row: str
    column: str
    model: dict[str, Any]
    recipe: Recipe
    paper: float | None = None

    @property
    def name(self) -> str:
        return file_name(f"{self.row} {self.column}")


@dataclass(frozen=True)
class Scale:
    """The setting of all studies.

    Attributes:
        recipe: the recipe of all trainings.
        model: arguments of `ViT` that all models share.
        depths: numbers of blocks, each with its stochastic depth.
        seeds: trainings of each model, with seeds 0, 1, ...
        paper: the paper's top-1 for each of the depths, by row.
    """

    recipe: Recipe
    model: dict[str, Any]
    depths: dict[int, float]
    seeds: int = 1
    paper: dict[str, tuple[float, ...]] = field(default_factory=dict)


# Table 1 of the paper: top-1 in percent on ImageNet-1k of DeiT-S with 12, 18,
# 24 and 36 blocks.
PAPER = {
    "pre-norm": (79.9, 80.7, 81.0, 81.9),
    "pre-norm, stochastic depth 0.05": (79.9, 80.1, 78.9, 78.9),
    "ReZero": (78.3, 80.1, 80.8, 81.6),
    "Fixup": (80.7, 82.0, 82.3, 82.4),
    "one scalar per branch": (80.4, 81.6, 81.1, 81.6),
    "LayerScale": (80.5, 81.7, 82.4, 82.9),
}

SCALES = {
    # 4 patches of 14 pixels, and a learning rate that is large enough for 4
    # epochs.
    "digits": Scale(
        replace(
            QUICKSTART,
            epochs=4,
            global_batch_size=50,
            learning_rate=0.1,
            warmup_epochs=1.0,
            weight_decay=0.05,
            clip_norm=0.0,
            ema_momentum=0.98,
            ema_warmup=False,
            random_erasing=0.0,
            mixup_alpha=0.0,
            cutmix_alpha=0.0,
            evaluation_epochs=4,
        ),
        {
            "embed_dim": 32,
            "num_heads": 4,
            "patch_size": 14,
            "input_shape": (28, 28, 3),
        },
        depths={12: 0.0, 24: 0.0, 36: 0.0},
        seeds=3,
        paper={row: (v[0], v[2], v[3]) for row, v in PAPER.items()},
    ),
    "imagenet": Scale(
        # The baseline's 79.9 is DeiT-S after 300 epochs (arXiv 2012.12877).
        replace(RECIPES["s24-224"].resolved(), epochs=300),
        {"embed_dim": 384, "num_heads": SIZES["S"]["num_heads"]},
        # The paper adapts stochastic depth to the number of blocks.
        depths={12: 0.05, 18: 0.1, 24: 0.2, 36: 0.25},
        paper=PAPER,
    ),
}


def layer_scale(depth: int) -> dict[str, Any]:
    """The paper's choice."""
    start = init_values_by_depth(depth)
    return {"residual_scaling": "layer_scale", "init_values": start}


def depth(scale: Scale) -> list[Cell]:
    """Table 1: depth and residual scaling, convergence failures included."""
    cells = []
    for i, (blocks, rate) in enumerate(scale.depths.items()):
        rows = {
            "pre-norm": {},
            "ReZero": {"residual_scaling": "rezero"},
            "Fixup": {"residual_scaling": "fixup"},
            "one scalar per branch": {
                "residual_scaling": "scalar",
                "init_values": init_values_by_depth(blocks),
            },
            "LayerScale": layer_scale(blocks),
        }
        # Figure 2 (b): as their authors proposed them.
        for row in ("ReZero", "Fixup"):
            rows[f"{row}, no norm, no warm-up"] = {
                **rows[row],
                "pre_norm": False,
                "warmup": False,
            }
        if rate > 0.05:  # otherwise it is the first row
            rows["pre-norm, stochastic depth 0.05"] = {"drop_path_rate": 0.05}
        cells += [
            cell(
                scale,
                row,
                blocks,
                scale.paper.get(row, (None,) * len(scale.depths))[i],
                **options,
            )
            for row, options in rows.items()
        ]
    return cells


def class_token(scale: Scale) -> list[Cell]:
    """Table 2: the class token's entry, average pooling, or class attention."""
    rows: dict[str, dict[str, Any]] = {
        f"before block {entry}": {"class_token_depth": entry}
        for entry in (0, 2, 4, 8, 10, 11)
    }
    rows["average pooling"] = {"pooling": "avg"}
    for layers in (1, 2, 3):
        rows[f"after block 12, {class_attention_blocks(layers)}"] = {
            "class_attention_depth": layers
        }
    return [cell(scale, row, 12, **options) for row, options in rows.items()]


def layerscale_init(scale: Scale) -> list[Cell]:
    """Initial gammas of LayerScale, at the smallest and the largest depth."""
    return [
        cell(
            scale,
            f"{start:g}",
            blocks,
            residual_scaling="layer_scale",
            init_values=start,
        )
        for start in (1.0, 0.1, 1e-2, 1e-4, 1e-5, 1e-6)
        for blocks in (min(scale.depths), max(scale.depths))
    ]


def talking_heads(scale: Scale) -> list[Cell]:
    """From DeiT-S to CaiT step by step; talking heads come last."""
    *_, blocks, _ = scale.depths
    cells, options = [], {}
    for row, change in (
        ("DeiT", {}),
        ("+ LayerScale", layer_scale(blocks)),
        ("+ class attention", {"class_attention_depth": 2}),
        ("+ talking heads: CaiT", {"talking_heads": True}),
    ):
        options = options | change
        cells.append(cell(scale, row, blocks, **options))
    return cells


def class_attention_depth(scale: Scale) -> list[Cell]:
    """CaiT with more or fewer class-attention blocks."""
    blocks = min(scale.depths)
    return [
        cell(
            scale,
            class_attention_blocks(layers),
            blocks,
            **layer_scale(blocks),
            talking_heads=True,
            class_attention_depth=layers,
        )
        for layers in (1, 2, 3, 4)
    ]


def class_attention_blocks(number: int) -> str:
    """The name of a row."""
    return f"{number} class-attention block{'s' * (number > 1)}"


def cell(
    scale: Scale,
    row: str,
    blocks: int,
    paper: float | None = None,
    warmup: bool = True,
    **options: Any,
) -> Cell:
    """The model of some blocks, with the other options of `ViT`."""
    recipe = scale.recipe
    if not warmup:
        recipe = replace(recipe, warmup_epochs=0.0)
    model = {"depth": blocks, "drop_path_rate": scale.depths[blocks]} | options
    return Cell(row, f"{blocks} blocks", scale.model | model, recipe, paper)


StudyName = Literal[
    "depth",
    "class-token",
    "layerscale-init",
    "talking-heads",
    "class-attention-depth",
]
STUDIES: dict[StudyName, Callable[[Scale], list[Cell]]] = {
    "depth": depth,
    "class-token": class_token,
    "layerscale-init": layerscale_init,
    "talking-heads": talking_heads,
    "class-attention-depth": class_attention_depth,
}
