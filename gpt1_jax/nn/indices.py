"""Indices that are out of range inside a program, where no error can be raised: they give NaN."""

import jax.numpy as jnp
from jaxtyping import Array, Int32

from gpt1_jax.nn.host_arrays import as_array


def gather_indices(indices: object, size: int) -> Int32[Array, "..."]:
    """Return indices in int32 by which a gather gives NaN for every one that is not in [0, size).

    JAX counts an index below 0 from the end, and a cast to int32 wraps what is too large for it.
    Both become ``size``, which "fill", the mode of ``jnp.take`` and its like, turns into NaN.
    """
    indices = as_array(indices)
    if indices.dtype.itemsize < 4:  # ``size`` may be beyond what it can hold
        indices = indices.astype(jnp.int32)
    in_range = (indices >= 0) & (indices < size)
    return jnp.where(in_range, indices, size).astype(jnp.int32)
