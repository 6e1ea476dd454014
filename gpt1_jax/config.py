"""The configuration of a GPT-1, with Hugging Face's field names."""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeVar, Unpack

from gpt1_jax.checks import (
    DropoutRate,
    PositiveInteger,
    Rule,
    Switch,
    at_most,
    check_fields,
    check_keywords,
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


C = TypeVar("C")


def _takes_aliases(cls: type[C]) -> type[C]:
    """Let the constructor of the configuration take names of fields as Hugging Face's does."""
    init: Any = cls.__init__

    @functools.wraps(init)
    def construct(self: C, *args: Any, extra: Mapping[str, object] | None = None, **given: Any):
        values, labels = own_fields(given)
        if labels:
            check_keywords("OpenAIGPTConfig()", {**values, **labels}, field_names(), {})
        if len(names := labels.get("id2label") or ()) not in (0, values.get("num_labels")):
            raise wrong("num_labels", values["num_labels"], f"{len(names)}, as id2label has names")
        init(self, *args, **values, extra={**(extra or {}), **labels})

    cls.__init__ = construct
    return cls


@_takes_aliases
@dataclasses.dataclass(frozen=True)
class OpenAIGPTConfig:
    """What a GPT-1 is made of. The defaults are the published model (116,534,784 parameters).

    Frozen and hashable: equal configurations share compiled functions. The constructor takes
    Hugging Face's general names too, ``hidden_size`` for example, and the names of the labels,
    ``id2label`` and ``label2id``.

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

    @property
    def id2label(self) -> dict[int, str]:
        """The name of each label of the classification head."""
        names = self.extra.get("id2label")
        if not isinstance(names, Mapping) or len(names) != self.num_labels:
            names = {i: f"LABEL_{i}" for i in range(self.num_labels)}
        return {int(i): str(name) for i, name in names.items()}

    @property
    def label2id(self) -> dict[str, int]:
        """The class that each name of a label stands for."""
        return {name: i for i, name in self.id2label.items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> Self:
        """Build from the contents of a ``config.json``; unknown fields are kept in ``extra``.

        Raises:
            ValueError: a field has a value that no GPT-1 can have.
        """
        model_type = fields.get("model_type", "openai-gpt")
        if model_type != "openai-gpt":
            raise ValueError(f"model_type is {short(model_type)}, but a GPT-1 is 'openai-gpt'")
        # Hugging Face writes the labels' names where their number is not 2, and not the number.
        given = {k: v for k, v in fields.items() if k != "num_labels" or v is not None}
        values, extra = own_fields(given)
        return cls(**values, extra=extra)

    def replace(self, **fields: object) -> Self:
        """Return the configuration with other values, named as the constructor takes them.

        Raises:
            ValueError: a value that the field cannot have, or two names that disagree.
            TypeError: there is no such field.
        """
        values, _ = own_fields(fields)
        kept = {name: value for name, value in vars(self).items() if name not in values}
        return type(self)(**{**kept, **fields})

    def to_dict(self) -> dict[str, object]:
        """Return the contents of a ``config.json`` for ``transformers``, ``extra`` included."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields = {**fields.pop("extra"), **fields, "model_type": "openai-gpt"}
        if isinstance(self.eos_token_id, tuple):
            fields["eos_token_id"] = list(self.eos_token_id)
        if len(fields.get("id2label") or ()) != self.num_labels:
            fields["id2label"] = {str(i): name for i, name in self.id2label.items()}
            fields["label2id"] = self.label2id
        del fields["num_labels"]  # transformers derives it from id2label
        return fields

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], **hub: Unpack[HubOptions]) -> Self:
        """Read the configuration of a checkpoint folder or hub id.

        Args:
            path: a folder with a ``config.json``, or a hub id.
            **hub: ``subfolder``, ``revision``, ``cache_dir``, ``local_files_only``, ``token`` and
                ``force_download``.

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


def field_names() -> list[str]:
    """Return the names that the constructor takes."""
    from gpt1_jax._conversion import layout

    names = [field.name for field in dataclasses.fields(OpenAIGPTConfig) if field.name != "extra"]
    return [*names, "id2label", "label2id", *layout.ALIASES.values()]


def own_fields(fields: Mapping[str, object]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of ``OpenAIGPTConfig`` by its own names, and those that it does not have.

    Raises:
        ValueError: two names of one field disagree, or ``id2label`` is not an object.
    """
    known = {field.name for field in dataclasses.fields(OpenAIGPTConfig)} - {"extra"}
    if fields.keys() <= known:
        return dict(fields), {}  # before ``conversion`` is imported
    from gpt1_jax._conversion import layout

    # Hugging Face's general names for four fields.
    aliases = {alias: field for field, alias in layout.ALIASES.items()}
    values: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, value in fields.items():
        field = aliases.get(name, name)
        if field != name and fields.get(field, value) != value:
            raise ValueError(
                f"{field} is {short(fields[field])}, {name} is {short(value)}: two names of "
                "one number, which must agree"
            )
        (values if field in known else extra)[field] = value
    names = extra.get("id2label")
    if names is not None and not isinstance(names, Mapping):
        raise wrong("id2label", names, "an object")
    if names is not None:
        values.setdefault("num_labels", len(names))
    return values, extra
