"""A linear layer with an adapter beside it, unmerged: for dropout, and over weights in int8."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gpt1_jax.nn.int8 import Int8Linear
from gpt1_jax.nn.keys import wrap_key_data
from gpt1_jax.nn.layers import dropout


class LoraLinear(nnx.Module):
    """A linear layer and its adapter: y = linear(x) + dropout(x) A B.

    Attributes:
        linear: the layer that is adapted.
        lora_A: (in, rank).
        lora_B: (rank, out), multiplied by the adapter's scale.
        dropout: on the adapter's input.
        key: the key data that its mask is drawn from; None for no dropout.
    """

    def __init__(
        self,
        linear: nnx.Linear | Int8Linear,
        lora_A: jax.Array,
        lora_B: jax.Array,
        *,
        rate: float = 0.0,
        key: jax.Array | None = None,
    ):
        self.linear = linear
        self.lora_A = nnx.Param(lora_A)
        self.lora_B = nnx.Param(lora_B)
        self.dropout = nnx.Dropout(rate)
        self.key = None if key is None else nnx.Param(key)

    def __call__(self, x: Float[Array, "... K"]) -> Float[Array, "... N"]:
        """Return the layer's outputs in its dtype."""
        y = self.linear(x)
        key = None if self.key is None else wrap_key_data(self.key.get_value())
        x = dropout(self.dropout, x.astype(y.dtype), key)
        A, B = (factor.get_value().astype(y.dtype) for factor in (self.lora_A, self.lora_B))
        precision = getattr(self.linear, "precision", None)
        return y + jnp.matmul(jnp.matmul(x, A, precision=precision), B, precision=precision)
