"""Labels and description inside a `.tflite` file, as MediaPipe reads them.

The format is TensorFlow Lite's: a FlatBuffer of `metadata_schema.fbs` (format
M001) among the buffers of the model, and the labels as a file of a ZIP archive
behind the model. No library that is kept up writes it, so the few of its tables
that say something of a classifier of pictures are written here by the number of
their fields.
"""

import io
import zipfile

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

NAME = "TFLITE_METADATA"
LABELS = "labels.txt"

# Values of the schema's enumerations and unions.
RGB = 1
IMAGE_PROPERTIES = 2
NORMALIZATION_OPTIONS = 1
TENSOR_AXIS_LABELS = 2


def add_metadata(
    tflite, labels, name, description, version, author=None, license=None
):
    """Describes a classifier of pictures within its file.

    Args:
        tflite: bytes, of a file of `export.litert.convert`, in its last form.
        labels: list of str, by class.
        name, description, version: str, of the model.
        author, license: str, or `None` for nothing.

    Returns:
        bytes. Also a ZIP archive, of `labels.txt`.

    Raises:
        ValueError: a label spans lines.

    Example:
    >>> add_metadata(
    ...     tflite, labels, "CaiT-XXS24", "Names pictures.", "1"
    ... )  # doctest: +SKIP
    """
    if any(len(label.splitlines()) > 1 for label in labels):
        raise ValueError("Labels are one line each. Received one of several.")
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
    # Stored as it is: MediaPipe maps it into memory.
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(zipfile.ZipInfo(LABELS), "\n".join(labels) + "\n")
    return file.getvalue()


def read_labels(path):
    """The labels in a `.tflite` file.

    Args:
        path: path of the file.

    Returns:
        list of str, by class.

    Raises:
        ValueError: the file holds none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(LABELS).decode().splitlines()
    except (zipfile.BadZipFile, KeyError):
        raise ValueError(
            f"{path} holds no labels. Export the model with python -m export "
            "litert, which puts them into the file."
        ) from None


def first_outputs(model):
    """The names of the answers of the first graph."""
    return [
        one.name.decode()
        for signature in model.signatureDefs
        if signature.subgraphIndex == 0
        for one in signature.outputs
    ]


def metadata(outputs, name, description, version, author, license):
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
        """Of offsets and, in a tuple, bytes; by the number of the field."""
        builder.StartObject(max(fields) + 1)
        for number, value in fields.items():
            if isinstance(value, tuple):
                builder.PrependUint8Slot(number, *value, 0)
            elif value is not None:
                builder.PrependUOffsetTRelativeSlot(number, value, 0)
        return builder.EndObject()

    # NormalizationOptions: mean, std. The model normalises by itself.
    unchanged = table({0: floats(0), 1: floats(1)})
    # TensorMetadata: name, description, content, process_units, stats.
    images = table(
        {
            0: text("images"),
            1: text("RGB in 0...255, not normalised."),
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
            1: text("One label a line, by class."),
            2: (TENSOR_AXIS_LABELS,),
        }
    )
    answers = table(
        {
            0: text(output),
            1: text("One score for each class."),
            5: table({0: floats(1), 1: floats(0)})
            if output == "probabilities"
            else None,
            6: vector([labels]),
        }
    )
    # SubGraphMetadata: input_tensor_metadata, output_tensor_metadata.
    graph = table({2: vector([images]), 3: vector([answers])})
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
