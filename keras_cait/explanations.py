"""Evidence for a class: relevance of the patches, and occlusion.

Attention shows what a model reads, whatever it concludes. These maps are about
the score of one class, the logit before the activation of the classifier.
`attention_maps.overlay` draws them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_cait.attention_maps import checked, layers_of_kind
from keras_cait.blocks import ClassAttentionBlock, SelfAttentionBlock
from keras_cait.gradients import gradients
from keras_cait.layers import (
    PatchEmbedding,
    PositionEmbedding,
    Tensor,
    positive_int,
)


def relevance_maps(
    model: keras.Model, images: Tensor, classes: Any = None
) -> np.ndarray:
    """Returns each patch's evidence for a class, through attention.

    The scores `A` of a block's heads weight what the block adds to its tokens.
    To first order, one score contributes `A * dy/dA` to the logit `y` of the
    class. `E` is the mean over the heads of the positive contributions, a
    matrix of tokens by tokens, and the residual path is the identity. The
    relevance of the patches to the class token is therefore its row of

        (I + E_last) ... (I + E_first)

    where a class-attention block has a row for the class token only. In
    self-attention, `A` are the scores after the second mixing of the heads;
    they can be negative, but only positive contributions are kept. The gradient
    passes LayerScale, so `gamma` scales what a branch counts.

    The model runs twice and its gradient once, block by block: it needs the
    memory of one block.

    Args:
        model: a `CaiT`, or a Functional model made of its layers, that
            classifies by the class token.
        images: array or tensor `(batch, height, width, channels)`, as for the
            model.
        classes: index of the class, or of one class per image. `None` is the
            class that the model predicts.

    Returns:
        float32 array `(batch, rows, columns)`, 0 or more. Maps of different
        classes have the same unit.

    Raises:
        ValueError: the model has no class attention, the images do not fit, or
            there is no such class.

    Example:
    >>> model = CaiT(48, depth=1, num_heads=4, input_shape=(64, 96, 3))
    >>> relevance_maps(model, np.zeros((2, 64, 96, 3)), classes=[7, 9]).shape
    (2, 4, 6)

    Reference: Chefer, Gur and Wolf, 2021, "Generic Attention-model
    Explainability" (arXiv 2103.15679), equations 5 and 6.
    """
    class_blocks = layers_of_kind(model, ClassAttentionBlock)
    self_blocks = layers_of_kind(model, SelfAttentionBlock)
    (positions,) = layers_of_kind(model, PositionEmbedding)
    features, classify = _classifier(model)
    token = class_blocks[-1].output
    upstream = keras.Model(
        model.input,
        [
            positions.input,
            [block.input for block in self_blocks],
            [block.input for block in class_blocks],
            token,
        ],
    )
    read_token = keras.Model(token, features)
    grid, patches, tokens_and_patches, token = upstream(
        ops.convert_to_tensor(checked(images)), training=False
    )
    _, rows, columns, _ = grid.shape

    logits = classify(read_token(token))
    chosen = _one_hot(classes, logits)
    (by_token,) = gradients(
        lambda token: ops.sum(classify(read_token(token)) * chosen), token
    )
    by_patches = ops.zeros_like(patches[0])
    token_relevance = ops.ones_like(by_token[:, :, 0])  # (B, 1)
    patch_relevance = ops.zeros_like(patches[0][:, :, 0])  # (B, N)
    # From the last block to the first, a row times a matrix at a time.
    for block, inputs in zip(
        reversed(class_blocks), reversed(tokens_and_patches), strict=True
    ):
        by_token, by_patches_here, scores = _gradients(block, inputs, by_token)
        by_patches = by_patches + by_patches_here
        row = token_relevance * scores[:, 0]
        token_relevance = token_relevance + row[:, :1]
        patch_relevance = patch_relevance + row[:, 1:]
    for block, inputs in zip(
        reversed(self_blocks), reversed(patches), strict=True
    ):
        by_patches, scores = _gradients(block, [inputs], by_patches)
        row = ops.matmul(patch_relevance[:, None], scores)[:, 0]
        patch_relevance = patch_relevance + row
    maps = ops.convert_to_numpy(ops.cast(patch_relevance, "float32"))
    return maps.reshape(-1, rows, columns)


def occlusion_maps(
    model: keras.Model,
    images: Tensor,
    classes: Any = None,
    window: int = 3,
    batch_size: int = 32,
    verbose: Any = "auto",
) -> np.ndarray:
    """Returns how much the score of a class drops without each patch.

    A square around the patch gets the mean color of the image, and the model
    classifies the result: once per patch, or 196 times for an image of
    224 x 224 pixels.

    Args:
        model: a Keras model for images that starts with a `PatchEmbedding`, as
            `CaiT` and `baselines.ViT` do, and ends with a classifier.
        images: array or tensor `(batch, height, width, channels)`, as for the
            model.
        classes: as in `relevance_maps`.
        window: odd int > 0. Side of the square in patches.
        batch_size: int > 0. Images that the model classifies at a time.
        verbose: progress, as in `keras.Model.predict`.

    Returns:
        float32 array `(batch, rows, columns)` of differences of the logit. A
        patch with evidence against the class is negative.

    Raises:
        ValueError: the images or an argument do not fit, or there is no such
            class.

    Example:
    >>> model = CaiT(48, depth=1, num_heads=4, input_shape=(64, 96, 3))
    >>> occlusion_maps(model, np.zeros((2, 64, 96, 3)), verbose=0).shape
    (2, 4, 6)

    Reference: Zeiler and Fergus, 2014, section 4.2 (arXiv 1311.2901).
    """
    if positive_int("window", window) % 2 == 0:
        raise ValueError(
            "window must be odd, with the patch in its middle. Received: "
            f"window={window}. Use {window + 1}."
        )
    positive_int("batch_size", batch_size)
    (embedding,) = layers_of_kind(model, PatchEmbedding)
    features, classify = _classifier(model)
    read_images = keras.Model(model.input, features)
    images = checked(images)
    occluded = _Occluded(images, embedding.patch_size, window, batch_size)

    logits = classify(
        read_images(ops.convert_to_tensor(images), training=False)
    )
    chosen = _one_hot(classes, logits)
    remaining = classify(
        ops.convert_to_tensor(read_images.predict(occluded, verbose=verbose))
    )
    shape = (len(images), -1, logits.shape[-1])
    drops = ops.expand_dims(logits, 1) - ops.reshape(remaining, shape)
    drops = ops.sum(drops * ops.expand_dims(chosen, 1), axis=-1)
    maps = ops.convert_to_numpy(ops.cast(drops, "float32"))
    return maps.reshape(-1, *occluded.grid)


class _Occluded(keras.utils.PyDataset):
    """Batches of all images with a square around each patch in one color."""

    def __init__(
        self, images: np.ndarray, patch_size: int, window: int, batch_size: int
    ):
        super().__init__()
        self.images = images
        self.colors = images.mean(axis=(1, 2)).astype(images.dtype)
        self.patch_size = patch_size
        self.reach = window // 2
        self.batch_size = batch_size
        self.grid = tuple(side // patch_size for side in images.shape[1:3])
        self.places = list(np.ndindex(len(images), *self.grid))

    def __len__(self) -> int:
        return math.ceil(len(self.places) / self.batch_size)

    def __getitem__(self, index: int) -> np.ndarray:
        start = index * self.batch_size
        places = self.places[start : start + self.batch_size]
        return np.stack([self._occlude(*place) for place in places])

    def _occlude(self, index: int, row: int, column: int) -> np.ndarray:
        image = self.images[index].copy()
        rows, columns = (
            slice(
                max(0, center - self.reach) * self.patch_size,
                (center + self.reach + 1) * self.patch_size,
            )
            for center in (row, column)
        )
        image[rows, columns] = self.colors[index]
        return image


def _gradients(
    block: Any, inputs: Sequence[Tensor], by_output: Tensor
) -> list[Tensor]:
    """The gradients of the score by the inputs of a block; and the positive
    contributions of its attention `(batch, queries, keys)`.
    """
    queries, keys = inputs[0].shape[1], sum(x.shape[1] for x in inputs)

    def score(*arguments: Tensor) -> Tensor:
        *inputs, scale = arguments
        return ops.sum(block(*inputs, scores_scale=scale) * by_output)

    # The gradient by a factor of the scores A, at 1, is A * dy/dA.
    shape = (len(by_output), block.num_heads, queries, keys)
    ones = ops.ones(shape, keras.backend.standardize_dtype(by_output.dtype))
    *by_inputs, contributions = gradients(score, *inputs, ones)
    return [*by_inputs, ops.mean(ops.relu(contributions), axis=1)]


def _classifier(model: keras.Model) -> tuple[Any, Callable[[Tensor], Tensor]]:
    """What the last layer of a model reads, and the function to the logits.

    Raises:
        ValueError: the model has no classes.
    """
    has_top = getattr(model, "include_top", True)
    shapes = [output.shape for output in model.outputs]
    if not has_top or [len(shape) for shape in shapes] != [2]:
        raise ValueError(
            f"The model {model.name!r} does not classify: its output is "
            f"{', '.join(map(str, shapes))}, with include_top={has_top}. Give "
            "a model with a head and no other output."
        )
    last = model.layers[-1]
    if isinstance(last, keras.layers.Activation | keras.layers.Softmax):
        return last.input, lambda x: x
    if not hasattr(last, "activation"):
        return model.output, lambda x: x
    linear = type(last).from_config({**last.get_config(), "activation": None})
    linear.build(last.input.shape)
    linear.set_weights(last.get_weights())
    return last.input, linear


def _one_hot(classes: Any, logits: Tensor) -> Tensor:
    """1 at the class of each image, 0 elsewhere.

    Raises:
        ValueError: there is no such class, or not one for each image.
    """
    batch, count = logits.shape
    if classes is None:
        classes = ops.argmax(logits, axis=-1)
    chosen = ops.convert_to_numpy(classes)
    if (
        chosen.shape not in ((), (batch,))
        or not np.issubdtype(chosen.dtype, np.integer)
        or not ((chosen >= 0) & (chosen < count)).all()
    ):
        raise ValueError(
            f"classes must be an index in 0...{count - 1}, or one for each of "
            f"the {batch} images. Received: classes={classes!r}."
        )
    dtype = keras.backend.standardize_dtype(logits.dtype)
    return ops.one_hot(np.broadcast_to(chosen, batch), count, dtype=dtype)
