"""Score texts: the log-probability of every token, in few compiled programs for any lengths.

Texts become windows of at most n_positions tokens. Windows of like lengths share a batch, padded on
the right, where causal attention never looks. The head multiplies the states of scored tokens
alone, a chunk at a time, so that the logits of a batch never exist together.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from gpt1_jax.checks import INTEGER, at_least, check, is_integer, wrong
from gpt1_jax.generation.prompts import bucket
from gpt1_jax.model import OpenAIGPTDoubleHeadsModel, OpenAIGPTLMHeadModel, lm_table
from gpt1_jax.nn.int8 import QArray, int8_matmul
from gpt1_jax.nn.matmul import logits_matmul
from gpt1_jax.nn.partitioning import ROWS, constrain
from gpt1_jax.nn.validation import check_ids, host_array
from gpt1_jax.pretrained import Params
from gpt1_jax.pure import ModelStructure, merge, not_finite, split
from gpt1_jax.sharding.mesh import batch_shardings, mesh_of, round_up_to_mesh, shard
from gpt1_jax.text.offsets import Span
from gpt1_jax.text.tokenizer import Tokenizer
from gpt1_jax.text.tokenizer_files import END_OF_WORD

CHUNK = 512  # tokens whose logits exist at once: 83 MB with GPT-1's vocabulary

LanguageModel = OpenAIGPTLMHeadModel | OpenAIGPTDoubleHeadsModel
Text = str | Sequence[int] | np.ndarray
Context = str | int | Sequence[int] | np.ndarray | None


class Word(NamedTuple):
    """A word of a scored text.

    Attributes:
        text: as the raw text writes it.
        span: its first character in the raw text, and the one after its last.
        log_prob: the sum over its tokens in nats; NaN where one of them was not scored.
    """

    text: str
    span: Span
    log_prob: float


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """The log-probabilities of the T tokens of a context and a text.

    Attributes:
        ids: (T,) int32, without ``bos_token_id``.
        tokens: T tokens as the vocabulary spells them; empty without a tokenizer.
        spans: for each token its first character in ``raw_text``, and the one after its last; empty
            where ids were given.
        log_probs: (T,) float32 in nats, of each token after those before it; NaN for the tokens of
            the context, and for the first of all where nothing comes before it.
        is_greedy: (T,) bool, whether a token is the likeliest one; False where not scored.
        context_tokens: how many of the tokens are the context's.
        raw_text: context + text; None where ids were given.
        characters: of the text alone; None where ids were given.
    """

    ids: Int32[np.ndarray, "T"]
    tokens: tuple[str, ...]
    spans: tuple[Span, ...]
    log_probs: Float[np.ndarray, "T"]
    is_greedy: Bool[np.ndarray, "T"]
    context_tokens: int = 0
    raw_text: str | None = None
    characters: int | None = None

    @property
    def num_scored(self) -> int:
        """The number of scored tokens."""
        return int((~np.isnan(self.log_probs)).sum())

    @property
    def sum(self) -> float:
        """The sum of the log-probabilities in nats; 0 where no token is scored."""
        return float(np.nansum(self.log_probs, dtype=np.float64))

    @property
    def mean(self) -> float:
        """The mean log-probability of a scored token in nats; NaN where there is none."""
        return self.sum / self.num_scored if self.num_scored else math.nan

    @property
    def perplexity(self) -> float:
        """The exponential of minus the mean."""
        return math.exp(min(-self.mean, 700.0)) if self.num_scored else math.nan

    @property
    def bits_per_character(self) -> float:
        """Minus the sum in bits, over the characters of the text.

        NaN where ids were given or no token is scored.
        """
        if not self.characters or not self.num_scored:
            return math.nan
        return -self.sum / math.log(2) / self.characters

    @property
    def surprisal(self) -> Float[np.ndarray, "T"]:
        """Minus the binary logarithm of each token's probability: (T,) float32 in bits."""
        return self.log_probs / np.float32(-math.log(2))

    @property
    def words(self) -> tuple[Word, ...]:
        """The words of the text, punctuation marks as words of their own."""
        return self.split_words()

    def split_words(self, *, join_punctuation: bool = False) -> tuple[Word, ...]:
        """Return the words of the text: each ends with a token that ends in ``</w>``.

        A word also ends where white space follows, since an unknown or an added token has no
        ``</w>``. Tokens of the context belong to no word.

        Args:
            join_punctuation: whether a word without a letter or a digit belongs to the word before
                it, unless white space stands between them.

        Raises:
            ValueError: ids were given, which tell no words.
        """
        if self.raw_text is None:
            raise ValueError("words need texts: ids were scored")
        groups: list[list[int]] = []
        ended, end = True, 0
        for i in range(self.context_tokens, len(self.ids)):
            first, last = self.spans[i]
            if first == last:  # a special token of the tokenizer's template
                continue
            if ended or first > end:
                groups.append([])
            groups[-1].append(i)
            ended, end = self.tokens[i].endswith(END_OF_WORD), last
        words: list[Word] = []
        for group in groups:
            start, stop = self.spans[group[0]][0], self.spans[group[-1]][1]
            text, total = self.raw_text[start:stop], float(self.log_probs[group].sum())
            joins = join_punctuation and not any(map(str.isalnum, text))
            if joins and words and words[-1].span[1] >= start:
                start, total = words[-1].span[0], words[-1].log_prob + total
                words[-1] = Word(self.raw_text[start:stop], (start, stop), total)
            else:
                words.append(Word(text, (start, stop), total))
        return tuple(words)


class _Prepared(NamedTuple):
    """A text as it is scored.

    Attributes:
        sequence: (N,) int32, with ``bos_token_id``.
        first: the number of the first token of these that is scored.
        score: without its numbers.
    """

    sequence: np.ndarray
    first: int
    score: Score


class _Window(NamedTuple):
    """Tokens [start, stop) of a text, by which its tokens [counted, stop + 1) are scored."""

    text: int
    start: int
    stop: int
    counted: int


def windows(
    first: int, count: int, n_positions: int, stride: int
) -> Iterator[tuple[int, int, int]]:
    """Yield windows that score the tokens ``first`` to ``count - 1`` of a text, each once.

    The first window begins with the text. Each later one scores ``stride`` more tokens.

    Args:
        first: the first token that is scored, in [1, n_positions].
        count: the number of tokens.
        n_positions: the most tokens that a window reads.
        stride: in [1, n_positions].

    Yields:
        The first token that is read, the one after the last, and the first one that is scored; the
        last that is scored is the one after the window.
    """
    stop = min(n_positions, count - 1)
    while first < count:
        yield max(stop - n_positions, 0), stop, first
        first, stop = stop + 1, min(stop + stride, count - 1)


def score(
    model: LanguageModel,
    texts: Sequence[Text],
    contexts: Sequence[Context] | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    stride: int | None = None,
    bos_token_id: int | None = None,
    batch_tokens: int = 4096,
) -> list[Score]:
    """Return the log-probability of every token of many texts.

    A text may be longer than the model's positions: it is read in windows. In float32 the numbers
    do not depend on the other texts, but for rounding.

    Args:
        model: a language model, on one device or on a mesh; in half precision or int8 too.
        texts: strings, or token ids (T,) integer, of any lengths; all of one kind.
        contexts: for each text what comes before it and is not scored: a string or ids, as the
            texts are; None for nothing; or how many of the text's own first tokens are context.
            context + text is tokenized as one string, without a space between them. A token that
            begins in the context and ends in the text belongs to the text.
        tokenizer: needed for strings.
        stride: how many tokens of a longer text each further window scores; the rest of a window
            is context. By default n_positions // 2; n_positions for windows that do not overlap.
        bos_token_id: a token that is read before each text, so that its first token is scored too.
        batch_tokens: tokens that are computed at once, padding included.

    Returns:
        A ``Score`` for each text.

    Raises:
        TypeError: ``texts`` is a single string, texts and ids are mixed, or there is no tokenizer.
        ValueError: a text without tokens, ids out of range, a context that is longer than
            n_positions, a number that is out of range, or a model that computes NaN.
    """
    scored = dict(
        score_batches(
            model,
            texts,
            contexts,
            tokenizer=tokenizer,
            stride=stride,
            bos_token_id=bos_token_id,
            batch_tokens=batch_tokens,
        )
    )
    return [scored[i] for i in range(len(scored))]


def score_batches(
    model: LanguageModel,
    texts: Sequence[Text],
    contexts: Sequence[Context] | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    stride: int | None = None,
    bos_token_id: int | None = None,
    batch_tokens: int = 4096,
) -> Iterator[tuple[int, Score]]:
    """Return an iterator over the number and the ``Score`` of each text, as batches are done.

    Args and errors are those of ``score``; all but NaN is raised at the call.
    """
    if not isinstance(model, LanguageModel):
        name = type(model).__name__
        raise TypeError(f"model is {name}, but must have a language-modelling head")
    V, n_positions = model.config.vocab_size, model.config.n_positions
    stride = max(1, n_positions // 2) if stride is None else stride
    if not is_integer(stride) or not 1 <= stride <= n_positions:
        right = f"an integer in [1, {n_positions}], n_positions being {n_positions}"
        raise wrong("stride", stride, right)
    check("batch_tokens", batch_tokens, INTEGER, at_least(1))
    if bos_token_id is not None and not (is_integer(bos_token_id) and 0 <= bos_token_id < V):
        raise wrong("bos_token_id", bos_token_id, f"an integer in [0, {V}), vocab_size being {V}")
    unscored = _tokenize(texts, contexts, tokenizer, V)
    bos = [] if bos_token_id is None else [bos_token_id]
    prepared: list[_Prepared] = []
    for number, each in enumerate(unscored):
        context = len(bos) + each.context_tokens
        if context > n_positions:
            raise ValueError(
                f"context {number} has {context} tokens, but must have at most n_positions = "
                f"{n_positions}"
            )
        sequence = np.concatenate([np.asarray(bos, np.int32), each.ids])
        prepared.append(_Prepared(sequence, max(1, context), each))
    return _scored(model, prepared, stride, batch_tokens)


def _scored(
    model: LanguageModel, prepared: Sequence[_Prepared], stride: int, batch_tokens: int
) -> Iterator[tuple[int, Score]]:
    structure, params = split(model)
    n_positions = model.config.n_positions
    by_length: dict[int, list[_Window]] = {}
    waiting = [0] * len(prepared)  # windows of each text that are not done
    for number, text in enumerate(prepared):
        for window in windows(text.first, len(text.sequence), n_positions, stride):
            length = min(bucket(window[1] - window[0]), n_positions)
            by_length.setdefault(length, []).append(_Window(number, *window))
            waiting[number] += 1
    # A text of one token without a context has no windows.
    yield from ((number, prepared[number].score) for number, n in enumerate(waiting) if n == 0)
    # The longest first: if memory does not suffice for them, that shows at once.
    for length in sorted(by_length, reverse=True):
        group = by_length[length]
        rows = _rows(len(group), max(1, batch_tokens // length))
        mesh = mesh_of(params)
        rows = rows if mesh is None else round_up_to_mesh(mesh, rows)
        for begin in range(0, len(group), rows):
            batch = group[begin : begin + rows]
            _score_batch(structure, params, prepared, batch, (rows, length))
            for window in batch:
                waiting[window.text] -= 1
                if waiting[window.text] == 0:
                    yield window.text, prepared[window.text].score


def _rows(count: int, most: int) -> int:
    """Return the rows of each batch of so many windows, at most ``most``.

    Batches are even, so that little is padding; the number is rounded up, so that calls with other
    numbers of texts share a program: to a power of two, or to an eighth of ``most``.
    """
    even = math.ceil(count / math.ceil(count / most))
    step = max(1, most // 8)
    rounded = 1 << (even - 1).bit_length() if even <= step else -(-even // step) * step
    return min(rounded, most)


def _score_batch(
    structure: ModelStructure[Any],
    params: Params,
    prepared: Sequence[_Prepared],
    batch: Sequence[_Window],
    shape: tuple[int, int],
) -> None:
    """Write the log-probabilities of a batch of windows, of this shape, into their scores."""
    L = shape[1]
    ids = np.zeros(shape, np.int32)
    places, targets = [], []
    for row, window in enumerate(batch):
        sequence = prepared[window.text].sequence
        ids[row, : window.stop - window.start] = sequence[window.start : window.stop]
        before = np.arange(window.counted - 1, window.stop)
        places.append(row * L + before - window.start)
        targets.append(sequence[before + 1])
    packed = np.zeros((2, ids.size), np.int32)
    count = sum(map(len, places))
    packed[0, :count], packed[1, :count] = np.concatenate(places), np.concatenate(targets)
    mesh = mesh_of(params)
    on_devices = ids if mesh is None else shard(ids, batch_shardings(mesh, ids))
    found = _log_probs(structure, params, on_devices, packed, np.int32(count))
    log_probs, is_greedy = (np.asarray(each)[:count] for each in found)
    if not np.isfinite(log_probs).all():
        raise not_finite("the log-probabilities", params)
    done = 0
    for window in batch:
        own = prepared[window.text]
        bos = len(own.sequence) - len(own.score.ids)
        here = slice(window.counted - bos, window.stop + 1 - bos)
        size = here.stop - here.start
        own.score.log_probs[here] = log_probs[done : done + size]
        own.score.is_greedy[here] = is_greedy[done : done + size]
        done += size


@functools.partial(jax.jit, static_argnames="structure")
def _log_probs(
    structure: ModelStructure[Any],
    params: Params,
    ids: Int32[Array, "R L"],
    packed: Int32[Array, "2 N"],
    count: Int32[Array, ""],
) -> tuple[Float[Array, "N"], Bool[Array, "N"]]:
    """Return the log-probabilities of tokens, and whether they are the likeliest.

    Args:
        structure: of the model.
        params: of the model.
        ids: padded on the right.
        packed: N = R * L places of tokens in the flattened ids, and the tokens that follow them.
        count: how many of the N there are; the others are not computed, but for a chunk's rest.
    """
    model = merge(structure, params)
    states = model.transformer.forward(ids).last_hidden_state
    states = states.reshape(-1, states.shape[-1])
    table = lm_table(model)  # outside of the loop, or it would be converted for every chunk
    precision = model.transformer.h[0].attn.precision
    N = packed.shape[1]
    size = min(CHUNK, N)
    packed = jnp.pad(packed, [(0, 0), (0, -N % size)])

    def add(i: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        places, targets = jax.lax.dynamic_slice_in_dim(packed, i * size, size, axis=1)
        x = constrain(jnp.take(states, places, axis=0), ROWS, None)
        if isinstance(table, QArray):
            logits = int8_matmul(x, table)
        else:
            logits = logits_matmul(x, table, precision)
        shifted = logits - logits.max(axis=-1, keepdims=True)
        at_targets = jnp.take_along_axis(shifted, targets[:, None], axis=-1)[:, 0]
        log_probs = at_targets - jnp.log(jnp.exp(shifted).sum(axis=-1))
        new = log_probs.astype(jnp.float32), logits.argmax(axis=-1) == targets
        return tuple(  # pyright: ignore[reportReturnType]
            jax.lax.dynamic_update_slice_in_dim(whole, part, i * size, axis=0)
            for whole, part in zip(found, new, strict=True)
        )

    start = jnp.zeros(packed.shape[1], jnp.float32), jnp.zeros(packed.shape[1], bool)
    return jax.lax.fori_loop(0, (count + size - 1) // size, add, start)


def _tokenize(
    texts: Sequence[Text],
    contexts: Sequence[Context] | None,
    tokenizer: Tokenizer | None,
    vocab_size: int,
) -> list[Score]:
    """Return scores without their numbers: ids, tokens and spans."""
    if isinstance(texts, str):
        raise TypeError("texts is a single string, but must be a list of texts")
    texts = list(texts)
    contexts = [None] * len(texts) if contexts is None else list(contexts)
    if len(contexts) != len(texts):
        raise ValueError(f"there are {len(texts)} texts, but {len(contexts)} contexts")
    are_strings = {isinstance(text, str) for text in texts}
    are_strings |= {isinstance(c, str) for c in contexts if c is not None and not is_integer(c)}
    if len(are_strings) > 1:
        raise TypeError("texts and contexts must be all strings or all ids, but are mixed")
    if are_strings == {True}:
        if tokenizer is None:
            raise TypeError("texts are strings, which need a tokenizer; ids do without one")
        found = _of_strings(texts, contexts, tokenizer)
    else:
        found = [
            _of_ids(number, text, context, tokenizer, vocab_size)
            for number, (text, context) in enumerate(zip(texts, contexts, strict=True))
        ]
    for number, (each, context) in enumerate(zip(found, contexts, strict=True)):
        check_ids(f"text {number}", each.ids, vocab_size, "vocab_size")
        tokens = len(each.ids)
        if is_integer(context) and not 0 <= context < max(1, tokens):
            raise wrong(f"context {number}", context, f"in [0, {tokens}), the text's tokens")
        if tokens == each.context_tokens:
            raise ValueError(f"text {number} has no tokens")
    return found


def _of_strings(texts: list[Any], contexts: list[Any], tokenizer: Tokenizer) -> list[Score]:
    before = [context if isinstance(context, str) else "" for context in contexts]
    joined = [context + text for context, text in zip(before, texts, strict=True)]
    encoding: Any = tokenizer(joined, return_offsets_mapping=True)
    found = []
    for i, spans in enumerate(encoding["offset_mapping"]):
        ids, border = encoding["input_ids"][i], len(before[i])
        context_tokens = contexts[i] if is_integer(contexts[i]) else 0
        if border:
            ends = (k for k, (_, end) in enumerate(spans) if end > border)
            context_tokens = next(ends, len(ids))
        found.append(
            dataclasses.replace(
                _unscored(ids, context_tokens, tokenizer),
                spans=tuple(map(tuple, spans)),
                raw_text=joined[i],
                characters=len(texts[i]),
            )
        )
    return found


def _of_ids(
    number: int, text: Any, context: Any, tokenizer: Tokenizer | None, vocab_size: int
) -> Score:
    rows = []
    for name, row in (("context", context), ("text", text)):
        ids = host_array(f"{name} {number}", [] if row is None or is_integer(row) else row)
        if ids.ndim != 1:
            raise ValueError(f"{name} {number} has shape {ids.shape}, but must be (T,)")
        check_ids(f"{name} {number}", ids, vocab_size, "vocab_size")
        rows.append(ids.astype(np.int32))
    context_tokens = context if is_integer(context) else len(rows[0])
    return _unscored(np.concatenate(rows), context_tokens, tokenizer)


def _unscored(ids: Any, context_tokens: int, tokenizer: Tokenizer | None) -> Score:
    ids = np.asarray(ids, np.int32)
    return Score(
        ids=ids,
        tokens=() if tokenizer is None else tuple(tokenizer.convert_ids_to_tokens(ids)),
        spans=(),
        log_probs=np.full(len(ids), np.nan, np.float32),
        is_greedy=np.zeros(len(ids), bool),
        context_tokens=context_tokens,
    )
