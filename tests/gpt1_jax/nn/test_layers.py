"""Flax's layers with GPT-1's settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gpt1_jax.nn.layers import TiedHead, embedding_table, take_rows

V, E = 4000, 48


def embed(dtype: str) -> nnx.Embed:
    return nnx.Embed(V, E, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_take_rows_returns_what_flax_does(dtype: str, compiled: bool) -> None:
    layer, ids = embed(dtype), jnp.array([[0, 7], [V - 1, 7]])

    def take(ids: jax.Array) -> jax.Array:
        return take_rows(layer, ids)

    rows = (jax.jit(take) if compiled else take)(ids)
    np.testing.assert_array_equal(rows, layer(ids), strict=True)
    assert np.isnan(np.asarray(take(jnp.array([V])), np.float32)).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_take_rows_has_the_gradient_of_flax(dtype: str) -> None:
    graphdef, state = nnx.split(embed(dtype))
    ids = jnp.array([3, 1, 3])

    def loss(state: nnx.State, ours: bool) -> jax.Array:
        layer = nnx.merge(graphdef, state)
        return jnp.sin((take_rows(layer, ids) if ours else layer(ids)).astype(jnp.float32)).sum()

    ours, flax = (jax.grad(loss)(state, ours).embedding.get_value() for ours in (True, False))
    np.testing.assert_array_equal(ours, flax, strict=True)
    assert np.flatnonzero(np.asarray(ours, np.float32).any(axis=1)).tolist() == [1, 3]


def test_loop_in_half_precision_neither_converts_nor_copies_the_table() -> None:
    """What a decoding loop does: look tokens up, and take the likeliest by the tied head."""
    graphdef, state = nnx.split(embed("bfloat16"))
    head = TiedHead(E, V, dtype=jnp.bfloat16)

    @jax.jit
    def decode(state: nnx.State, ids: jax.Array) -> jax.Array:
        layer = nnx.merge(graphdef, state)

        def step(_: jax.Array, ids: jax.Array) -> jax.Array:
            logits = head(take_rows(layer, ids)[:, None], embedding_table(layer))
            return logits.argmax(-1)[:, 0].astype(jnp.int32)

        return jax.lax.fori_loop(jnp.int32(0), jnp.int32(3), step, ids)

    for rows in (1, 4):
        compiled = decode.lower(state, jnp.zeros(rows, jnp.int32)).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        assert memory.temp_size_in_bytes < V * E * 2
