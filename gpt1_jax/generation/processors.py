"""From logits to the logits that are sampled from: Hugging Face's rules and numbers."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def temper(logits: jax.Array, temperature: ArrayLike) -> jax.Array:
    """Return (B, V) logits divided by a () temperature."""
    return logits / temperature


def keep_top(logits: jax.Array, top_k: ArrayLike, top_p: ArrayLike) -> jax.Array:
    """Return the logits with all but the likeliest tokens at -inf.

    Args:
        logits: (B, V).
        top_k: () int32 number of tokens to keep, V for all.
        top_p: () float; of those, the fewest likeliest ones that together have this probability.

    Returns:
        (B, V). Tokens as likely as the last one kept are kept too.
    """
    V = logits.shape[-1]
    ascending = jnp.sort(logits, axis=-1)
    rank = jnp.arange(V, 0, -1)[None]  # 1 for the likeliest
    ascending = jnp.where(rank <= top_k, ascending, -jnp.inf)
    # Hugging Face removes, from the least likely on, what sums up to no more than 1 - top_p.
    below = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1) <= 1 - top_p
    removed = (below | (rank > top_k)) & (rank > 1)
    least = jnp.take_along_axis(ascending, removed.sum(axis=-1, keepdims=True), axis=-1)
    return jnp.where(logits >= least, logits, -jnp.inf)
