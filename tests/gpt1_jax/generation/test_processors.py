"""Laws of the rules, and plain Python for some; transformers' own are in test_processors_parity."""

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from gpt1_jax import GenerationConfig
from gpt1_jax.generation.processors import (
    DecodeContext,
    MinP,
    NoBadWords,
    NoRepeatNGram,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
    Typical,
    largest,
    process,
    processors,
    warpers,
)
from gpt1_jax.generation_config import SAMPLING

B, V, SLOTS = 2, 9, 12

# Quarters: sums and differences of them, and products with powers of two, are exact.
QUARTERS = arrays(np.float32, (B, V), elements=st.integers(-40, 40).map(lambda n: n / 4))
IMPOSSIBLE = arrays(
    np.float32, (B, V), elements=st.integers(-8, 8).map(lambda n: n / 4) | st.just(-np.inf)
).filter(lambda logits: bool(np.isfinite(logits).any(axis=1).all()))
LOGITS = QUARTERS | IMPOSSIBLE
PROBABILITIES = st.floats(0.01, 0.99) | st.sampled_from([0.125, 0.25, 0.5])
POWERS = st.sampled_from([0.125, 0.25, 0.5, 2.0, 4.0, 8.0])

apply = jax.jit(lambda rules, logits, context: process(rules, logits, context))


def context_of(tokens: Any, start: Any, length: int, new: int = 0) -> DecodeContext:
    fields = (np.asarray(value, np.int32) for value in (tokens, start, length, new))
    return DecodeContext(*fields)  # type: ignore[arg-type]


NO_TEXT = context_of(np.zeros((B, SLOTS)), [0] * B, 1)
CONTEXTS = st.builds(
    lambda tokens, length, starts: context_of(tokens, np.minimum(starts, length - 1), length),
    arrays(np.int32, (B, SLOTS), elements=st.integers(0, 3)),
    st.integers(1, SLOTS),
    arrays(np.int32, B, elements=st.integers(0, SLOTS - 1)),
)


def run(rule: Any, logits: Any, context: DecodeContext = NO_TEXT) -> np.ndarray:
    return np.asarray(apply((rule,), logits, context))


def kept(rule: Any, logits: Any, context: DecodeContext = NO_TEXT) -> np.ndarray:
    """(B, V) bool; what a mask keeps, it keeps as it is."""
    got = run(rule, logits, context)
    np.testing.assert_array_equal(got, np.where(np.isfinite(got), logits, -np.inf))
    return np.isfinite(got)


def scalar(value: Any, dtype: Any = np.float32) -> np.ndarray:
    return np.asarray(value, dtype)


def top_k(k: int) -> TopK:
    return TopK(scalar(k, np.int32))


def top_p(p: float, at_least: int = 1) -> TopP:
    return TopP(scalar(1 - p), scalar(at_least, np.int32))


def min_p(p: float, at_least: int = 1) -> MinP:
    return MinP(scalar(p), scalar(at_least, np.int32))


def typical(p: float, at_least: int = 1) -> Typical:
    return Typical(scalar(p), scalar(at_least, np.int32))


def text_of(context: DecodeContext, row: int) -> list[int]:
    tokens = np.asarray(context.tokens)[row]
    return tokens[int(context.start[row]) : int(context.length)].tolist()


def all_rules(asked: GenerationConfig) -> tuple[Any, ...]:
    return (*processors(asked, V), *warpers(asked, V))


@pytest.mark.nightly
@given(logits=LOGITS, context=CONTEXTS)
@settings(max_examples=50)
def test_processors_are_inactive_by_default(logits: np.ndarray, context: DecodeContext) -> None:
    rules = all_rules(GenerationConfig(do_sample=True, eos_token_id=3))
    np.testing.assert_array_equal(np.asarray(apply(rules, logits, context)), logits)
    assert not any(bool(rule.active(context)) for rule in rules)


@given(logits=LOGITS, p=PROBABILITIES, k=st.integers(1, V), at_least=st.integers(1, V))
@settings(max_examples=50)
def test_warpers_keep_min_tokens_and_the_likeliest(
    logits: np.ndarray, p: float, k: int, at_least: int
) -> None:
    possible = np.isfinite(logits).sum(axis=1)
    for rule in (top_p(p, at_least), min_p(p, at_least), typical(p, at_least)):
        counts = kept(rule, logits).sum(axis=1)
        assert (counts >= np.minimum(at_least, possible)).all()
    for rule in (top_k(k), top_p(p), min_p(p)):
        assert kept(rule, logits)[logits == logits.max(axis=1, keepdims=True)].all()


@given(logits=LOGITS, p=st.tuples(PROBABILITIES, PROBABILITIES).map(sorted))
@settings(max_examples=50)
def test_warpers_are_monotonic_in_p(logits: np.ndarray, p: list[float]) -> None:
    less, more = p
    assert (kept(top_p(more), logits) >= kept(top_p(less), logits)).all()
    assert (kept(typical(more), logits) >= kept(typical(less), logits)).all()
    assert (kept(min_p(more), logits) <= kept(min_p(less), logits)).all()


@given(logits=LOGITS, p=PROBABILITIES, at_least=st.integers(1, V - 1))
@settings(max_examples=50)
def test_warpers_are_monotonic_in_token_count(logits: np.ndarray, p: float, at_least: int) -> None:
    for make in (top_p, min_p, typical):
        more = kept(make(p, at_least + 1), logits)
        assert (more >= kept(make(p, at_least), logits)).all()
    assert (kept(top_k(at_least + 1), logits) >= kept(top_k(at_least), logits)).all()


@given(logits=LOGITS, p=PROBABILITIES, k=st.integers(1, V), at_least=st.integers(1, V))
@settings(max_examples=50)
def test_warpers_keep_or_drop_ties_together(
    logits: np.ndarray, p: float, k: int, at_least: int
) -> None:
    """Ties stay or go together, for all four; three of them keep the likeliest."""
    for rule in (top_k(k), top_p(p, at_least), min_p(p, at_least)):
        for row, stays in zip(logits, kept(rule, logits), strict=True):
            assert stays[row >= row[stays].min()].all()
    for row, stays in zip(logits, kept(typical(p, at_least), logits), strict=True):
        np.testing.assert_array_equal(stays, np.isin(row, row[stays]))


@given(logits=LOGITS, shift=st.integers(-40, 40), p=PROBABILITIES, k=st.integers(1, V))
@settings(max_examples=50)
def test_warpers_are_invariant_to_logit_shift(
    logits: np.ndarray, shift: int, p: float, k: int
) -> None:
    for rule in (top_k(k), top_p(p), min_p(p), typical(p)):
        np.testing.assert_array_equal(kept(rule, logits + np.float32(shift)), kept(rule, logits))


@given(logits=LOGITS, order=st.permutations(range(V)), k=st.integers(1, V))
@settings(max_examples=50)
def test_top_k_is_invariant_to_vocabulary_order(
    logits: np.ndarray, order: list[int], k: int
) -> None:
    # The sums of the others take another order too, and may round otherwise.
    np.testing.assert_array_equal(run(top_k(k), logits[:, order]), run(top_k(k), logits)[:, order])


@given(logits=LOGITS, k=st.integers(1, V))
@settings(max_examples=50)
def test_top_k_keeps_k_likeliest_and_ties(logits: np.ndarray, k: int) -> None:
    for row, got in zip(logits, run(top_k(k), logits), strict=True):
        np.testing.assert_array_equal(got, np.where(row >= np.sort(row)[-k], row, -np.inf))


@given(
    x=arrays(np.float32, (3, 7), elements=st.floats(width=32, allow_nan=False)),
    k=st.integers(1, 7),
)
@settings(max_examples=100)
def test_largest_returns_kth_largest_value(x: np.ndarray, k: int) -> None:
    """Found by bisection over the order of all floats: subnormal and infinite ones too."""
    got = np.asarray(jax.jit(largest)(x, np.int32(k)))
    expected = np.sort(x, axis=1)[:, [-k]]
    # XLA takes subnormal numbers for zero, and -0 equals 0.
    tiny = np.finfo(np.float32).tiny
    np.testing.assert_array_equal(
        np.where(np.abs(got) < tiny, 0, got), np.where(np.abs(expected) < tiny, 0, expected)
    )


@given(logits=QUARTERS, p=PROBABILITIES, at_least=st.integers(1, V))
@settings(max_examples=50)
def test_top_p_keeps_fewest_tokens_reaching_p(logits: np.ndarray, p: float, at_least: int) -> None:
    for row, stays in zip(logits, kept(top_p(p, at_least), logits), strict=True):
        weights = np.exp(row.astype(np.float64) - row.max())
        weights /= weights.sum()
        least = row[stays].min()
        assert weights[row >= least].sum() >= p - 1e-6
        # Without the least likely ones it would be too few.
        assert weights[row > least].sum() < p + 1e-6 or (row > least).sum() < at_least


@given(logits=QUARTERS, p=PROBABILITIES)
@settings(max_examples=50)
def test_min_p_compares_ratio_to_likeliest_token(logits: np.ndarray, p: float) -> None:
    for row, stays in zip(logits, kept(min_p(p), logits), strict=True):
        ratio = np.exp(row.astype(np.float64) - row.max())
        near = np.abs(ratio - p) < 1e-6
        np.testing.assert_array_equal(stays[~near], (ratio >= p)[~near])


@given(logits=LOGITS)
@settings(max_examples=50)
def test_min_p_of_one_keeps_likeliest_and_ties(logits: np.ndarray) -> None:
    np.testing.assert_array_equal(
        kept(min_p(1), logits), logits == logits.max(axis=1, keepdims=True)
    )


def test_min_p_keeps_likeliest_when_probabilities_underflow() -> None:
    """Transformers takes any of those whose probability is 0 in float32."""
    logits = np.array([[-300.0, 5, -200, -250, -400, -400, -400, -400, -400]] * B, np.float32)
    np.testing.assert_array_equal(np.flatnonzero(kept(min_p(0.5, 3), logits)[0]), [1, 2, 3])


@given(logits=QUARTERS, p=PROBABILITIES)
@settings(max_examples=50)
def test_typical_p_keeps_most_typical_tokens_reaching_p(logits: np.ndarray, p: float) -> None:
    for row, stays in zip(logits, kept(typical(p), logits), strict=True):
        log_p = row - row.max() - np.log(np.exp(row.astype(np.float64) - row.max()).sum())
        weights = np.exp(log_p)
        distance = np.abs(log_p - (weights * log_p).sum())
        farthest = distance[stays].max()
        assert (distance[~stays] >= farthest - 1e-5).all()
        assert weights[distance <= farthest + 1e-5].sum() >= p - 1e-5
        assert weights[distance < farthest - 1e-5].sum() < p + 1e-5


@given(logits=LOGITS, a=POWERS, b=POWERS)
@settings(max_examples=50)
def test_temperature_divides_logits(logits: np.ndarray, a: float, b: float) -> None:
    at = Temperature(scalar(a)), Temperature(scalar(b))
    np.testing.assert_array_equal(run(at[0], logits), logits / np.float32(a))
    both = np.asarray(apply(at, logits, NO_TEXT))
    np.testing.assert_array_equal(both, run(Temperature(scalar(a * b)), logits))


@given(logits=LOGITS, context=CONTEXTS, penalty=POWERS, scale=POWERS)
@settings(max_examples=50)
def test_repetition_penalty_applies_to_seen_tokens(
    logits: np.ndarray, context: DecodeContext, penalty: float, scale: float
) -> None:
    rule = RepetitionPenalty(scalar(penalty))
    got = run(rule, logits, context)
    for i, (row, penalized) in enumerate(zip(logits, got, strict=True)):
        seen = np.isin(np.arange(V), text_of(context, i))
        expected = np.where(row < 0, row * penalty, row / penalty)
        np.testing.assert_array_equal(penalized, np.where(seen, expected, row))
        assert ((penalized <= row) if penalty > 1 else (penalized >= row)).all()
    np.testing.assert_array_equal(run(RepetitionPenalty(scalar(1 / penalty)), got, context), logits)
    scaled = run(rule, logits * np.float32(scale), context)
    np.testing.assert_array_equal(scaled, got * np.float32(scale))


def repeats(text: list[int], size: int) -> set[int]:
    """Plain Python: tokens that would complete a sequence of so many a second time."""
    if len(text) < size:
        return set()
    last = text[len(text) - size + 1 :]
    return {
        text[i + size - 1] for i in range(len(text) - size + 1) if text[i : i + size - 1] == last
    }


@given(context=CONTEXTS, size=st.integers(1, SLOTS + 2))
@settings(max_examples=100)
def test_no_repeat_ngram_bans_repeated_ngrams(context: DecodeContext, size: int) -> None:
    stays = kept(NoRepeatNGram(scalar(size, np.int32)), np.zeros((B, V), np.float32), context)
    for i, row in enumerate(stays):
        assert set(np.flatnonzero(~row)) == repeats(text_of(context, i), size)


words = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=20)


@given(context=CONTEXTS, words=words)
@settings(max_examples=100)
def test_no_bad_words_bans_completing_tokens(
    context: DecodeContext, words: list[list[int]]
) -> None:
    stays = kept(NoBadWords.build(words, V), np.zeros((B, V), np.float32), context)
    for i, row in enumerate(stays):
        text = text_of(context, i)
        banned = {w[-1] for w in words if w[:-1] == text[len(text) - len(w) + 1 :]}
        assert set(np.flatnonzero(~row)) == banned


def test_no_bad_words_does_not_match_padding() -> None:
    context = context_of([[1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0]] * B, [0, 1], 3)
    stays = kept(NoBadWords.build([[1, 2, 3, 4]], V), np.zeros((B, V), np.float32), context)
    np.testing.assert_array_equal(stays[0], np.arange(V) != 4)
    assert stays[1].all()


def test_no_bad_words_handles_long_and_many_words() -> None:
    text = list(range(4)) * 3
    context = context_of([text] * B, [0] * B, SLOTS)
    fitting = [[*text[-n:], 4 + n % 4] for n in range(1, SLOTS + 1)]
    too_long = [[0, *text, 8], [3] * 40]
    rule = NoBadWords.build([*fitting, *too_long, *([[1, 1]] * 9)], V)
    assert rule.words.shape == (32, 64)
    stays = kept(rule, np.zeros((B, V), np.float32), context)
    assert set(np.flatnonzero(~stays[0])) == {4, 5, 6, 7}


@given(asked=st.data(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_processors_hold_for_the_whole_text(asked: Any, seed: int) -> None:
    """From start to end: no sequence twice, no bad word, no end too early, and the forced ones."""
    rng = np.random.default_rng(seed)
    size, least = asked.draw(st.integers(2, 3)), asked.draw(st.integers(1, 5))
    bad = asked.draw(st.lists(st.integers(0, V - 1), min_size=2, max_size=2))
    rules = processors(
        GenerationConfig(
            max_new_tokens=SLOTS - 1,
            no_repeat_ngram_size=size,
            min_new_tokens=least,
            bad_words_ids=[bad],
            suppress_tokens=[7],
            forced_bos_token_id=5,
            forced_eos_token_id=6,
            eos_token_id=8,
        ),
        V,
    )
    tokens = np.zeros((B, SLOTS), np.int32)
    for n in range(SLOTS - 1):
        context = context_of(tokens, [0] * B, n + 1, n)
        logits = rng.normal(size=(B, V)).astype(np.float32)
        tokens[:, n + 1] = np.asarray(apply(rules, logits, context)).argmax(axis=1)
    for text in tokens.tolist():
        assert (text[1], text[-1]) == (5, 6)
        free = text[:-1]  # the last one is forced, whatever it repeats
        ngrams = list(zip(*(free[i:] for i in range(size)), strict=False))
        assert len(set(ngrams)) == len(ngrams)
        assert all(free[i : i + 2] != bad for i in range(1, len(free) - 1))
        assert 8 not in free[: least + 1]
        assert 7 not in text


def test_forced_bos_requires_one_token_prompt() -> None:
    """Not the one token that sliding_window = 1 leaves of a text."""
    rule = processors(GenerationConfig(forced_bos_token_id=5), V)
    logits = np.zeros((B, V), np.float32)
    first = np.asarray(apply(rule, logits, context_of(np.zeros((B, SLOTS)), [3, 2], 4)))
    np.testing.assert_array_equal(np.isfinite(first).sum(axis=1), [1, V])
    later = np.asarray(apply(rule, logits, context_of(np.zeros((B, SLOTS)), [3, 2], 4, new=3)))
    np.testing.assert_array_equal(later, logits)


def test_no_repeat_ngram_is_inactive_beyond_text_length() -> None:
    """A size beyond the text is not looped over, however large."""
    asked = GenerationConfig(no_repeat_ngram_size=2**20)
    context = context_of(np.zeros((B, SLOTS)), [0] * B, SLOTS)
    assert not any(bool(rule.active(context)) for rule in processors(asked, V))


@given(logits=LOGITS, context=CONTEXTS, data=st.data())
@settings(max_examples=60)
def test_processors_ignore_padding(logits: np.ndarray, context: DecodeContext, data: Any) -> None:
    fields: dict[str, Any] = {
        "no_repeat_ngram_size": data.draw(st.integers(1, 4)),
        "bad_words_ids": data.draw(words),
        "repetition_penalty": data.draw(POWERS),
        "forced_bos_token_id": data.draw(st.none() | st.integers(0, V - 1)),
    }
    rules = processors(GenerationConfig(**fields), V)
    both = np.asarray(apply(rules, logits, context))
    for i in range(B):
        text = text_of(context, i)
        alone = context_of([text + [0] * (SLOTS - len(text))] * B, [0] * B, len(text))
        np.testing.assert_array_equal(np.asarray(apply(rules, logits[[i] * B], alone))[i], both[i])


SETTINGS: dict[str, Callable[[int], dict[str, Any]]] = {
    "repetition_penalty": lambda n: {"repetition_penalty": 0.5 + n},
    "no_repeat_ngram_size": lambda n: {"no_repeat_ngram_size": n},
    "bad_words_ids": lambda n: {"bad_words_ids": [[n], [1] * n] * n},
    "min_new_tokens": lambda n: {"min_new_tokens": n, "eos_token_id": [0] * n},
    "forced_bos_token_id": lambda n: {"forced_bos_token_id": n or None},
    "forced_eos_token_id": lambda n: {"forced_eos_token_id": [n] * n, "max_new_tokens": 9 + n},
    "suppress_tokens": lambda n: {"suppress_tokens": [n] * n},
    "temperature": lambda n: {"temperature": 0.5 + n},
    "top_k": lambda n: {"top_k": n or None},
    "top_p": lambda n: {"top_p": 1 - n / 10},
    "min_p": lambda n: {"min_p": n / 10},
    "typical_p": lambda n: {"typical_p": 1 - n / 10},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_call_with_a_rule_is_not_plain(name: str) -> None:
    drawn = name in SAMPLING
    assert GenerationConfig(eos_token_id=3, pad_token_id=2, max_new_tokens=7).is_plain
    assert not GenerationConfig(do_sample=drawn, **SETTINGS[name](1)).is_plain


def test_processors_do_not_recompile_for_new_values() -> None:
    """All rules in one function, which each of these would compile anew if it were not traced."""
    apply: Any = jax.jit(lambda rules, logits, context: process(rules, logits, context))
    logits = np.zeros((B, V), np.float32)
    for number, make in enumerate(SETTINGS.values()):
        for n in range(1, 4):
            asked = GenerationConfig(do_sample=True, num_beams=1 + number % 2, **make(n))
            apply(all_rules(asked), logits, context_of(np.zeros((B, SLOTS)), [0] * B, n, n))
    assert apply._cache_size() == 1


@pytest.mark.parametrize("name", SETTINGS)
def test_processors_keep_array_shapes_for_all_values(name: str) -> None:
    """And what the setting is called is what the rule depends on."""
    trees = [all_rules(GenerationConfig(do_sample=True, **SETTINGS[name](n))) for n in (1, 2, 3)]
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in trees]
    assert shapes[0] == shapes[1] == shapes[2]
    leaves = [jax.tree.leaves(tree) for tree in trees]
    assert any((a != b).any() for a, b in zip(leaves[0], leaves[1], strict=True))
