"""`python -m export`: from a trained Keras model to files that are deployed.

python -m export saved-model --weights model.keras --output models/digits
python -m export saved-model --variant S24 --weights imagenet \
    --output models/cait_s24
python -m export litert --weights model.keras --output model.tflite
python -m export litert --weights model.keras --quantize dynamic-int8 \
    --input uint8 --output small.tflite
python -m export verify model.tflite --weights model.keras --pictures DIR
python -m export web --model model.tflite --output site --serve
python -m export classify --server localhost:8500 --model cait_s24 photo.jpg
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from keras_cait.models import VARIANTS


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
        ("saved-model", saved_model, "write the next version for TF Serving"),
        ("litert", litert, "write a .tflite file"),
        ("verify", verify, "compare exported files with the Keras model"),
    ):
        sub = commands.add_parser(name, help=help)
        sub.set_defaults(command=command)
        sub.add_argument(
            "--weights",
            required=True,
            help="a .keras file; with --variant also imagenet or a "
            ".safetensors, .pth or .weights.h5 file",
        )
        sub.add_argument(
            "--variant", choices=VARIANTS, help="a model of the paper"
        )
        sub.add_argument(
            "--image-size",
            type=int,
            help="side of the pictures in pixels (default: the variant's)",
        )
        sub.add_argument(
            "--labels",
            type=Path,
            help="text file with one label a line (default: labels.txt beside "
            "the weights, else ImageNet's)",
        )
        sub.add_argument(
            "--output",
            type=Path,
            required=command is not verify,
            help="folder of the served model, to which a version is added"
            if command is saved_model
            else "path to write; an existing one is never overwritten",
        )
        if command is saved_model:
            add_serving_options(sub)
        if command is litert:
            add_litert_options(sub)
        if command is verify:
            sub.add_argument("exported", type=Path, nargs="+")
            sub.add_argument(
                "--pictures",
                type=Path,
                required=True,
                help="folder of pictures in one sub-folder for each class",
            )
    sub = commands.add_parser("web", help="make a page for browsers")
    sub.set_defaults(command=web)
    add_web_options(sub)
    sub = commands.add_parser("classify", help="ask a server about pictures")
    sub.set_defaults(command=classify)
    add_client_options(sub)
    return main_parser


def add_serving_options(parser):
    parser.add_argument(
        "--top", type=int, default=5, help="classes in an answer (default: 5)"
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the matrix products (default: float32)",
    )
    parser.add_argument(
        "--xla",
        action="store_true",
        help="let XLA compile the model, once for each batch size",
    )
    parser.add_argument(
        "--batch-sizes",
        type=int,
        nargs="+",
        default=[1, 2, 4, 8],
        help="to which the server pads its batches (default: 1 2 4 8)",
    )


def add_litert_options(parser):
    parser.add_argument(
        "--quantize",
        default="float32",
        metavar="RECIPE,...",
        help="float32 (default), float16, dynamic-int8, static-int8 or "
        "static-int8-int16; of several, --output is a folder with a file each",
    )
    parser.add_argument(
        "--calibration",
        metavar="FOLDER|DATASET",
        help="pictures such as the model will see, for the static recipes: a "
        "folder, or the training split of a set of TensorFlow Datasets; 200 "
        "of them are taken",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        help="where TensorFlow Datasets keeps its files",
    )
    parser.add_argument(
        "--gelu",
        choices=("erf", "tanh"),
        default="erf",
        help="erf as trained (default), or the approximation by tanh, for "
        "accelerators that lack erf",
    )
    parser.add_argument(
        "--input",
        choices=("float32", "uint8"),
        default="float32",
        help="type of the pixels, 0...255 either way (default: float32)",
    )
    parser.add_argument(
        "--logits",
        action="store_true",
        help="answer logits and leave the softmax to the caller",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=1,
        help="pictures in each call (default: 1)",
    )
    parser.add_argument(
        "--signatures",
        default="",
        metavar="NAME,...",
        help="embedding, attention or both, besides the classes; MediaPipe "
        "reads files without them alone",
    )


def add_web_options(parser):
    parser.add_argument(
        "--model",
        type=Path,
        help=".tflite file of python -m export litert; without it, --serve "
        "shows a site that is there",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="folder of the site; an existing one is never overwritten",
    )
    parser.add_argument(
        "--examples",
        type=Path,
        nargs="+",
        default=[],
        metavar="PICTURE",
        help="pictures, or folders of them, that the page offers; 12 are taken",
    )
    parser.add_argument(
        "--serve",
        action="store_true",
        help="show the site on this machine until Ctrl-C",
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="for --serve (default: 8000)"
    )


def add_client_options(parser):
    parser.add_argument("pictures", type=Path, nargs="+", help="or folders")
    parser.add_argument("--server", required=True, help="host:port")
    parser.add_argument("--model", required=True, help="name of the model")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--version", type=int, help="default: the newest")
    which.add_argument("--label", help="instead of a version, as stable")
    parser.add_argument(
        "--protocol",
        choices=("grpc", "rest"),
        default="grpc",
        help="default: grpc, port 8500 of the server; rest has port 8501",
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, help="pictures in one request"
    )
    parser.add_argument(
        "--concurrency", type=int, default=1, help="requests at a time"
    )
    parser.add_argument(
        "--timeout", type=float, default=30.0, help="seconds for one request"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON line a picture"
    )


def saved_model(arguments):
    from export.check_saved_model import check_signatures
    from export.model_card import measured_accuracy
    from export.serving.model_folder import write_version
    from export.serving.warmup import example_picture

    model, labels = trained(arguments)
    pictures = [example_picture(seed).numpy() for seed in range(8)]
    version = write_version(
        model,
        labels,
        arguments.output,
        arguments.top,
        arguments.precision,
        arguments.xla,
        arguments.batch_sizes,
        measured_accuracy(arguments.weights, model),
        check=lambda path: check_signatures(path, model, pictures),
    )
    print(f"Wrote {version}")
    print(f"Serve it: docker compose -f {arguments.output}/compose.yaml up")


def litert(arguments):
    from export.inference_graph import InferenceModel, check_labels
    from export.litert import convert, take_uint8
    from export.metadata import add_metadata
    from export.model_card import description
    from export.quantization import calibration_images, check_recipes, quantize

    recipes = arguments.quantize.split(",")
    check_recipes(recipes, arguments.calibration is not None)
    model, labels = trained(arguments)
    about = description(arguments.weights, model)
    inference = InferenceModel(model, gelu=arguments.gelu)
    check_labels(inference, labels)
    images = []
    if arguments.calibration:
        size = model.image_shape[:2]
        images = calibration_images(
            arguments.calibration, size, data_dir=arguments.data_dir
        )
    models = [inference]
    del model, inference  # So that their gigabytes can go before the end.

    def write_files(output):
        float32 = convert(
            models.pop(),
            not arguments.logits,
            arguments.batch_size,
            [name for name in arguments.signatures.split(",") if name],
        )
        if len(recipes) > 1:
            output.mkdir()
        for recipe in recipes:
            tflite = quantize(float32, recipe, images)
            if arguments.input == "uint8":
                tflite = take_uint8(tflite)
            name = f"{recipe}.tflite"
            path = output / name if len(recipes) > 1 else output
            path.write_bytes(add_metadata(tflite, labels, **about))

    write(arguments.output, write_files)


def verify(arguments):
    from export.check_saved_model import check_signatures
    from export.check_saved_model import table as signature_table
    from export.verify import as_json, picture_bytes, table, version_folder
    from export.verify import verify as compare

    if arguments.output:
        make_room(arguments.output)  # before minutes are spent
    model, labels = trained(arguments)
    rows = compare(model, labels, arguments.exported, arguments.pictures)
    print(table(rows))
    for path in map(version_folder, arguments.exported):
        if path.is_dir():
            pictures = picture_bytes(arguments.pictures, 8)
            checked = check_signatures(path, model, pictures)
            print(f"\n{path}\n{signature_table(checked)}")
    if arguments.output:
        text = json.dumps(as_json(rows), indent=2) + "\n"
        write(arguments.output, lambda path: path.write_text(text))


def web(arguments):
    from export.pictures import picture_files
    from export.web.site import make_site, server

    site = arguments.output
    if arguments.model:
        files = arguments.examples and picture_files(arguments.examples)
        # Evenly from all of them: of a folder with a sub-folder for each class
        # the first ones are all alike.
        examples = files[:: max(1, len(files) // 12)][:12]
        write(site, lambda folder: make_site(arguments.model, examples, folder))
    elif not (arguments.serve and (site / "site.json").exists()):
        raise ValueError(
            f"There is no site in {site} to serve. Make one with --model FILE."
        )
    if arguments.serve:
        with server(site, arguments.port) as running:
            print(f"http://localhost:{running.server_port} until Ctrl-C")
            try:
                running.serve_forever()
            except KeyboardInterrupt:
                print()


def classify(arguments):
    from export.pictures import picture_files
    from export.serving.client import GrpcClient, RestClient, classify_all

    connect = GrpcClient if arguments.protocol == "grpc" else RestClient
    client = connect(
        arguments.server,
        arguments.model,
        arguments.version,
        arguments.label,
        arguments.timeout,
    )
    files = picture_files(arguments.pictures)
    answers = classify_all(
        client, files, arguments.batch_size, arguments.concurrency
    )
    failures = 0
    for done, (file, answer) in enumerate(zip(files, answers, strict=True), 1):
        failed = isinstance(answer, OSError)
        failures += failed
        if arguments.json:
            key, value = (
                ("error", str(answer)) if failed else ("classes", answer)
            )
            print(json.dumps({"picture": str(file), key: value}))
        elif failed:
            print(f"{file}: {answer}")
        else:
            best = ", ".join(f"{name} {score:.1%}" for name, score in answer)
            print(f"{file}: {best}")
        end = "\n" if done == len(files) else "\r"
        print(f"{done} of {len(files)}", end=end, file=sys.stderr)
    if failures:
        raise OSError(f"{failures} of {len(files)} pictures have no answer.")


def trained(arguments):
    """The Keras model and the labels that the arguments speak of."""
    from export.inference_graph import check_exportable
    from export.loading import class_labels, trained_model

    labels = class_labels(arguments.weights, arguments.labels)
    model = trained_model(
        arguments.weights, arguments.variant, arguments.image_size, len(labels)
    )
    check_exportable(model)
    return model, labels


def write(output, writer):
    """Writes a file or folder whole or not at all, and never over another."""
    make_room(output)
    unfinished = output.with_name(f".{output.name}.unfinished")
    remove(unfinished)
    try:
        writer(unfinished)
        unfinished.rename(output)
    finally:
        remove(unfinished)
    print(f"Wrote {output}")


def make_room(output):
    """The folder around a new file or folder; raises where it cannot be."""
    if output.exists():
        raise ValueError(f"{output} exists already. Choose another --output.")
    output.parent.mkdir(parents=True, exist_ok=True)


def remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
