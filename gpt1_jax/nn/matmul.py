"""Matrix products that sum in float32, and products of few rows in a form that compilers do well.

A decoding step reads every weight for a row or a few, so it can be as fast as memory is read. What
XLA's CPU compiler makes of the plain product in float32 falls short of that (JAX 0.10, two cores):

- the right operand is first copied into another order, which halves the speed of 2 to 32 rows. The
  left operand is read as it is, so there go weights that have all of an output's side by side: the
  table (V, E) of a tied head, and kernels that were transposed for it (``transposed_kernels.py``);
- one row and a kernel (K, N) reach two thirds of the memory bandwidth. In parts of K they reach
  nine tenths, and round less;
- one row in bfloat16, float16 or int8 goes through a loop of scalars. The product of two equal rows
  takes a tenth of the time: 7 instead of 70 ms for twelve layers' MLPs at full size in bfloat16, 5
  instead of 74 ms in int8 (Zen 5, JAX 0.10.2 and 0.12).

XLA's GPU compiler turns the product of one row into a multiplication and a sum, and in bfloat16 and
float16 writes what it multiplied, as large as the kernel and in float32, to memory for two kernels
of each block: the forward of one token with a cache moves 526 MB in 197 launches. The product of
two equal rows stays a product: 246 MB in 173 launches, where the weights are 233 MB (compiled for
an H100 by JAX 0.10.2; not timed). In float32 one row is left as it is, since a sum does not round
to TF32. ``generate`` needs none of this: it has two rows throughout (``decode.least_rows``).
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gpt1_jax.nn.dtypes import at_least_float32
from gpt1_jax.nn.remat import LINEAR_OUTPUT

Product = Callable[..., jax.Array]

K_PARTS = 6  # measured best of 1, 6, 12, 24 and 48 at full size
N_PARTS = 2  # measured best of 2, 3, 4, 6 and 8; XLA makes a single part the right operand again
# Up to so many rows, weights on the left are faster: 1.9 times at 4, 1.4 at 32, 1.05 at 64.
MAX_ROWS = 32


def dot_general(lhs, rhs, dimension_numbers, precision=None, out_sharding=None):
    """``lax.dot_general`` for a linear layer, summing in float32 whatever its operands' dtype."""
    product = _summing(lhs.dtype, precision=precision, out_sharding=out_sharding)

    def whole(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return product(x, kernel, dimension_numbers)

    if lhs.size == lhs.shape[-1] and rhs.ndim == 2 and out_sharding is None:
        if lhs.dtype.itemsize == 2:
            row = one_row_twice(functools.partial(_linear, product), lhs.reshape(1, -1), rhs)
            return row.reshape(*lhs.shape[:-1], -1).astype(lhs.dtype)
        in_parts = functools.partial(_row_in_parts, product)
        return jax.lax.platform_dependent(lhs, rhs, cpu=in_parts, default=whole).astype(lhs.dtype)
    return checkpoint_name(whole(lhs, rhs).astype(lhs.dtype), LINEAR_OUTPUT)


def _linear(product: Product, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(..., K) @ (K, N) -> (..., N)."""
    return product(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _row_in_parts(product: Product, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """One row (..., K) @ (K, N) as a sum of products over parts of K."""
    K, N = kernel.shape
    parts = math.gcd(K, K_PARTS)
    rows, kernel = x.reshape(parts, 1, -1), kernel.reshape(parts, -1, N)
    sums = product(rows, kernel, (((2,), (1,)), ((0,), (0,))))
    return sums.sum(axis=0).reshape(*x.shape[:-1], N)


def one_row_twice(
    product: Callable[[jax.Array, jax.Array], jax.Array],
    row: jax.Array,
    other: jax.Array,
    platforms: Sequence[str] = ("cpu", "cuda", "rocm"),
) -> jax.Array:
    """Return ``product(row, other)``, on these platforms as the first of two equal rows.

    Args:
        product: of rows (..., M, K) and another array: (..., M, *out).
        row: (..., 1, K).
        other: the other array.
        platforms: as ``jax.lax.platform_dependent`` names them.
    """

    def twice(row: jax.Array, other: jax.Array) -> jax.Array:
        rows = jnp.broadcast_to(row, (*row.shape[:-2], 2, row.shape[-1]))
        return jax.lax.slice_in_dim(product(rows, other), 0, 1, axis=row.ndim - 2)

    return jax.lax.platform_dependent(
        row, other, default=product, **dict.fromkeys(platforms, twice)
    )


def dot_general_transposed(lhs, rhs, dimension_numbers, precision=None, out_sharding=None):
    """``dot_general`` on a CPU for a linear layer whose kernel (K, N) is held as (N, K)."""
    product = _summing(lhs.dtype, precision=precision, out_sharding=out_sharding)
    N, K = rhs.shape
    if lhs.size // K <= MAX_ROWS:
        return _weights_first(product, lhs, rhs, math.gcd(N, N_PARTS)).astype(lhs.dtype)
    return product(lhs, rhs, (((lhs.ndim - 1,), (1,)), ((), ()))).astype(lhs.dtype)


def logits_matmul(
    x: jax.Array, table: jax.Array, precision: jax.lax.PrecisionLike = None
) -> jax.Array:
    """Return (..., E) @ (V, E)^T, float32 at least: (..., V)."""
    product = _summing(x.dtype, precision=precision)
    V, E = table.shape

    def whole(x: jax.Array, table: jax.Array) -> jax.Array:
        # As a matrix: of (B, T, E) XLA's CPU compiler copies the table to (E, V) at every call,
        # 62 MB in bfloat16.
        logits = product(x.reshape(-1, E), table, (((1,), (1,)), ((), ())))
        return logits.reshape(*x.shape[:-1], V)

    def table_first(x: jax.Array, table: jax.Array) -> jax.Array:
        parts = next((n for n in range(2, 65) if V % n == 0), 1)
        logits = _weights_first(product, x, table, parts)
        # This changes no number, but stands between the product and what follows: XLA's compiler
        # makes one operation of it and of a maximum or a sum over V, and gets that wrong.
        kind = jnp.finfo(logits.dtype)
        return jax.lax.reduce_precision(logits, kind.nexp, kind.nmant)

    rows = x.size // E
    if x.dtype.itemsize == 2:  # both forms are alike
        if x.size == E:
            # A GPU multiplies and sums the head's row in one kernel.
            logits = one_row_twice(whole, x.reshape(1, E), table, platforms=("cpu",))
            return logits.reshape(*x.shape[:-1], V)
        return whole(x, table)
    # A symbol, as an export has it, is not a known number.
    if isinstance(rows, int) and 1 < rows <= MAX_ROWS:
        return jax.lax.platform_dependent(x, table, cpu=table_first, default=whole)
    return whole(x, table)


def _weights_first(product: Product, x: jax.Array, weights: jax.Array, parts: int) -> jax.Array:
    """(..., K), (N, K) -> (..., N), as a batch of products (N / parts, K) @ (K, rows)."""
    # Of a single product XLA would swap the operands back.
    N, K = weights.shape
    states = jnp.broadcast_to(x.reshape(1, -1, K), (parts, x.size // K, K))
    out = product(weights.reshape(parts, -1, K), states, (((2,), (2,)), ((0,), (0,))))
    return out.reshape(N, -1).T.reshape(*x.shape[:-1], N)


def _summing(dtype: jax.typing.DTypeLike, **options: object) -> Product:
    return functools.partial(
        jax.lax.dot_general, preferred_element_type=at_least_float32(dtype), **options
    )
