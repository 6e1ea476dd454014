"""The one table: torch's name, the Flax path, the shape and OpenAI's shape of every parameter.

It is generated from the numbers in a config, one row a parameter, in the order of OpenAI's files.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from conversion.json_file import short

BASE = "OpenAIGPTModel"
LM_HEAD = "OpenAIGPTLMHeadModel"
DOUBLE_HEADS = "OpenAIGPTDoubleHeadsModel"
CLASSIFICATION = "OpenAIGPTForSequenceClassification"
ARCHITECTURES = (BASE, LM_HEAD, DOUBLE_HEADS, CLASSIFICATION)

# The parameters of a head that no other architecture has, by torch's names. A checkpoint that was
# only pre-trained lacks them. (lm_head is not here: tied, it is the embedding.)
OWN_HEAD: Mapping[str, tuple[str, ...]] = {
    BASE: (),
    LM_HEAD: (),
    DOUBLE_HEADS: ("multiple_choice_head.summary.weight", "multiple_choice_head.summary.bias"),
    CLASSIFICATION: ("score.weight",),
}

# Hugging Face's other spellings of the same numbers, and what GPT-1 has.
ALIASES = {
    "n_layer": "num_hidden_layers",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
}
# In the quantization_config of int8 weights; transformers does not know it, and says so.
QUANT_METHOD = "gpt1-jax-int8"
_DEFAULTS = {
    "n_layer": 12,
    "n_embd": 768,
    "n_head": 12,
    "n_positions": 512,
    "vocab_size": 40478,
}


@dataclass(frozen=True)
class ParamSpec:
    """One row of the table.

    Attributes:
        torch: torch's name, such as ``transformer.h.0.attn.c_attn.weight``.
        path: the path of the Flax leaf, such as ``("transformer", "h", "0", "attn", "c_attn",
            "kernel")``.
        shape: the shape of the Flax leaf.
        transposed: whether torch holds the transpose. So it is for Linear, (out, in); the weight of
            a Conv1D is (in, out), a Flax kernel as it stands.
        openai_shape: the shape in OpenAI's files, where a Conv1D weight has a leading 1; None for
            what those files cannot hold: the parameters of heads, and int8.
        dtype: numpy's name of the only dtype it can have; None for any of the floats.
    """

    torch: str
    path: tuple[str, ...]
    shape: tuple[int, ...]
    transposed: bool = False
    openai_shape: tuple[int, ...] | None = None
    dtype: str | None = None

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """The shape of torch's tensor."""
        return self.shape[::-1] if self.transposed else self.shape

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        """Return the Flax leaf, contiguous, of torch's array."""
        return np.ascontiguousarray(array.T) if self.transposed else array

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Torch's array, contiguous, of the Flax leaf."""
        return np.ascontiguousarray(array.T if self.transposed else array)


class Sizes(NamedTuple):
    """The numbers that set every shape, and the number of attention heads."""

    n_layer: int
    n_embd: int
    n_head: int
    n_positions: int
    vocab_size: int


def sizes(config: Mapping[str, Any]) -> Sizes:
    """Return the numbers of ``config``; absent ones are GPT-1's.

    Raises:
        ValueError: a number is not a positive integer, two spellings of one disagree, or the heads
            do not divide the width.
    """
    found = Sizes(**{field: _size(config, field) for field in Sizes._fields})
    if found.n_embd % found.n_head:
        raise ValueError(
            f"n_embd is {found.n_embd} and n_head {found.n_head}; n_embd must be a multiple of "
            f"n_head (GPT-1's {_DEFAULTS['n_head']}, where it is not given)"
        )
    return found


def one_layer(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with one layer, whose table has few rows for any number of layers."""
    return {**config, "n_layer": 1, ALIASES["n_layer"]: 1}


def tied(config: Mapping[str, Any]) -> bool:
    """Return whether ``lm_head`` is the token embedding (``tie_word_embeddings``, by default true).

    Raises:
        ValueError: the field is not a boolean.
    """
    return _flag(config, "tie_word_embeddings")


class Quantization(NamedTuple):
    """How the weights of a checkpoint are quantized.

    Attributes:
        head: whether the token embedding and the LM head are int8 too, as the blocks are.
    """

    head: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return the ``quantization_config`` of a config.json."""
        return {"quant_method": QUANT_METHOD, "head": self.head}


def quantization(config: Mapping[str, Any]) -> Quantization | None:
    """What ``quantization_config`` says; None where there is none, or one of another library.

    Raises:
        ValueError: it is this package's own, and its ``head`` is not a boolean.
    """
    fields = config.get("quantization_config")
    if not isinstance(fields, Mapping) or fields.get("quant_method") != QUANT_METHOD:
        return None
    try:
        return Quantization(_flag(fields, "head"))
    except ValueError as error:
        raise ValueError(f"quantization_config of config.json is wrong: {error}") from None


def check_not_quantized(
    config: Mapping[str, Any], what: str, source: str | os.PathLike[str] | None = None
) -> None:
    """Check that the weights are floats.

    Raises:
        ValueError: they are int8, which ``what`` does not take. It names ``source``, if given.
    """
    if quantization(config) is not None:
        weights = "the weights" if source is None else f"the weights of {source}"
        raise ValueError(
            f"{weights} are int8, and {what} takes floats alone: use the checkpoint that they "
            "were quantized from"
        )


def param_specs(config: Mapping[str, Any], architecture: str) -> tuple[ParamSpec, ...]:
    """Return every parameter of ``architecture`` with the numbers of ``config``.

    The rows are in OpenAI's order: positions, tokens, the layers; then the heads. A tied
    ``lm_head`` has no row: it is the embedding.

    Args:
        config: the fields of a config.json; ``n_layer``, ``n_embd``, ``n_positions``,
            ``vocab_size``, for the heads ``tie_word_embeddings``, ``num_labels`` or ``id2label``,
            ``summary_use_proj`` and ``summary_proj_to_labels``, and ``quantization_config`` (see
            ``quantization``). Absent ones have Hugging Face's defaults.
        architecture: one of ``ARCHITECTURES``.

    Raises:
        ValueError: a field cannot be used (the message names it), or the architecture is unknown.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"the architecture is {architecture!r}; it must be one of {', '.join(ARCHITECTURES)}"
        )
    n_layer, E, _, P, V = sizes(config)
    body = () if architecture == BASE else ("transformer",)
    rows = [
        *_embedding((*body, "positions_embed"), P, E),
        *_embedding((*body, "tokens_embed"), V, E),
    ]
    for n in range(n_layer):
        block = (*body, "h", str(n))
        rows += _conv1d((*block, "attn", "c_attn"), E, 3 * E)
        rows += _conv1d((*block, "attn", "c_proj"), E, E)
        rows += _layer_norm((*block, "ln_1"), E)
        rows += _conv1d((*block, "mlp", "c_fc"), E, 4 * E)
        rows += _conv1d((*block, "mlp", "c_proj"), 4 * E, E)
        rows += _layer_norm((*block, "ln_2"), E)

    if architecture in (LM_HEAD, DOUBLE_HEADS) and not tied(config):
        rows += _linear(("lm_head",), E, V, bias=False)
    if architecture == DOUBLE_HEADS and _flag(config, "summary_use_proj"):
        # Hugging Face sets num_labels to 1 in this model, whatever the config says.
        width = 1 if _flag(config, "summary_proj_to_labels") else E
        rows += _linear(("multiple_choice_head", "summary"), E, width, bias=True)
    if architecture == CLASSIFICATION:
        rows += _linear(("score",), E, _num_labels(config), bias=False)
    mode = quantization(config)
    if mode is None:
        return tuple(rows)
    return tuple(
        one
        for row in rows
        for one in (
            _int8(row)
            if (row.path[-1] == "kernel" and "h" in row.path)
            or (mode.head and row.path[-2] in ("tokens_embed", "lm_head"))
            else [row]
        )
    )


def _int8(row: ParamSpec) -> list[ParamSpec]:
    """Return the two rows of a weight in int8: (outputs, inputs), and the scale of each output."""
    module = row.path[:-1]
    shape = row.shape if row.path[-1] == "embedding" else row.shape[::-1]
    return [
        ParamSpec(row.torch, (*module, "qvalue"), shape, dtype="int8"),
        ParamSpec(
            _name(module, "weight_scale"), (*module, "scale"), (shape[0], 1), dtype="float32"
        ),
    ]


def _embedding(module: tuple[str, ...], rows: int, width: int) -> list[ParamSpec]:
    shape = (rows, width)
    return [ParamSpec(_name(module, "weight"), (*module, "embedding"), shape, openai_shape=shape)]


def _conv1d(module: tuple[str, ...], n_in: int, n_out: int) -> list[ParamSpec]:
    weight, bias = (n_in, n_out), (n_out,)
    return [
        ParamSpec(_name(module, "weight"), (*module, "kernel"), weight, openai_shape=(1, *weight)),
        ParamSpec(_name(module, "bias"), (*module, "bias"), bias, openai_shape=bias),
    ]


def _layer_norm(module: tuple[str, ...], width: int) -> list[ParamSpec]:
    shape = (width,)
    return [
        ParamSpec(_name(module, "weight"), (*module, "scale"), shape, openai_shape=shape),
        ParamSpec(_name(module, "bias"), (*module, "bias"), shape, openai_shape=shape),
    ]


def _linear(module: tuple[str, ...], n_in: int, n_out: int, *, bias: bool) -> list[ParamSpec]:
    kernel = ParamSpec(_name(module, "weight"), (*module, "kernel"), (n_in, n_out), transposed=True)
    if not bias:
        return [kernel]
    return [kernel, ParamSpec(_name(module, "bias"), (*module, "bias"), (n_out,))]


def _name(module: tuple[str, ...], leaf: str) -> str:
    return ".".join((*module, leaf))


def _size(config: Mapping[str, Any], field: str) -> int:
    names = (field, ALIASES[field]) if field in ALIASES else (field,)
    given = {name: config[name] for name in names if name in config}
    for name, value in given.items():
        _check_positive(name, value)
    if len(set(given.values())) > 1:
        raise ValueError(
            "two names of one number disagree: "
            + ", ".join(f"{name} is {value}" for name, value in given.items())
            + f"; keep {field} alone"
        )
    return next(iter(given.values()), _DEFAULTS[field])


def _num_labels(config: Mapping[str, Any]) -> int:
    if config.get("num_labels") is not None:
        return _check_positive("num_labels", config["num_labels"])
    id2label = config.get("id2label")
    if id2label is None:
        return 2  # Hugging Face's default; it writes id2label for any other number
    if not isinstance(id2label, Mapping) or not id2label:
        raise ValueError(
            f"id2label is {short(id2label)}; it must be an object with one entry a label"
        )
    return len(id2label)


def _flag(config: Mapping[str, Any], field: str) -> bool:
    value = config.get(field, True)
    if not isinstance(value, bool):
        raise ValueError(f"{field} is {short(value)}; it must be true or false")
    return value


def _check_positive(field: str, value: Any) -> int:
    # True and False are integers to Python.
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{field} is {short(value)}; it must be a positive integer")
    if value >= 2**31:  # ids and positions are 32 bits wide
        raise ValueError(f"{field} is {short(value)}; it must be below 2**31")
    return value
