"""Arrays of numpy's as JAX reads them.

JAX knows one byte order, this machine's. Given another, a compiled function raises a TypeError, or,
where it was compiled for the native dtype before, reads the bytes in the wrong order.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

T = TypeVar("T")


def native(value: Any) -> Any:
    """Return a numpy array in this machine's byte order and float64 at most, all else as it is."""
    if not isinstance(value, np.ndarray | np.generic):
        return value
    if value.dtype.type is np.longdouble:  # which JAX does not have
        return value.astype(np.float64)
    return value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("="))


def native_leaves(tree: T) -> T:
    """Return a pytree whose leaves are ``native``."""
    # To ask for types first takes a few microseconds where all leaves are on a device.
    types = set(map(type, jax.tree.leaves(tree)))
    if any(issubclass(kind, np.ndarray | np.generic) for kind in types):
        return jax.tree.map(native, tree)
    return tree


def as_array(value: object) -> jax.Array:
    """Return ``jnp.asarray`` of a value, numpy's of any byte order too."""
    return jnp.asarray(native(value))
