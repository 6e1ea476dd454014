"""What a model makes of a text: its states, where it looks, what it expects, and its surprise."""

import dataclasses
import functools
import math
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console, Group, RenderableType
from rich.style import Style
from rich.table import Column, Table
from rich.text import Text

from gpt1_jax.explore.display import (
    BLUE,
    RED,
    UNLIMITED,
    WIDTH,
    Renderable,
    coloured_text,
    label,
    mark,
    to_html,
)
from gpt1_jax.generation.prompts import bucket
from gpt1_jax.model import OpenAIGPTDoubleHeadsModel, OpenAIGPTLMHeadModel, lm_logits
from gpt1_jax.pretrained import Params
from gpt1_jax.pure import ModelStructure, functional, merge, not_finite, split
from gpt1_jax.scoring import Score
from gpt1_jax.text.offsets import Span
from gpt1_jax.text.tokenizer import Tokenizer

SCALE = (0, 4, 8, 12, 16)  # bits of surprisal, of which the last are shown in full red

LanguageModel = OpenAIGPTLMHeadModel | OpenAIGPTDoubleHeadsModel


@dataclasses.dataclass(frozen=True, repr=False)
class ForwardTrace:
    """One pass of a model over a text, with everything that can be seen, as numpy arrays.

    Attributes:
        text: as given.
        ids: (T,) int32.
        tokens: T tokens as the vocabulary spells them.
        spans: for each token its first character in the text, and the one after its last.
        hidden_states: (n_layer + 1, T, E) float32, the embedding first.
        attentions: (n_layer, n_head, T, T) float32: how much of each token (last axis) goes into
            each place.
        log_probs: (T, V) float32, in nats: of every token to come next, after each place.
        vocabulary: V tokens, those that the tokenizer does not know as their ids.
    """

    text: str
    ids: np.ndarray
    tokens: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    hidden_states: np.ndarray
    attentions: np.ndarray
    log_probs: np.ndarray
    vocabulary: tuple[str, ...]

    def __repr__(self) -> str:
        arrays = ("hidden_states", "attentions", "log_probs")
        shapes = ", ".join(f"{name} {getattr(self, name).shape}" for name in arrays)
        return f"ForwardTrace({len(self.ids)} tokens, {shapes})"


def trace_forward(model: LanguageModel, tokenizer: Tokenizer, text: str) -> ForwardTrace:
    """Read a text, and keep everything.

    Args:
        model: with a language-modelling head.
        tokenizer: the model's.
        text: of one token at least, and no more than the model has positions.

    Raises:
        TypeError: not a string.
        ValueError: a model without such a head, a text without tokens or with too many, or logits
            that are not finite.
    """
    check_head(model)
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, not {type(text).__name__}")
    encoding = tokenizer(text, return_offsets_mapping=True)
    ids, T = encoding.input_ids, len(encoding.input_ids)
    if not 0 < T <= model.config.n_positions:
        right = f"1 to {model.config.n_positions}, the model's positions"
        raise ValueError(f"the text has {T} tokens, but must have {right}")
    apply, params = functional(model)
    padded = pad_ids(ids, model.config.n_positions)
    out = apply(params, padded, output_hidden_states=True, output_attentions=True)
    log_probs = _log_probs(out.logits[0])[:T]
    if not np.isfinite(log_probs).all():
        raise not_finite("the logits", model.params)
    V = out.logits.shape[-1]
    known = tokenizer.convert_ids_to_tokens(range(min(V, len(tokenizer))))
    return ForwardTrace(
        text=text,
        ids=np.array(ids, np.int32),
        tokens=tuple(tokenizer.convert_ids_to_tokens(ids)),
        spans=tuple(encoding["offset_mapping"]),
        hidden_states=np.stack([np.asarray(x, np.float32)[0, :T] for x in out.hidden_states]),
        attentions=np.stack([np.asarray(x, np.float32)[0, :, :T, :T] for x in out.attentions]),
        log_probs=log_probs,
        vocabulary=(*known, *map(str, range(len(known), V))),
    )


def pad_ids(ids: Sequence[int], n_positions: int) -> np.ndarray:
    """Return ids as a row (1, T') that is padded on the right, where no token sees it.

    So texts of many lengths share a program; a model's own call compiles 56 small ones for every
    length. More ids than there are positions stay as many, for the model to refuse.
    """
    row = np.zeros((1, max(len(ids), min(bucket(len(ids)), n_positions))), np.int32)
    row[0, : len(ids)] = ids
    return row


@dataclasses.dataclass(frozen=True, repr=False)
class Surprisal(Renderable):
    """How much each token of a text surprised the model; coloured, red is much.

    Attributes:
        text: as given.
        tokens: T tokens as the vocabulary spells them.
        spans: for each token its first character in the text, and the one after its last.
        bits: (T,) floats: minus the binary logarithm of the token's probability after those before
            it; NaN for the first, before which there is none, and for those of a context.
    """

    text: str
    tokens: tuple[str, ...]
    spans: tuple[Span, ...]
    bits: np.ndarray

    @property
    def mean(self) -> float:
        """Bits a token, of those that have any; NaN where none has."""
        known = self.bits[~np.isnan(self.bits)]
        return float(known.mean()) if len(known) else math.nan

    @property
    def perplexity(self) -> float:
        """2 to the power of the mean."""
        return 2.0**self.mean

    def __str__(self) -> str:
        return "\n".join([*(line.plain for line in self._table()), self._summary()])

    def __rich__(self) -> RenderableType:
        return Group(self.coloured(), "", *self._table(), self._scale())

    def _repr_html_(self) -> str:  # which has the bits as notes
        return to_html(Group(self.coloured(), self._scale()))

    def coloured(self) -> Text:
        """Return the text, each token on the colour of its surprisal, the bits as its note."""
        return coloured_text(self.text, self.spans, self._styles())

    def _styles(self) -> list[Style | None]:
        return [None if np.isnan(bits) else _heat(bits, f"{bits:.2f} bits") for bits in self.bits]

    def _table(self) -> list[Text]:
        """A line for each token."""
        lines = [Text("      bits    token")]
        for place, style in enumerate(self._styles()):
            bits = "" if style is None else f"{self.bits[place]:.2f}"
            token = Text(repr(self.tokens[place]), style or "")
            lines.append(Text.assemble(f"{place:>4}  {bits:>6}  ", token))
        return lines

    def _scale(self) -> Text:
        """What the colours stand for."""
        scale = [(f" {bits} ", _heat(bits)) for bits in SCALE]
        return Text.assemble(*scale, f" bits; {self._summary()}")

    def _summary(self) -> str:
        if np.isnan(self.bits).all():
            return "a single token: nothing was expected of it"
        return f"{self.mean:.2f} bits a token, perplexity {self.perplexity:.1f}"


def surprisal(found: ForwardTrace | Score) -> Surprisal:
    """Return the surprisal of each token of a text.

    Args:
        found: a trace of the text, or its ``gpt1.score``, which may be of any length.

    Raises:
        ValueError: ids were scored.
    """
    if isinstance(found, Score):
        if found.raw_text is None:
            raise ValueError("surprisal needs the score of a text, and not of ids")
        return Surprisal(found.raw_text, found.tokens, found.spans, found.surprisal)
    T = len(found.ids)
    nats = found.log_probs[np.arange(T - 1), found.ids[1:]].astype(np.float64)
    bits = np.concatenate([[np.nan], -nats / math.log(2)])
    return Surprisal(found.text, found.tokens, found.spans, bits)


@dataclasses.dataclass(frozen=True, repr=False)
class NextTokens(Renderable):
    """The tokens that a model most expects next, as a bar chart.

    Attributes:
        text: what they come after.
        after: its last token.
        tokens: as the vocabulary spells them, the most probable first.
        ids: of the tokens.
        probabilities: of the tokens.
    """

    text: str
    after: str
    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    probabilities: np.ndarray

    def __rich__(self) -> Table:
        longest = WIDTH - max(len(repr(token)) for token in self.tokens) - len("  100.00%  ")
        table = Table.grid("next", Column("probability", justify="right"), "", padding=(0, 2))
        for token, probability in zip(self.tokens, self.probabilities, strict=True):
            length = round(longest * float(probability / self.probabilities[0]))
            bar = Text("█" * length, BLUE.hex)
            table.add_row(Text(repr(token)), f"{probability:6.2%}", bar)
        return table


def next_tokens(trace: ForwardTrace, count: int = 10, place: int = -1) -> NextTokens:
    """Return the tokens that are most expected after a place of a text.

    Args:
        trace: of the text.
        count: how many tokens.
        place: after which token; the last one by default.

    Raises:
        ValueError: a count below 1, or no such place.
    """
    count, place = operator.index(count), operator.index(place)
    if count < 1:
        raise ValueError(f"count is {count}, but must be at least 1")
    T = len(trace.ids)
    if not -T <= place < T:
        raise ValueError(f"place is {place}, but must be {-T} to {T - 1}")
    row = trace.log_probs[place]
    ids = np.argsort(-row, kind="stable")[:count]
    end = max(end for _, end in trace.spans[: place % T + 1])
    return NextTokens(
        text=trace.text[:end],
        after=trace.tokens[place],
        tokens=tuple(trace.vocabulary[id_] for id_ in ids),
        ids=tuple(ids.tolist()),
        probabilities=np.exp(row[ids]),
    )


@dataclasses.dataclass(frozen=True, repr=False)
class LogitLens(Renderable):
    """What the model would say next if it ended after each of its layers.

    Printed, it is as wide as a terminal: of a long text the last places, after three dots.

    Attributes:
        trace: of the text.
        tokens: (n_layer + 1) rows of T tokens, the most probable after each place; the first row
            is of the embeddings alone.
        ids: (n_layer + 1, T) their ids.
        probabilities: (n_layer + 1, T) their probabilities.
    """

    trace: ForwardTrace
    tokens: tuple[tuple[str, ...], ...]
    ids: np.ndarray
    probabilities: np.ndarray

    @property
    def names(self) -> tuple[str, ...]:
        """Of the rows: that of the embeddings, and the layers."""
        return ("embedding", *(f"layer {layer}" for layer in range(len(self.tokens) - 1)))

    def __rich__(self) -> Table:
        measure = Console(width=UNLIMITED).measure
        first = len(self.trace.tokens) - 1
        while first and measure(self._table(first - 1)).maximum <= WIDTH:
            first -= 1
        return self._table(first)

    def _repr_html_(self) -> str:
        return to_html(self._table(0))

    def _table(self, first: int) -> Table:
        """The places from ``first`` on, the last layer on top."""
        hidden = ["…"] if first else []
        heads = [Column(Text(label(token))) for token in self.trace.tokens[first:]]
        table = Table.grid("after", *hidden, *heads, padding=(0, 2))
        table.show_header = True
        for layer in reversed(range(len(self.tokens))):
            cells = [
                Text(label(token), mark(float(p), BLUE, f"{p:.1%}"))
                for token, p in zip(
                    self.tokens[layer][first:], self.probabilities[layer][first:], strict=True
                )
            ]
            table.add_row(self.names[layer], *[""] * len(hidden), *cells)
        return table


def logit_lens(model: LanguageModel, trace: ForwardTrace) -> LogitLens:
    """Put each layer's states through the head, as if they were the last ones.

    GPT-1 has no layer norm between its last block and the head, so neither has the lens
    (nostalgebraist, "interpreting GPT: the logit lens", 2020).

    Args:
        model: the one that made the trace.
        trace: of the text.
    """
    check_head(model)
    structure, params = split(model)
    T = len(trace.ids)
    padded = np.zeros((bucket(T), trace.hidden_states.shape[-1]), np.float32)
    ids, probabilities = [], []
    for states in trace.hidden_states:
        padded[:T] = states
        row = _log_probs(_head_logits(structure, params, padded))[:T]
        best = row.argmax(-1)
        ids.append(best)
        probabilities.append(np.exp(row[np.arange(len(best)), best]))
    return LogitLens(
        trace=trace,
        tokens=tuple(tuple(trace.vocabulary[id_] for id_ in row) for row in ids),
        ids=np.stack(ids),
        probabilities=np.stack(probabilities),
    )


def check_head(model: object) -> None:
    """Check that a model predicts tokens."""
    if not isinstance(model, OpenAIGPTLMHeadModel | OpenAIGPTDoubleHeadsModel):
        right = "OpenAIGPTLMHeadModel or OpenAIGPTDoubleHeadsModel"
        raise ValueError(f"a {type(model).__name__} predicts no tokens: load an {right}")


@functools.partial(jax.jit, static_argnums=0)
def _head_logits(
    structure: ModelStructure[LanguageModel], params: Params, states: jax.Array | np.ndarray
) -> jax.Array:
    return lm_logits(merge(structure, params), jnp.asarray(states)[None])[0]


@jax.jit
def _log_softmax(logits: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(logits)


def _log_probs(logits: jax.Array) -> np.ndarray:
    return np.asarray(_log_softmax(logits), np.float32)


def _heat(bits: float, note: str = "") -> Style:
    return mark(min(float(bits) / SCALE[-1], 1.0), RED, note)
