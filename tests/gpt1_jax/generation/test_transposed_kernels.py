"""Decoding with transposed kernels, and what is kept of them."""

import gc
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.small_models import small_model

import gpt1_jax as gpt1
from gpt1_jax.generation import transposed_kernels
from gpt1_jax.generation.transposed_kernels import (
    should_transpose,
    transpose_kernels,
)
from gpt1_jax.nn.matmul import MAX_ROWS
from gpt1_jax.pretrained import flatten
from gpt1_jax.pure import merge, split

IDS = np.array([[1, 5, 2], [3, 3, 9]], np.int32)


def transposed(model: gpt1.OpenAIGPTLMHeadModel) -> Any:
    return transpose_kernels(model, *split(model))


@pytest.mark.nightly
def test_transposed_kernels_keep_model_outputs() -> None:
    model = small_model(gpt1.OpenAIGPTLMHeadModel)
    structure, changed = transposed(model)
    for path, leaf in flatten(model.params).items():
        expected = leaf.T if path[1] == "h" and path[-1] == "kernel" else leaf
        np.testing.assert_array_equal(flatten(changed)[path], expected)
    found: Any = jax.jit(lambda params: merge(structure, params)(IDS).logits)(changed)
    expected: Any = model(IDS).logits
    # Measured: 5.4e-7.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@pytest.mark.nightly
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}])
def test_generate_transposes_without_changing_output(
    options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(transposed_kernels.VARIABLE, "always")
    model = small_model(gpt1.OpenAIGPTLMHeadModel, n_positions=16)
    ids = gpt1.generate(model, IDS, max_new_tokens=5, **options)
    assert model in transposed_kernels._kept
    monkeypatch.setenv(transposed_kernels.VARIABLE, "never")
    np.testing.assert_array_equal(gpt1.generate(model, IDS, max_new_tokens=5, **options), ids)


def test_transposed_kernels_follow_model_changes() -> None:
    model = small_model(gpt1.OpenAIGPTLMHeadModel)
    structure, first = transposed(model)
    same, again = transposed(model)
    first = flatten(first)
    assert same is structure
    assert all(flatten(again)[path] is leaf for path, leaf in first.items())
    model.load_params(jax.tree.map(lambda leaf: leaf + 1, model.params))
    same, again = transposed(model)
    assert same is structure
    for path, leaf in flatten(again).items():
        np.testing.assert_array_equal(leaf, first[path] + 1)
    model.transformer.h[0].attn.resid_dropout.rate = 0.5
    assert transposed(model)[0] != structure


def test_transposed_kernels_are_freed_with_the_model() -> None:
    gc.collect()  # models of earlier tests
    model = small_model(gpt1.OpenAIGPTLMHeadModel)
    before = len(transposed_kernels._kept)
    transposed(model)
    assert len(transposed_kernels._kept) == before + 1
    del model
    gc.collect()
    assert len(transposed_kernels._kept) == before


def test_should_transpose_depends_on_rows_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transposed_kernels, "_processor_gains", lambda: True)
    model = small_model(gpt1.OpenAIGPTLMHeadModel)
    rows = (1, 2, MAX_ROWS, MAX_ROWS + 1)
    assert [should_transpose(model, n) for n in rows] == [False, True, True, False]
    half = small_model(gpt1.OpenAIGPTLMHeadModel, dtype=jnp.bfloat16)
    assert not should_transpose(half, 2)


def test_should_transpose_obeys_processor_and_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = small_model(gpt1.OpenAIGPTLMHeadModel)
    gains = transposed_kernels._processor_gains
    amd = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: {}\nmodel\t\t: 17\n"
    for family, expected in ((25, True), (26, False)):
        file = tmp_path / str(family)
        file.write_text(amd.format(family))
        assert gains(file) == expected
        monkeypatch.setattr(transposed_kernels, "_processor_gains", lambda file=file: gains(file))
        assert should_transpose(model, 2) == expected
        for choice, decided in (("auto", expected), ("always", True), ("never", False)):
            monkeypatch.setenv(transposed_kernels.VARIABLE, choice)
            assert should_transpose(model, 2) == decided
        monkeypatch.delenv(transposed_kernels.VARIABLE)
    assert gains(tmp_path / "none")
    monkeypatch.setenv(transposed_kernels.VARIABLE, "yes")
    with pytest.raises(ValueError, match="GPT1_TRANSPOSED_KERNELS is 'yes', but must be one of au"):
        gpt1.generate(model, IDS, max_new_tokens=1)
