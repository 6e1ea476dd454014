"""Windows over a text, and the measures of a model on it against plain numpy in float64."""

import math
from typing import Any

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given
from support.small_models import SIZES, numpy_logits, random_ids, small_model

import gpt1_jax as gpt1
from gpt1_jax.pure import split
from gpt1_jax.training.data.corpus import TokenizedText
from gpt1_jax.training.perplexity import text_measures, windows

T = SIZES["n_positions"]
MODEL = small_model(gpt1.OpenAIGPTLMHeadModel)
PARAMS = split(MODEL)[1]


def text_of(ids: np.ndarray, characters: int = 100) -> TokenizedText:
    return TokenizedText(ids.astype(np.uint16), characters, ("some.txt",))


def measures(ids: np.ndarray, **fields: Any) -> dict[str, float]:
    return text_measures(MODEL, text_of(ids), **fields)(PARAMS)


def numpy_losses(ids: np.ndarray) -> np.ndarray:
    """The cross-entropies of all tokens but the first, in nats: (N,) -> (N - 1,)."""
    logits = numpy_logits(PARAMS, ids[None, :-1])[0]
    logits -= logits.max(axis=-1, keepdims=True)
    at_labels = np.take_along_axis(logits, ids[1:, None], axis=-1)[:, 0]
    return np.log(np.exp(logits).sum(axis=-1)) - at_labels


@given(st.integers(2, 60), st.integers(1, 12), st.data())
def test_windows_predict_each_token_once(N: int, length: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, length))
    ids = np.random.default_rng(N).permutation(N).astype(np.uint16)  # each tells its place
    places = np.argsort(ids)
    predicted: list[int] = []
    for tokens, weights in windows(ids, length, stride):
        assert (tokens.shape, tokens.dtype) == ((length + 1,), np.int32)
        assert (weights.shape, weights.dtype) == ((length,), np.float32)
        new = np.flatnonzero(weights)
        assert set(weights[new]) == {1.0}
        assert 1 <= len(new) <= (stride if predicted else length)
        # What precedes a token in the window precedes it in the text, from the window's start on.
        used = tokens[: new[-1] + 2]
        start = int(places[used[0]])
        assert used.tolist() == ids[start : start + len(used)].tolist()
        # No context is given away: the window starts with the text, or is full.
        assert start == 0 or len(used) == length + 1
        assert not tokens[len(used) :].any()
        predicted += (start + 1 + new).tolist()
    assert predicted == list(range(1, N))


@pytest.mark.parametrize(("N", "stride"), [(2, None), (5, 1), (T, 3), (T + 1, T)])
def test_text_measures_single_window_matches_numpy(N: int, stride: int | None) -> None:
    """Even where it is shorter than the window, whatever the stride."""
    ids = random_ids(N, seed=N)
    expected = numpy_losses(ids).mean()
    # Measured: 9.9e-8.
    np.testing.assert_allclose(measures(ids, stride=stride)["loss"], expected, rtol=1e-6)


@pytest.mark.parametrize(("N", "batch_size"), [(T + 2, 8), (2 * T + 1, 1), (30, 3)])
def test_text_measures_disjoint_windows_match_numpy(N: int, batch_size: int) -> None:
    ids = random_ids(N, seed=N)
    # The last window reaches back for context.
    starts = range(0, N - 1, T)
    rows = [
        numpy_losses(ids[min(start, N - 1 - T) : start + T + 1])[-min(T, N - 1 - start) :]
        for start in starts
    ]
    expected = np.concatenate(rows)
    assert len(expected) == N - 1
    # Measured: 5.6e-8.
    found = measures(ids, batch_size=batch_size)
    np.testing.assert_allclose(found["loss"], expected.mean(), rtol=1e-6)


def test_text_measures_stride_one_gives_full_context() -> None:
    ids = random_ids(30)
    expected = [numpy_losses(ids[max(0, stop - T) : stop + 1])[-1] for stop in range(1, 30)]
    # Measured: 4.9e-8.
    np.testing.assert_allclose(measures(ids, stride=1)["loss"], np.mean(expected), rtol=1e-6)
    assert abs(measures(ids)["loss"] / np.mean(expected) - 1) > 1e-4  # less context tells


def test_text_measures_are_mutually_consistent() -> None:
    ids = random_ids(30)
    found = text_measures(MODEL, text_of(ids, characters=77), stride=3)(PARAMS)
    assert list(found) == ["loss", "perplexity", "bits_per_character"]
    assert all(type(value) is float for value in found.values())
    assert found["perplexity"] == math.exp(found["loss"])
    bits = 29 * found["loss"] / math.log(2)
    assert found["bits_per_character"] == pytest.approx(bits / 77, rel=1e-12)


def test_text_measures_use_given_parameters() -> None:
    measure = text_measures(MODEL, text_of(random_ids(30)))
    zeros = measure(jax.tree.map(np.zeros_like, PARAMS))
    # All tokens are as likely.
    assert zeros["perplexity"] == pytest.approx(SIZES["vocab_size"], rel=1e-6)
    assert measure(PARAMS)["perplexity"] != pytest.approx(SIZES["vocab_size"], rel=0.1)


def test_text_measures_perplexity_stays_finite() -> None:
    large = jax.tree.map(lambda leaf: 1e4 * leaf, PARAMS)
    found = text_measures(MODEL, text_of(random_ids(30)))(large)
    assert found["loss"] > 710
    assert math.isfinite(found["perplexity"])


def test_text_measures_disable_dropout() -> None:
    model = small_model(gpt1.OpenAIGPTLMHeadModel, embd_pdrop=0.5, attn_pdrop=0.5, resid_pdrop=0.5)
    ids = random_ids(30)
    assert text_measures(model, text_of(ids))(PARAMS) == measures(ids)


def test_text_measures_bfloat16_is_close_to_float32() -> None:
    model = small_model(gpt1.OpenAIGPTLMHeadModel, dtype="bfloat16")
    ids = random_ids(30)
    found = text_measures(model, text_of(ids))(PARAMS)["loss"]
    assert found != measures(ids)["loss"]
    assert found == pytest.approx(measures(ids)["loss"], rel=2e-3)  # measured: 1.0e-4


@pytest.mark.parametrize("stride", [0, -1, T + 1])
def test_text_measures_reject_invalid_stride(stride: int) -> None:
    message = rf"^stride is {stride}, but must be in \[1, 8\], n_positions being 8$"
    with pytest.raises(ValueError, match=message):
        measures(random_ids(30), stride=stride)


def test_text_measures_reject_invalid_batch_size() -> None:
    with pytest.raises(ValueError, match=r"^batch_size is 0, but must be at least 1$"):
        measures(random_ids(30), batch_size=0)


def test_text_measures_reject_single_token_text() -> None:
    with pytest.raises(ValueError, match=r"^some\.txt: one token is no text to predict$"):
        measures(random_ids(1))
