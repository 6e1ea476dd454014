"""Texts longer than the model's positions: ``sliding_window`` against plain Python."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from support.small_models import small_model

import gpt1_jax as gpt1

V, N, NEW = 29, 40, 90


@pytest.fixture(scope="module")
def model() -> gpt1.OpenAIGPTLMHeadModel:
    return small_model(gpt1.OpenAIGPTLMHeadModel, vocab_size=V, n_positions=N, n_embd=12)


def remembered(prompt: int, new: int, window: int) -> list[tuple[int, int]]:
    """From where to where the model sees a text of so many tokens, when it chooses each new one."""
    places, start = [], 0
    for length in range(prompt, prompt + new):
        if length - start > N:
            start = length - window
        places.append((start, length))
    return places


def test_sliding_window_reference_matches_examples() -> None:
    """The rule in numbers: a text that fills all positions is cut before it is gone on with."""
    assert remembered(39, 4, 30) == [(0, 39), (0, 40), (11, 41), (11, 42)]
    # With a window of all positions one token is forgotten at a time, with one less two.
    assert remembered(39, 4, 40) == [(0, 39), (0, 40), (1, 41), (2, 42)]
    assert remembered(39, 5, 39) == [(0, 39), (0, 40), (2, 41), (2, 42), (4, 43)]
    assert remembered(39, 4, 1) == [(0, 39), (0, 40), (40, 41), (40, 42)]
    # A prompt that is too long is cut at once.
    assert remembered(60, 2, 30) == [(30, 60), (30, 61)]


def expected_log_probs(model: Any, text: list[int], prompt: int, window: int) -> np.ndarray:
    """(new, V) the model's, for every new token of a text, by full forwards."""
    places = remembered(prompt, len(text) - prompt, window)
    ids = np.zeros((NEW, N), np.int32)
    for row, (start, length) in zip(ids, places, strict=False):
        row[: length - start] = text[start:length]
    apply, params = gpt1.functional(model)
    logits = np.asarray(apply(params, ids).logits, np.float64)
    logits = np.stack([logits[i, end - start - 1] for i, (start, end) in enumerate(places)])
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


prompts = st.lists(
    st.lists(st.integers(0, V - 1), min_size=2, max_size=64), min_size=3, max_size=3
).filter(lambda rows: len(set(map(len, rows))) > 1)


@pytest.mark.nightly
@given(
    rows=prompts,
    window=st.sampled_from([1, 2, 20, 31, 32, 33, 39, 40]),
    do_sample=st.booleans(),
    ngram=st.sampled_from([0, 2, 3]),
    eos=st.none() | st.integers(0, V - 1),
)
@settings(max_examples=15)
def test_sliding_window_matches_full_forwards(
    model: Any, rows: list[list[int]], window: int, do_sample: bool, ngram: int, eos: int | None
) -> None:
    """Which see the window only, as do the rules: a sequence that is forgotten may come again."""
    out = gpt1.generate(
        model,
        rows,
        max_new_tokens=NEW,
        sliding_window=window,
        do_sample=do_sample,
        no_repeat_ngram_size=ngram,
        eos_token_id=eos,
        forced_bos_token_id=5,  # follows a prompt of one token, not any text of one
        return_dict_in_generate=True,
    )
    for row, prompt, got in zip(out.sequences, rows, out.log_probs, strict=True):
        text, T = row.tolist(), len(prompt)
        assert text[:T] == prompt
        new = text[T:]
        assert len(new) == NEW or new.index(eos) == len(new) - 1
        expected = expected_log_probs(model, text, T, window)
        chosen = expected[np.arange(len(new)), new]
        np.testing.assert_allclose(got, chosen, atol=5e-5)  # measured: 6.7e-6
        for i, (start, length) in enumerate(remembered(T, len(new), window)):
            if i == 0 and length - start == 1:  # a prompt of which one token is left
                assert new[0] == 5
                continue
            banned = repeats(text[start:length], ngram)
            assert new[i] not in banned
            allowed = [token for token in range(V) if token not in banned]
            # Up to rounding the likeliest.
            assert do_sample or chosen[i] > expected[i, allowed].max() - 1e-4


def repeats(text: list[int], size: int) -> set[int]:
    """Tokens that would complete a sequence of so many a second time."""
    if not size or len(text) < size:
        return set()
    last = text[len(text) - size + 1 :]
    starts = range(len(text) - size + 1)
    return {text[i + size - 1] for i in starts if text[i : i + size - 1] == last}


def test_generate_rejects_long_text_without_sliding_window(model: Any) -> None:
    with pytest.raises(
        ValueError, match=r"30 tokens and max_new_tokens = 12 .*sliding_window = 20"
    ):
        gpt1.generate(model, [[1] * 30], max_new_tokens=12)
    with pytest.raises(ValueError, match="sliding_window is 41, but must be at most 40"):
        gpt1.generate(model, [[1] * 30], max_new_tokens=11, sliding_window=41)
