"""Causal attention with GPT-1's masks, and the cache of keys and values.

Dimensions: B batch, T queries, S keys, N heads, H width of a head.
"""

import dataclasses
import math
from typing import Self

import jax
import jax.numpy as jnp

from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.dtypes import at_least_float32
from gpt1_jax.placement import ROWS, TENSOR, spread

# The score of a key that lies after its query: GPT-1 uses a large number, not -inf, so that a query
# which sees nothing but padding falls back on the later tokens.
AFTER = -1e4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens read so far: a value that the model takes and returns.

    Attributes:
        keys: n_layer arrays (B, N, S, H), S slots of which the first ``index`` are filled.
        values: n_layer arrays (B, N, S, H).
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
    ) -> Self:
        """Return a cache with room for ``length`` tokens in each of ``batch`` rows."""
        shape = (batch, config.n_head, length, config.n_embd // config.n_head)
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
        return LayerCache(self.keys[i], self.values[i], self.index)

    def open(self, mask: jax.Array) -> Self:
        """Return the cache with the attention mask (B, T) of the tokens about to be read."""
        mask = jax.lax.dynamic_update_slice(
            self.mask, mask.astype(self.mask.dtype), (jnp.int32(0), self.index)
        )
        return dataclasses.replace(self, mask=mask)

    def close(self, layers: "list[LayerCache]", tokens: int) -> Self:
        """Return the cache with ``tokens`` more slots filled by the blocks."""
        return dataclasses.replace(
            self,
            keys=tuple(layer.keys for layer in layers),
            values=tuple(layer.values for layer in layers),
            index=self.index + tokens,
        )


@dataclasses.dataclass(frozen=True)
class LayerCache:
    """One block's part of a ``Cache``."""

    keys: jax.Array
    values: jax.Array
    index: jax.Array

    def append(self, keys: jax.Array, values: jax.Array) -> Self:
        """Return the part with ``keys`` and ``values`` (B, N, T, H) in the next T slots."""
        zero = jnp.int32(0)
        place = (zero, zero, self.index, zero)

        def put(slots: jax.Array, new: jax.Array) -> jax.Array:
            slots = jax.lax.dynamic_update_slice(slots, new.astype(slots.dtype), place)
            return spread(slots, ROWS, TENSOR, None, None)

        return dataclasses.replace(self, keys=put(self.keys, keys), values=put(self.values, values))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """Which keys a query sees; the same in every block.

    Attributes:
        causal: (1, 1, T, S) bool, true where the key does not lie after the query.
        after: (1, 1, 1, S) the score of a key after its query; -inf for a slot not yet filled.
        padding: (B, 1, 1, S) added to the scores; 0 for a token, the lowest number for padding.
            None where nothing is padded.
    """

    causal: jax.Array
    after: jax.Array
    padding: jax.Array | None

    @classmethod
    def build(cls, attention_mask: jax.Array | None, tokens: int, cache: Cache | None) -> Self:
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
            after=jnp.where(slots < index + tokens, AFTER, -jnp.inf)[None, None, None, :],
            padding=padding,
        )


def attention_weights(
    query: jax.Array, key: jax.Array, mask: Mask, precision: jax.lax.PrecisionLike = None
) -> jax.Array:
    """Return softmax(q k^T / sqrt(H)) under GPT-1's masks.

    Args:
        query: (B, N, T, H).
        key: (B, N, S, H).
        mask: which keys each query sees.
        precision: of the product.

    Returns:
        (B, N, T, S) in float32 (float64 for float64 inputs).
    """
    dtype = at_least_float32(query.dtype)
    scores = jnp.einsum(
        "BNTH,BNSH->BNTS", query, key, precision=precision, preferred_element_type=dtype
    )
    scores = scores / math.sqrt(query.shape[-1])
    scores = jnp.where(mask.causal, scores, mask.after.astype(dtype))
    if mask.padding is not None:
        scores = scores + mask.padding.astype(dtype)
    return jax.nn.softmax(scores, axis=-1)


def attend(
    weights: jax.Array, value: jax.Array, precision: jax.lax.PrecisionLike = None
) -> jax.Array:
    """Return the values mixed by the weights: (B, N, T, S) and (B, N, S, H) -> (B, N, T, H)."""
    mixed = jnp.einsum(
        "BNTS,BNSH->BNTH",
        weights.astype(value.dtype),
        value,
        precision=precision,
        preferred_element_type=at_least_float32(value.dtype),
    )
    return mixed.astype(value.dtype)
