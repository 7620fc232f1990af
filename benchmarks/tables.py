"""The generated tables of the documents, one function each.

A Markdown file names the function and its arguments in a marked region, which
`python -m benchmarks.report` fills.
"""

import ast
import configparser
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.cost import multiply_adds, parameters
from benchmarks.results import Rows, markdown, read
from keras_cait.models import VARIANTS
from keras_cait.pretrained import PRETRAINED

ROOT = Path(__file__).parents[1]


def benchmark(name: str) -> str:
    """Everything that one benchmark measured, with its figure."""
    parts = [
        f"`python -m benchmarks.{name}`, {measured_on(name)}",
        f"![{name}: first column of each table](benchmark-{name}.png)",
        rows_of(name),
    ]
    return "\n\n".join(parts)


def rows_of(name: str) -> str:
    """The tables of a record under their titles."""
    return "\n\n".join(
        f"**{title}**\n\n{markdown(rows)}"
        for title, rows in read(name)["tables"].items()
    )


def measured_on(name: str) -> str:
    """Date, machine and versions of a measurement, and what it shows."""
    record = read(name)
    versions = ", ".join(
        f"{package} {version}"
        for package, version in record["versions"].items()
    )
    measured = f"{record['date']}, {record['machine']}; {versions}."
    return f"{measured} {record.get('shows', '')}".rstrip()


def machine(name: str) -> str:
    """The machine of a measurement."""
    return read(name)["machine"]


def models() -> str:
    """The published models with their size, cost and accuracy."""
    lines = [
        "| Model | Input | Parameters | GMACs | Top-1 | Top-5 | Name |",
        "|---|---|---|---|---|---|---|",
    ]
    for (variant, size), row in PRETRAINED.items():
        default = VARIANTS[variant].image_size == size
        cells = (
            f"CaiT-{variant}",
            f"{size}",
            f"{row.parameters / 1e6:.1f} M",
            f"{multiply_adds(variant, size) / 1e9:.1f}",
            f"{row.measured_top_1:.1f}",
            f"{row.measured_top_5:.1f}",
            f"`{variant}`" if default else f"`{variant}-{size}`",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def inference_summary() -> str:
    """One request at a time, with all threads."""
    runs = (
        "keras-cait, SavedModel",
        "keras-cait, XLA",
        "OpenVINO",
        "ONNX Runtime",
        "ZeroModels, XLA",
        "timm eager",
    )
    return images_per_second("inference", "CaiT-{} at 224, batch {}", runs)


def inference(name: str, image_size: str = "224") -> str:
    """All runs of a record of `benchmarks/inference.py`."""
    title = f"CaiT-{{}} at {image_size}, batch {{}}"
    return images_per_second(name, title)


def parts_gain(batch_size: str) -> str:
    """How many times as fast two parts are as one with TensorFlow's threads."""
    whole = "keras-cait, SavedModel of one part, default threads"
    return span(
        rows["keras-cait, SavedModel"]["images/s"] / rows[whole]["images/s"]
        for title, rows in read("inference")["tables"].items()
        if title.endswith(f"batch {batch_size}")
    )


def serving_summary() -> str:
    """A busy server: as many requests as cores, with a thread each."""
    return images_per_second("serving", "CaiT-{}, batch {}")


def images_per_second(
    name: str, title: str, runs: Iterable[str] | None = None
) -> str:
    """Images per second at batch 1 and 8, with the speedup over timm.

    Args:
        name: of the benchmark.
        title: of its tables, with places for variant and batch size.
        runs: rows to show; `None` shows all.
    """
    tables = read(name)["tables"]
    return markdown(
        {
            run: {
                f"{variant}, batch {batch_size}": speed(
                    tables[title.format(variant, batch_size)][run]
                )
                for variant in ("XXS24", "S24")
                for batch_size in (1, 8)
            }
            for run in runs or tables[title.format("S24", 1)]
        },
        "Images/s",
    )


def speed(row: Mapping[str, Any], reference: str = "timm eager") -> str:
    """Images per second, and the speedup over a reference in parentheses.

    Example:
    >>> speed({"images/s": 9.43, "timm eager = 1": 1.714})
    '9.4 (1.71)'
    >>> speed({"images/s": 5.62, "timm eager = 1": "≈ 1.02"})
    '5.6 (≈ 1.02)'
    >>> speed({"images/s": "zeromodels is not installed"})
    'zeromodels is not installed'
    """
    images = row["images/s"]
    if isinstance(images, str):
        return images
    return f"{images:.1f} ({ratio(row[f'{reference} = 1'])})"


def ratio(value: Any) -> str:
    """A ratio of two speeds, which is text where noise hides the difference."""
    return f"{value:.2f}" if isinstance(value, float) else value or "?"


def litert_summary() -> str:
    """Milliseconds per image on two threads, with the speedup over timm."""
    return litert_models(
        lambda row: (
            f"{row['ms, 2 threads']:.0f} ({ratio(row['timm eager = 1'])})"
        )
    )


def int8_gain() -> str:
    """How many times as fast as float32 the files in dynamic-int8 are."""
    return span(
        table["float32"]["ms, 2 threads"]
        / table["dynamic-int8"]["ms, 2 threads"]
        for table in read("litert")["tables"].values()
    )


def span(gains: Iterable[float]) -> str:
    """The smallest and the largest of some gains.

    Example:
    >>> span([2.04, 1.42])
    '1.4 to 2.0'
    """
    gains = sorted(gains)
    return f"{gains[0]:.1f} to {gains[-1]:.1f}"


def int8_summary() -> str:
    """Images per second in int8, and agreement with float32."""
    (_, accuracy), *speeds = read("int8")["tables"].items()
    agreement = {
        name: {"Agreement": f"{row['agreement, %']:.1f} %"}
        for name, row in accuracy.items()
    }
    names = dict.fromkeys(name for _, rows in speeds for name in rows)
    return markdown(
        {
            name: {
                title.removeprefix("CaiT-").replace(" at 224", ""): speed(
                    rows[name], "OpenVINO, int8"
                )
                for title, rows in speeds
                if name in rows
            }
            | agreement.get(name, {})
            for name in names
        },
        "Images/s",
    )


def litert_sizes() -> str:
    """File sizes in each quantization scheme."""
    return litert_models(
        lambda row: f"{row['MB']:.1f} MB" if "MB" in row else None
    )


def litert_models(cell: Callable[[Mapping[str, Any]], str | None]) -> str:
    """Schemes by model; `cell` is what is shown of a row, if anything."""
    rows: dict[str, dict[str, str]] = {}
    for title, table in read("litert")["tables"].items():
        model = title.removesuffix(", one image").removeprefix("CaiT-")
        for name, row in table.items():
            if text := cell(row):
                rows.setdefault(name, {})[model] = text
    return markdown(rows, "Scheme")


def engines() -> str:
    """What each engine takes of each exported file, and how exactly."""
    parts = []
    for title, table in read("engines")["tables"].items():
        rows = {
            name: {
                column: f"{value:.0e}" if isinstance(value, float) else value
                for column, value in row.items()
            }
            for name, row in table.items()
        }
        parts += [f"**{title}**", markdown(rows, "File")]
    return "\n\n".join(parts)


def study(name: str) -> str:
    """Top-1 of one study on the digits, as the study writes it."""
    from training.study.cells import SCALES, STUDIES
    from training.study.tables import table

    results = read("studies")["tables"][name]
    cells = STUDIES[name](SCALES["digits"])
    return table(cells, results.values()).rstrip()


def training_cost() -> str:
    """Multiply-adds, hours and memory of training from scratch."""
    from training.loop.overview import estimated_memory
    from training.recipes import RECIPES

    rows: dict[str, dict[str, str]] = {}
    for variant in VARIANTS:
        macs = multiply_adds(variant, 224)
        # Three forward passes per step, two operations per multiply-add.
        operations = 6 * macs * 400 * 1_281_167
        recipe = replace(
            RECIPES[f"{variant.lower()}-224"],
            global_batch_size=64,
            precision="mixed_bfloat16",
        )
        plain, rematerialized = (
            estimated_memory(
                replace(recipe, rematerialize=rematerialize),
                parameters(variant, 224),
                1,
            )
            for rematerialize in (False, True)
        )
        rows[variant] = {
            "GMACs": f"{macs / 1e9:.1f}",
            "10¹⁸ operations": f"{operations / 1e18:.0f}",
            "hours at 1 PFLOP/s": f"{operations / 1e15 / 3600:.0f}",
            "GB": f"{plain / 1e9:.0f}",
            "GB, rematerialized": f"{rematerialized / 1e9:.0f}",
        }
    return markdown(rows, "Variant")


def versions() -> str:
    """Tested versions, newest and oldest, and the oldest accepted ones."""
    newest, oldest = (
        dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / file).read_text(), re.M))
        for file in ("constraints.txt", "requirements/colab.txt")
    )
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    requirements = "\n".join(
        [
            setup["options"]["install_requires"],
            *setup["options.extras_require"].values(),
            *(path.read_text() for path in (ROOT / "requirements").iterdir()),
        ]
    )
    least = dict(
        re.findall(r"^([\w-]+)(?:\[\w+\])?>=(\S+)", requirements, re.M)
    )
    packages = {
        "Keras": "keras",
        "TensorFlow": "tensorflow",
        "JAX": "jax",
        "NumPy": "numpy",
        "Pillow": "pillow",
        "LiteRT": "ai-edge-litert",
        "LiteRT quantizer": "litert-quantizer",
        "MediaPipe": "mediapipe",
        "TF Serving API": "tensorflow-serving-api",
        "Ray": "ray",
    }
    rows: Rows = {
        name: {
            "Package": f"`{package}`",
            "Tested": ", ".join(
                tested[package]
                for tested in (newest, oldest)
                if package in tested
            ),
            "At least": least[package],
        }
        for name, package in packages.items()
    }
    return markdown(rows, "Name")


def python_versions() -> str:
    """The versions of Python in the test workflow."""
    workflow = (ROOT / ".github/workflows/test.yml").read_text()
    found = sorted(set(re.findall(r'"(3\.\d+)"', workflow)))
    return f"{', '.join(found[:-1])} and {found[-1]}"


def version_of(package: str) -> str:
    """The version of a package in the benchmark of inference."""
    return read("inference")["versions"][package]


def small_sets() -> str:
    """Accuracy of the models on small sets, over seeds."""
    rows: dict[str, dict[str, str]] = {}
    for title, table in read("small_sets")["tables"].items():
        for model, row in table.items():
            cell = f"{row['mean']:.1f} ± {row['deviation']:.1f}"
            rows.setdefault(model, {})[title] = cell
    return markdown(rows, "Model")


def quickstart_top_1() -> str:
    """Top-1 of the quickstart's model on the validation digits."""
    return percent(read("quickstart")["tables"]["formats"]["`.keras`"]["top1"])


def quickstart_images() -> str:
    """Number of validation digits."""
    formats = read("quickstart")["tables"]["formats"]
    return f"{formats['`.keras`']['images']:,}"


def quickstart_formats() -> str:
    """Accuracy and calibration of the quickstart's model in each format."""
    rows = {
        name: {
            "Top-1": percent(row["top1"]),
            "Top-5": percent(row["top5"]),
            "ECE": percent(row["ece"]),
        }
        for name, row in read("quickstart")["tables"]["formats"].items()
    }
    return markdown(rows, "Format")


def quickstart_saved_model() -> str:
    """The SavedModel of the quickstart beside the Keras model."""
    return verified("Keras model", "SavedModel")


def quickstart_schemes() -> str:
    """The .tflite files of the quickstart beside the Keras model."""
    names = read("quickstart")["tables"]["schemes"]
    return verified(*(name for name in names if name != "SavedModel"))


def verified(*names: str) -> str:
    """What verify measured of some files."""
    table = read("quickstart")["tables"]["schemes"]
    rows = {}
    for name in names:
        row = table[name]
        rows[name] = {
            "Top-1": percent(row["top1"]),
            "Top-5": percent(row["top5"]),
        }
        if name != "Keras model":
            rows[name] |= {
                "Agreement": percent(row["agreement"]),
                "Max difference": f"{row['max_difference']:.1e}",
            }
        rows[name]["MB"] = f"{row['megabytes']:.1f}"
        if "operations" in row:
            rows[name] |= {
                "Operations": row["operations"],
                "Outside XNNPACK": row["left_out"],
                "Partitions": row["partitions"],
            }
        if "gpu_left_out" in row:
            rows[name] |= {
                "Outside the GPU": row["gpu_left_out"],
                "GPU difference": f"{row['gpu_difference']:.1e}",
            }
    return markdown(order_columns(rows), "File")


def order_columns(rows: dict[str, dict[str, Any]]) -> Rows:
    """Rows with the columns of the longest row first.

    Example:
    >>> order_columns({"a": {"MB": 1}, "b": {"Top-1": 2, "MB": 3}})
    {'a': {'Top-1': None, 'MB': 1}, 'b': {'Top-1': 2, 'MB': 3}}
    """
    columns = max(rows.values(), key=len)
    return {
        name: {column: row.get(column) for column in columns}
        for name, row in rows.items()
    }


def quickstart_blocks() -> str:
    """Signal-to-noise ratio after each block, in dB."""
    rows = {
        name.replace("_", " "): {
            file: f"{ratio:.0f}" for file, ratio in row.items()
        }
        for name, row in read("quickstart")["tables"]["blocks"].items()
    }
    return markdown(rows, "Block")


def percent(share: float) -> str:
    """A share in percent.

    Example:
    >>> percent(0.969)
    '96.9 %'
    """
    return f"{100 * share:.1f} %"


def layout() -> str:
    """The files of the packages, each with the first line of its docstring."""
    lines = []
    for package in ("keras_cait", "training", "export", "benchmarks"):
        for path in sorted_tree(ROOT / package):
            place = path.relative_to(ROOT)
            indent = "  " * (len(place.parts) - 1)
            source = path / "__init__.py" if path.is_dir() else path
            name = f"{path.name}/" if path.is_dir() else path.name
            lines.append(f"{indent}{name:<{26 - len(indent)}}{summary(source)}")
        lines.append("")
    return "```\n" + "\n".join(lines).rstrip() + "\n```"


def sorted_tree(folder: Path) -> list[Path]:
    """A package, its modules, then its subpackages, recursively."""
    modules = sorted(
        path for path in folder.glob("*.py") if path.name != "__init__.py"
    )
    packages = sorted(path.parent for path in folder.glob("*/__init__.py"))
    return [
        folder,
        *modules,
        *(path for package in packages for path in sorted_tree(package)),
    ]


def summary(path: Path) -> str:
    """The first line of a module's docstring, without a period."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return text.partition("\n")[0].rstrip(".")


def command_options() -> dict[str, dict[str, str]]:
    """The options of each command, with their help."""
    from export.__main__ import app as export
    from keras_cait.cli import app as keras_cait
    from training import diagnose, evaluate, prepare, studies
    from training.train import make_app

    apps = {
        "keras-cait": keras_cait,
        "training.train": make_app()["quickstart"],
        "training.evaluate": evaluate.app,
        "training.diagnose": diagnose.app,
        "training.studies": studies.app,
        "training.prepare": prepare.app,
    }
    for name in export:
        if not name.startswith("-"):
            apps[f"export {name}"] = export[name]
    return {
        name: {
            argument.names[0]: argument.parameter.help or ""
            for argument in app.assemble_argument_collection()
            if argument.names[0].startswith("--")
        }
        for name, app in apps.items()
    }


def shared_options() -> str:
    """The options that several commands have."""
    commands = command_options()
    rows: dict[str, dict[str, str]] = {}
    for option in dict.fromkeys(
        o for options in commands.values() for o in options
    ):
        users = [
            name for name, options in commands.items() if option in options
        ]
        if len(users) > 1:
            rows[f"`{option}`"] = {
                name.rpartition(".")[2].removeprefix("export "): "●"
                if name in users
                else ""
                for name in commands
            }
    return markdown(rows, "Option")


def own_options() -> str:
    """The options that only one command has."""
    commands = command_options()
    everyone = [option for options in commands.values() for option in options]
    rows: dict[str, dict[str, str]] = {}
    for name, options in commands.items():
        own = [f"`{o}`" for o in options if everyone.count(o) == 1]
        if name == "training.train":
            own = [
                "every field of a recipe",
                "`--checkpoint-steps`",
                "`--folds`",
                "`--profile`",
            ]
        rows[f"`{name}`"] = {"Further options": ", ".join(own) or "none"}
    return markdown(rows, "Command")


def scale(rows: str) -> str:
    """A table of `benchmarks/scale.py`."""
    from benchmarks import scale as computed

    return markdown(getattr(computed, f"{rows}_rows")(), rows.capitalize())


def tables_of(name: str, *firsts: str) -> str:
    """The first tables of a record, by the headers of their first columns."""
    tables = read(name)["tables"].values()
    pairs = zip(tables, firsts, strict=False)
    return "\n\n".join(markdown(rows, first) for rows, first in pairs)
