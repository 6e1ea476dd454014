"""The language-modelling loss of packed blocks: pure, for use inside a compiled step."""

import jax
import jax.numpy as jnp

from gpt1_jax.model import OpenAIGPTLMHeadModel, lm_table
from gpt1_jax.nn.losses import chunked_cross_entropy
from gpt1_jax.training.step import Batch, Sums


def lm_loss(
    model: OpenAIGPTLMHeadModel, batch: Batch, dropout_key: jax.Array | None = None
) -> tuple[jax.Array, Sums]:
    """Return the loss of a batch as a sum, so that micro-batches add up, and what divides it.

    Args:
        model: as ``pure.merge`` returns it.
        batch: ``tokens`` (B, T + 1) integer, of which the last T are predicted, each from those
            before it; and, where some do not count, ``weights`` (B, T).
        dropout_key: that every dropout mask is drawn from; None for no dropout.

    Returns:
        () float32, the sum of the cross-entropies in nats; ``weight``, () float32, how many tokens
        count.
    """
    inputs, labels = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
    weights = batch.get("weights")
    if weights is None:
        weights = jnp.ones(labels.shape, jnp.float32)
    states = model.transformer.forward(
        inputs, deterministic=dropout_key is None, dropout_key=dropout_key
    ).last_hidden_state
    loss = chunked_cross_entropy(
        states.reshape(-1, states.shape[-1]),
        lm_table(model),
        labels.reshape(-1),
        weights.reshape(-1),
        precision=model.transformer.h[0].attn.precision,
    )
    return loss, {"weight": weights.sum()}
