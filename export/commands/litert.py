"""`python -m export litert`"""

from pathlib import Path

from export.options import ExtraSignatures, Gelu, InputType, Schemes
from keras_cait.command_line import (
    BatchSize,
    DataDir,
    ImageSize,
    Labels,
    MaxUnreadable,
    TrainedModel,
    Variant,
)


def litert(
    *,
    model: TrainedModel,
    output: Path,
    variant: Variant = None,
    image_size: ImageSize = None,
    labels: Labels = None,
    scheme: Schemes = ("float32",),
    calibration: str | None = None,
    data_dir: DataDir = None,
    max_unreadable: MaxUnreadable = 0,
    gelu: Gelu = "erf",
    input: InputType = "float32",
    logits: bool = False,
    signatures: ExtraSignatures = (),
    batch_size: BatchSize = 1,
) -> None:
    """Write a .tflite file for phones and browsers.

    Args:
        output: .tflite file to write; with several schemes, a folder with one
            file per scheme. It must not exist.
        scheme: Quantization schemes.
        calibration: Dataset like the images the model will see, for the static
            schemes: digits, folder:PATH, or a name of TensorFlow Datasets. 200
            of its training images are used.
        gelu: GELU as trained (erf), or an approximation for accelerators
            without erf (tanh).
        input: Type of the input pixels, which are in 0...255.
        logits: Return logits instead of probabilities.
        signatures: Signatures to add. MediaPipe only reads files without them.
    """
    from export.exportable import load_exportable
    from export.inference_graph import InferenceModel
    from export.litert import convert, take_uint8
    from export.metadata import add_metadata
    from export.model_card import describe_model
    from export.quantization import calibration_images, check_schemes, quantize
    from keras_cait.datasets import split_of
    from keras_cait.files import new_output, new_path

    check_schemes(scheme, calibration is not None)
    new_path(output)
    if len(scheme) == 1 and output.suffix != ".tflite":
        raise ValueError(
            "The --output of a single scheme must end in .tflite. Got "
            f"{str(output)!r}."
        )
    trained, names = load_exportable(model, variant, image_size, labels)
    description = describe_model(model, trained)
    inference = InferenceModel(trained, gelu=gelu)
    del trained  # its weights are in `inference`
    images = []
    if calibration:
        images = calibration_images(
            calibration,
            inference.image_size,
            data_dir=data_dir,
            max_unreadable=max_unreadable,
            **split_of(model, calibration),
        )
    holder = [inference]
    del inference  # so that `convert` can free it

    with new_output(output) as unfinished:
        float32 = convert(holder.pop(), not logits, batch_size, signatures)
        if len(scheme) > 1:
            unfinished.mkdir()
        for name in scheme:
            tflite = quantize(float32, name, images)
            if input == "uint8":
                tflite = take_uint8(tflite)
            path = unfinished
            if len(scheme) > 1:
                path = unfinished / f"{name}.tflite"
            path.write_bytes(add_metadata(tflite, names, **description))
    print(f"Wrote {output}")
