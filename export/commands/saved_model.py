"""`python -m export saved-model`"""

from pathlib import Path

from export.options import (
    SERVED_SIGNATURES,
    BatchSizes,
    Megapixels,
    Precision,
    ServedSignatures,
)
from keras_cait.command_line import (
    Count,
    ImageSize,
    Labels,
    TrainedModel,
    Variant,
)


def saved_model(
    *,
    model: TrainedModel,
    output: Path,
    variant: Variant = None,
    image_size: ImageSize = None,
    labels: Labels = None,
    top: Count = 5,
    precision: Precision = "float32",
    xla: bool = False,
    batch_sizes: BatchSizes = (1, 2, 4, 8),
    max_megapixels: Megapixels = 50.0,
    fast_jpeg: bool = False,
    signatures: ServedSignatures = SERVED_SIGNATURES,
    strict: bool = False,
    parts: Count | None = None,
) -> None:
    """Write the next version of a model for TensorFlow Serving.

    Args:
        output: Folder of the served model, which is named after the model. A
            numbered version and the server's configuration are written to it.
        top: Number of classes returned per image.
        precision: Precision of weights and matrix products.
        xla: Compile the model with XLA, once per batch size.
        batch_sizes: Sizes to which the server pads its batches.
        max_megapixels: Refuse encoded images with more megapixels. The server's
            memory limit grows with it.
        fast_jpeg: Decode a JPEG at 1/2, 1/4 or 1/8 of its size if that is at
            least twice the model's. Scores change slightly.
        signatures: Signatures to write. OpenVINO reads a version with only
            pixels.
        strict: Fail a call if any of its images is refused. By default each
            image has its own result or error.
        parts: Cores that a request keeps busy, one for each part of its
            patches. By default 2, or 1 with --xla, which divides the work
            itself. Use 1 for OpenVINO and for GPUs.
    """
    from export.check_saved_model import check_saved_model
    from export.exportable import load_exportable
    from export.model_card import measured_accuracy
    from export.serving.model_folder import check_output, write_version
    from export.serving.warmup import example_image
    from keras_cait.command_line import require_tensorflow

    require_tensorflow()
    check_output(output)
    trained, names = load_exportable(model, variant, image_size, labels)
    images = [example_image(seed) for seed in range(8)]
    version = write_version(
        trained,
        names,
        output,
        top,
        precision,
        xla,
        batch_sizes,
        measured_accuracy(model, trained),
        max_megapixels=max_megapixels,
        fast_jpeg=fast_jpeg,
        signatures=signatures,
        strict=strict,
        parts=parts,
        check=lambda path: check_saved_model(path, trained, images),
    )
    print(f"Wrote {version}")
    print(f"Serve it: docker compose -f {output}/compose.yaml up")
