"""What the models return: pytrees with Hugging Face's field names; absent fields are None."""

import dataclasses
from typing import Any

import jax

from gpt1_jax.nn.attention import Cache
from gpt1_jax.nn.pytree import pytree_dataclass


class ModelOutput:
    """Base of the outputs: fields by name (``out.logits``, ``["logits"]``) or place (``out[0]``).

    Places count the fields that are not None, as Hugging Face's do.
    """

    def to_tuple(self) -> tuple[object, ...]:
        """Return the fields that are not None, in order."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))  # type: ignore[arg-type]
        return tuple(value for value in values if value is not None)

    def __getitem__(self, key: str | int | slice) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]


@pytree_dataclass
class BaseModelOutput(ModelOutput):
    """Output of ``OpenAIGPTModel``; ``...`` stands for the leading dimensions of the input.

    Attributes:
        last_hidden_state: (..., T, E) states after the last block.
        hidden_states: n_layer + 1 arrays (..., T, E), the embedding first.
        attentions: n_layer arrays (..., N, T, S), float32; the weights after softmax and dropout.
        cache: the given cache with this call's keys and values in it.
    """

    last_hidden_state: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None
    cache: Cache | None = None


@pytree_dataclass
class CausalLMOutput(ModelOutput):
    """Output of ``OpenAIGPTLMHeadModel``.

    Attributes:
        loss: () float32, where labels were given.
        logits: (..., T, V) float32, or fewer positions with ``logits_to_keep``.
        hidden_states: as in ``BaseModelOutput``.
        attentions: as in ``BaseModelOutput``.
        cache: as in ``BaseModelOutput``.
    """

    loss: jax.Array | None = None
    logits: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None
    cache: Cache | None = None


@pytree_dataclass
class OpenAIGPTDoubleHeadsModelOutput(ModelOutput):
    """Output of ``OpenAIGPTDoubleHeadsModel``, for inputs (batch, choices, T).

    Attributes:
        loss: () float32, the language-modelling loss, where ``labels`` were given.
        mc_loss: () float32, the multiple-choice loss, where ``mc_labels`` were given.
        logits: (batch, choices, T, V) float32.
        mc_logits: (batch, choices) float32.
        hidden_states: as in ``BaseModelOutput``.
        attentions: as in ``BaseModelOutput``.
    """

    loss: jax.Array | None = None
    mc_loss: jax.Array | None = None
    logits: jax.Array | None = None
    mc_logits: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@pytree_dataclass
class SequenceClassifierOutput(ModelOutput):
    """Output of ``OpenAIGPTForSequenceClassification``.

    Attributes:
        loss: () float32, where labels were given.
        logits: (batch, num_labels) float32.
        hidden_states: as in ``BaseModelOutput``.
        attentions: as in ``BaseModelOutput``.
    """

    loss: jax.Array | None = None
    logits: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None
