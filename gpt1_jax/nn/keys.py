"""Random keys of one implementation, whatever JAX's default is (``JAX_DEFAULT_PRNG_IMPL``).

Of another, such as "rbg", what is drawn under ``vmap`` depends on the whole batch, and the key data
of a checkpoint have another size.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

IMPLEMENTATION = "threefry2x32"  # JAX's own default


def key_of(seed: int | jax.Array) -> jax.Array:
    """Return the random key of a seed."""
    return jax.random.key(seed, impl=IMPLEMENTATION)


def wrap_key_data(data: jax.Array) -> jax.Array:
    """Return the key with these data: the inverse of ``jax.random.key_data``."""
    return jax.random.wrap_key_data(data, impl=IMPLEMENTATION)


def random_bits(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Return 32 random bits for each element of a dropout mask.

    An element's bits depend on its index and the key alone, so that a mask is the same on one
    device and on a mesh. On a CPU they are a hash of these: JAX's threefry is a loop over the whole
    array there for each mask, which XLA takes long to compile and fuses with nothing. With JAX 0.12
    a fine-tuning step of the demo took 2.4 times as long to compile, and 1.2 times as long to run.

    Args:
        key: typed or raw.
        shape: of the mask.

    Returns:
        uint32 of this shape.
    """

    def drawn(key: jax.Array) -> jax.Array:
        return jax.random.bits(key, shape, jnp.uint32)

    hashed = functools.partial(_hash_indices, shape=shape)
    return jax.lax.platform_dependent(key, cpu=hashed, default=drawn)


def _hash_indices(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    words = jax.random.key_data(key) if typed else key
    bits = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):  # the index in the flat array; an iota for each axis is sharded
        stride = np.uint32(math.prod(shape[axis + 1 :]) % 2**32)
        bits += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    for i in range(words.shape[-1]):
        bits = _mix(bits ^ words[i])
    return bits


def _mix(bits: jax.Array) -> jax.Array:
    """Return uint32 whose every bit depends on every bit given (Wellons's hash "lowbias32")."""
    bits = (bits ^ (bits >> 16)) * np.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * np.uint32(0x846CA68B)
    return bits ^ (bits >> 16)
