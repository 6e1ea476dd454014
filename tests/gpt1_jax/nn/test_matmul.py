"""Matrix products in all their forms, against float64 numpy."""

from collections.abc import Callable

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from gpt1_jax.nn.matmul import (
    MAX_ROWS,
    dot_general,
    dot_general_transposed,
    logits_matmul,
)

LEADING = st.sampled_from(
    [(1,), (1, 1), (2,), (3, 1), (1, 4), (2, 2, 3), (MAX_ROWS,), (MAX_ROWS + 1,)]
)
LINEAR = (((1,), (0,)), ((), ()))


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def close(ours: jax.Array, x: jax.Array, weights: jax.Array) -> None:
    exact = np.asarray(x, np.float64) @ np.asarray(weights, np.float64)
    assert ours.shape == exact.shape
    assert ours.dtype == jnp.float32
    # Sums of up to 49 products of normal numbers, 4489 of them in a row: some are above 30, where
    # float32 has steps of 2e-6 to 4e-6. Measured: 9.5e-6.
    np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-5)


@given(leading=LEADING, K=st.integers(1, 49), N=st.integers(1, 9))
@settings(max_examples=15)
def test_dot_general_matches_numpy(leading: tuple[int, ...], K: int, N: int) -> None:
    """Whatever the number of parts that K falls into: 1, 2, 3 or 6."""
    x, kernel = normal(*leading, K), normal(K, N, seed=1)
    close(dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ()))), x, kernel)


@pytest.mark.nightly
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("leading", [(1,), (1, 1), (2,)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_matmul_in_half_precision_matches_numpy(
    dtype: str, leading: tuple[int, ...], compiled: bool
) -> None:
    x, kernel = normal(*leading, 48).astype(dtype), normal(48, 9, seed=1).astype(dtype)
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)

    def linear(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))

    def head(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return logits_matmul(x, kernel.T)

    for product, tolerance in ((linear, float(jnp.finfo(dtype).eps)), (head, 1e-6)):
        found = (jax.jit(product) if compiled else product)(x, kernel)
        assert found.dtype == (dtype if product is linear else jnp.float32)
        np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=tolerance, atol=2e-6)


@pytest.mark.nightly
@pytest.mark.parametrize(("dtype", "twice"), [("bfloat16", 2), ("float16", 2), ("float32", 1)])
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_dot_general_takes_a_row_twice_in_half_precision(
    dtype: str, twice: int, platform: str
) -> None:
    """On a CPU one row goes through a loop of scalars, on a GPU through memory in float32."""
    x, kernel = jnp.ones((1, 48), dtype), jnp.ones((48, 9), dtype)
    rows = 1 if platform == "tpu" else twice

    def text_of(product: Callable[..., jax.Array]) -> str:
        lowered = jax.jit(product).trace(x, kernel).lower(lowering_platforms=(platform,))
        return lowered.as_text()

    linear = text_of(lambda x, kernel: dot_general(x, kernel, LINEAR))
    if platform != "cpu" or dtype != "float32":  # which takes it in parts
        assert f"-> tensor<{rows}x9xf32>" in linear
    rows = rows if platform == "cpu" else 1
    assert f"-> tensor<{rows}x9xf32>" in text_of(lambda x, kernel: logits_matmul(x, kernel.T))


@pytest.mark.nightly
@given(leading=LEADING, K=st.integers(1, 49), N=st.integers(1, 9))
@settings(max_examples=15)
def test_dot_general_transposed_matches_numpy(leading: tuple[int, ...], K: int, N: int) -> None:
    """Whether N falls into two parts or not."""
    x, transposed = normal(*leading, K), normal(N, K, seed=1)
    found = dot_general_transposed(x, transposed, (((x.ndim - 1,), (0,)), ((), ())))
    close(found, x, transposed.T)


@pytest.mark.nightly
@given(leading=LEADING, E=st.integers(1, 49), V=st.sampled_from([1, 2, 15, 67, 74, 131, 67 * 67]))
@settings(max_examples=15)
def test_logits_matmul_matches_numpy(leading: tuple[int, ...], E: int, V: int) -> None:
    """Whatever the number of parts that V falls into, and where it has no small divisor."""
    x, table = normal(*leading, E), normal(V, E, seed=1)
    close(logits_matmul(x, table), x, table.T)


@pytest.mark.nightly
@pytest.mark.parametrize("rows", [1, 2, MAX_ROWS, MAX_ROWS + 1])
@pytest.mark.parametrize("reduction", [jnp.max, jnp.sum, jnp.argmax, jax.nn.logsumexp])
def test_logits_matmul_is_accurate_when_fused(
    reduction: Callable[..., jax.Array], rows: int
) -> None:
    """At sizes where XLA makes one operation of the product and what follows it."""
    x, table = normal(rows, 8), normal(1024, 8, seed=1)
    found = jax.jit(lambda x, table: reduction(logits_matmul(x, table), axis=-1))(x, table)
    exact = np.asarray(x, np.float64) @ np.asarray(table, np.float64).T
    expected = reduction(jnp.asarray(exact, jnp.float32), axis=-1)
    # Measured: 2e-5, of sums of 1024; without the stop in between it was 20 and more.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.nightly
@pytest.mark.parametrize("rows", [1, 2, MAX_ROWS + 1])
def test_matmul_gradients_match_numpy(rows: int) -> None:
    x, kernel, table, out = (normal(*s) for s in ((rows, 12), (12, 5), (10, 12), (rows, 10)))
    got = jax.grad(lambda x, table: (logits_matmul(x, table) * out).sum(), (0, 1))(x, table)
    close(got[0], out, table)
    close(got[1], out.T, x)
    out = out[:, :5]
    got = jax.grad(lambda x, w: (dot_general(x, w, LINEAR) * out).sum(), (0, 1))(x, kernel)
    close(got[0], out, kernel.T)
    close(got[1], x.T, out)


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("rows", [1, 2])
def test_matmul_accumulates_half_precision_in_float32(rows: int, dtype: str) -> None:
    """4097 ones: half precision has no such number, and a sum in it would end at 256 or 2048."""
    ones, table = jnp.ones((rows, 4097), dtype), jnp.ones((2, 4097), dtype)
    assert (logits_matmul(ones, table) == 4097).all()
    assert (dot_general(ones, table.T, LINEAR) == jnp.asarray(4097, dtype)).all()


def test_matmul_splits_products_for_few_rows_on_cpu() -> None:
    """What is compiled: batches of parts for one row and for few, a single product for many."""

    def compiled(product: Callable[..., jax.Array], *args: jax.Array) -> str:
        text = jax.jit(product).lower(*args).compile().as_text()
        assert text is not None
        return text

    def linear(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return dot_general(x, kernel, LINEAR)

    kernel, table = normal(12, 5), normal(10, 12)
    for rows in (1, 2, MAX_ROWS, MAX_ROWS + 1):
        x = normal(rows, 12)
        assert ("lhs_batch_dims" in compiled(linear, x, kernel)) == (rows == 1)
        assert ("lhs_batch_dims" in compiled(logits_matmul, x, table)) == (1 < rows <= MAX_ROWS)
