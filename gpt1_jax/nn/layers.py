"""Flax's layers with GPT-1's settings, and the head that is the token embedding."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import PrecisionLike
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Integer

from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.nn.dtypes import at_least_float32
from gpt1_jax.nn.host_arrays import native
from gpt1_jax.nn.int8 import Int8Embed, Int8Linear, QArray, int8_matmul
from gpt1_jax.nn.keys import random_bits
from gpt1_jax.nn.matmul import logits_matmul
from gpt1_jax.nn.partitioning import TENSOR, axis_size, constrain

DType = jax.typing.DTypeLike


def head(
    config: OpenAIGPTConfig,
    outputs: int,
    *,
    use_bias: bool = False,
    dtype: DType,
    param_dtype: DType,
    precision: PrecisionLike,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """Return a linear layer from states to logits, which are float32 at least."""
    return nnx.Linear(
        config.n_embd,
        outputs,
        use_bias=use_bias,
        dtype=at_least_float32(dtype) if use_bias else dtype,
        param_dtype=param_dtype,
        precision=precision,
        kernel_init=normal(config.initializer_range),
        preferred_element_type=at_least_float32(dtype),
        rngs=rngs,
    )


def lm_head(
    config: OpenAIGPTConfig,
    *,
    dtype: DType,
    param_dtype: DType,
    precision: PrecisionLike,
    rngs: nnx.Rngs,
) -> "nnx.Linear | TiedHead":
    """Return the head over the vocabulary, with a kernel of its own only where it is untied."""
    V, E = config.vocab_size, config.n_embd
    if config.tie_word_embeddings:
        return TiedHead(E, V, dtype=dtype, precision=precision)
    return head(config, V, dtype=dtype, param_dtype=param_dtype, precision=precision, rngs=rngs)


def normal(scale: float) -> nnx.Initializer:
    """Return the initializer that draws from N(0, scale^2)."""
    return functools.partial(_scaled_normal, scale)


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))
def _scaled_normal(
    scale: float,
    key: jax.Array,
    shape: Sequence[int],
    dtype: DType,
    out_sharding: NamedSharding | None = None,
) -> jax.Array:
    """Return draws from N(0, scale^2), the same in a larger program as alone.

    XLA would make one of the two factors that draws are multiplied by, their own and the scale, and
    so change the last bit; JAX's own initializer does so from JAX 0.12 on. As a function of its own
    it is traced once for each shape: a model has few of them.
    """
    draws = jax.random.normal(key, shape, dtype, out_sharding=out_sharding)
    return jax.lax.optimization_barrier(draws) * jnp.array(scale, dtype)


def qkv_by_heads(
    c_attn: nnx.Module, x: Float[Array, "B T E"], heads: int
) -> list[Float[Array, "B T N H"]]:
    """Return queries, keys and values, which ``c_attn(x)`` has side by side, by heads.

    On a mesh with tensor parallelism each device computes its own heads of all three. Equal shares
    of the layer's columns would not be those of the same heads, so the columns are split as heads.
    """
    if type(c_attn) is Int8Linear and axis_size(c_attn.qvalue.get_value(), TENSOR) > 1:
        qvalue = constrain(c_attn.weights.qvalue, None, TENSOR)
        qvalue = constrain(qvalue.reshape(3, heads, -1, x.shape[-1]), None, TENSOR, None, None)
        scale = c_attn.weights.scale.reshape(3, heads, -1, 1)
        qkv = c_attn.multiply(x, QArray(qvalue, scale))
        return [qkv[:, :, i] for i in range(3)]
    # Another module in the layer's place computes what it will.
    if (
        type(c_attn) is not nnx.Linear
        or c_attn.bias is None
        or axis_size(c_attn.kernel.get_value(), TENSOR) == 1
    ):
        # Compilers make fewer operations of three slices than of one array (B, T, 3, N, H).
        thirds = jnp.split(c_attn(x), 3, axis=-1)
        return [third.reshape(*x.shape[:-1], heads, -1) for third in thirds]
    # Together over fsdp first, or XLA would copy the whole kernel to every device.
    kernel = constrain(c_attn.kernel.get_value(), TENSOR, None)
    kernel = kernel.reshape(x.shape[-1], 3, heads, -1)
    kernel = constrain(kernel, None, None, TENSOR, None)
    bias = c_attn.bias.get_value().reshape(1, 1, 3, heads, -1)
    x, kernel, bias = c_attn.promote_dtype((x, kernel, bias), dtype=c_attn.dtype)
    over_width = ((x.ndim - 1,), (0,)), ((), ())
    qkv = c_attn.dot_general(x, kernel, over_width, precision=c_attn.precision) + bias
    return [qkv[:, :, i] for i in range(3)]


class TiedHead(nnx.Module):
    """A linear layer without parameters of its own: its weights are a given embedding table."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        dtype: DType,
        precision: PrecisionLike = None,
    ):
        self.in_features = in_features
        self.out_features = out_features
        self.use_bias = False
        self.dtype = dtype
        self.precision = precision

    def __call__(
        self, x: Float[Array, "... E"], embedding: Float[Array, "V E"] | QArray
    ) -> Float[Array, "... V"]:
        """Return x @ embedding.T, float32 at least."""
        if isinstance(embedding, QArray):
            return int8_matmul(x, embedding)
        return logits_matmul(x.astype(self.dtype), embedding.astype(self.dtype), self.precision)


def embedding_table(embed: nnx.Embed | Int8Embed) -> Float[Array, "V E"] | QArray:
    """Return the table of an embedding."""
    return embed.weights if isinstance(embed, Int8Embed) else embed.embedding.get_value()


def take_rows(
    embed: nnx.Embed | Int8Embed, ids: Integer[Array, "..."]
) -> Float[Array, "... features"]:
    """Return ``embed(ids)``: the rows that ``ids`` name, NaN for an id beyond the last one."""
    if type(embed) is not nnx.Embed or embed.embedding.get_value().dtype.itemsize != 2:
        return embed(ids)

    def take(table: jax.Array, ids: jax.Array) -> jax.Array:
        return jnp.take(table, ids, axis=0)

    def take_behind_barrier(table: jax.Array, ids: jax.Array) -> jax.Array:
        # Before a loop that reads rows, XLA's CPU compiler would convert the whole table to float32
        # (at full size 124 MB a call): it does not take what comes with the ids out of the loop.
        return take(*jax.lax.optimization_barrier((table, ids)))

    table = embed.embedding.get_value()
    return jax.lax.platform_dependent(table, ids, cpu=take_behind_barrier, default=take)


def split_key(key: jax.Array | None, parts: int) -> list[jax.Array | None]:
    """Return independent keys for ``parts`` sites of dropout; None, for no dropout, stays None."""
    if key is None:
        return [None] * parts
    return list(jax.random.split(native(key), parts))


def dropout(layer: nnx.Dropout, x: Float[Array, "..."], key: jax.Array | None) -> jax.Array:
    """Apply ``layer`` with the mask that ``key`` draws; without a key, return ``x``."""
    if key is None or type(layer) is not nnx.Dropout or not 0 < layer.rate < 1:
        return layer(x, deterministic=key is None, rngs=key)
    keep = 1 - layer.rate
    shared = {axis % x.ndim for axis in layer.broadcast_dims}
    shape = [1 if axis in shared else size for axis, size in enumerate(x.shape)]
    kept = random_bits(key, shape) < np.uint32(min(round(keep * 2**32), 2**32 - 1))
    return jnp.where(kept, x / keep, jnp.zeros_like(x))
