"""What the models return: pytrees with Hugging Face's field names; absent fields are None."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from gpt1_jax.nn.attention import Cache
from gpt1_jax.nn.pytree import pytree_dataclass


class ModelOutput(Mapping[str, Any]):
    """Base of the outputs: a mapping of names to values that leaves out the fields that are None.

    As Hugging Face's, an output is read by attribute (``out.logits``, None where it is absent), by
    name (``out["logits"]``, a KeyError where it is absent) or by place among the fields that are
    not None (``out[0]``), and iteration gives names. Any frozen dataclass may derive from it; those
    that JAX traces are a ``pytree_dataclass`` besides.
    """

    def __init_subclass__(cls) -> None:
        """Keep the equality of mappings, in place of which ``dataclass`` would put its own."""
        super().__init_subclass__()
        cls.__eq__ = Mapping.__eq__  # type: ignore[method-assign]

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the fields that are not None, in order."""
        return tuple(self._present().values())

    def _present(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if value is not None}

    def __getitem__(self, key: str | int | slice) -> Any:
        return self._present()[key] if isinstance(key, str) else self.to_tuple()[key]

    def __contains__(self, key: object) -> bool:
        return key in self._present()

    def __iter__(self) -> Iterator[str]:
        return iter(self._present())

    def __len__(self) -> int:
        return len(self._present())


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
