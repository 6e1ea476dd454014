"""An adapter beside its layer: what it computes, and its dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.small_models import difference

from gpt1_jax.nn.int8 import Int8Linear
from gpt1_jax.training.lora.layers import LoraLinear

RATE = 0.3


def draws(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("make", [lambda linear: linear, Int8Linear])
def test_lora_linear_adds_product_to_layer(make) -> None:
    linear = make(nnx.Linear(6, 5, rngs=nnx.Rngs(0)))
    x, A, B = draws(2, 3, 6), draws(6, 2, seed=1), draws(2, 5, seed=2)
    found = LoraLinear(linear, A, B)(x)
    expected = np.asarray(linear(x), np.float64) + np.asarray(x, np.float64) @ A @ B
    assert difference(found, expected) < 1e-6  # measured: 3e-7
    assert found.dtype == jnp.float32


def test_lora_linear_drops_only_the_adapter_input() -> None:
    n = 300
    linear = nnx.Linear(n, n, rngs=nnx.Rngs(0))
    masks = []
    for seed in (0, 1):
        key = jax.random.key_data(jax.random.key(seed))
        layer = LoraLinear(linear, jnp.eye(n), jnp.eye(n), rate=RATE, key=key)
        x = jnp.ones((n, n))
        change = np.asarray(layer(x) - linear(x))
        masks.append(np.abs(change) < 1e-3)
        np.testing.assert_allclose(change[~masks[-1]], 1 / (1 - RATE), rtol=1e-4)
        # Within 4 standard errors.
        assert abs(masks[-1].mean() - RATE) < 4 * np.sqrt(RATE * (1 - RATE)) / n
    assert abs((masks[0] & masks[1]).mean() - RATE**2) < 4 * np.sqrt(RATE**2 * (1 - RATE**2)) / n
