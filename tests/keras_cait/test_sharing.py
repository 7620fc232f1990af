"""Models are shared through the Hugging Face hub by Keras itself."""

import keras
import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from tests.helpers.hub import TOKEN, Hub, point_client_to
from tests.helpers.models import randomise, small


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with Hub({}) as hub:
        point_client_to(hub.address, tmp_path / "hub", monkeypatch)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_a_model_comes_back_from_the_hub(hub, images, dtype):
    model = randomise(small(dtype=dtype, drop_path_rate=0.1))
    model.save("hf://you/photos")
    assert {"config.json", "model.weights.h5", "README.md"} <= {
        name.removeprefix("you/photos/") for name in hub.files
    }
    again = keras.saving.load_model("hf://you/photos")
    assert type(again) is type(model)
    assert again.get_config() == model.get_config()
    for ours, theirs in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs, ours.path)
    np.testing.assert_array_equal(
        model.predict_on_batch(images), again.predict_on_batch(images)
    )


def test_nothing_is_shared_without_a_token(hub, small_model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(HfHubHTTPError, match="401"):
        small_model.save("hf://you/photos")
    assert not hub.files
