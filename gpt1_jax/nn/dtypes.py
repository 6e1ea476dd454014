"""Which dtypes a model can have, and the rule of mixed precision: sums are float32 at least."""

import jax
import jax.numpy as jnp

FLOATS = ("float32", "bfloat16", "float16", "float64")


def at_least_float32(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """Return the dtype for sums, statistics, scores, logits and losses of values in ``dtype``."""
    # Not jnp.promote_types, which strict dtype promotion forbids for a bfloat16.
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def float_dtype(name: str, dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """Return ``dtype`` if a model can be stored and computed in it.

    Raises:
        ValueError: the dtype is unknown, or is float64 while JAX is in its 32-bit mode.
    """
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.name not in FLOATS:
        raise ValueError(f"{name} is {dtype!r}, but must be one of {', '.join(FLOATS)}")
    if found == jnp.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            f"{name} is float64, which needs jax.config.update('jax_enable_x64', True)"
        )
    return found


def compute_dtype(
    dtype: jax.typing.DTypeLike | None, param_dtype: jax.typing.DTypeLike
) -> jnp.dtype:
    """Return the dtype that a model computes in: ``dtype``, or by default that of its parameters.

    Raises:
        ValueError: see ``float_dtype``.
    """
    stored = float_dtype("param_dtype", param_dtype)
    return stored if dtype is None else float_dtype("dtype", dtype)
