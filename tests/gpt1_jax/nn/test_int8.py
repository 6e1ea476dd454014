"""Products and layers in int8, against integers in numpy and against qwix."""

from typing import Any

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings

from gpt1_jax.nn.int8 import Int8Embed, Int8Linear, QArray, int8_matmul, quantize_rows


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def expected_product(x: np.ndarray, weights: QArray) -> np.ndarray:
    """In integers, which are exact, and then in float64."""
    rows = quantize_rows(jnp.asarray(x))
    out = weights.qvalue.shape[:-1]
    table = np.asarray(weights.qvalue, np.int64).reshape(-1, x.shape[-1])
    sums = np.asarray(rows.qvalue, np.int64) @ table.T
    scales = np.asarray(rows.scale, np.float64) * np.asarray(weights.scale, np.float64).ravel()
    return (sums * scales).reshape(*x.shape[:-1], *out)


FLOATS = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=1, max_dims=3, max_side=5),
    elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False),
)


@pytest.mark.nightly
@given(x=FLOATS)
@settings(max_examples=30)
def test_quantize_rows_matches_qwix(x: np.ndarray) -> None:
    qwix: Any = pytest.importorskip("qwix")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = qwix.quantize(
            jnp.asarray(x), jnp.int8, channelwise_axes=tuple(range(x.ndim - 1))
        )
    found = quantize_rows(jnp.asarray(x))
    # The largest magnitude of a row is a tie, which only qwix rounds to -128.
    np.testing.assert_array_equal(found.qvalue, np.maximum(expected.qvalue, -127))
    np.testing.assert_array_equal(found.scale, expected.scale)


def test_int8_matmul_matches_qwix() -> None:
    qwix: Any = pytest.importorskip("qwix")
    # Positive, as no row may have its largest magnitude below 0, which qwix rounds to -128.
    x, weights = jnp.asarray(np.abs(normal(3, 40))), jnp.asarray(np.abs(normal(7, 40, seed=1)))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        how = {"qtype": jnp.int8, "channelwise_axes": (0,)}
        over_width = ((1,), (1,)), ((), ())
        expected = qwix.dot_general(
            qwix.quantize(x, **how), qwix.quantize(weights, **how), over_width
        )
    found = int8_matmul(x, quantize_rows(weights))
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # in whichever order scales come


@pytest.mark.nightly
@given(x=FLOATS)
@settings(max_examples=30)
def test_quantize_rows_errs_by_half_a_step(x: np.ndarray) -> None:
    found = quantize_rows(jnp.asarray(x))
    error = np.abs(np.asarray(found.dequantize(), np.float64) - x)
    # The largest magnitude, at 127.5, rounds to 127.
    assert (error <= 0.5001 * np.asarray(found.scale)).all()


@pytest.mark.nightly
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_int8_matmul_of_a_row_that_is_not_finite_is_not_finite(wrong: float) -> None:
    x = normal(2, 6)
    x[0, 3] = wrong
    y = np.asarray(int8_matmul(jnp.asarray(x), quantize_rows(jnp.asarray(normal(4, 6)))))
    assert not np.isfinite(y[0]).any()
    assert np.isfinite(y[1]).all()


@pytest.mark.nightly
@pytest.mark.parametrize("out", [(9,), (3, 2, 4)])
@pytest.mark.parametrize("leading", [(1,), (1, 1), (2,), (4, 1), (2, 3)])
@pytest.mark.parametrize("compiled", [False, True])
def test_int8_matmul_matches_integers(
    leading: tuple[int, ...], out: tuple[int, ...], compiled: bool
) -> None:
    x, weights = normal(*leading, 48), quantize_rows(jnp.asarray(normal(*out, 48, seed=1)))
    product = jax.jit(int8_matmul) if compiled else int8_matmul
    found = product(jnp.asarray(x), weights)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected_product(x, weights), rtol=3e-7)


def test_int8_matmul_computes_a_single_row_as_two() -> None:
    """A product of one row goes through a loop of scalars in XLA's CPU compiler."""
    x, weights = jnp.asarray(normal(1, 1, 48)), quantize_rows(jnp.asarray(normal(9, 48)))
    program = jax.jit(int8_matmul).lower(x, weights).as_text()
    on_cpu: Any = jax.jit(int8_matmul).lower(x, weights).compile().as_text()
    assert "tensor<1x9xi32>" in program  # other platforms compute one row
    assert "s32[2,9]" in on_cpu


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_int8_linear_matches_its_weights(dtype: str) -> None:
    linear = nnx.Linear(48, 9, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    assert linear.bias is not None
    linear.bias.set_value(jnp.arange(9, dtype=jnp.float32))
    layer = Int8Linear(linear)
    assert layer.qvalue.shape == (9, 48)
    np.testing.assert_allclose(
        layer.weights.dequantize(), linear.kernel.get_value().T, atol=0.5 * layer.scale.max()
    )
    x = jnp.asarray(normal(2, 3, 48)).astype(dtype)
    y = layer(x)
    assert y.dtype == jnp.dtype(dtype)
    expected = expected_product(np.asarray(x, np.float32), layer.weights) + np.arange(9)
    np.testing.assert_allclose(
        y.astype(jnp.float32), expected, rtol=1e-6 if dtype == "float32" else 8e-3
    )


def test_int8_embed_looks_up_its_table() -> None:
    embed = nnx.Embed(11, 6, rngs=nnx.Rngs(0))
    layer = Int8Embed(embed)
    ids = jnp.array([[0, 3], [10, 3]])
    np.testing.assert_array_equal(layer(ids), np.asarray(layer.weights.dequantize())[ids])
    np.testing.assert_allclose(layer(ids), embed(ids), atol=0.5 * layer.scale.max())
