"""Prepares a dataset of TensorFlow Datasets as TFRecord files.

python -m training.prepare imagenet2012 --data-dir DIR --manual-dir DIR

ImageNet cannot be downloaded without an account: download its two archives from
https://image-net.org into the folder of --manual-dir.
"""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from keras_cait.command_line import run
from keras_cait.datasets import why_no_builder
from keras_cait.files import folder_path

# Name, bytes and content. Sizes: https://image-net.org.
ARCHIVES = (
    ("ILSVRC2012_img_train.tar", 147_897_477_120, "training images"),
    ("ILSVRC2012_img_val.tar", 6_744_924_160, "validation images"),
)

app = App(name="python -m training.prepare", help=__doc__, version_flags=[])


@app.default
def prepare(
    name: Annotated[
        str,
        Parameter(
            help="Dataset of TensorFlow Datasets, such as imagenet2012 or "
            "cifar10."
        ),
    ],
    /,
    *,
    data_dir: Annotated[
        Path,
        Parameter(help="Folder in which TensorFlow Datasets keeps its files."),
    ],
    manual_dir: Annotated[
        Path | None,
        Parameter(help="Folder of archives that cannot be downloaded."),
    ] = None,
) -> None:
    """Writes a dataset as TFRecord files.

    Args:
        name: name in TensorFlow Datasets.
        data_dir: folder in which TensorFlow Datasets keeps its files.
        manual_dir: folder of archives that cannot be downloaded.

    Raises:
        ValueError: there is no such dataset, or an archive of ImageNet is
            missing.
    """
    import tensorflow_datasets as tfds

    folder_path(data_dir)
    if name == "imagenet2012":
        check_archives(manual_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (ValueError, AssertionError) as error:
        raise ValueError(
            f"TensorFlow Datasets has no dataset {name!r}: "
            f"{why_no_builder(error)} See "
            "https://www.tensorflow.org/datasets/catalog."
        ) from None
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            manual_dir=manual_dir, try_download_gcs=False
        )
    )
    for split, info in builder.info.splits.items():
        print(f"{split}: {info.num_examples:,} images")
    print(f"Prepared {builder.data_path}")


def check_archives(folder: Path | None) -> None:
    """Checks names and sizes of ImageNet's archives: preparing takes hours.

    Raises:
        ValueError: an archive is missing.
    """
    folder = Path(folder or ".")
    missing = [
        f"{name} ({content}, {size:,} bytes)"
        for name, size, content in ARCHIVES
        if not (folder / name).is_file()
    ]
    if missing:
        raise ValueError(
            f"{str(folder.resolve())!r} does not contain "
            f"{' or '.join(missing)}. Download them from https://image-net.org "
            "(ILSVRC 2012, task 1 and 2), leave them packed, and give their "
            "folder: --manual-dir DIR."
        )
    for name, size, _ in ARCHIVES:
        found = (folder / name).stat().st_size
        if found != size:
            print(
                f"{folder / name} has {found:,} bytes, the official archive "
                f"{size:,}: it is truncated, or a subset of ImageNet."
            )


if __name__ == "__main__":
    run(app)
