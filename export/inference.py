"""The one inference model that every format exports."""

import keras

import keras_cait


def inference_model(path):
    """A trained classifier with two outputs, ready to be exported.

    Args:
        path: str or path of a `.keras` file with a `CaiT` that has a head and
            its own preprocessing.

    Returns:
        A Keras model of images `(batch, height, width, channels)` in 0...255
        to a dict of `logits` and `probabilities`, float32 `(batch, classes)`.

    Raises:
        ValueError: the file holds no such model.
    """
    model = keras.models.load_model(path)
    if not isinstance(model, keras_cait.CaiT):
        raise ValueError(
            f"{path} holds a {type(model).__name__}. Only a CaiT is exported."
        )
    if not (model.include_top and model.include_preprocessing):
        raise ValueError(
            "Exports are classifiers of pixels in 0...255. Received a model "
            f"with include_top={model.include_top} and "
            f"include_preprocessing={model.include_preprocessing}. Build it "
            "with both True."
        )
    config = {**model.get_config(), "classifier_activation": None}
    classifier = keras_cait.CaiT.from_config(config)
    classifier.set_weights(model.get_weights())
    logits = classifier.output
    probabilities = keras.layers.Softmax(dtype="float32")(logits)
    return keras.Model(
        classifier.input, {"logits": logits, "probabilities": probabilities}
    )
