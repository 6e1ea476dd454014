"""Causal attention with GPT-1's masks, and the cache of keys and values.

Dimensions: B batch, T queries, S keys, N heads, H width of a head.

The formula of GPT-1, padding's part included, is ``attention_weights`` and ``attend``, the backend
"manual". The others are ``jax.nn.dot_product_attention``, which keeps no weights. They agree at
every token. At padding they do not: there a query that sees no token falls back on the later ones
by the formula, and takes the mean of all keys or nothing in particular by the others. No token ever
looks at padding, so this shows nowhere else.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable
from typing import Literal, Self, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.nn.dtypes import at_least_float32
from gpt1_jax.nn.matmul import one_row_twice
from gpt1_jax.nn.partitioning import ROWS, TENSOR, constrain
from gpt1_jax.nn.pytree import pytree_dataclass
from gpt1_jax.nn.sites import site

Fused = Literal["cudnn", "xla"]
Backend = Literal["manual", Fused]
AttentionBackend = Literal[Backend, "auto"]
FUSED: tuple[Fused, ...] = ("cudnn", "xla")  # the faster first

# The score of a key that lies after its query: GPT-1 uses a large number, not -inf, so that a query
# which sees nothing but padding falls back on the later tokens.
CAUSAL_MASK_VALUE = -1e4


@pytree_dataclass
class Cache:
    """Keys and values of the tokens read so far: a value that the model takes and returns.

    Attributes:
        keys: n_layer arrays (B, N, S, H), S slots, the first ``index`` of them filled; or
            (N, S, H), the one row of a squeezed cache.
        values: n_layer arrays of the same shape.
        mask: (B, S) the attention mask of the filled slots, in the dtype of the scores.
        index: () int32, the slot that the next token goes to; shared by all rows.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    mask: jax.Array
    index: jax.Array

    @classmethod
    def empty(
        cls,
        config: OpenAIGPTConfig,
        batch: int,
        length: int,
        dtype: jax.typing.DTypeLike = "float32",
        *,
        squeeze: bool = False,
    ) -> Self:
        """Return a cache with room for ``length`` tokens in each of ``batch`` rows.

        Args:
            config: of the model.
            batch: number of rows B.
            length: number of slots S.
            dtype: of keys and values; the model's.
            squeeze: whether to leave the dimension of rows out where there is but one row. A
                compiled loop that carries a cache takes less time so: of arrays with a dimension
                of 1 XLA's CPU compiler makes two, one to keep and one to compute with, and copies
                both at every step.
        """
        shape = (batch, config.n_head, length, config.n_embd // config.n_head)
        if squeeze and batch == 1:
            shape = shape[1:]
        return cls(
            keys=tuple(jnp.zeros(shape, dtype) for _ in range(config.n_layer)),
            values=tuple(jnp.zeros(shape, dtype) for _ in range(config.n_layer)),
            mask=jnp.zeros((batch, length), at_least_float32(dtype)),
            index=jnp.zeros((), jnp.int32),
        )

    @property
    def length(self) -> int:
        """Number of slots S."""
        return self.mask.shape[-1]

    def layer(self, i: int) -> "LayerCache":
        """Return what block ``i`` reads and extends."""
        shape = (self.mask.shape[0], *self.keys[i].shape[-3:])
        return LayerCache(self.keys[i].reshape(shape), self.values[i].reshape(shape), self.index)

    def extend_mask(self, mask: jax.Array) -> Self:
        """Return the cache with the attention mask (B, T) of the tokens about to be read."""
        mask = jax.lax.dynamic_update_slice(
            self.mask, mask.astype(self.mask.dtype), (jnp.int32(0), self.index)
        )
        return dataclasses.replace(self, mask=mask)

    def advance(self, layers: "list[LayerCache]", tokens: int) -> Self:
        """Return the cache with ``tokens`` more slots filled by the blocks."""
        return dataclasses.replace(
            self,
            keys=tuple(layer.keys.reshape(self.keys[0].shape) for layer in layers),
            values=tuple(layer.values.reshape(self.values[0].shape) for layer in layers),
            index=self.index + tokens,
        )

    def take(self, rows: jax.Array) -> Self:
        """Return a cache whose row i is row ``rows[i]`` of this one; it is not squeezed."""

        def taken(array: jax.Array) -> jax.Array:
            return array.reshape(self.mask.shape[0], *array.shape[-3:])[rows]

        return dataclasses.replace(
            self,
            keys=tuple(map(taken, self.keys)),
            values=tuple(map(taken, self.values)),
            mask=self.mask[rows],
        )


@dataclasses.dataclass(frozen=True)
class LayerCache:
    """One block's part of a ``Cache``."""

    keys: jax.Array
    values: jax.Array
    index: jax.Array

    @property
    def length(self) -> int:
        """Number of slots S."""
        return self.keys.shape[-2]

    def append(self, keys: jax.Array, values: jax.Array) -> Self:
        """Return the part with ``keys`` and ``values`` (B, N, T, H) in the next T slots."""
        zero = jnp.int32(0)
        place = (zero, zero, self.index, zero)

        def put(slots: jax.Array, new: jax.Array) -> jax.Array:
            slots = jax.lax.dynamic_update_slice(slots, new.astype(slots.dtype), place)
            return constrain(slots, ROWS, TENSOR, None, None)

        return dataclasses.replace(self, keys=put(self.keys, keys), values=put(self.values, values))


def valid_rows(attention_mask: Shaped[Array, "B T"]) -> Bool[Array, "B"] | None:
    """Return which rows of a mask hold nothing but 0 and 1.

    None for a mask of bools, which can hold nothing else.
    """
    if attention_mask.dtype == bool:
        return None
    return ((attention_mask == 0) | (attention_mask == 1)).all(axis=-1)


@pytree_dataclass
class Mask:
    """Which keys a query sees; the same in every block.

    Attributes:
        causal: (1, 1, T, S) bool, true where the key does not lie after the query.
        future_bias: (1, 1, 1, S) the score of a key after its query; -inf for an unfilled slot.
        padding: (B, 1, 1, S) added to the scores; 0 for a token, the lowest number for padding.
            None where nothing is padded.
    """

    causal: jax.Array
    future_bias: jax.Array
    padding: jax.Array | None

    @classmethod
    def build(
        cls, attention_mask: jax.Array | None, tokens: int, cache: Cache | LayerCache | None
    ) -> Self:
        """Build for ``tokens`` queries and (B, S) ``attention_mask`` (1 token, 0 padding)."""
        index = jnp.int32(0) if cache is None else cache.index
        slots = jnp.arange(tokens if cache is None else cache.length, dtype=jnp.int32)
        queries = index + jnp.arange(tokens, dtype=jnp.int32)
        padding = None
        if attention_mask is not None:
            padding = (1 - attention_mask) * jnp.finfo(attention_mask.dtype).min
            padding = padding[:, None, None, :]
        return cls(
            causal=(slots[None, :] <= queries[:, None])[None, None],
            future_bias=jnp.where(slots < index + tokens, CAUSAL_MASK_VALUE, -jnp.inf)[
                None, None, None, :
            ],
            padding=padding,
        )


def attention_weights(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B N S H"],
    mask: Mask,
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "B N T S"]:
    """Return softmax(q k^T / sqrt(H)) under GPT-1's masks, in float32 (of float64 in float64)."""
    dtype = at_least_float32(query.dtype)
    product = functools.partial(
        jnp.einsum, "BNTH,BNSH->BNTS", precision=precision, preferred_element_type=dtype
    )
    scores = _product(product, query, key)
    scores = scores / math.sqrt(query.shape[-1])
    scores = jnp.where(mask.causal, scores, mask.future_bias.astype(dtype))
    if mask.padding is not None:
        scores = scores + mask.padding.astype(dtype)
    return jax.nn.softmax(site("attn.scores", scores), axis=-1)


def attend(
    weights: Float[Array, "B N T S"],
    value: Float[Array, "B N S H"],
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "B N T H"]:
    """Return the values mixed by the weights, in the dtype of the values."""
    product = functools.partial(
        jnp.einsum,
        "BNTS,BNSH->BNTH",
        precision=precision,
        preferred_element_type=at_least_float32(value.dtype),
    )
    return _product(product, weights.astype(value.dtype), value).astype(value.dtype)


def _product(product: Callable[..., jax.Array], rows: jax.Array, other: jax.Array) -> jax.Array:
    """Return the product of what each query has, (B, N, T, _), with what keys have."""
    if rows.shape[2] == 1 and rows.dtype.itemsize == 2:
        return one_row_twice(product, rows, other, platforms=("cpu",))
    return product(rows, other)


def attend_fused(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B N S H"],
    value: Float[Array, "B N S H"],
    mask: Mask,
    backend: Fused,
) -> Float[Array, "B N T H"]:
    """Return ``attend`` of ``attention_weights``, at tokens, without keeping the weights.

    By ``jax.nn.dot_product_attention``, whose backend cuDNN takes no mask for an odd number of
    queries or keys, such as one token that is decoded: XLA computes these.
    """
    T, S = query.shape[2], key.shape[2]
    seen = None
    causal = mask.padding is None and T == S  # as it is without a cache
    if not causal:
        seen = mask.causal if mask.padding is None else mask.causal & (mask.padding == 0)
    if backend == "cudnn" and not causal and (T % 2 or S % 2):
        backend = "xla"
    query, key, value = (array.transpose(0, 2, 1, 3) for array in (query, key, value))
    # JAX's own code mixes dtypes, which a user may have forbidden.
    with jax.numpy_dtype_promotion("standard"):
        mixed = jax.nn.dot_product_attention(
            query, key, value, mask=seen, is_causal=causal, implementation=backend
        )
    return mixed.transpose(0, 2, 1, 3)


def choose_backend(
    attention: AttentionBackend,
    config: OpenAIGPTConfig,
    dtype: jnp.dtype,
    precision: jax.lax.PrecisionLike,
) -> Backend:
    """Return the backend that a model computes with, or say why it cannot be the one asked for.

    Args:
        attention: the backend, or "auto": on a GPU cuDNN if it can, else XLA; on a TPU XLA; on a
            CPU the formula.
        config: of the model.
        dtype: of the computation.
        precision: of the matrix products.

    Raises:
        ValueError: there is no such backend, or it cannot compute this model here.
    """
    if attention not in (known := get_args(AttentionBackend)):
        raise ValueError(f"attention is {attention!r}, but must be one of {', '.join(known)}")
    if attention == "manual":
        return attention
    if attention == "auto":
        if jax.default_backend() == "cpu":
            return "manual"  # no slower than XLA's there, as far as could be measured
        for backend in FUSED:
            if _obstacle(backend, config, dtype, precision) is None:
                return backend
        return "manual"
    if obstacle := _obstacle(attention, config, dtype, precision):
        raise ValueError(f"attention is {attention!r}, which {obstacle}")
    return attention


def _obstacle(
    backend: Fused, config: OpenAIGPTConfig, dtype: jnp.dtype, precision: jax.lax.PrecisionLike
) -> str | None:
    """What keeps a backend from computing a model."""
    if precision is not None:
        return f"has no precision of its own, so it must be None, not {precision!r}"
    if dtype == jnp.float64:
        return "takes the softmax in float32, so the dtype cannot be float64"
    if backend == "xla":
        if dtype == jnp.float16 and jax.default_backend() == "cpu":
            return "computes in float32 or bfloat16 on a CPU, so the dtype cannot be float16"
        return None
    if dtype.itemsize != 2:
        return f"computes in bfloat16 or float16, so the dtype cannot be {dtype.name}"
    width = config.n_embd // config.n_head
    if width % 8 or width > 128:
        return f"takes heads as wide as a multiple of 8 up to 128, not {width}"
    # With this variable JAX compiles for GPUs that are not there.
    if "JAX_SKIP_CUDA_CONSTRAINTS_CHECK" in os.environ:
        return None
    if "cuda" not in jax.devices()[0].client.platform_version:
        return f"needs an NVIDIA GPU, and JAX runs on a {jax.default_backend().upper()} here"
    return None
