"""`python -m export classify`"""

from pathlib import Path
from typing import Literal

from keras_cait.command_line import BatchSize, Count, Seconds


def classify(
    images: list[Path],
    /,
    *,
    server: str,
    served_model: str,
    version: Count | None = None,
    version_label: str | None = None,
    protocol: Literal["grpc", "rest"] = "grpc",
    batch_size: BatchSize = 8,
    concurrency: Count = 1,
    timeout: Seconds = 30.0,
    tls: bool = False,
    ca: Path | None = None,
    header: list[str] | None = None,
    gzip: bool = False,
    json: bool = False,
) -> None:
    """Classify images with a model on TensorFlow Serving.

    Args:
        images: Images, or folders of images.
        server: Address of the server, HOST:PORT, or a URL for REST, such as
            https://models.example.
        served_model: Name of the model on the server.
        version: Version of the model. Default: the newest.
        version_label: Label of the version, such as stable, instead of its
            number.
        protocol: Protocol of the port. The server's defaults are 8500 for gRPC
            and 8501 for REST.
        concurrency: Number of simultaneous requests.
        timeout: Seconds for one request with its retries.
        tls: Encrypt the connection, as https:// does.
        ca: PEM file of the server's certificate authority. Default: those that
            the system trusts.
        header: Header of every request, such as "Authorization: Bearer KEY".
            May be repeated.
        gzip: Compress the requests.
        json: Print one JSON object per line and image.
    """
    import sys
    from json import dumps

    from export.serving.client import (
        GrpcClient,
        RestClient,
        classify_all,
    )
    from keras_cait.command_line import one_line
    from keras_cait.files import GRAPH_SUFFIXES, image_files, printable

    connect = GrpcClient if protocol == "grpc" else RestClient
    headers = {}
    for line in header or []:
        name, colon, value = line.partition(":")
        if not colon:
            raise ValueError(
                "A header must be NAME: VALUE. Got one without a colon."
            )
        headers[name.strip()] = value.strip()
    client = connect(
        server,
        served_model,
        version,
        version_label,
        timeout,
        tls=tls,
        ca=ca,
        headers=headers,
        gzip=gzip,
    )
    files = image_files(images, GRAPH_SUFFIXES)
    results = classify_all(client, files, batch_size, concurrency)
    failures = 0
    for done, (file, result) in enumerate(zip(files, results, strict=True), 1):
        failed = isinstance(result, OSError)
        failures += failed
        if json:
            key = "error" if failed else "classes"
            value = one_line(result) if failed else result
            print(dumps({"image": str(file), key: value}))
        elif failed:
            print(f"{printable(str(file))}: {one_line(result)}")
        else:
            best = ", ".join(f"{name} {score:.1%}" for name, score in result)
            print(f"{printable(str(file))}: {best}")
        is_last = done == len(files)
        if is_last or sys.stderr.isatty():  # not a line per image in a log
            end = "\n" if is_last else "\r"
            print(f"{done} of {len(files)}", end=end, file=sys.stderr)
    if failures:
        raise OSError(
            f"{failures} of {len(files)} images could not be classified."
        )
