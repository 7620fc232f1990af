"""Weights from files into models."""

from pathlib import Path


def load_checkpoint(model, path):
    """Loads the weights of a file into a model of the same architecture.

    Args:
        model: a built `CaiT`.
        path: str or path of a `.weights.h5` or `.keras` file.

    Returns:
        The model.

    Raises:
        ValueError: the file does not exist, is of another kind, or does not
            fit the model.

    Example:
    >>> load_checkpoint(model, "runs/quickstart/model.keras")  # doctest: +SKIP
    """
    path = Path(path)
    if not path.name.endswith((".weights.h5", ".keras")):
        raise ValueError(
            "weights must be None or the path of a .weights.h5 or .keras "
            f"file. Received: {str(path)!r}."
        )
    if not path.is_file():
        raise ValueError(f"There is no file with weights at {str(path)!r}.")
    try:
        model.load_weights(path)
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(
            f"The weights in {str(path)!r} do not fit the model "
            f"{model.name!r}, or the file is damaged: {error}"
        ) from error
    return model
