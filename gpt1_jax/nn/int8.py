"""Linear layers and embeddings in int8: stored in a quarter of float32's bytes, multiplied as int8.

The numbers are those of qwix (Google's quantization library for JAX) for int8 weights and
activations: a scale for each output channel or row of a table, a scale for each token at run time,
the largest magnitude at 127.5, sums in int32. Their product with both scales is float32. One thing
differs: -127.5 becomes -127, as 127.5 becomes 127, where qwix has -128. It is there in every second
row, and a rounding error of the last bit before it would otherwise decide between -128 and -127.

Weights are stored (outputs, inputs), as torch's Linear has them: XLA's CPU compiler multiplies few
rows 1.2 to 1.7 times as fast by them as by (inputs, outputs), and a table of embeddings lies so by
nature. (Twelve layers of 768 x 3072 x 768 and back: 4.6 against 7 to 8 ms for 2 rows, 10 against
13 ms or 7 against 9 ms for 16, by JAX 0.10.2 and 0.12 on Zen 5 with AVX-512 VNNI.)
"""

from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int8, Integer

from gpt1_jax.nn.matmul import one_row_twice

DType = jax.typing.DTypeLike

BOUND = 127.5  # of the scaled numbers


class QArray(NamedTuple):
    """Numbers in int8, which are about qvalue * scale; named as qwix's.

    Attributes:
        qvalue: (..., K) int8.
        scale: (..., 1) float32, one for each row.
    """

    qvalue: Int8[Array, "*rows K"]
    scale: Float[Array, "*rows 1"]

    def dequantize(self) -> Float[Array, "*rows K"]:
        """Return the numbers in float32."""
        return self.qvalue.astype(jnp.float32) * self.scale


def quantize_rows(x: Float[Array, "*rows K"]) -> QArray:
    """Return ``x`` in int8.

    A row of zeros has the scale 1. A row with NaN or inf has a scale of NaN or inf, and so
    have its products.
    """
    x = x.astype(jnp.float32)
    scale = jnp.abs(x).max(axis=-1, keepdims=True) / BOUND
    scale = jnp.where(scale < jnp.sqrt(jnp.finfo(scale.dtype).tiny), 1.0, scale)
    return QArray(jnp.round(x / scale).clip(-127, 127).astype(jnp.int8), scale)


def int8_matmul(x: Float[Array, "... K"], weights: QArray) -> Float[Array, "..."]:
    """Return (..., K) times the transpose of weights (*out, K), in float32: (..., *out)."""
    x = _without_gradient(x)
    qvalue, scale = weights
    single = x.size == x.shape[-1]
    rows, row_scale = quantize_rows(x.reshape(1, -1) if single else x)

    def product(rows: jax.Array, qvalue: jax.Array) -> jax.Array:
        over_width = ((rows.ndim - 1,), (qvalue.ndim - 1,)), ((), ())
        return jax.lax.dot_general(rows, qvalue, over_width, preferred_element_type=jnp.int32)

    sums = one_row_twice(product, rows, qvalue) if single else product(rows, qvalue)
    outputs = qvalue.ndim - 1
    row_scale = row_scale.reshape(*row_scale.shape[:-1], *(1,) * outputs)
    y = sums.astype(jnp.float32) * row_scale * _as_row(scale[..., 0], sums.ndim)
    return y.reshape(*x.shape[:-1], *qvalue.shape[:-1])


@jax.custom_jvp
def _without_gradient(x: jax.Array) -> jax.Array:
    """Return ``x``, and raise an error where it is differentiated.

    The derivative of rounding is 0: a gradient would silently be that of the scales alone.
    """
    return x


@_without_gradient.defjvp
def _no_gradient(primals: object, tangents: object) -> NoReturn:
    raise ValueError(
        "an int8 model has no gradient: differentiate the model that it was quantized from"
    )


def _as_row(values: jax.Array, ndim: int) -> jax.Array:
    """Return values (*out) with dimensions of 1 before them, so many in all."""
    return values.reshape(*(1,) * (ndim - values.ndim), *values.shape)


class Int8Linear(nnx.Module):
    """A linear layer whose weights are int8, with a scale for each output.

    Attributes:
        qvalue: (outputs, inputs) int8.
        scale: (outputs, 1) float32.
        bias: (outputs,) in the dtype of the layer that it was made of; None without one.
    """

    def __init__(self, linear: nnx.Linear):
        """Quantize a linear layer; its values may be traced."""
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.use_bias = linear.bias is not None
        # Logits are float32 at least.
        self.dtype = linear.preferred_element_type or linear.dtype
        self.qvalue, self.scale = map(nnx.Param, _quantize_kernel(linear.kernel.get_value()))
        self.bias = None if linear.bias is None else nnx.Param(linear.bias.get_value())

    @property
    def weights(self) -> QArray:
        """The weights (outputs, inputs)."""
        return QArray(self.qvalue.get_value(), self.scale.get_value())

    def __call__(self, x: Float[Array, "... K"]) -> Float[Array, "... N"]:
        """Return the layer's outputs in its dtype."""
        return self.multiply(x, self.weights)

    def multiply(self, x: jax.Array, weights: QArray) -> jax.Array:
        """Return the outputs (..., *out) by the layer's weights, reshaped to (*out, inputs)."""
        y = int8_matmul(x, weights)
        if self.bias is not None:
            bias = self.bias.get_value().astype(y.dtype)
            y = y + _as_row(bias.reshape(weights.scale.shape[:-1]), y.ndim)
        return y.astype(self.dtype)


class Int8Embed(nnx.Module):
    """A table of embeddings in int8, with a scale for each row.

    Attributes:
        qvalue: (rows, features) int8.
        scale: (rows, 1) float32.
    """

    def __init__(self, embed: nnx.Embed):
        """Quantize an embedding; its values may be traced."""
        self.num_embeddings, self.features = embed.num_embeddings, embed.features
        self.dtype = embed.dtype
        self.qvalue, self.scale = map(nnx.Param, _quantize_table(embed.embedding.get_value()))

    @property
    def weights(self) -> QArray:
        """The table."""
        return QArray(self.qvalue.get_value(), self.scale.get_value())

    def __call__(self, ids: Integer[Array, "..."]) -> Float[Array, "... features"]:
        """Return the rows that ``ids`` name."""
        rows = QArray(*(jnp.take(part, ids, axis=0) for part in self.weights))
        return rows.dequantize().astype(self.dtype)


# Compiled once for each shape.
_quantize_table = jax.jit(quantize_rows)
_quantize_kernel = jax.jit(lambda kernel: quantize_rows(kernel.T))
