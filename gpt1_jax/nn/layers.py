"""Flax's layers with GPT-1's settings: numerics, initialisation and names in one place."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import PrecisionLike

from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.nn.attention import Backend
from gpt1_jax.nn.dtypes import at_least_float32
from gpt1_jax.nn.host_arrays import native
from gpt1_jax.nn.matmul import dot_general, logits_matmul


class NoRngs(nnx.Rngs):
    """In place of keys, where of a new model nothing but its shapes is asked for.

    To trace how keys are split and weights drawn takes several times as long as all else of that.
    """

    def params(self) -> None:
        """Return no key: zeros need none."""


@dataclasses.dataclass(frozen=True)
class Layers:
    """Makes the layers of one model.

    Attributes:
        config: widths, epsilon and the scale of initial weights.
        dtype: of the computation.
        param_dtype: of the parameters.
        precision: of the matrix products; None takes JAX's default for the device.
        attention: what computes the attention.
        rngs: keys of the initial weights.
    """

    config: OpenAIGPTConfig
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    precision: PrecisionLike
    attention: Backend
    rngs: nnx.Rngs

    def linear(self, features: int, outputs: int) -> nnx.Linear:
        """Return x @ kernel + bias, Hugging Face's ``Conv1D``; N(0, initializer_range), zeros."""
        return nnx.Linear(
            features,
            outputs,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
            kernel_init=self._normal(),
            dot_general=dot_general,
            rngs=self.rngs,
        )

    def head(self, outputs: int, use_bias: bool = False) -> nnx.Linear:
        """Return a linear layer from states to logits, which are float32 at least."""
        return nnx.Linear(
            self.config.n_embd,
            outputs,
            use_bias=use_bias,
            dtype=at_least_float32(self.dtype) if use_bias else self.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
            kernel_init=self._normal(),
            preferred_element_type=at_least_float32(self.dtype),
            rngs=self.rngs,
        )

    def lm_head(self) -> "nnx.Linear | TiedHead":
        """Return the head over the vocabulary, with a kernel of its own only where it is untied."""
        config = self.config
        if not config.tie_word_embeddings:
            return self.head(config.vocab_size)
        return TiedHead(config.n_embd, config.vocab_size, self.dtype, self.precision)

    def embed(self, rows: int) -> nnx.Embed:
        """Return a table of ``rows`` vectors, looked up in the dtype it is stored in."""
        return nnx.Embed(
            rows,
            self.config.n_embd,
            # The rows that were looked up are cast, not the whole table at every call.
            dtype=self.param_dtype,
            param_dtype=self.param_dtype,
            embedding_init=self._normal(),
            rngs=self.rngs,
        )

    def layer_norm(self) -> nnx.LayerNorm:
        """Return a layer norm with torch's two-pass variance; its output is float32 at least."""
        return nnx.LayerNorm(
            self.config.n_embd,
            epsilon=self.config.layer_norm_epsilon,
            dtype=at_least_float32(self.dtype),
            param_dtype=self.param_dtype,
            use_fast_variance=False,
            rngs=self.rngs,
        )

    def _normal(self) -> nnx.Initializer:
        if isinstance(self.rngs, NoRngs):
            return nnx.initializers.zeros
        return functools.partial(_scaled_normal, self.config.initializer_range)


def _scaled_normal(
    scale: float, key: jax.Array, shape: Any, dtype: Any, out_sharding: Any = None
) -> jax.Array:
    """Return draws from N(0, scale^2), the same in a compiled program as without one.

    XLA would make one of the two factors that draws are multiplied by, their own and the scale, and
    so change the last bit; JAX's own initializer does so from JAX 0.12 on.
    """
    draws = jax.random.normal(key, shape, dtype, out_sharding=out_sharding)
    return jax.lax.optimization_barrier(draws) * jnp.array(scale, dtype)


class TiedHead(nnx.Module):
    """A linear layer without parameters of its own: its weights are a given embedding table."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        dtype: jnp.dtype,
        precision: PrecisionLike = None,
    ):
        self.in_features = in_features
        self.out_features = out_features
        self.use_bias = False
        self.dtype = dtype
        self.precision = precision

    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        """Return (..., E) @ (V, E)^T, float32 at least: (..., V)."""
        return logits_matmul(x.astype(self.dtype), embedding.astype(self.dtype), self.precision)


def split_key(key: jax.Array | None, parts: int) -> list[jax.Array | None]:
    """Return independent keys for ``parts`` sites of dropout; None, for no dropout, stays None."""
    if key is None:
        return [None] * parts
    return list(jax.random.split(native(key), parts))


def dropout(layer: nnx.Dropout, x: jax.Array, key: jax.Array | None) -> jax.Array:
    """Apply ``layer`` with the mask that ``key`` draws; without a key, return ``x``."""
    return layer(x, deterministic=key is None, rngs=key)
