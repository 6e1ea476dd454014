"""What transformers makes of a folder with int8 weights: an error, never floats out of integers."""

from pathlib import Path
from typing import Any

import pytest
from support.small_models import MODELS, small_model

import conversion
import gpt1_jax as gpt1
from gpt1_jax.pretrained import saved_config

transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("torch")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("cls", MODELS)
def test_transformers_refuses_int8_weights(cls: Any, tmp_path: Path) -> None:
    gpt1.quantize(small_model(cls)).save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        getattr(transformers, cls.__name__).from_pretrained(tmp_path)


def test_to_torch_rejects_int8_weights() -> None:
    model = gpt1.quantize(small_model(gpt1.OpenAIGPTLMHeadModel))
    with pytest.raises(
        ValueError, match="the weights are int8, and a torch module takes floats alone"
    ):
        conversion.to_torch(saved_config(model), model.params)
