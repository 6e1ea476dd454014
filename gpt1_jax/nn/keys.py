"""Random keys of one implementation, whatever JAX's default is (``JAX_DEFAULT_PRNG_IMPL``).

Of another, such as "rbg", what is drawn under ``vmap`` depends on the whole batch, and the key data
of a checkpoint have another size.
"""

import jax

IMPLEMENTATION = "threefry2x32"  # JAX's own default


def key_of(seed: int | jax.Array) -> jax.Array:
    """Return the random key of a seed."""
    return jax.random.key(seed, impl=IMPLEMENTATION)


def wrap_key_data(data: jax.Array) -> jax.Array:
    """Return the key of which these are the data: the inverse of ``jax.random.key_data``."""
    return jax.random.wrap_key_data(data, impl=IMPLEMENTATION)
