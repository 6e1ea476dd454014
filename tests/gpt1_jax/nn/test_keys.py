"""The random bits of dropout masks: of what they depend on, and that they look random."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt1_jax.nn.keys import key_of, random_bits

SHAPE = (8, 3, 64, 64)
KEYS = [key_of(0), *jax.random.split(key_of(0), 3)]


def bits_of(key: jax.Array) -> np.ndarray:
    """(number of bits drawn,), each 0 or 1."""
    return np.unpackbits(np.asarray(random_bits(key, SHAPE)).view(np.uint8))


def assert_fair(bits: np.ndarray) -> None:
    assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(bits.size)  # five standard errors


def test_random_bits_are_fair_and_independent_of_those_of_other_keys() -> None:
    drawn = [bits_of(key) for key in KEYS]
    for bits in drawn:
        assert_fair(bits)
    for one, other in itertools.combinations(drawn, 2):
        assert_fair(one ^ other)


@pytest.mark.parametrize("axis", range(len(SHAPE)))
def test_random_bits_of_neighbours_are_independent(axis: int) -> None:
    """Along every axis, next to each other and further apart, in each of the 32 places."""
    bits = np.asarray(random_bits(KEYS[1], SHAPE))
    for distance in {1, 2, SHAPE[axis] // 2}:
        both = np.take(bits, range(distance, SHAPE[axis]), axis) ^ np.take(
            bits, range(SHAPE[axis] - distance), axis
        )
        for place in range(32):
            assert_fair((both >> place) & 1)


def test_random_bits_depend_on_every_word_of_the_key() -> None:
    words = jnp.array([3, 5], jnp.uint32)
    drawn = bits_of(jax.random.wrap_key_data(words))
    for change in ([1, 0], [0, 1], [2**31, 0], [0, 2**31]):
        other = jax.random.wrap_key_data(words ^ jnp.array(change, jnp.uint32))
        assert_fair(drawn ^ bits_of(other))
    raw = random_bits(words, SHAPE)
    np.testing.assert_array_equal(raw, random_bits(jax.random.wrap_key_data(words), SHAPE))


def test_random_bits_take_keys_of_another_implementation() -> None:
    assert_fair(bits_of(jax.random.key(0, impl="rbg")))


def test_random_bits_are_the_same_under_vmap() -> None:
    keys = jax.random.split(key_of(7), 3)
    mapped = jax.vmap(lambda key: random_bits(key, (5, 6)))(keys)
    alone = np.stack([np.asarray(random_bits(key, (5, 6))) for key in keys])
    np.testing.assert_array_equal(mapped, alone)
