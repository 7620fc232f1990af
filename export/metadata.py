"""Labels and description inside a `.tflite` file, as MediaPipe reads them.

The format is TensorFlow Lite Metadata: a FlatBuffer of `metadata_schema.fbs`
(version M001) among the buffers of the model, and the labels as a file of a ZIP
archive appended to the model. No maintained library writes it, so this file
writes the few tables that an image classifier needs, by field number.
"""

import io
import zipfile
from collections.abc import Sequence

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from keras_cait.litert import CHECKSUM, checksum

NAME = "TFLITE_METADATA"
LABELS = "labels.txt"

# Values of the schema's enumerations and unions.
RGB = 1
IMAGE_PROPERTIES = 2
NORMALIZATION_OPTIONS = 1
TENSOR_AXIS_LABELS = 2


def add_metadata(
    tflite: bytes,
    labels: Sequence[str],
    name: str,
    description: str,
    version: str,
    author: str | None = None,
    license: str | None = None,
) -> bytes:
    """Adds labels and a description to an image classifier.

    Args:
        tflite: model of `export.litert.convert`, after all other changes.
        labels: names of the classes, in order.
        name, description, version: of the model.
        author, license: of the weights; `None` omits them.

    Returns:
        Content of the `.tflite` file, which is also a ZIP archive of
        `labels.txt` and the model's checksum.

    Raises:
        ValueError: a label contains a line break.

    Example:
    >>> add_metadata(
    ...     tflite, labels, "CaiT-XXS24", "Image classifier.", "1"
    ... )  # doctest: +SKIP
    """
    for label in labels:
        if len(label.splitlines()) != 1:
            raise ValueError(
                f"Labels must be one line of text each. Got {label!r}."
            )
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(tflite))
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(
        metadata(
            first_outputs(model), name, description, version, author, license
        ),
        "uint8",
    )
    model.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name = NAME
    entry.buffer = len(model.buffers) - 1
    model.metadata = [*(model.metadata or []), entry]
    file = io.BytesIO(flatbuffer_utils.convert_object_to_bytearray(model))
    crc = checksum(file.getvalue())
    # Not compressed, because MediaPipe maps the labels into memory.
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(zipfile.ZipInfo(LABELS), "\n".join(labels) + "\n")
        archive.writestr(zipfile.ZipInfo(CHECKSUM), crc)
    return file.getvalue()


def first_outputs(model: schema.ModelT) -> list[str]:
    """Output names of the first graph."""
    return [
        one.name.decode()
        for signature in model.signatureDefs
        if signature.subgraphIndex == 0
        for one in signature.outputs
    ]


def metadata(
    outputs: Sequence[str],
    name: str,
    description: str,
    version: str,
    author: str | None,
    license: str | None,
) -> bytes:
    """The FlatBuffer of `ModelMetadata`."""
    builder = flatbuffers.Builder()

    def text(value):
        return None if value is None else builder.CreateString(value)

    def vector(offsets):
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()

    def floats(*values):
        return builder.CreateNumpyVector(np.array(values, "float32"))

    def table(fields):
        """Fields by number: offsets, or bytes in a tuple."""
        builder.StartObject(max(fields) + 1)
        for number, value in fields.items():
            if isinstance(value, tuple):
                builder.PrependUint8Slot(number, *value, 0)
            elif value is not None:
                builder.PrependUOffsetTRelativeSlot(number, value, 0)
        return builder.EndObject()

    # NormalizationOptions: mean, std. The model normalizes its input.
    unchanged = table({0: floats(0), 1: floats(1)})
    # TensorMetadata: name, description, content, process_units, stats.
    images = table(
        {
            0: text("images"),
            1: text("RGB in 0...255, not normalized."),
            # Content, ImageProperties
            3: table({0: (IMAGE_PROPERTIES,), 1: table({0: (RGB,)})}),
            4: vector([table({0: (NORMALIZATION_OPTIONS,), 1: unchanged})]),
            5: table({0: floats(255), 1: floats(0)}),  # Stats: max, min
        }
    )
    (output,) = outputs
    # AssociatedFile: name, description, type.
    labels = table(
        {
            0: text(LABELS),
            1: text("One label per line, in the order of the classes."),
            2: (TENSOR_AXIS_LABELS,),
        }
    )
    scores = table(
        {
            0: text(output),
            1: text("One score per class."),
            5: table({0: floats(1), 1: floats(0)})
            if output == "probabilities"
            else None,
            6: vector([labels]),
        }
    )
    # SubGraphMetadata: input_tensor_metadata, output_tensor_metadata.
    graph = table({2: vector([images]), 3: vector([scores])})
    # ModelMetadata: name, description, version, subgraph_metadata, author,
    # license, min_parser_version.
    model = table(
        {
            0: text(name),
            1: text(description),
            2: text(version),
            3: vector([graph]),
            4: text(author),
            5: text(license),
            7: text("1.0.0"),
        }
    )
    builder.Finish(model, b"M001")
    return bytes(builder.Output())
