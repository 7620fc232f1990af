"""`python -m export predict`"""

from typing import Annotated, Literal

from cyclopts import Parameter

from export.options import Device, Inputs, PredictionFormat
from keras_cait.command_line import (
    BatchSize,
    Count,
    DataDir,
    ImageSize,
    Labels,
    ModelSource,
    Variant,
)


def predict(
    *,
    model: ModelSource,
    input: Inputs = (),
    data: Annotated[
        str | None,
        Parameter(
            help="Labeled dataset instead of --input: digits, folder:PATH "
            "(one subfolder per class), or a name of TensorFlow Datasets."
        ),
    ] = None,
    data_dir: DataDir = None,
    split: Literal["train", "validation"] = "validation",
    output: str,
    resume: bool = False,
    column: str | None = None,
    format: PredictionFormat = "parquet",
    part_size: Count = 1024,
    top: Count = 5,
    embedding: bool = False,
    variant: Variant = None,
    image_size: ImageSize = None,
    labels: Labels = None,
    batch_size: BatchSize = 64,
    workers: Count | None = None,
    device: Device | None = None,
    address: str | None = None,
) -> None:
    """Classify any number of images, on this computer or a Ray cluster.

    Writes one file per part of the images, with a row per image: its path or
    id, the best classes with their scores, and why an image cannot be read.
    After an interruption, the same command with --resume classifies the rest.

    Args:
        input: Images, Parquet or TFRecord files: paths, folders, globs such as
            'photos/**/*.jpg', or URIs (gs://, s3://).
        split: Images of the dataset to classify.
        output: Folder for the predictions, or its URI. It must not exist,
            except with --resume.
        resume: Continue the job of an existing output.
        column: Column of Parquet files with encoded images or paths. Default:
            the only one of encoded images, otherwise path.
        format: Format of the files.
        part_size: Images per file. Row groups of Parquet and TFRecord files
            are not divided.
        top: Number of classes per image.
        embedding: Also write embeddings, from a second run of the model.
        workers: Models that run in parallel. Default: one per GPU, otherwise 1.
        device: Where models run. Default: GPUs if there are any.
        address: Ray cluster of this computer: auto, or the address of its
            head. Default: start Ray here.
    """
    import os
    import sys

    from export.batch.cluster import (
        check_command,
        choose_device,
        connect,
        threads_per_model,
    )
    from export.batch.images import parts_of_dataset, parts_of_input
    from export.batch.job import open_job
    from export.batch.parts import count, digest
    from export.batch.pipeline import describe, predict_parts
    from export.batch.progress import Progress
    from keras_cait.command_line import require_tensorflow
    from keras_cait.datasets import split_of
    from keras_cait.labels import check_classes
    from keras_cait.loading import existing, published, saved_model_folder

    require_tensorflow()
    check_command(sys.argv)
    if bool(input) == bool(data):
        raise ValueError("Give --input PATH (several are possible), or --data.")
    if address and "://" in address:  # of Ray Client (ray issue 48682)
        raise ValueError(
            f"Ray Data does not run from outside a cluster. Got {address!r}. "
            "Use --address auto on one of its machines, or ray job submit."
        )
    # The newest version of a served model may be another one later.
    if not published(model):
        model = str(saved_model_folder(existing(model)) or model)
    if data:
        parts, classes = parts_of_dataset(
            *(data, split, data_dir, part_size), **split_of(model, data)
        )
    else:
        classes = None
        parts = parts_of_input(input, part_size, column, os.getcwd(), output)
    if not parts:
        raise ValueError("The input has no images.")
    images = count(parts)
    described = describe(
        *(model, variant, image_size, labels),
        top=top,
        embedding=embedding,
        batch_size=min(batch_size, images or batch_size),
    )
    if data and classes:
        names = described.labels
        check_classes(len(names), names, classes, data)
    settings = {
        "input": list(input),
        "data": data,
        "split": data and split,
        "images": images,
        "parts": len(parts),
        "part_size": part_size,
        "input_sha256": digest(parts),
        "model": model,
        "weights": described.identity,
        "image_size": list(described.size),
        "labels_sha256": digest(described.labels),
        "top": top,
        "embedding": embedding,
        "format": format,
    }
    with open_job(output, settings, format, resume) as job:
        missing = {
            number: part
            for number, part in enumerate(parts)
            if number not in job.finished
        }
        if not missing:
            print(f"All predictions are in {output}")
            return
        done = (images or 0) - (count(missing.values()) or 0)
        with (
            connect(address, workers or 1),
            Progress(images, done) as progress,
        ):
            where, models = choose_device(device, workers, model, address)
            found = predict_parts(
                *(missing, described, models, where, progress.watch),
                threads=threads_per_model(models) if address is None else None,
            )
            for part, rows in found:
                job.write(part, rows)
    print(f"Wrote {output}")
