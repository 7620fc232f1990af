"""Pictures in, labels out: `python -m keras_cait photo.jpg`.

Exit status: 0, all done; 1, some pictures were skipped, and named on stderr;
2, nothing can be done, and one line says why.
"""

import argparse
import csv
import importlib.util
import json
import os
import sys
import time
from pathlib import Path

import keras
import numpy as np

import keras_cait
from keras_cait.attention_maps import class_attention_maps, figure
from keras_cait.preprocessing import (
    imagenet_labels,
    load_image,
    preprocess_input,
    resize_and_crop,
)

# What is taken for a picture inside a folder; a file is always tried.
PICTURE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".avif", ".jp2", ".pgm", ".ppm"),
)
FIGURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")


def main(argv=None):
    """Runs the command.

    Args:
        argv: list of str, the arguments; `None` takes those of the process.

    Returns:
        int. The exit status.
    """
    for stream in (sys.stdout, sys.stderr):  # names of files can be any bytes
        stream.reconfigure(errors="backslashreplace")
    args = parser().parse_args(argv)
    try:
        return run(args)
    except BrokenPipeError:  # as of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"keras_cait: error: {one_line(error)}", file=sys.stderr)
        return 2


def parser():
    parser = argparse.ArgumentParser(
        prog="python -m keras_cait",
        description="Classifies pictures with CaiT.",
        epilog="Exit status: 0 all done, 1 some pictures were skipped (named "
        "on stderr), 2 nothing done.",
    )
    parser.add_argument(
        "pictures",
        nargs="+",
        metavar="PICTURE",
        help="picture file, folder of pictures (with its subfolders), or - for "
        "one picture on standard input",
    )
    parser.add_argument(
        "--variant",
        choices=keras_cait.VARIANTS,
        help="model, with ImageNet's 1000 classes (default: S24)",
    )
    parser.add_argument(
        "--size",
        type=int,
        metavar="PIXELS",
        help="height and width of the model's input in pixels (default: that "
        "of the variant's smallest checkpoint)",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help=".safetensors, .weights.h5 or .pth file for the variant, or .keras"
        " file with a whole CaiT of any classes (default: the published "
        "weights, downloaded once)",
    )
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="names of the classes, one a line (default: ImageNet's for 1000 "
        "classes, otherwise their numbers, from 0)",
    )
    parser.add_argument(
        "--top",
        type=int,
        default=5,
        metavar="N",
        help="classes shown for each picture (default: 5)",
    )
    parser.add_argument(
        "--attention",
        metavar="PATH",
        help="draw the class attention: to this file for one picture "
        f"({' '.join(FIGURE_SUFFIXES)}), otherwise into this folder",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="let --attention replace existing files",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--json",
        dest="show",
        action="store_const",
        const=show_json,
        help="print one JSON object a line for each picture, scores in 0...1",
    )
    output.add_argument(
        "--csv",
        dest="show",
        action="store_const",
        const=show_csv,
        help="print CSV, a line for each class shown, scores in 0...1",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=8,
        metavar="N",
        help="pictures that go through the model together (default: 8)",
    )
    parser.set_defaults(show=show_table)
    return parser


def run(args):
    """Checks everything that can be checked, then classifies in batches."""
    check(args)
    model = load_model(args)
    labels = class_labels(args.labels, model.classes)
    count = min(args.top, model.classes)
    problems = Problems()
    progress = Progress(any(Path(path).is_dir() for path in args.pictures))

    if args.show is show_csv:
        show_csv("picture", [("rank", "index", "wordnet_id", "label", "score")])
    for names, images in batches(args, model.input.shape[1:3], problems):
        inputs = images
        if not model.include_preprocessing:
            inputs = preprocess_input(images)
        scores = classify(model, inputs, args.batch_size)
        progress.clear()
        for name, picture_scores in zip(names, scores, strict=True):
            best = np.argsort(-picture_scores, kind="stable")[:count]
            args.show(
                str(name),
                [
                    (rank, int(i), *labels[i], float(picture_scores[i]))
                    for rank, i in enumerate(best, 1)
                ],
            )
        if args.attention:
            maps = class_attention_maps(model, inputs)
            for name, image, picture_maps in zip(
                names, images, maps, strict=True
            ):
                draw(args, name, figure(image, picture_maps), problems)
        progress.show(len(names))
    progress.clear()
    sys.stdout.flush()
    return 1 if problems.count else 0


def check(args):
    """Refuses what cannot work before the model is loaded."""
    for option in ("top", "batch_size", "size"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise ValueError(
                f"--{option.replace('_', '-')} must be at least 1. "
                f"Received: {value}."
            )
    for path in args.pictures:
        if path != "-" and not Path(path).exists():
            raise ValueError(f"There is no file or folder {path!r}.")
        if Path(path).is_dir() and next(pictures_of(path), None) is None:
            raise ValueError(f"There are no pictures in the folder {path!r}.")
    if args.pictures.count("-") > 1:
        raise ValueError("- (standard input) can be given only once.")
    if args.attention:
        check_attention(args)


def check_attention(args):
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--attention needs matplotlib: pip install matplotlib")
    path = Path(args.attention)
    if not is_figure(path):
        if path.exists() and not path.is_dir():
            raise ValueError(
                f"--attention {str(path)!r} is neither a folder nor a file "
                f"that ends with {' '.join(FIGURE_SUFFIXES)}."
            )
        path.mkdir(parents=True, exist_ok=True)
    elif len(args.pictures) > 1 or Path(args.pictures[0]).is_dir():
        raise ValueError(
            f"--attention {str(path)!r} can show one picture only. For more, "
            "give a folder."
        )
    elif path.exists() and not args.force:
        raise ValueError(
            f"--attention {str(path)!r} exists already. Choose another path, "
            "or replace it with --force."
        )
    folder = path.parent if is_figure(path) else path
    if not os.access(folder, os.W_OK):
        raise ValueError(f"Cannot write --attention into {str(folder)!r}.")


def is_figure(path):
    return path.suffix.lower() in FIGURE_SUFFIXES and not path.is_dir()


def load_model(args):
    """The model of `--weights model.keras`, or the variant with its weights."""
    if args.weights and not Path(args.weights).is_file():
        raise ValueError(f"There is no file with weights at {args.weights!r}.")
    if not args.weights or Path(args.weights).suffix != ".keras":
        variant = getattr(keras_cait, f"CaiT_{args.variant or 'S24'}")
        shape = args.size and (args.size, args.size, 3)
        return variant(weights=args.weights or "imagenet", input_shape=shape)
    if args.variant or args.size:
        raise ValueError(
            f"{args.weights!r} holds a whole model, so --variant and --size "
            "cannot be chosen."
        )
    try:
        model = keras.saving.load_model(args.weights, compile=False)
    except Exception as error:  # of many kinds, by what is wrong in the file
        raise ValueError(
            f"Cannot load a model from {args.weights!r}: {one_line(error)}"
        ) from error
    if not isinstance(model, keras_cait.CaiT) or not model.include_top:
        raise ValueError(
            f"{args.weights!r} holds a {type(model).__name__}, but the command "
            "needs a CaiT with a head (include_top=True)."
        )
    if None in model.input.shape[1:] or model.input.shape[-1] != 3:
        raise ValueError(
            f"The model in {args.weights!r} takes images of shape "
            f"{model.input.shape[1:]}, but the command needs RGB of one size, "
            "as (224, 224, 3)."
        )
    return model


def class_labels(path, classes):
    """`(wordnet_id, label)` for each class; without identifier it is empty."""
    if path is None and classes == 1000:
        return imagenet_labels()
    if path is None:
        return [("", str(index)) for index in range(classes)]
    try:
        labels = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Cannot read --labels {path!r}: {error}") from error
    if len(labels) != classes:
        raise ValueError(
            f"--labels {path!r} has {len(labels)} lines, but the model has "
            f"{classes} classes."
        )
    return [("", label) for label in labels]


def batches(args, size, problems):
    """Paths and uint8 pictures of the model's size, `batch_size` at a time."""
    names, images = [], []
    for path in args.pictures:
        for name in (
            pictures_of(path, problems) if os.path.isdir(path) else [path]
        ):
            try:
                source = sys.stdin.buffer.read() if name == "-" else name
                images.append(resize_and_crop(load_image(source), size))
            except ValueError as error:
                where = "standard input: " if name == "-" else ""
                problems.report(f"skipped: {where}{one_line(error)}")
                continue
            names.append(name)
            if len(images) == args.batch_size:
                yield names, np.stack(images)
                names, images = [], []
    if images:
        yield names, np.stack(images)


def pictures_of(folder, problems=None):
    """Paths of the pictures in a folder, in order, subfolders last."""

    def unreadable(error):
        if problems:
            problems.report(f"skipped: {one_line(error)}")

    for parent, subfolders, files in os.walk(folder, onerror=unreadable):
        subfolders.sort()
        for file in sorted(files):
            if file.lower().endswith(PICTURE_SUFFIXES):
                yield os.path.join(parent, file)


def classify(model, images, batch_size):
    """Probabilities `(batch, classes)` as an array.

    Full batches share one compiled graph; for a few pictures compiling would
    take longer than it saves.
    """
    if len(images) == batch_size > 1:
        model.jit_compile = keras.backend.backend() == "jax"
        scores = model.predict_on_batch(images)
    else:
        scores = model(images, training=False)
    activation = keras.activations.get(model.classifier_activation)
    if activation is keras.activations.linear:
        scores = keras.ops.softmax(scores)
    return keras.ops.convert_to_numpy(scores)


def draw(args, name, drawn, problems):
    """Writes the attention figure of one picture."""
    path = Path(args.attention)
    if not is_figure(path):
        path = path / f"{inner_path(args.pictures, name)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not args.force:
            problems.report(f"not replaced without --force: {path}")
            return
    drawn.savefig(path, dpi=120)


def inner_path(arguments, name):
    """The path of a picture inside its folder, for a folder of figures."""
    for folder in arguments:
        if os.path.isdir(folder) and Path(name).is_relative_to(folder):
            return Path(name).relative_to(folder)
    return "stdin" if name == "-" else Path(name).name


def show_table(name, rows):
    bar = "█" if can_print("█") else "#"
    print(name)
    for _, _, wordnet_id, label, score in rows:
        blocks = bar * round(20 * score)
        print(f"  {score:6.1%}  {blocks:20}  {label}  {wordnet_id}".rstrip())


def show_json(name, rows):
    keys = ("index", "wordnet_id", "label", "score")
    predictions = [dict(zip(keys, row[1:], strict=True)) for row in rows]
    print(json.dumps({"picture": name, "predictions": predictions}))


def show_csv(name, rows):
    csv.writer(sys.stdout, lineterminator="\n").writerows(
        (name, *row) for row in rows
    )


def can_print(text):
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


class Problems:
    """Says what was skipped, and counts it."""

    count = 0

    def report(self, message):
        self.count += 1
        print(message, file=sys.stderr)


class Progress:
    """How many pictures are done, on a terminal, below what is printed."""

    def __init__(self, wanted):
        self.wanted = wanted and sys.stderr.isatty()
        self.started = time.monotonic()
        self.done = 0

    def show(self, count):
        self.done += count
        if self.wanted:
            sys.stdout.flush()
            rate = self.done / (time.monotonic() - self.started)
            print(
                f"{self.done} pictures, {rate:.1f} a second",
                end="",
                flush=True,
                file=sys.stderr,
            )

    def clear(self):
        if self.wanted:
            print("\r\x1b[K", end="", flush=True, file=sys.stderr)


def one_line(error):
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
