"""What torch gave, where torch is not installed: golden/make.py made the values."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from golden.weights import CONFIG, INPUTS, random_params

import conversion
import gpt1_jax as gpt1
from gpt1_jax.pretrained import OpenAIGPTPreTrainedModel, flatten

pytestmark = pytest.mark.optimized

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden.json").read_text())
TOLERANCE = 2e-6  # relative to the largest value; measured: 4.0e-7


def model_of(architecture: str) -> OpenAIGPTPreTrainedModel:
    cls: type[OpenAIGPTPreTrainedModel] = getattr(gpt1, architecture)
    config = gpt1.OpenAIGPTConfig.from_dict(CONFIG)
    model = nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0)))
    model.load_params(random_params(architecture))
    return model


@pytest.mark.smoke
@pytest.mark.parametrize("architecture", conversion.ARCHITECTURES)
def test_model_outputs_and_gradients_match_golden_values(architecture: str) -> None:
    apply, params = gpt1.functional(model_of(architecture))
    arguments = {name: np.asarray(value) for name, value in INPUTS[architecture].items()}
    out = apply(params, **arguments, output_hidden_states=True, output_attentions=True)
    got = {"last_state": out.hidden_states[-1], "attention": out.attentions[-1]}
    for name in ("loss", "mc_loss", "logits", "mc_logits"):
        if getattr(out, name, None) is not None:
            got[name] = getattr(out, name)
    if "loss" in got:
        gradients = flatten(jax.grad(total_loss, argnums=1)(apply, params, arguments))
        names = {row.torch: row.path for row in conversion.param_specs(CONFIG, architecture)}
        got["gradient_norms"] = np.stack(
            [np.linalg.norm(gradients[names[name]]) for name in sorted(names)]
        )
    golden = GOLDEN[architecture]
    assert got.keys() == golden.keys()
    for name, value in got.items():
        expected = np.reshape(golden[name]["values"], golden[name]["shape"])
        value = np.asarray(value).reshape(expected.shape)  # Hugging Face flattens choices
        difference = np.abs(value - expected).max() / max(1, np.abs(expected).max())
        assert difference <= TOLERANCE, name


def total_loss(apply: Any, params: Any, arguments: dict[str, Any]) -> jax.Array:
    out = apply(params, **arguments)
    return out.loss + getattr(out, "mc_loss", 0)


@pytest.mark.smoke
def test_generate_greedy_matches_golden_ids() -> None:
    model = model_of("OpenAIGPTLMHeadModel")
    assert isinstance(model, gpt1.OpenAIGPTLMHeadModel)
    expected = GOLDEN["greedy"]
    got = gpt1.generate(model, [expected[:3]], max_new_tokens=len(expected) - 3)
    np.testing.assert_array_equal(got, [expected])
