"""Generation against transformers: greedy ids of tiny models, and its own logits warpers."""

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

torch = pytest.importorskip("torch")
from torch_reference import flax_model, torch_model  # noqa: E402
from transformers.generation import logits_process  # noqa: E402

import gpt1_jax as gpt1  # noqa: E402
from gpt1_jax.generation.processors import keep_top, temper  # noqa: E402

SIZES = {"vocab_size": 31, "n_positions": 64, "n_layer": 2, "n_embd": 12, "n_head": 3}


@given(
    rows=st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=16), min_size=3, max_size=3),
    seed=st.integers(0, 3),
    new=st.integers(1, 16),
)
@settings(max_examples=20)
def test_greedy_ids_of_ragged_batches(rows: list[list[int]], seed: int, new: int) -> None:
    reference = torch_model("OpenAIGPTLMHeadModel", seed, **SIZES)
    got = gpt1.generate(flax_model(reference), rows, max_new_tokens=new)
    for row, prompt in zip(got, rows, strict=True):
        ids = torch.tensor([prompt])
        theirs = reference.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False
        )
        np.testing.assert_array_equal(row, theirs[0])


@given(
    seed=st.integers(0, 2**32 - 1),
    temperature=st.floats(0.1, 5),
    top_k=st.integers(1, 60),
    top_p=st.floats(0.01, 1),
)
@settings(max_examples=200)
def test_logits_that_are_sampled_from(
    seed: int, temperature: float, top_k: int, top_p: float
) -> None:
    logits = np.random.default_rng(seed).normal(size=(2, 50), scale=3).astype(np.float32)
    theirs = torch.from_numpy(logits)
    for warper in (
        logits_process.TemperatureLogitsWarper(temperature),
        logits_process.TopKLogitsWarper(top_k),
        logits_process.TopPLogitsWarper(top_p),
    ):
        theirs = warper(torch.zeros(2, 1, dtype=torch.int64), theirs)
    tempered = temper(jnp.asarray(logits), jnp.float32(temperature))
    ours = np.asarray(keep_top(tempered, jnp.int32(min(top_k, 50)), jnp.float32(top_p)))
    expected = theirs.numpy()
    # One token may differ where a sum of probabilities meets 1 - top_p within float32's rounding.
    for row in np.nonzero((np.isfinite(ours) != np.isfinite(expected)).any(axis=-1))[0]:
        order = np.sort(np.asarray(tempered)[row].astype(np.float64))[-min(top_k, 50) :]
        p = np.exp(order - order.max())
        sums = np.cumsum(p / p.sum())
        assert np.abs(sums - (1 - top_p)).min() < 1e-6
        expected[row] = ours[row]
    np.testing.assert_allclose(ours, expected, rtol=1e-6)  # measured: 1.2e-7, the division
