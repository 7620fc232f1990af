"""Types of the export's options, importable without TensorFlow."""

from typing import Annotated, Literal

from cyclopts import Parameter

Precision = Literal["float32", "bfloat16"]
Gelu = Literal["erf", "tanh"]
Scheme = Literal[
    "float32", "float16", "dynamic-int8", "static-int8", "static-int8-int16"
]
InputType = Literal["float32", "uint8"]
ExtraSignature = Literal["embedding", "attention"]

# Options that take several words, such as `--batch-sizes 1 8`.
_SEVERAL = Parameter(
    consume_multiple=True,
    show_default=lambda values: " ".join(map(str, values)),
)
Schemes = Annotated[tuple[Scheme, ...], _SEVERAL]
BatchSizes = Annotated[tuple[int, ...], _SEVERAL]
ExtraSignatures = Annotated[
    tuple[ExtraSignature, ...],
    Parameter(consume_multiple=True, show_default=False),
]
