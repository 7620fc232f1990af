"""Servers older than the TensorFlow that exported run its versions."""

import sys

import numpy as np
import pytest

from benchmarks import image_files
from export.check_saved_model import LARGEST_BATCH, run_signatures
from export.serving.configuration import SERVER
from export.serving.manifest import OLDEST_TENSORFLOW
from export.serving.model_folder import write_version
from tests.helpers.environments import make_environment

LABELS = [f"class {i}" for i in range(5)]


@pytest.mark.large
@pytest.mark.parametrize(
    "tensorflow",
    [
        pytest.param(
            OLDEST_TENSORFLOW,
            marks=pytest.mark.skipif(
                sys.version_info >= (3, 13), reason="it needs an older Python"
            ),
        ),
        SERVER,
    ],
)
def test_an_older_tensorflow_runs_exports(tensorflow, small_model, tmp_path):
    version = write_version(small_model, LABELS, tmp_path / "cait")
    programs = make_environment(
        tmp_path / "venv",
        [f"tensorflow-cpu=={tensorflow}"],
        ["--no-deps", f"tensorflow-serving-api=={tensorflow}"],
    )
    images = [
        image_files.encode(image_files.example(seed=seed), kind)
        for seed in range(LARGEST_BATCH // 2)
        for kind in ("PNG", "JPEG")
    ]
    expected = run_signatures(version, images)
    found = run_signatures(version, images, str(programs / "python"))
    for name, array in expected.items():
        if array.dtype.kind == "S":
            np.testing.assert_array_equal(found[name], array, name)
        else:
            np.testing.assert_allclose(
                found[name], array, rtol=0, atol=1e-5, err_msg=name
            )
