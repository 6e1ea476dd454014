"""The distributions sampled from, against plain numpy; transformers' own stand in test_parity."""

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis.extra.numpy import arrays

from gpt1_jax.generation.processors import keep_top, temper

LOGITS = arrays(np.float32, (2, 9), elements=st.integers(-40, 40).map(lambda n: n / 4))


def keep(logits: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    return np.asarray(keep_top(jnp.asarray(logits), jnp.int32(top_k), jnp.float32(top_p)))


@given(logits=LOGITS, top_k=st.integers(1, 9))
def test_top_k_keeps_the_k_likeliest_and_their_equals(logits: np.ndarray, top_k: int) -> None:
    kept = keep(logits, top_k, 1.0)
    for row, got in zip(logits, kept, strict=True):
        least = np.sort(row)[-top_k]
        np.testing.assert_array_equal(got, np.where(row >= least, row, -np.inf))


@given(logits=LOGITS, top_k=st.integers(1, 9), top_p=st.floats(0.01, 1))
def test_top_p_keeps_the_fewest_tokens_of_that_probability(
    logits: np.ndarray, top_k: int, top_p: float
) -> None:
    kept = keep(logits, top_k, top_p)
    for row, got in zip(logits.astype(np.float64), kept, strict=True):
        among = np.where(row >= np.sort(row)[-top_k], row, -np.inf)
        is_kept = np.isfinite(got)
        assert is_kept.any()
        assert is_kept[row == row.max()].all()
        assert not is_kept[row < row[is_kept].min()].any()
        # Exactly k of the tokens at the k-th place count, as Hugging Face's sorting has it.
        ranked = np.sort(among)[-top_k:]
        p = np.exp(ranked - ranked.max())
        p = (p / p.sum())[::-1]
        needed = int(np.searchsorted(np.cumsum(p), top_p - 1e-6)) + 1
        least = ranked[::-1][min(needed, top_k) - 1]
        slack = int(np.searchsorted(np.cumsum(p), top_p + 1e-6)) + 1
        lowest = ranked[::-1][min(slack, top_k) - 1]
        assert lowest <= row[is_kept].min() <= least


def test_nothing_is_removed_by_the_neutral_settings() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    np.testing.assert_array_equal(keep(logits, 50, 1.0), logits)


def test_temperature_divides() -> None:
    np.testing.assert_array_equal(temper(jnp.array([[2.0, -4.0]]), jnp.float32(2)), [[1, -2]])
