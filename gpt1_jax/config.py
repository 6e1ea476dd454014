"""The configuration of a GPT-1, with Hugging Face's field names."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Annotated, Any, Self, Unpack

from gpt1_jax.checks import (
    DropoutRate,
    PositiveInteger,
    Rule,
    Switch,
    at_most,
    check_fields,
    is_integer,
    is_number,
    one_of,
    short,
    wrong,
)
from gpt1_jax.demo import HubOptions, resolve

ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu", "swish")
SUMMARY_TYPES = ("cls_index", "last", "first", "mean")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
# A block takes tens of milliseconds to build, so a damaged number would look like a hang.
MAX_LAYERS = 10_000

# Ids and positions are 32 bits wide.
Size = Annotated[PositiveInteger, Rule("below 2**31", lambda n: n < 2**31)]
Number = Annotated[float, Rule("a finite number, at least 0", lambda x: is_number(x) and x >= 0)]


def _is_id_or_ids(value: object) -> bool:
    return all(map(is_integer, value if isinstance(value, tuple) else (value,)))


# Ids may lie beyond the vocabulary until the embedding is resized, so only the type counts.
TokenId = Annotated[int | None, Rule("a token id", is_integer)]
TokenIds = Annotated[int | tuple[int, ...] | None, Rule("a token id", _is_id_or_ids)]


@dataclasses.dataclass(frozen=True)
class OpenAIGPTConfig:
    """What a GPT-1 is made of. The defaults are the published model (116,534,784 parameters).

    Frozen and hashable: equal configurations share compiled functions.

    Attributes:
        vocab_size: number of tokens V.
        n_positions: number of positions; the longest input.
        n_embd: width E of embeddings and hidden states.
        n_layer: number of blocks; at most 10,000.
        n_head: number of attention heads N; must divide ``n_embd``.
        afn: activation of the MLP: "gelu" or "gelu_new" (both the tanh form), "relu", "silu" or
            "swish".
        resid_pdrop: dropout rate at the end of each attention and each MLP.
        embd_pdrop: dropout rate on the sum of the embeddings.
        attn_pdrop: dropout rate on the attention weights.
        layer_norm_epsilon: added to the variance in every layer norm.
        initializer_range: standard deviation of the initial weights.
        summary_type: the state that the multiple-choice head reads: one of "cls_index", "last",
            "first" and "mean".
        summary_use_proj: whether that head has a linear projection.
        summary_activation: "tanh", or None for no activation after the projection.
        summary_proj_to_labels: whether the projection is ``num_labels`` wide (else ``n_embd``).
        summary_first_dropout: dropout rate before the projection.
        summary_last_dropout: dropout rate after the activation.
        num_labels: outputs of the classification head (the multiple-choice head always has one).
        problem_type: the classification loss, or None to infer it as Hugging Face does.
        pad_token_id: padding token, which the classification head looks for.
        bos_token_id: kept for generation; GPT-1 has none.
        eos_token_id: one id or several that end a generated text; GPT-1 has none.
        tie_word_embeddings: whether the LM head is the token embedding.
        output_attentions: default of the models' argument of that name.
        output_hidden_states: default of the models' argument of that name.
        extra: every other field of the file this was read from, kept for saving.
    """

    vocab_size: Size = 40478
    n_positions: Size = 512
    n_embd: Size = 768
    n_layer: Annotated[Size, at_most(MAX_LAYERS)] = 12
    n_head: Size = 12
    afn: Annotated[str, one_of(ACTIVATIONS)] = "gelu"
    resid_pdrop: DropoutRate = 0.1
    embd_pdrop: DropoutRate = 0.1
    attn_pdrop: DropoutRate = 0.1
    layer_norm_epsilon: Number = 1e-5
    initializer_range: Number = 0.02
    summary_type: Annotated[str, one_of(SUMMARY_TYPES)] = "cls_index"
    summary_use_proj: Switch = True
    summary_activation: Annotated[str | None, one_of(("tanh",))] = None
    summary_proj_to_labels: Switch = True
    summary_first_dropout: DropoutRate = 0.1
    summary_last_dropout: DropoutRate = 0.0
    num_labels: Size = 2
    problem_type: Annotated[str | None, one_of(PROBLEM_TYPES)] = None
    pad_token_id: TokenId = None
    bos_token_id: TokenId = None
    eos_token_id: TokenIds = None
    tie_word_embeddings: Switch = True
    output_attentions: Switch = False
    output_hidden_states: Switch = False
    extra: Mapping[str, object] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.eos_token_id, list):
            object.__setattr__(self, "eos_token_id", tuple(self.eos_token_id))
        check_fields(self)
        if self.n_embd % self.n_head:
            raise wrong("n_head", self.n_head, f"a divisor of n_embd = {self.n_embd}")

    @property
    def n_inner(self) -> int:
        """Width of the MLP's hidden layer."""
        return 4 * self.n_embd

    @property
    def hidden_size(self) -> int:
        """Hugging Face's general name of ``n_embd``."""
        return self.n_embd

    @property
    def num_hidden_layers(self) -> int:
        """Hugging Face's general name of ``n_layer``."""
        return self.n_layer

    @property
    def num_attention_heads(self) -> int:
        """Hugging Face's general name of ``n_head``."""
        return self.n_head

    @property
    def max_position_embeddings(self) -> int:
        """Hugging Face's general name of ``n_positions``."""
        return self.n_positions

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> Self:
        """Build from the contents of a ``config.json``; unknown fields are kept in ``extra``.

        Raises:
            ValueError: a field has a value that no GPT-1 can have.
        """
        from gpt1_jax._conversion import layout

        model_type = fields.get("model_type", "openai-gpt")
        if model_type != "openai-gpt":
            raise ValueError(f"model_type is {short(model_type)}, but a GPT-1 is 'openai-gpt'")
        known = {field.name for field in dataclasses.fields(cls)} - {"extra"}
        # Hugging Face's general names for four fields, of old or hand-written configurations.
        aliases = {alias: field for field, alias in layout.ALIASES.items()}
        values: dict[str, Any] = {}
        extra: dict[str, object] = {}
        for name, value in fields.items():
            field = aliases.get(name, name)
            if field != name and fields.get(field, value) != value:
                raise ValueError(
                    f"{field} is {short(fields[field])}, {name} is {short(value)}: two names of "
                    "one number, which must agree"
                )
            (values if field in known else extra)[field] = value
        # Hugging Face writes the labels' names where their number is not 2, and not the number.
        if values.get("num_labels") is None:
            values.pop("num_labels", None)
        names = extra.get("id2label")
        if names is not None and not isinstance(names, Mapping):
            raise wrong("id2label", names, "an object")
        if "num_labels" not in values and names is not None:
            values["num_labels"] = len(names)
        return cls(**values, extra=extra)

    def to_dict(self) -> dict[str, object]:
        """Return the contents of a ``config.json`` for ``transformers``, ``extra`` included."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields = {**fields.pop("extra"), **fields, "model_type": "openai-gpt"}
        if isinstance(self.eos_token_id, tuple):
            fields["eos_token_id"] = list(self.eos_token_id)
        if len(fields.get("id2label") or ()) != self.num_labels:
            names = [f"LABEL_{i}" for i in range(self.num_labels)]
            fields["id2label"] = {str(i): name for i, name in enumerate(names)}
            fields["label2id"] = {name: i for i, name in enumerate(names)}
        del fields["num_labels"]  # transformers derives it from id2label
        return fields

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], **hub: Unpack[HubOptions]) -> Self:
        """Read the configuration of a checkpoint folder or hub id.

        Args:
            path: a folder with a ``config.json``, or a hub id.
            **hub: ``revision``, ``cache_dir``, ``local_files_only``, ``token``, ``force_download``.

        Raises:
            FileNotFoundError: there is no such folder, file or repository.
            ValueError: the file does not describe a GPT-1.
        """
        from gpt1_jax._conversion import conversion

        fields = conversion.read_config(resolve(path, weights=False, **hub))
        try:
            return cls.from_dict(fields)
        except ValueError as error:
            raise ValueError(f"{path}, config.json: {error}") from None

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``config.json`` into ``folder`` (created if need be), whole or not at all."""
        from gpt1_jax._conversion import files

        with files.atomic_write(folder) as new:
            new("config.json").write_text(
                json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
            )
