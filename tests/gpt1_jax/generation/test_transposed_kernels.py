"""Decoding with turned kernels, and what is kept of them."""

import gc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.small_models import small_model

import gpt1_jax as gpt1
from gpt1_jax.generation import transposed_kernels
from gpt1_jax.generation.transposed_kernels import as_turned, pays, turned
from gpt1_jax.nn.matmul import FEW
from gpt1_jax.pretrained import flatten
from gpt1_jax.pure import merge, split

pytestmark = pytest.mark.unoptimized

IDS = np.array([[1, 5, 2], [3, 3, 9]], np.int32)


def test_the_model_is_the_same() -> None:
    model = small_model(gpt1.OpenAIGPTLMHeadModel)
    graphdef, params = split(model)
    changed = turned(model, params)
    for path, leaf in flatten(params).items():
        expected = leaf.T if path[1] == "h" and path[-1] == "kernel" else leaf
        np.testing.assert_array_equal(flatten(changed)[path], expected)
    found: Any = jax.jit(lambda params: as_turned(merge(graphdef, params))(IDS).logits)(changed)
    expected: Any = model(IDS).logits
    # Measured: 5.4e-7.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}])
def test_generation_turns_and_writes_the_same(
    options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(gpt1.OpenAIGPTLMHeadModel, n_positions=16)
    ids = gpt1.generate(model, IDS, max_new_tokens=5, **options)
    assert model in transposed_kernels._kept
    for module in ("decode", "beam"):
        monkeypatch.setattr(f"gpt1_jax.generation.{module}.pays", lambda *args, **rest: False)
    np.testing.assert_array_equal(gpt1.generate(model, IDS, max_new_tokens=5, **options), ids)


def test_kernels_are_turned_again_where_they_changed() -> None:
    model = small_model(gpt1.OpenAIGPTLMHeadModel)
    first = flatten(turned(model, split(model)[1]))
    again = flatten(turned(model, split(model)[1]))
    assert all(again[path] is leaf for path, leaf in first.items())
    model.load_params(jax.tree.map(lambda leaf: leaf + 1, model.params))
    for path, leaf in flatten(turned(model, split(model)[1])).items():
        np.testing.assert_array_equal(leaf, first[path] + 1)


def test_nothing_is_kept_of_a_model_that_is_gone() -> None:
    model = small_model(gpt1.OpenAIGPTLMHeadModel)
    before = len(transposed_kernels._kept)
    turned(model, split(model)[1])
    assert len(transposed_kernels._kept) == before + 1
    del model
    gc.collect()
    assert len(transposed_kernels._kept) == before


def test_when_it_pays() -> None:
    model = small_model(gpt1.OpenAIGPTLMHeadModel)
    rows = (1, 2, FEW, FEW + 1)
    assert [pays(model, model.params, n) for n in rows] == [False, True, True, False]
    half = small_model(gpt1.OpenAIGPTLMHeadModel, dtype=jnp.bfloat16)
    assert not pays(half, half.params, 2)
