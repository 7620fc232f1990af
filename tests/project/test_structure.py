"""What the code imports, and what the graph of a model is made of."""

import ast
import graphlib
import math
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_cait
from tests.helpers.models import without_values

ROOT = Path(__file__).parent.parent.parent
PROGRAMS = {"training", "export"}
NEVER = {"tests", "benchmarks", "colab"}


def imported_modules(path):
    """The dotted names of all that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import."
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(
    "package, forbidden",
    [
        ("keras_cait", {"tensorflow", "jax", *PROGRAMS, *NEVER}),
        ("training", {"export", *NEVER}),
        ("export", {"training", *NEVER}),
    ],
)
def test_imports_go_one_way(package, forbidden):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        packages = {name.split(".")[0] for name in imported_modules(path)}
        if path.parent == ROOT / "keras_cait" / "decoding":
            packages -= {"tensorflow"}
        if path == ROOT / "keras_cait" / "fused_mixing.py":
            packages -= {"jax"}
        if path == ROOT / "keras_cait" / "gradients.py":
            packages -= {"tensorflow", "jax"}
        assert not packages & forbidden, path


def test_the_library_does_not_import_its_decoding():
    for path in (ROOT / "keras_cait").glob("*.py"):
        assert "keras_cait.decoding" not in ".".join(imported_modules(path))


def test_modules_of_the_library_depend_one_way():
    files = (ROOT / "keras_cait").glob("*.py")
    depends = {
        path.stem: {
            name.split(".")[1]
            for name in imported_modules(path)
            if name.startswith("keras_cait.")
        }
        for path in files
        if path.stem not in ("__init__", "__main__")
    }
    assert depends["layers"] == {"fused_mixing", "initializers"}
    assert depends["fused_mixing"] == depends["initializers"] == set()
    assert "layers" in depends["blocks"]
    assert "blocks" in depends["models"]
    graphlib.TopologicalSorter(depends).prepare()  # raises CycleError


def test_importing_the_library_registers_all_its_classes():
    files = {path.stem: path for path in (ROOT / "keras_cait").glob("*.py")}
    pending, imported = ["__init__"], set()
    while pending:
        name = pending.pop()
        imported.add(name)
        modules = imported_modules(files[name])
        stems = {m.split(".")[1] for m in modules if m.startswith("keras_cait")}
        pending += stems & files.keys() - imported
    for name, path in files.items():
        if "register_keras_serializable" in path.read_text():
            assert name in imported, "Keras would not load its classes."


# Millions of parameters, image size, and GMACs as timm counts and publishes
# them; of the variants that it lacks, as papers that compare with CaiT do.
PUBLISHED = [
    ("XXS24", "11.96", 224, "2.53"),
    ("XXS24", "12.03", 384, "9.63"),
    ("XXS36", "17.30", 224, "3.77"),
    ("XXS36", "17.37", 384, "14.35"),
    ("XS24", "26.67", 384, "19.28"),
    ("XS36", "38.6", 224, "8.1"),
    ("S24", "46.92", 224, "9.35"),
    ("S24", "47.06", 384, "32.17"),
    ("S36", "68.37", 384, "47.99"),
    ("S48", "89", 384, "63.8"),
    ("M24", "186", 384, "116"),
    ("M36", "271.22", 384, "173.11"),
    ("M48", "356.46", 448, "329.41"),
]


@pytest.mark.parametrize("variant, parameters, size, gmacs", PUBLISHED)
def test_size_and_cost_are_the_published(variant, parameters, size, gmacs):
    shape = (size, size, 3)
    with without_values():
        build = getattr(keras_cait, f"CaiT_{variant}")
        model = build(weights=None, input_shape=shape)
        # All blocks cost the same, so two shallow graphs tell the deep one.
        one, two = (
            cost(shallow(variant, depth, shape), (1, *shape))
            for depth in (1, 2)
        )
    assert_published(model.count_params() / 1e6, parameters)
    assert_published((one + (model.depth - 1) * (two - one)) / 1e9, gmacs)


def shallow(variant, depth, input_shape):
    """A variant of the paper with fewer blocks."""
    config = keras_cait.VARIANTS[variant]._replace(depth=depth)._asdict()
    del config["image_size"]
    return keras_cait.CaiT(**config, input_shape=input_shape)


def cost(model, shape):
    return sum(macs(operation) for operation in operations(model, shape))


def assert_published(found, published):
    """Equal but for less than one unit of the last published digit."""
    decimals = len(published.partition(".")[2])
    assert abs(found - float(published)) < 10**-decimals


def operations(model, shape):
    """All operations of the graph of a model, as its backend traces it."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        graph = tf.function(model).get_concrete_function(tf.TensorSpec(shape))
        return graph.graph.get_operations()

    import jax

    def flat(jaxpr):
        for equation in jaxpr.eqns:
            inner = [
                p.jaxpr for p in equation.params.values() if hasattr(p, "jaxpr")
            ]
            yield from [op for j in inner for op in flat(j)] or [equation]

    return list(flat(jax.make_jaxpr(model)(np.zeros(shape, "float32")).jaxpr))


def macs(operation):
    """Multiply-accumulates of an operation, in the manner of timm.

    That is matrix products and convolutions, and 5 for every element that a
    LayerNorm normalizes: it squares each once.
    """
    kind, inputs, output = described(operation)
    if kind in ("MatMul", "BatchMatMulV2"):
        transposed = operation.get_attr(
            "transpose_a" if kind == "MatMul" else "adj_x"
        )
        return math.prod(output) * inputs[0][-2 if transposed else -1]
    if kind == "dot_general":
        (contracted, _), _ = operation.params["dimension_numbers"]
        return math.prod(output) * math.prod(inputs[0][i] for i in contracted)
    if kind in ("Conv2D", "conv_general_dilated"):
        return math.prod(output) * math.prod(inputs[1][:3])
    if kind in ("SquaredDifference", "square"):
        return 5 * math.prod(output)
    return 0


def described(operation):
    """Name, shapes of the inputs and shape of the first output."""
    if keras.backend.backend() == "tensorflow":
        return (
            operation.type,
            [tuple(x.shape) for x in operation.inputs],
            tuple(operation.outputs[0].shape) if operation.outputs else (),
        )
    return (
        operation.primitive.name,
        [x.aval.shape for x in operation.invars],
        operation.outvars[0].aval.shape,
    )


@pytest.mark.parametrize("pooling", ["token", "avg", None])
def test_graph_is_fast_everywhere(pooling):
    """Rank 4 at most, no einsum, gather or broadcast as an operation."""
    model = keras_cait.CaiT(
        24,
        2,
        2,
        input_shape=(32, 48, 3),
        pooling=pooling,
        include_top=pooling is not None,
    )
    described_operations = [
        described(op) for op in operations(model, (1, 32, 48, 3))
    ]
    kinds = {kind for kind, _, _ in described_operations}
    assert kinds & {"MatMul", "dot_general"}
    assert not kinds & {"Einsum", "GatherV2", "BroadcastTo", "gather"}
    for kind, inputs, output in described_operations:
        assert all(len(shape) <= 4 for shape in (*inputs, output)), kind
        assert None not in output, kind
