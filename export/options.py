"""Types of the export's options, importable without TensorFlow."""

import math
from typing import Annotated, Literal, get_args

from cyclopts import Parameter
from cyclopts.validators import Number

from keras_cait.command_line import Count

Precision = Literal["float32", "bfloat16"]
Gelu = Literal["erf", "tanh"]
GpuPrecision = Literal["float32", "float16"]
Scheme = Literal[
    "float32", "float16", "dynamic-int8", "static-int8", "static-int8-int16"
]
# The images of warm-up and checks, 500 x 375, must not be refused.
LEAST_MEGAPIXELS = 0.2
Megapixels = Annotated[
    float, Parameter(validator=Number(gte=LEAST_MEGAPIXELS, lt=math.inf))
]
InputType = Literal["float32", "uint8"]
ExtraSignature = Literal["embedding", "attention"]
PredictionFormat = Literal["parquet", "jsonl"]
Device = Literal["cpu", "gpu"]
ServedSignature = Literal[
    "serving_default", "pixels", "embedding", "attention", "classify"
]
SERVED_SIGNATURES: tuple[ServedSignature, ...] = get_args(ServedSignature)

# Options that take several words, such as `--batch-sizes 1 8`.
_SEVERAL = Parameter(
    consume_multiple=True,
    show_default=lambda values: " ".join(map(str, values)),
)
Schemes = Annotated[tuple[Scheme, ...], _SEVERAL]
BatchSizes = Annotated[tuple[Count, ...], _SEVERAL]
Inputs = Annotated[
    tuple[str, ...], Parameter(consume_multiple=True, show_default=False)
]
ServedSignatures = Annotated[tuple[ServedSignature, ...], _SEVERAL]
ExtraSignatures = Annotated[
    tuple[ExtraSignature, ...],
    Parameter(consume_multiple=True, show_default=False),
]
