"""Predictions and errors of a server, checked and printable."""

import math
import re
from typing import Any

from keras_cait.files import printable

# The best classes of one image, as pairs of label and score.
Best = list[tuple[str, float]]

MAX_CLASSES = 100_000
MAX_CHARACTERS = 100_000  # of an error; a server may send megabytes


class ServingError(OSError):
    """Raised when a request fails, and the answer to a refused image.

    Args:
        code: name of a gRPC status code, such as `"NOT_FOUND"`.
        message: what happened. Its beginning is kept, without control
            characters.
    """

    def __init__(self, code: str, message: str):
        line = " ".join(message[:MAX_CHARACTERS].split())
        super().__init__(f"{code}: {printable(line)}")
        self.code = code


def check_predictions(
    classes: Any, scores: Any, errors: Any, count: int
) -> list[Best | ServingError]:
    """Pairs the labels and scores of a response.

    Args:
        classes: lists of labels, one per image.
        scores: lists of numbers, one per image.
        errors: why each image was refused, empty if it was not.
        count: number of images.

    Raises:
        ServingError: they have another form, or a score is not finite.

    Example:
    >>> check_predictions([["cat"]], [[0.9]], [""], 1)
    [[('cat', 0.9)]]
    """
    if not all(isinstance(one, list) for one in (classes, scores, errors)):
        raise invalid("classes, scores and errors must be lists")
    if not len(classes) == len(scores) == len(errors) == count:
        raise invalid(
            f"it has {len(classes)} lists of classes, {len(scores)} of scores "
            f"and {len(errors)} errors for {count} images"
        )
    return [
        check_answer(*answer)
        for answer in zip(classes, scores, errors, strict=True)
    ]


def check_answer(names: Any, values: Any, error: Any) -> Best | ServingError:
    """The answer to one image, as in `check_predictions`."""
    if not isinstance(error, str):
        raise invalid("an error must be text")
    if error:
        return ServingError("INVALID_ARGUMENT", error)
    if not (
        isinstance(names, list)
        and isinstance(values, list)
        and 0 < len(names) == len(values) <= MAX_CLASSES
        and all(isinstance(name, str) for name in names)
        and all(type(value) in (int, float) for value in values)
    ):
        raise invalid("an image needs as many labels as scores")
    try:
        scores = list(map(float, values))
    except OverflowError:  # JSON has integers of any size
        scores = [math.inf]
    if not all(map(math.isfinite, scores)):
        raise invalid("a score is not finite")
    return list(zip(map(printable, names), scores, strict=True))


def invalid(reason: str) -> ServingError:
    """The error for a response that is not one of our models'."""
    return ServingError(
        "INTERNAL",
        f"The response is not that of an image classifier: {reason}.",
    )


def without_graph(message: str) -> str:
    """The message of a failed operation, without the graph around it.

    Example:
    >>> nodes = "\\n\\t [[{{node Assert/Assert}}]]"
    >>> without_graph(
    ...     "2 root error(s) found.\\n  (0) INVALID_ARGUMENT: Too many."
    ...     + nodes
    ...     + "\\n  (1) INVALID_ARGUMENT: Too many."
    ... )
    'Too many.'
    """
    message = re.split(r"\n[ \t]*(?:\[\[|\(1\) )", message)[0]
    head = r"(?s)^.*?(?:\n[ \t]*\(0\) [A-Z_]+: |<stack traces unavailable>\n)"
    return re.sub(head, "", message)


def connection_problem(host: str, message: str) -> ServingError:
    """The error for a connection that could not be made or that broke."""
    found = re.search(
        r"CERTIFICATE_VERIFY_FAILED\W+(?:certificate verify failed: )?"
        r"([^(:.]*[^(:.\s])|(Hostname Verification Check failed)",
        message,
    )
    if found:
        return ServingError(
            "UNAUTHENTICATED",
            f"{host} has a certificate that is not trusted "
            f"({found[1] or found[2]}). If the server is yours, give the "
            "certificate of its authority: --ca FILE.",
        )
    if "WRONG_VERSION_NUMBER" in message:
        return ServingError(
            "FAILED_PRECONDITION",
            f"{host} does not speak TLS. Omit --tls and https://, or give "
            "another port.",
        )
    if "Failed parsing HTTP/2" in message:
        return ServingError(
            "FAILED_PRECONDITION",
            f"{host} does not speak gRPC. Add --protocol rest, or give another "
            "port.",
        )
    return ServingError("UNAVAILABLE", f"{host}: {message}")
