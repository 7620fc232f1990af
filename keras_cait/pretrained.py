"""The pretrained weights of the paper's authors: where, what and how good."""

import math
from typing import NamedTuple

from keras_cait.preprocessing import IMAGENET_MEAN, IMAGENET_STD


class PretrainedWeights(NamedTuple):
    """Published weights and their accuracy on ImageNet-1k.

    All of them were trained by distillation on ImageNet-1k only, at 224 pixels;
    those of other sizes were fine-tuned at that size.

    Attributes:
        variant: key of `VARIANTS`.
        image_size: height and width of the images in pixels.
        parameters: number of weights.
        published_top_1: the authors' accuracy in percent; `None` where they
            gave none.
        measured_top_1: timm's accuracy in percent of the 50,000 validation
            images, at crop ratio 1.0 and with bicubic interpolation.
        measured_top_5: as `measured_top_1`, for the best five classes.
        sha256: hash of the file, where it is on public record; otherwise
            the file is checked against the record of the hub.
        license: name of the license.
        file: name of the file in the repository.
        mean: mean of RGB in 0...1 that the images are normalized with.
        std: standard deviation of RGB, likewise.
        crop_ratio: share of the image's shorter side that evaluation keeps.
    """

    variant: str
    image_size: int
    parameters: int
    published_top_1: float | None
    measured_top_1: float
    measured_top_5: float
    sha256: str | None = None
    license: str = "Apache-2.0"
    file: str = "model.safetensors"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop_ratio: float = 1.0

    @property
    def repository(self) -> str:
        """Repository on the Hugging Face hub."""
        name = f"cait_{self.variant.lower()}_{self.image_size}"
        return f"timm/{name}.fb_dist_in1k"


# Published accuracies: README_cait.md of facebookresearch/deit. Measured ones:
# results-imagenet.csv of huggingface/pytorch-image-models.
PRETRAINED = {
    (row.variant, row.image_size): row
    for row in (
        PretrainedWeights("XXS24", 224, 11_956_264, None, 78.400, 94.326),
        PretrainedWeights("XXS24", 384, 12_029_224, None, 80.954, 95.638),
        PretrainedWeights("XXS36", 224, 17_299_720, None, 79.750, 94.866),
        PretrainedWeights("XXS36", 384, 17_372_680, 82.2, 82.204, 96.148),
        PretrainedWeights("XS24", 384, 26_670_088, 84.1, 84.064, 96.888),
        PretrainedWeights(
            *("S24", 224, 46_916_200, 83.5, 83.484, 96.586),
            sha256="ec4c0b0e1851c9b1850709caf5cbbcb0"
            "ecf121efb4317eedd99ceb0e0e0f4ddb",
        ),
        PretrainedWeights("S24", 384, 47_062_120, 85.1, 85.048, 97.350),
        PretrainedWeights("S36", 384, 68_366_632, 85.4, 85.458, 97.480),
        PretrainedWeights("M36", 384, 271_221_352, 86.1, 86.060, 97.732),
        PretrainedWeights(
            *("M48", 448, 356_460_520, 86.5, 86.480, 97.748),
            sha256="460cbe2667f0208bd39ea38f981e5d83"
            "b41bfec33ed8cefab3460ae65f4788ed",
        ),
    )
}


def nearest_pretrained(
    variant: str, image_size: tuple[int, int]
) -> PretrainedWeights:
    """Finds the published weights of a variant by image size.

    Args:
        variant: key of `VARIANTS`.
        image_size: height and width in pixels.

    Returns:
        The row whose size is nearest. Ties go to the larger one.

    Raises:
        ValueError: this variant has no published weights.

    Example:
    >>> nearest_pretrained("S24", (320, 320)).image_size
    384
    """
    rows = [row for row in PRETRAINED.values() if row.variant == variant]
    if not rows:
        published = dict.fromkeys(name for name, _ in PRETRAINED)
        raise ValueError(
            f"CaiT_{variant} has no published weights. Received: "
            'weights="imagenet". Use weights=None, the path of a file, or '
            f"one of the published variants: {', '.join(published)}."
        )
    side = math.sqrt(math.prod(image_size))
    return min(
        rows, key=lambda row: (abs(row.image_size - side), -row.image_size)
    )
