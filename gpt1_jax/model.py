"""GPT-1, read top to bottom: attention, MLP, block, transformer, and the models with their heads.

Modules, names and order are those of Hugging Face's ``models/openai``, so that a parameter's path
here spells its name there. Every numeric choice follows torch:

- post-norm blocks without a final norm: n = ln_1(x + attn(x)), h = ln_2(n + mlp(n));
- a key after its query scores -1e4, padding adds the lowest number (``nn/attention.py``);
- positions are 0..T-1 whatever the mask, unless ``positions_from_mask``.

Dimensions: B rows (all leading dimensions of an input, flattened), T tokens, S keys, E ``n_embd``,
N heads, H = E / N, V ``vocab_size``.
"""

import dataclasses
import functools
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import PrecisionLike
from jaxtyping import Array, Float, Integer

from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.demo import HubOptions, resolve
from gpt1_jax.nn.attention import (
    AttentionBackend,
    Backend,
    Cache,
    LayerCache,
    Mask,
    attend,
    attend_fused,
    attention_weights,
    choose_backend,
    valid_rows,
)
from gpt1_jax.nn.dtypes import at_least_float32, compute_dtype
from gpt1_jax.nn.host_arrays import as_array, native_leaves
from gpt1_jax.nn.indices import gather_indices
from gpt1_jax.nn.int8 import Int8Embed, Int8Linear, QArray
from gpt1_jax.nn.layers import (
    DType,
    TiedHead,
    dropout,
    embedding_table,
    head,
    lm_head,
    normal,
    qkv_by_heads,
    split_key,
    take_rows,
)
from gpt1_jax.nn.losses import causal_lm_loss, classification_loss, cross_entropy
from gpt1_jax.nn.matmul import dot_general
from gpt1_jax.nn.partitioning import ROWS, constrain
from gpt1_jax.nn.remat import Remat, check_remat, rematerialize
from gpt1_jax.nn.sites import requested, scope, site
from gpt1_jax.nn.validation import ArrayLike, checked
from gpt1_jax.outputs import (
    BaseModelOutput,
    CausalLMOutput,
    OpenAIGPTDoubleHeadsModelOutput,
    SequenceClassifierOutput,
)
from gpt1_jax.pretrained import OpenAIGPTPreTrainedModel


def gelu_new(x: jax.Array) -> jax.Array:
    """Return the tanh form of GELU (Hendrycks & Gimpel, arXiv:1606.08415, section 2)."""
    return jax.nn.gelu(x, approximate=True)


def identity(x: jax.Array) -> jax.Array:
    """Return ``x``: in place of a part that the configuration leaves out."""
    return x


ACTIVATIONS = {
    "gelu": gelu_new,
    "gelu_new": gelu_new,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}


class Attention(nnx.Module):
    """Causal self-attention with N heads."""

    def __init__(
        self,
        config: OpenAIGPTConfig,
        *,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        precision: PrecisionLike = None,
        attention: AttentionBackend = "manual",
        rngs: nnx.Rngs,
    ):
        E, dtype = config.n_embd, compute_dtype(dtype, param_dtype)
        linear = functools.partial(
            nnx.Linear,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            kernel_init=normal(config.initializer_range),
            dot_general=dot_general,
            rngs=rngs,
        )
        self.n_head = config.n_head
        self.precision = precision
        self.backend: Backend = choose_backend(attention, config, dtype, precision)
        self.c_attn = linear(E, 3 * E)  # q, k, v in that order
        self.c_proj = linear(E, E)
        self.attn_dropout = nnx.Dropout(config.attn_pdrop)
        self.resid_dropout = nnx.Dropout(config.resid_pdrop)

    def __call__(
        self,
        x: Float[Array, "B T E"],
        mask: Mask | None = None,
        past: LayerCache | None = None,
        dropout_key: jax.Array | None = None,
        *,
        need_weights: bool = True,
    ) -> tuple[Float[Array, "B T E"], Float[Array, "B N T S"] | None, LayerCache | None]:
        """Return what each token reads from those before it, the weights, and the cache.

        Args:
            x: the states.
            mask: which keys each query sees; by default those up to its own.
            past: keys and values of earlier tokens.
            dropout_key: that the dropout masks are drawn from; None for no dropout.
            need_weights: whether the weights must be returned; otherwise they may be None.

        Returns:
            The states to add to ``x``, the weights, and ``past`` with these keys and values in it.
        """
        attn_key, resid_key = split_key(dropout_key, 2)
        if mask is None:
            mask = Mask.build(None, x.shape[1], past)
        # (B, T, E) -> three of (B, T, N, H) -> three of (B, N, T, H)
        qkv = zip("qkv", qkv_by_heads(self.c_attn, x, self.n_head), strict=True)
        query, key, value = (site(f"attn.{c}", third).transpose(0, 2, 1, 3) for c, third in qkv)
        if past is not None:
            past = past.append(key, value)
            key, value = past.keys.astype(query.dtype), past.values.astype(query.dtype)
        drop = attn_key is not None and self.attn_dropout.rate > 0
        need_weights |= requested("attn.scores", "attn.weights", "attn.z")
        if self.backend == "manual" or need_weights or drop:
            weights = attention_weights(query, key, mask, self.precision)
            weights = site("attn.weights", dropout(self.attn_dropout, weights, attn_key))
            z = attend(weights, value, self.precision)
        else:
            weights, z = None, attend_fused(query, key, value, mask, self.backend)
        z = site("attn.z", z.transpose(0, 2, 1, 3))  # (B, N, T, H) -> (B, T, N, H)
        out = dropout(self.resid_dropout, self.c_proj(z.reshape(x.shape)), resid_key)
        return site("attn.out", out), weights, past


class MLP(nnx.Module):
    """Two linear layers around an activation, four times as wide in between."""

    def __init__(
        self,
        config: OpenAIGPTConfig,
        *,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        precision: PrecisionLike = None,
        rngs: nnx.Rngs,
    ):
        linear = functools.partial(
            nnx.Linear,
            dtype=compute_dtype(dtype, param_dtype),
            param_dtype=param_dtype,
            precision=precision,
            kernel_init=normal(config.initializer_range),
            dot_general=dot_general,
            rngs=rngs,
        )
        self.c_fc = linear(config.n_embd, config.n_inner)
        self.c_proj = linear(config.n_inner, config.n_embd)
        self.act = ACTIVATIONS[config.afn]
        self.dropout = nnx.Dropout(config.resid_pdrop)

    def __call__(
        self, x: Float[Array, "B T E"], dropout_key: jax.Array | None = None
    ) -> Float[Array, "B T E"]:
        """Return the states to add to ``x``."""
        x = site("mlp.pre", self.c_fc(x))
        x = site("mlp.act", self.act(x))
        return site("mlp.out", dropout(self.dropout, self.c_proj(x), dropout_key))


class Block(nnx.Module):
    """Attention and MLP, each followed by a layer norm over its sum with its input."""

    def __init__(
        self,
        config: OpenAIGPTConfig,
        *,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        precision: PrecisionLike = None,
        attention: AttentionBackend = "manual",
        rngs: nnx.Rngs,
    ):
        dtype = compute_dtype(dtype, param_dtype)
        layer_norm = functools.partial(
            nnx.LayerNorm,
            config.n_embd,
            epsilon=config.layer_norm_epsilon,
            dtype=at_least_float32(dtype),
            param_dtype=param_dtype,
            use_fast_variance=False,  # torch's variance takes two passes
            rngs=rngs,
        )
        self.attn = Attention(
            config,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            attention=attention,
            rngs=rngs,
        )
        self.ln_1 = layer_norm()
        self.mlp = MLP(config, dtype=dtype, param_dtype=param_dtype, precision=precision, rngs=rngs)
        self.ln_2 = layer_norm()

    def __call__(
        self,
        x: Float[Array, "B T E"],
        mask: Mask | None = None,
        past: LayerCache | None = None,
        dropout_key: jax.Array | None = None,
        *,
        need_weights: bool = True,
    ) -> tuple[Float[Array, "B T E"], Float[Array, "B N T S"] | None, LayerCache | None]:
        """Return the new states, with the attention's weights and cache; see ``Attention``."""
        attn_key, mlp_key = split_key(dropout_key, 2)
        a, weights, past = self.attn(x, mask, past, attn_key, need_weights=need_weights)
        n = site("n", self.ln_1(site("attn_sum", x + a)).astype(x.dtype))
        h = self.ln_2(site("mlp_sum", n + self.mlp(n, mlp_key))).astype(x.dtype)
        return site("out", h), weights, past


class OpenAIGPTSequenceSummary(nnx.Module):
    """One vector for a sequence: a state of it, projected. The multiple-choice head.

    The state is chosen along the token dimension. (For inputs (batch, choices, T), Hugging Face's
    "last", "first" and "mean" pick along the choices instead; "cls_index", the default, agrees.)
    """

    def __init__(
        self,
        config: OpenAIGPTConfig,
        *,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        precision: PrecisionLike = None,
        rngs: nnx.Rngs,
    ):
        projection = functools.partial(
            head,
            config,
            use_bias=True,
            dtype=compute_dtype(dtype, param_dtype),
            param_dtype=param_dtype,
            precision=precision,
            rngs=rngs,
        )
        width = 1 if config.summary_proj_to_labels else config.n_embd
        self.summary_type = config.summary_type
        self.summary = projection(width) if config.summary_use_proj else identity
        self.activation = jnp.tanh if config.summary_activation == "tanh" else identity
        self.first_dropout = nnx.Dropout(config.summary_first_dropout)
        self.last_dropout = nnx.Dropout(config.summary_last_dropout)

    def __call__(
        self,
        states: Float[Array, "*rows T E"],
        cls_index: Integer[Array, "*rows"],
        dropout_key: jax.Array | None = None,
    ) -> Float[Array, "*rows _"]:
        """Return a vector of 1 or, unprojected, E numbers; ``cls_index`` is for "cls_index"."""
        first_key, last_key = split_key(dropout_key, 2)
        if self.summary_type == "mean":
            x = states.mean(axis=-2)
        elif self.summary_type == "first":
            x = states[..., 0, :]
        elif self.summary_type == "last":
            x = states[..., -1, :]
        else:
            index = gather_indices(cls_index, states.shape[-2])
            x = jnp.take_along_axis(states, index[..., None, None], axis=-2)[..., 0, :]
        x = self.activation(self.summary(dropout(self.first_dropout, x, first_key)))
        return dropout(self.last_dropout, x, last_key)


class OpenAIGPTModel(OpenAIGPTPreTrainedModel):
    """The transformer without a head."""

    def __init__(
        self,
        config: OpenAIGPTConfig,
        *,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        precision: PrecisionLike = None,
        attention: AttentionBackend = "manual",
        remat: Remat = "none",
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.dtype = compute_dtype(dtype, param_dtype)
        self.attention = choose_backend(attention, config, self.dtype, precision)
        self.remat = check_remat(remat)
        embed = functools.partial(
            nnx.Embed,
            features=config.n_embd,
            dtype=param_dtype,  # the rows that were looked up are cast, not the whole table
            param_dtype=param_dtype,
            embedding_init=normal(config.initializer_range),
            rngs=rngs,
        )
        block = functools.partial(
            Block,
            config,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            attention=attention,
            rngs=rngs,
        )
        self.tokens_embed = embed(config.vocab_size)
        self.positions_embed = embed(config.n_positions)
        self.drop = nnx.Dropout(config.embd_pdrop)
        self.h = nnx.List([block() for _ in range(config.n_layer)])

    @checked
    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        positions_from_mask: bool = False,
        cache: Cache | None = None,
        deterministic: bool = True,
        dropout_key: jax.Array | None = None,
    ) -> BaseModelOutput:
        """Return the states of the tokens.

        Args:
            input_ids: (..., T) integer in [0, V); all but the last dimension are rows.
            attention_mask: (..., T), 1 for a token and 0 for padding.
            token_type_ids: (..., T) ids of tokens whose embeddings are added.
            position_ids: (..., T) or (T,) in [0, n_positions); by default 0..T-1, or with a cache
                the next T positions.
            inputs_embeds: (..., T, E) in place of ``input_ids``.
            output_attentions: whether to return the attention weights; by default what the config
                says, as ``output_hidden_states``.
            output_hidden_states: whether to return the state after the embedding and every block.
            positions_from_mask: count positions over unpadded tokens alone, as Hugging Face's
                ``generate`` does; for left-padded input.
            cache: keys and values of earlier tokens; ``attention_mask`` is that of the new ones.
            deterministic: False turns dropout on.
            dropout_key: that every dropout mask is drawn from; needed with deterministic=False.

        Raises:
            ValueError: shapes that do not fit, or, for arrays that are not traced, ids or
                positions out of range or a mask of other values than 1 and 0; the message names
                the argument, its value and what would be right.
        """
        config = self.config
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        given = as_array(input_ids if inputs_embeds is None else inputs_embeds)
        *rows, T = given.shape if inputs_embeds is None else given.shape[:-1]
        B = math.prod(rows)

        # Which keys each token sees, and which position it has.
        valid = None
        if attention_mask is not None:
            attention_mask = as_array(attention_mask).reshape(B, T)
            valid = valid_rows(attention_mask)
            attention_mask = attention_mask.astype(at_least_float32(self.dtype))
        cache = native_leaves(cache)
        if cache is not None:
            cache = cache.extend_mask(
                jnp.ones((B, T)) if attention_mask is None else attention_mask
            )
            attention_mask = cache.mask
        mask = Mask.build(attention_mask, T, cache)
        if position_ids is None:
            position_ids = positions(attention_mask if positions_from_mask else None, T, cache)

        x = self.embed(T, input_ids, token_type_ids, position_ids, inputs_embeds)
        if valid is not None:
            x = jnp.where(valid[:, None, None], x, jnp.nan)
        if cache is not None:  # tokens beyond its end would take the places of earlier ones
            x = jnp.where(cache.index + T <= cache.length, x, jnp.nan)
        drop_key, *block_keys = split_key(None if deterministic else dropout_key, 1 + len(self.h))
        x = site("embed", constrain(dropout(self.drop, x, drop_key), ROWS, None, None))

        hidden_states, attentions, past = [x], [], []
        for i, (block, key) in enumerate(zip(self.h, block_keys, strict=True)):
            block = functools.partial(block, need_weights=output_attentions)
            # A cache is for decoding, which has no backward pass.
            block = rematerialize(block, self.remat if cache is None else "none")
            with scope(f"h.{i}"):
                x, weights, layer = block(x, mask, None if cache is None else cache.layer(i), key)
            hidden_states.append(x)
            attentions.append(weights)
            past.append(layer)

        def unflatten(array: jax.Array) -> jax.Array:
            return array.reshape(*rows, *array.shape[1:])

        return BaseModelOutput(
            last_hidden_state=unflatten(x),
            hidden_states=tuple(map(unflatten, hidden_states)) if output_hidden_states else None,
            attentions=tuple(map(unflatten, attentions)) if output_attentions else None,
            cache=None if cache is None else cache.advance(past, T),
        )

    def embed(
        self,
        tokens: int,
        input_ids: ArrayLike | None,
        token_type_ids: ArrayLike | None,
        position_ids: ArrayLike,
        inputs_embeds: ArrayLike | None,
    ) -> Float[Array, "B T E"]:
        """Return the sum of the embeddings, h_0 = U W_e + W_p, in the dtype of the computation."""

        def look_up(table: nnx.Embed | Int8Embed, ids: ArrayLike) -> jax.Array:
            ids = gather_indices(ids, table.num_embeddings).reshape(-1, tokens)
            return take_rows(table, ids).astype(self.dtype)

        if input_ids is not None:
            x = look_up(self.tokens_embed, input_ids)
        else:
            x = jnp.asarray(inputs_embeds, self.dtype).reshape(-1, tokens, self.config.n_embd)
        x = x + look_up(self.positions_embed, position_ids)
        return x if token_type_ids is None else x + look_up(self.tokens_embed, token_type_ids)


class OpenAIGPTLMHeadModel(OpenAIGPTPreTrainedModel):
    """GPT-1 as a language model: the head is the token embedding, unless the config unties it."""

    def __init__(
        self,
        config: OpenAIGPTConfig,
        *,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        precision: PrecisionLike = None,
        attention: AttentionBackend = "manual",
        remat: Remat = "none",
        rngs: nnx.Rngs,
    ):
        body = OpenAIGPTModel(
            config,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            attention=attention,
            remat=remat,
            rngs=rngs,
        )
        self.config = config
        self.dtype, self.attention, self.remat = body.dtype, body.attention, body.remat
        self.transformer = body
        self.lm_head = lm_head(
            config, dtype=self.dtype, param_dtype=param_dtype, precision=precision, rngs=rngs
        )

    @checked
    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        positions_from_mask: bool = False,
        logits_to_keep: int | ArrayLike = 0,
        num_items_in_batch: jax.Array | float | None = None,
        cache: Cache | None = None,
        deterministic: bool = True,
        dropout_key: jax.Array | None = None,
    ) -> CausalLMOutput:
        """Return the logits of every next token, and their loss.

        Args:
            input_ids: (..., T) integer in [0, V).
            attention_mask: (..., T), 1 for a token and 0 for padding.
            token_type_ids: see ``OpenAIGPTModel``, as the next two.
            position_ids: by default 0..T-1, or with a cache the next T positions.
            inputs_embeds: (..., T, E) in place of ``input_ids``.
            labels: (..., T), usually the input ids: shifted inside, -100 where not to be predicted.
            output_attentions: see ``OpenAIGPTModel``, as the next two.
            output_hidden_states: whether to return the states between the blocks.
            positions_from_mask: whether to count positions over unpadded tokens alone.
            logits_to_keep: compute the logits of the last so many positions only (0: all), or of
                the positions in a (K,) or, row by row, (B, K) integer array.
            num_items_in_batch: the number of predicted tokens that the loss is divided by, where
                this batch is a part of a larger one.
            cache: see ``OpenAIGPTModel``, as the next two.
            deterministic: False turns dropout on.
            dropout_key: that every dropout mask is drawn from.

        Raises:
            ValueError: as ``OpenAIGPTModel``; labels out of range; labels with ``logits_to_keep``.
        """
        out: BaseModelOutput = self.transformer.forward(
            input_ids,
            attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            positions_from_mask=positions_from_mask,
            cache=cache,
            deterministic=deterministic,
            dropout_key=dropout_key,
        )
        states = out.last_hidden_state
        logits = site("logits", lm_logits(self, select_positions(states, logits_to_keep)))
        loss = None
        if labels is not None:
            labels = as_array(labels).reshape(states.shape[:-1])
            loss = causal_lm_loss(logits, labels, num_items_in_batch)
        return CausalLMOutput(loss, logits, out.hidden_states, out.attentions, out.cache)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Continue prompts: ``gpt1_jax.generate`` with this model."""
        from gpt1_jax.generation.api import generate

        return generate(self, *args, **kwargs)


class OpenAIGPTDoubleHeadsModel(OpenAIGPTPreTrainedModel):
    """GPT-1 with a language-modelling head and a head that scores choices."""

    def __init__(
        self,
        config: OpenAIGPTConfig,
        *,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        precision: PrecisionLike = None,
        attention: AttentionBackend = "manual",
        remat: Remat = "none",
        rngs: nnx.Rngs,
    ):
        config = dataclasses.replace(config, num_labels=1)
        body = OpenAIGPTModel(
            config,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            attention=attention,
            remat=remat,
            rngs=rngs,
        )
        self.config = config
        self.dtype, self.attention, self.remat = body.dtype, body.attention, body.remat
        self.transformer = body
        self.lm_head = lm_head(
            config, dtype=self.dtype, param_dtype=param_dtype, precision=precision, rngs=rngs
        )
        self.multiple_choice_head = OpenAIGPTSequenceSummary(
            config, dtype=self.dtype, param_dtype=param_dtype, precision=precision, rngs=rngs
        )

    @checked
    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        mc_token_ids: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        mc_labels: ArrayLike | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        positions_from_mask: bool = False,
        deterministic: bool = True,
        dropout_key: jax.Array | None = None,
    ) -> OpenAIGPTDoubleHeadsModelOutput:
        """Return the logits of every next token and of every choice, and their losses.

        Args:
            input_ids: (batch, choices, T) integer in [0, V).
            attention_mask: (batch, choices, T), 1 for a token and 0 for padding.
            token_type_ids: see ``OpenAIGPTModel``, as the next two.
            position_ids: by default 0..T-1.
            inputs_embeds: (batch, choices, T, E) in place of ``input_ids``.
            mc_token_ids: (batch, choices) place of the token that the choice is scored by; the
                last one by default, padding or not.
            labels: (batch, choices, T), shifted inside, -100 where not to be predicted.
            mc_labels: (batch,) the right choices.
            output_attentions: see ``OpenAIGPTModel``, as the next two.
            output_hidden_states: whether to return the states between the blocks.
            positions_from_mask: whether to count positions over unpadded tokens alone.
            deterministic: False turns dropout on.
            dropout_key: that every dropout mask is drawn from.

        Raises:
            ValueError: as ``OpenAIGPTModel``; places or labels out of range.
        """
        body_key, head_key = split_key(None if deterministic else dropout_key, 2)
        out: BaseModelOutput = self.transformer.forward(
            input_ids,
            attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            positions_from_mask=positions_from_mask,
            deterministic=deterministic,
            dropout_key=body_key,
        )
        states = out.last_hidden_state
        *rows, T, _ = states.shape
        logits = site("logits", lm_logits(self, states))
        places = jnp.full(rows, T - 1) if mc_token_ids is None else as_array(mc_token_ids)
        mc_logits = self.multiple_choice_head(states, places, head_key)
        if mc_logits.shape[-1] == 1:
            mc_logits = mc_logits[..., 0]
        loss = mc_loss = None
        if mc_labels is not None:
            choices = mc_logits.shape[-1]
            mc_labels = as_array(mc_labels).reshape(-1)
            mc_loss = cross_entropy(mc_logits.reshape(-1, choices), mc_labels)
        if labels is not None:
            loss = causal_lm_loss(logits, as_array(labels).reshape(*rows, T))
        return OpenAIGPTDoubleHeadsModelOutput(
            loss, mc_loss, logits, mc_logits, out.hidden_states, out.attentions
        )


class OpenAIGPTForSequenceClassification(OpenAIGPTPreTrainedModel):
    """GPT-1 with a linear layer on the last token that is not padding."""

    classifies = True

    def __init__(
        self,
        config: OpenAIGPTConfig,
        *,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        precision: PrecisionLike = None,
        attention: AttentionBackend = "manual",
        remat: Remat = "none",
        rngs: nnx.Rngs,
    ):
        body = OpenAIGPTModel(
            config,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            attention=attention,
            remat=remat,
            rngs=rngs,
        )
        self.config = config
        self.dtype, self.attention, self.remat = body.dtype, body.attention, body.remat
        self.transformer = body
        self.score = head(
            config,
            config.num_labels,
            dtype=self.dtype,
            param_dtype=param_dtype,
            precision=precision,
            rngs=rngs,
        )

    @checked
    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        positions_from_mask: bool = False,
        deterministic: bool = True,
        dropout_key: jax.Array | None = None,
    ) -> SequenceClassifierOutput:
        """Return the logits of the labels, and their loss.

        The state read is that of the rightmost token that is not ``config.pad_token_id``: token 0
        of a row of nothing but padding, the last token where ``inputs_embeds`` are given.

        Args:
            input_ids: (batch, T) integer in [0, V).
            attention_mask: (batch, T), 1 for a token and 0 for padding.
            token_type_ids: see ``OpenAIGPTModel``, as the next two.
            position_ids: by default 0..T-1.
            inputs_embeds: (batch, T, E) in place of ``input_ids``.
            labels: (batch,) classes or numbers, or (batch, num_labels): see ``losses``.
            output_attentions: see ``OpenAIGPTModel``, as the next two.
            output_hidden_states: whether to return the states between the blocks.
            positions_from_mask: whether to count positions over unpadded tokens alone.
            deterministic: False turns dropout on.
            dropout_key: that every dropout mask is drawn from.

        Raises:
            ValueError: as ``OpenAIGPTModel``; several rows where the config has no pad token;
                labels out of range or of the wrong shape.
        """
        out: BaseModelOutput = self.transformer.forward(
            input_ids,
            attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            positions_from_mask=positions_from_mask,
            deterministic=deterministic,
            dropout_key=dropout_key,
        )
        B, T, _ = out.last_hidden_state.shape
        if self.config.pad_token_id is None or input_ids is None:
            last = jnp.full(B, T - 1)
        else:
            is_token = jnp.asarray(input_ids, jnp.int32) != self.config.pad_token_id
            last = jnp.where(is_token, jnp.arange(T)[None], 0).max(axis=-1)
        state = jnp.take_along_axis(out.last_hidden_state, last[:, None, None], axis=1)[:, 0]
        logits = site("logits", self.score(state))
        loss = None
        if labels is not None:
            loss = classification_loss(logits, as_array(labels), self.config.problem_type)
        return SequenceClassifierOutput(loss, logits, out.hidden_states, out.attentions)


def positions(attention_mask: jax.Array | None, tokens: int, cache: Cache | None) -> jax.Array:
    """Return the position of each token.

    Args:
        attention_mask: (B, S), to count positions over unpadded tokens alone; None to count all.
        tokens: number of new tokens T, the last of the S without a cache.
        cache: says how many tokens came before.

    Returns:
        (1 or B, T) int32; 0 for padding before the first token.
    """
    start = jnp.int32(0) if cache is None else cache.index
    if attention_mask is None:
        return (start + jnp.arange(tokens, dtype=jnp.int32))[None]
    counted = jnp.cumsum(attention_mask != 0, axis=-1, dtype=jnp.int32)
    new = jax.lax.dynamic_slice_in_dim(counted, start, tokens, axis=-1)
    return jnp.maximum(new - 1, 0)


def select_positions(states: jax.Array, logits_to_keep: Any) -> jax.Array:
    """Return the states (B, T, E) at the positions that ``logits_to_keep`` names: (B, K, E)."""
    if np.ndim(logits_to_keep) == 0:
        return states[..., -int(logits_to_keep) :, :]  # 0 keeps all
    index = gather_indices(logits_to_keep, states.shape[-2])
    if index.ndim == 1:
        return jnp.take(states, index, axis=-2)
    return jnp.take_along_axis(states, index[..., None], axis=-2)


def lm_logits(
    model: OpenAIGPTLMHeadModel | OpenAIGPTDoubleHeadsModel, states: jax.Array
) -> jax.Array:
    """(..., E) -> (..., V), float32 at least, by the model's own head or its token embedding."""
    if isinstance(model.lm_head, TiedHead):
        return model.lm_head(states, embedding_table(model.transformer.tokens_embed))
    return model.lm_head(states)


def lm_table(
    model: OpenAIGPTLMHeadModel | OpenAIGPTDoubleHeadsModel,
) -> Float[Array, "V E"] | QArray:
    """Return the weights of the LM head, in the dtype of the computation or in int8."""
    if isinstance(model.lm_head, TiedHead):
        table = embedding_table(model.transformer.tokens_embed)
    elif isinstance(model.lm_head, Int8Linear):
        table = model.lm_head.weights
    else:
        table = model.lm_head.kernel.get_value().T
    return table if isinstance(table, QArray) else table.astype(model.dtype)


MODELS: dict[str, type[OpenAIGPTPreTrainedModel]] = {
    model.__name__: model
    for model in (
        OpenAIGPTModel,
        OpenAIGPTLMHeadModel,
        OpenAIGPTDoubleHeadsModel,
        OpenAIGPTForSequenceClassification,
    )
}


def from_pretrained(path: str | os.PathLike[str], **options: Any) -> Any:
    """Load a checkpoint as the model that it is, one of ``MODELS``.

    That is the first of the ``architectures`` in its config.json; where this names none of the
    models, the one whose parameters the weights are; a language model for OpenAI's npy files.

    Args:
        path: a folder, a hub id, or "demo" for the bundled demo model.
        **options: see ``OpenAIGPTPreTrainedModel.from_pretrained``.

    Raises:
        FileNotFoundError: there is no such folder, file or repository.
        ValueError: the files hold no GPT-1, or it is not whole.
        TypeError: an option that does not exist.
    """
    from gpt1_jax._conversion import conversion

    hub = {name: options.pop(name) for name in HubOptions.__annotations__ if name in options}
    variant = options.get("variant")
    folder = resolve(path, variant=variant, **hub)
    architecture = conversion.read_architecture(folder, variant=variant)
    return MODELS[architecture].from_pretrained(folder, **options)
