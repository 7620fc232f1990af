"""`python -m export`: from a trained Keras model to files that are deployed.

python -m export saved-model --weights model.keras --output saved_model/1
python -m export litert --weights model.keras --output model.tflite
python -m export verify model.tflite --weights model.keras --pictures DIR
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def main(argv=None):
    """Runs one export command.

    Args:
        argv: list of str; `None` takes the arguments of the process.

    Returns:
        int, the exit status: 0 all well, 1 something failed.
    """
    arguments = parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except KeyboardInterrupt:
        print("\nInterrupted; nothing was written.", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def parser():
    main_parser = argparse.ArgumentParser(
        prog="python -m export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = main_parser.add_subparsers(required=True)
    for name, command, help in (
        ("saved-model", saved_model, "write a SavedModel for TF Serving"),
        ("litert", litert, "write a .tflite file"),
        ("verify", verify, "compare exported files with the Keras model"),
    ):
        sub = commands.add_parser(name, help=help)
        sub.set_defaults(command=command)
        sub.add_argument(
            "--weights", type=Path, required=True, help="a .keras file"
        )
        sub.add_argument(
            "--labels",
            type=Path,
            help="text file with one label a line "
            "(default: labels.txt beside the weights)",
        )
        sub.add_argument(
            "--output",
            type=Path,
            required=command is not verify,
            help="path to write; an existing one is never overwritten",
        )
        if command is verify:
            sub.add_argument("exported", type=Path, nargs="+")
            sub.add_argument(
                "--pictures",
                type=Path,
                required=True,
                help="folder of pictures in one sub-folder for each class",
            )
    return main_parser


def saved_model(arguments):
    from export.inference import inference_model
    from export.saved_model import write_saved_model

    model, labels = inference_model(arguments.weights), read_labels(arguments)
    write(arguments.output, lambda path: write_saved_model(model, labels, path))


def litert(arguments):
    from export.inference import inference_model
    from export.litert import convert

    model = inference_model(arguments.weights)
    write(arguments.output, lambda path: path.write_bytes(convert(model)))


def verify(arguments):
    from export.verify import as_json, table
    from export.verify import verify as compare

    rows = compare(
        arguments.weights,
        arguments.exported,
        arguments.pictures,
        read_labels(arguments),
    )
    print(table(rows))
    if arguments.output:
        text = json.dumps(as_json(rows), indent=2) + "\n"
        write(arguments.output, lambda path: path.write_text(text))


def read_labels(arguments):
    path = arguments.labels or arguments.weights.parent / "labels.txt"
    if not path.is_file():
        raise ValueError(
            f"There are no labels at {path}. Give a text file with one label "
            "a line: --labels FILE."
        )
    return path.read_text().splitlines()


def write(output, writer):
    """Writes a file or folder whole or not at all, and never over another."""
    if output.exists():
        raise ValueError(f"{output} exists already. Choose another --output.")
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f".{output.name}.unfinished")
    remove(unfinished)
    try:
        writer(unfinished)
        unfinished.rename(output)
    finally:
        remove(unfinished)
    print(f"Wrote {output}")


def remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
