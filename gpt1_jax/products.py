"""Matrix products that sum in float32, and, on a CPU, products of few rows in their fastest form.

A decoding step reads every weight for a row or a few, so it can be as fast as memory is read. What
XLA's CPU compiler makes of the plain product in float32 falls short of that (JAX 0.10, two cores):

- one row reaches two thirds of the memory bandwidth. In parts of K it reaches nine tenths, and
  rounds less;
- for more rows the right operand is first copied into another order, which halves the speed. The
  left operand is read as it is, so the table of a tied head, (V, E), goes there.

Other platforms take the plain product.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gpt1_jax.dtypes import at_least_float32
from gpt1_jax.rematerialization import LINEAR

K_PARTS = 6  # measured best of 1, 6, 12, 24 and 48 at full size
FEW = 32  # rows, up to which a table on the left is faster: 1.5 times, at 48 no more


def dot_general(lhs, rhs, dimension_numbers, precision=None, out_sharding=None):
    """``lax.dot_general`` for a linear layer, summing in float32 whatever its operands' dtype."""
    product = _summing(lhs.dtype, precision=precision, out_sharding=out_sharding)

    def whole(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return product(x, kernel, dimension_numbers)

    def in_parts(x: jax.Array, kernel: jax.Array) -> jax.Array:
        """(..., K) @ (K, N) as a sum of products over parts of K."""
        K, N = kernel.shape
        parts = math.gcd(K, K_PARTS)
        x, kernel = x.reshape(parts, 1, -1), kernel.reshape(parts, -1, N)
        sums = product(x, kernel, (((2,), (1,)), ((0,), (0,))))
        return sums.sum(axis=0).reshape(*lhs.shape[:-1], N)

    if lhs.size == lhs.shape[-1] and out_sharding is None:
        return jax.lax.platform_dependent(lhs, rhs, cpu=in_parts, default=whole).astype(lhs.dtype)
    return checkpoint_name(whole(lhs, rhs).astype(lhs.dtype), LINEAR)


def table_product(
    x: jax.Array, table: jax.Array, precision: jax.lax.PrecisionLike = None
) -> jax.Array:
    """Return (..., E) @ (V, E)^T, float32 at least: (..., V)."""
    product = _summing(x.dtype, precision=precision)
    V, E = table.shape

    def whole(x: jax.Array, table: jax.Array) -> jax.Array:
        return product(x, table, (((x.ndim - 1,), (1,)), ((), ())))

    def table_first(x: jax.Array, table: jax.Array) -> jax.Array:
        """The same as a batch of products (V / parts, E) @ (E, rows)."""
        # Of a single product XLA would swap the operands back.
        parts = next((n for n in range(2, 65) if V % n == 0), 1)
        states = jnp.broadcast_to(x.reshape(1, -1, E), (parts, x.size // E, E))
        table = table.reshape(parts, -1, E)
        logits = product(table, states, (((2,), (2,)), ((0,), (0,))))
        # This changes no number, but stands between the product and what follows: XLA's compiler
        # makes one operation of it and of a maximum or a sum over V, and gets that wrong.
        kind = jnp.finfo(logits.dtype)
        logits = jax.lax.reduce_precision(logits, kind.nexp, kind.nmant)
        return logits.reshape(V, -1).T.reshape(*x.shape[:-1], V)

    # In half precision both forms are alike.
    if 1 < x.size // E <= FEW and x.dtype.itemsize > 2:
        return jax.lax.platform_dependent(x, table, cpu=table_first, default=whole)
    return whole(x, table)


def _summing(dtype: jax.typing.DTypeLike, **options: object) -> Callable[..., jax.Array]:
    return functools.partial(
        jax.lax.dot_general, preferred_element_type=at_least_float32(dtype), **options
    )
