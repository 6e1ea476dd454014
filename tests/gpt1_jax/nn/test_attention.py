"""Attention, its masks and its cache against plain float64 numpy."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.small_models import (
    difference,
    numpy_logits,
    numpy_weights,
    random_ids,
    small_config,
    small_model,
)

import gpt1_jax as gpt1
from gpt1_jax.nn.attention import CAUSAL_MASK_VALUE, Mask, attend, attention_weights

B, N, T, H = 3, 2, 5, 4
# float32 against float64. Measured: 4e-7.
TOLERANCE = 2e-6

compiled_weights = jax.jit(attention_weights)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def build(mask: Any) -> Mask:
    return Mask.build(None if mask is None else jnp.asarray(mask, jnp.float32), T, None)


def masks() -> st.SearchStrategy[np.ndarray]:
    """Any mask at all: padding left, right, within, everywhere."""
    bits = st.lists(st.sampled_from([0.0, 1.0]), min_size=B * T, max_size=B * T)
    return bits.map(lambda values: np.reshape(np.asarray(values, np.float32), (B, T)))


@given(masks(), st.sampled_from([0.1, 1.0, 30.0]), st.integers(0, 1000))
def test_attention_weights_match_numpy(mask: np.ndarray, scale: float, seed: int) -> None:
    query, key = random(B, N, T, H, seed=seed, scale=scale), random(B, N, T, H, seed=seed + 1)
    weights = compiled_weights(query, key, build(mask))
    # A score of size 100 is itself rounded to 4e-6. Measured: 1e-6.
    assert difference(weights, numpy_weights(query, key, mask)) < 2e-5


def test_attention_weights_are_causal_without_mask() -> None:
    query, key = random(B, N, T, H), random(B, N, T, H, seed=1)
    weights = np.asarray(compiled_weights(query, key, build(None)))
    assert weights.shape == (B, N, T, T)
    assert difference(weights, numpy_weights(query, key)) < TOLERANCE
    assert difference(weights.sum(-1), np.ones((B, N, T))) < TOLERANCE
    assert not np.triu(weights, 1).any()
    assert (weights[..., 0, 0] == 1).all()


def test_attention_mask_of_ones_has_no_effect() -> None:
    query, key = random(B, N, T, H), random(B, N, T, H, seed=1)
    ours = compiled_weights(query, key, build(np.ones((B, T))))
    np.testing.assert_array_equal(ours, compiled_weights(query, key, build(None)))


def test_attention_weights_favor_future_over_padding() -> None:
    """The published model's own behaviour: -1e4 beats the lowest number."""
    query, key = random(B, N, T, H), random(B, N, T, H, seed=1)
    mask = np.asarray([[0, 0, 1, 1, 1]] * B)
    weights = np.asarray(compiled_weights(query, key, build(mask)))
    np.testing.assert_allclose(weights[:, :, :2, 2:], 1 / 3, rtol=1e-6)  # measured: exact
    assert not weights[..., :2].any()


def test_attention_weights_are_uniform_in_padding_rows() -> None:
    """Beside the lowest number float32 has no room for a score: those of all keys are one."""
    weights = np.asarray(
        compiled_weights(random(B, N, T, H), random(B, N, T, H, seed=1), build(np.zeros((B, T))))
    )
    np.testing.assert_allclose(weights, 1 / T, rtol=1e-6)  # measured: 7.5e-8


def test_causal_mask_value_is_finite() -> None:
    assert CAUSAL_MASK_VALUE == -1e4
    query = np.zeros((1, 1, 2, 1), np.float32)
    query[..., 0, 0] = 1
    key = np.zeros((1, 1, 2, 1), np.float32)
    key[..., 0, 0] = -1e4  # the first query's score of the first key is as low as the mask's
    mask = Mask.build(None, 2, None)
    weights = np.asarray(attention_weights(jnp.asarray(query), jnp.asarray(key), mask))
    np.testing.assert_array_equal(weights[0, 0, 0], [0.5, 0.5])


def test_attend_averages_values_by_weight() -> None:
    weights, value = np.abs(random(B, N, T, T)), random(B, N, T, H, seed=1)
    mixed = attend(jnp.asarray(weights), jnp.asarray(value))
    assert difference(mixed, weights.astype(np.float64) @ value.astype(np.float64)) < TOLERANCE


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_attention_of_one_query_in_half_precision_is_that_of_several(dtype: str) -> None:
    """A CPU computes it as the first of two, since it takes one row through a loop of scalars."""
    query, key, value = (
        jnp.asarray(np.random.default_rng(i).standard_normal((2, 3, 5, 16)), dtype)
        for i in range(3)
    )
    mask = Mask.build(None, 5, None)
    weights = attention_weights(query, key, mask)
    last = dataclasses.replace(mask, causal=mask.causal[:, :, -1:])
    found = attention_weights(query[:, :, -1:], key, last)
    np.testing.assert_allclose(found, weights[:, :, -1:], rtol=1e-6)
    mixed = attend(weights, value).astype(jnp.float32)
    np.testing.assert_array_equal(
        attend(weights[:, :, -1:], value).astype(jnp.float32), mixed[:, :, -1:]
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_attention_weights_are_float32_in_half_precision(dtype: str) -> None:
    query, key = (jnp.asarray(random(B, N, T, H, seed=s), dtype) for s in (0, 1))
    weights = attention_weights(query, key, build([[0, 1, 1, 1, 1]] * B))
    assert weights.dtype == jnp.float32
    expected = numpy_weights(query, key, [[0, 1, 1, 1, 1]] * B)
    assert difference(weights, expected) < TOLERANCE
    assert attend(weights, key).dtype == query.dtype


# The cache. T tokens are read into SLOTS slots; a call is compiled for each size of a chunk.

SLOTS = 7
MODEL = small_model(gpt1.OpenAIGPTLMHeadModel, n_layer=1)
APPLY, PARAMS = gpt1.functional(MODEL)
IDS = random_ids(2, T)
ONES = np.ones((2, T), np.float32)
LEFT = np.asarray([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], np.float32)


def empty(dtype: Any = "float32") -> gpt1.Cache:
    return gpt1.Cache.empty(MODEL.config, 2, SLOTS, dtype)


def in_chunks(
    apply: Any, params: Any, cuts: Any, mask: Any, cache: gpt1.Cache, positions: Any = None
) -> tuple[np.ndarray, gpt1.Cache]:
    """The logits (2, T, V) of the chunks that ``cuts`` makes, and the cache at the end."""
    if positions is None:
        positions = np.tile(np.arange(T), (2, 1))
    logits = []
    for start, stop in itertools.pairwise([0, *cuts, T]):
        part = np.s_[:, start:stop]
        out = apply(
            params,
            IDS[part],
            attention_mask=mask[part],
            position_ids=positions[part],
            cache=cache,
        )
        cache = out.cache
        logits.append(np.asarray(out.logits))
    return np.concatenate(logits, axis=1), cache


def after_a_token(mask: np.ndarray) -> np.ndarray:
    """Where the row has a token already.

    Padding before the first token attends to whatever there is, later tokens of its own chunk
    included, so its states depend on where the chunks end, and reach no token.
    """
    return mask.cumsum(-1) > 0


def cache_masks() -> st.SearchStrategy[np.ndarray]:
    bits = st.lists(st.sampled_from([0.0, 1.0]), min_size=2 * T, max_size=2 * T)
    return bits.map(lambda values: np.reshape(np.asarray(values, np.float32), (2, T)))


@pytest.mark.nightly
@given(st.sets(st.integers(1, T - 1)).map(sorted), cache_masks(), st.booleans())
@example([1, 2, 3, 4], LEFT, True)
@example([], ONES, False)
def test_cache_chunked_prefill_matches_one_pass(
    cuts: list[int], mask: np.ndarray, counted: bool
) -> None:
    positions = np.maximum(mask.cumsum(-1).astype(np.int32) - 1, 0) if counted else None
    logits, cache = in_chunks(APPLY, PARAMS, cuts, mask, empty(), positions)
    compared = after_a_token(mask)
    expected = numpy_logits(PARAMS, IDS, mask, positions)
    if compared.any():
        # Measured: 4e-7.
        assert difference(logits[compared], expected[compared]) < TOLERANCE
    assert np.isfinite(logits).all()
    assert (cache.index, cache.length) == (T, SLOTS)
    np.testing.assert_array_equal(cache.mask, np.pad(mask, ((0, 0), (0, SLOTS - T))))


def test_apply_matches_numpy_with_left_padding() -> None:
    """Padding before the first token included."""
    assert difference(APPLY(PARAMS, IDS, LEFT).logits, numpy_logits(PARAMS, IDS, LEFT)) < TOLERANCE


def test_positions_from_mask_counts_cached_tokens() -> None:
    """Over the tokens in the cache too."""
    first = APPLY(
        PARAMS, IDS[:, :3], attention_mask=LEFT[:, :3], positions_from_mask=True, cache=empty()
    )
    last = APPLY(
        PARAMS,
        IDS[:, 3:],
        attention_mask=LEFT[:, 3:],
        positions_from_mask=True,
        cache=first.cache,
    )
    logits = np.concatenate([first.logits, last.logits], axis=1)
    expected = numpy_logits(PARAMS, IDS, LEFT, [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]])
    compared = after_a_token(LEFT)
    assert difference(logits[compared], expected[compared]) < TOLERANCE
    # And by default they are not.
    assert difference(logits[compared], numpy_logits(PARAMS, IDS, LEFT)[compared]) > 0.1


def test_cache_continues_positions_by_default() -> None:
    first = APPLY(PARAMS, IDS[:, :3], cache=empty())
    last = APPLY(PARAMS, IDS[:, 3:], cache=first.cache)
    np.testing.assert_array_equal(last.cache.mask, [[1, 1, 1, 1, 1, 0, 0]] * 2)
    assert difference(last.logits, numpy_logits(PARAMS, IDS)[:, 3:]) < TOLERANCE


@pytest.mark.parametrize("garbage", [1.0, -1e30])
def test_cache_ignores_slots_beyond_index(garbage: float) -> None:
    def spoil(array: jax.Array) -> jax.Array:
        return jnp.full_like(array, garbage)

    clean, spoilt = empty(), empty()
    spoilt = dataclasses.replace(
        spoilt,
        keys=tuple(map(spoil, spoilt.keys)),
        values=tuple(map(spoil, spoilt.values)),
        mask=jnp.ones_like(spoilt.mask),
    )
    ours, _ = in_chunks(APPLY, PARAMS, [2, 3], LEFT, spoilt)
    expected, _ = in_chunks(APPLY, PARAMS, [2, 3], LEFT, clean)
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Keys and values are rounded to 8 or 11 bits. Measured: 1.3e-3, 1e-4.
    [("bfloat16", 6e-3), ("float16", 5e-4)],
)
def test_cache_keeps_its_dtype(dtype: str, tolerance: float) -> None:
    logits, cache = in_chunks(APPLY, PARAMS, [3, 4], ONES, empty(dtype))
    assert {array.dtype for array in (*cache.keys, *cache.values)} == {jnp.dtype(dtype)}
    assert cache.mask.dtype == jnp.float32
    assert 1e-6 < difference(logits, numpy_logits(PARAMS, IDS)) < tolerance


def test_cache_in_bfloat16_matches_uncached_model() -> None:
    model = small_model(gpt1.OpenAIGPTLMHeadModel, n_layer=1, dtype=jnp.bfloat16)
    apply, params = gpt1.functional(model)
    cache = gpt1.Cache.empty(model.config, 2, SLOTS, "bfloat16")
    logits, _ = in_chunks(apply, params, [3], ONES, cache)
    # Both round at the same places; another order of the sums may move a rounding.
    # Measured: equal. One rounding of bfloat16 is 4e-3.
    assert difference(logits, apply(params, IDS).logits) < 2e-2


def test_apply_donates_its_cache() -> None:
    cache = empty()
    out = APPLY(PARAMS, IDS[:, :3], cache=cache)
    assert all(array.is_deleted() for array in (*cache.keys, *cache.values))
    assert not any(array.is_deleted() for array in jax.tree.leaves((out.cache, PARAMS)))
    with pytest.raises((RuntimeError, ValueError), match=r"deleted|donated"):
        APPLY(PARAMS, IDS[:, :3], cache=cache)


def test_model_call_does_not_modify_its_cache() -> None:
    cache = empty()
    out = MODEL(IDS[:, :3], cache=cache)
    assert not any(array.is_deleted() for array in jax.tree.leaves(cache))
    assert cache.index == 0
    assert not any(np.asarray(array).any() for array in (*cache.keys, *cache.values))
    assert out.cache is not None
    assert out.cache.index == 3
    assert difference(out.logits, numpy_logits(PARAMS, IDS[:, :3])) < TOLERANCE


def test_cache_empty_has_requested_shape() -> None:
    cache = gpt1.Cache.empty(small_config(n_layer=3), batch=4, length=6, dtype="bfloat16")
    assert [array.shape for array in cache.keys] == [(4, 2, 6, 4)] * 3
    assert [array.shape for array in cache.values] == [(4, 2, 6, 4)] * 3
    assert (cache.mask.shape, cache.length) == ((4, 6), 6)
    assert (cache.index.shape, cache.index.dtype, int(cache.index)) == ((), jnp.int32, 0)


def test_cache_of_one_row_may_be_squeezed() -> None:
    apply, params = gpt1.functional(MODEL)
    plain = gpt1.Cache.empty(MODEL.config, 1, SLOTS)
    squeezed = gpt1.Cache.empty(MODEL.config, 1, SLOTS, squeeze=True)
    shape = plain.keys[0].shape
    for start, end in ((0, 3), (3, 4)):
        expected = apply(params, IDS[:1, start:end], cache=plain)
        found = apply(params, IDS[:1, start:end], cache=squeezed)
        np.testing.assert_array_equal(found.logits, expected.logits)
        plain, squeezed = expected.cache, found.cache
        assert squeezed.keys[0].shape == squeezed.values[0].shape == shape[1:]
        for one, other in zip(jax.tree.leaves(squeezed), jax.tree.leaves(plain), strict=True):
            np.testing.assert_array_equal(one, other.reshape(one.shape))
    assert gpt1.Cache.empty(MODEL.config, 2, SLOTS, squeeze=True).keys[0].shape == (2, *shape[1:])
    message = f"but these tokens need {MODEL.config.n_layer} of "
    with pytest.raises(ValueError, match=message):
        apply(params, IDS[:2, :1], cache=squeezed)


def test_cache_take_repeats_and_reorders_rows() -> None:
    apply, params = gpt1.functional(MODEL)
    squeezed = gpt1.Cache.empty(MODEL.config, 1, SLOTS, squeeze=True)
    for rows, cache, numbers in ((2, empty(), [1, 0, 1]), (1, squeezed, [0, 0])):
        cache = apply(params, IDS[:rows, :3], cache=cache).cache
        taken = cache.take(jnp.asarray(numbers))
        assert (taken.length, int(taken.index)) == (SLOTS, 3)
        for before, after in (
            (cache.keys[0], taken.keys[0]),
            (cache.values[0], taken.values[0]),
            (cache.mask, taken.mask),
        ):
            before = np.asarray(before).reshape(rows, *after.shape[1:])
            np.testing.assert_array_equal(after, before[numbers])
