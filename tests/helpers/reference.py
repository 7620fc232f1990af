"""The recorded numbers of timm, DeiT and TensorFlow Addons."""

import json
from pathlib import Path

import numpy as np

REFERENCE = Path(__file__).parent.parent / "reference"
IMAGES = sorted((REFERENCE / "preprocess").rglob("*.png"))
ENCODED = [file.read_bytes() for file in IMAGES]


def reference(name):
    """The recorded arrays of a reference case, and the description of it."""
    info = json.loads((REFERENCE / f"{name}.json").read_text())
    return info, dict(np.load(REFERENCE / f"{name}.npz"))
