"""Prepares a data set of TensorFlow Datasets for random access.

python -m training.prepare imagenet2012 --data-dir DIR --manual-dir DIR

ImageNet cannot be downloaded without an account: put its two archives, as
https://image-net.org gives them, into the folder of --manual-dir.
"""

import argparse
from pathlib import Path

import tensorflow_datasets as tfds

from training.command import run

# Name, bytes and what it is. Sizes: https://image-net.org.
ARCHIVES = (
    ("ILSVRC2012_img_train.tar", 147_897_477_120, "training images"),
    ("ILSVRC2012_img_val.tar", 6_744_924_160, "validation images"),
)


def prepare(name, data_dir, manual_dir=None):
    """Writes a data set as array records.

    Args:
        name: str. Name in TensorFlow Datasets.
        data_dir: path. Where its files are to be.
        manual_dir: path. Where archives are that cannot be downloaded.

    Raises:
        ValueError: an archive of ImageNet is missing.
    """
    if name == "imagenet2012":
        check_archives(manual_dir)
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            manual_dir=manual_dir, try_download_gcs=False
        )
    )
    for split, info in builder.info.splits.items():
        print(f"{split}: {info.num_examples:,} images")
    print(f"Prepared {builder.data_path}")


def check_archives(folder):
    """Looks at names and sizes first: preparing takes hours."""
    folder = Path(folder or ".")
    missing = [
        f"{name} ({what}, {size:,} bytes)"
        for name, size, what in ARCHIVES
        if not (folder / name).is_file()
    ]
    if missing:
        raise ValueError(
            f"In {str(folder.resolve())!r} is no {' and no '.join(missing)}. "
            "Download from https://image-net.org (ILSVRC 2012, task 1 and 2), "
            "leave the archives packed, and give their folder: --manual-dir."
        )
    for name, size, _ in ARCHIVES:
        found = (folder / name).stat().st_size
        if found != size:
            print(
                f"{folder / name} has {found:,} bytes, the official archive "
                f"{size:,}: it is cut off, or a part of ImageNet."
            )


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m training.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="such as imagenet2012, cifar10")
    parser.add_argument("--data-dir", required=True, type=Path)
    parser.add_argument("--manual-dir", type=Path)
    arguments = parser.parse_args(argv)
    prepare(arguments.name, arguments.data_dir, arguments.manual_dir)


if __name__ == "__main__":
    run(main)
