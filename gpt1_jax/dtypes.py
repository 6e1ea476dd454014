"""The one rule of mixed precision: what must not be coarse is float32 at least."""

import jax
import jax.numpy as jnp


def at_least_float32(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """Return the dtype for sums, statistics, scores, logits and losses of values in ``dtype``."""
    # Not jnp.promote_types, which strict dtype promotion forbids for a bfloat16.
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
