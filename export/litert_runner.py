"""What a `.tflite` file answers, and how it runs on this machine."""

import time

import numpy as np
from ai_edge_litert.interpreter import Interpreter

DEFAULT = "serving_default"


class LiteRTClassifier:
    """A `.tflite` file of `export.litert`, as a function of pictures.

    Args:
        path: path of the file.
        threads: int > 0.

    Call arguments:
        images: array `(pictures, height, width, 3)`, RGB in 0...255.

    Returns:
        Array `(pictures, classes)`, the probabilities.

    Attributes:
        size: `(height, width)` of the pictures.
        classes: int.

    Raises:
        ValueError: the file is none, or no classifier of pictures.

    Example:
    >>> LiteRTClassifier("model.tflite")(images)  # doctest: +SKIP
    """

    def __init__(self, path, threads=2):
        interpreter = open_file(path, num_threads=threads)
        signature = interpreter.get_signature_list().get(DEFAULT, {})
        outputs = signature.get("outputs", [])
        if signature.get("inputs") != ["images"] or outputs not in (
            ["probabilities"],
            ["logits"],
        ):
            raise ValueError(
                f"{path} is no classifier of pictures: expected the signature "
                f"{DEFAULT} from images to probabilities or logits. Received: "
                f"{interpreter.get_signature_list()}. Export a model with "
                "python -m export litert."
            )
        self.runner = interpreter.get_signature_runner(DEFAULT)
        images = self.runner.get_input_details()["images"]
        self.shape, self.dtype = tuple(images["shape"]), images["dtype"]
        self.size = tuple(map(int, self.shape[1:3]))
        (self.output,) = outputs
        answer = self.runner.get_output_details()[self.output]
        self.classes = int(answer["shape"][-1])

    def __call__(self, images):
        images = np.asarray(images, self.dtype)
        batch = self.shape[0]
        answers = []
        for start in range(0, len(images), batch):
            some = images[start : start + batch]
            padding = [(0, batch - len(some))] + 3 * [(0, 0)]
            answer = self.runner(images=np.pad(some, padding))[self.output]
            answers.append(answer[: len(some)])
        answers = np.concatenate(answers)
        return softmax(answers) if self.output == "logits" else answers

    def seconds(self, seconds=1.0):
        """Median time of one run; as many runs as fit, but 5 at least."""
        images = np.zeros(self.shape, self.dtype)
        for _ in range(2):
            self.runner(images=images)
        times = []
        while len(times) < 5 or sum(times) < seconds:
            start = time.perf_counter()
            self.runner(images=images)
            times.append(time.perf_counter() - start)
        return float(np.median(times))


def open_file(path, **options):
    """An interpreter of a file."""
    try:
        return Interpreter(str(path), **options)
    except ValueError as error:
        raise ValueError(f"{path} is no .tflite file: {error}") from error


def softmax(logits):
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)
