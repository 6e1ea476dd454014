"""Score texts: the log-probability of every token, in few compiled programs for any lengths.

Texts become windows of at most n_positions tokens. Windows of like lengths share a batch, padded on
the right, where causal attention never looks. The head multiplies the states of scored tokens
alone, a chunk at a time, so that the logits of a batch never exist together.
"""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
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

CHUNK = 256  # tokens whose logits exist at once: 41 MB with GPT-1's vocabulary
# Padding tokens that take as long as compiling a program: a second or two at full size on a CPU.
COMPILATION = 512
# Small batches of a sorted set need little padding: a set is cut into 16 batches or more, but into
# none of less than 512 tokens. 1,000 sentences then take 1.2 tokens of work each in place of 1.6.
BATCHES, LEAST_TOKENS = 16, 512

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
        word_ids: for each token the number of its word, and None for a special token; empty where
            ids were given.
        log_probs: (T,) float32 in nats, of each token after those before it; NaN for the tokens of
            the context, and for the first of all where nothing comes before it.
        is_greedy: (T,) bool, whether a token is the likeliest one; False where not scored.
        context_tokens: how many of the tokens are the context's.
        raw_text: context + text; None where ids were given.
        characters: of the text, without the context; None where ids were given.
    """

    ids: Int32[np.ndarray, "T"]
    tokens: tuple[str, ...]
    spans: tuple[Span, ...]
    word_ids: tuple[int | None, ...]
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
        """The exponential of minus the mean; NaN where no token is scored."""
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
        """Return the words of the text, without those of the context.

        They are what the tokenizer splits a text into before it looks for tokens: with GPT-1's
        vocabulary, the last token of a word ends in ``</w>``. Punctuation marks are words of their
        own: ``don't`` is three with the pipeline "huggingface", and two with "original".

        Args:
            join_punctuation: whether words are what stands between white space, such as ``"don't``,
                punctuation included.

        Raises:
            ValueError: ids were given, which tell no words.
        """
        if self.raw_text is None:
            raise ValueError("words need texts: ids were scored")
        groups: list[list[int]] = []
        for i in range(self.context_tokens, len(self.ids)):
            if self.word_ids[i] is None:
                continue
            if groups and self._share_word(groups[-1][-1], i, join_punctuation):
                groups[-1].append(i)
            else:
                groups.append([i])
        words: list[Word] = []
        for group in groups:
            start, end = self.spans[group[0]][0], self.spans[group[-1]][1]
            log_prob = float(self.log_probs[group].sum(dtype=np.float64))
            words.append(Word(self.raw_text[start:end], (start, end), log_prob))
        return tuple(words)

    def _share_word(self, i: int, k: int, join_punctuation: bool) -> bool:
        """Return whether a token and the next one that belongs to a word are of the same word."""
        if not join_punctuation:
            return self.word_ids[i] == self.word_ids[k]
        assert self.raw_text is not None
        around = self.raw_text[self.spans[i][1] - 1 : self.spans[k][0] + 1]
        return not any(map(str.isspace, around))


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

    A text that is longer than the model's positions is read in windows. In float32 the numbers do
    not depend on the other texts, up to rounding.

    Args:
        model: a language model in any precision, on one device or on a mesh.
        texts: strings, or token ids (T,) integer, of any lengths; all of one kind.
        contexts: for each text what comes before it and is not scored: a string or ids, of the kind
            of the texts; None for nothing; or the number of the text's own first tokens that are
            context. Strings are tokenized together, context + text, without a space between
            them. A token that begins in the context and ends in the text belongs to the text.
        tokenizer: the model's tokenizer, which strings need.
        stride: how many tokens of a longer text each further window scores; the rest of a window
            is context. By default n_positions // 2; n_positions for windows that do not overlap.
        bos_token_id: a token that is read before each text, so that its first token is scored too.
        batch_tokens: the most tokens that are computed at once, padding included.

    Returns:
        A ``Score`` for each text.

    Raises:
        TypeError: ``texts`` is a single string, texts and ids are mixed, or there is no tokenizer.
        ValueError: a text has no tokens, a context is longer than n_positions, ids or a number are
            out of range, or the model computes NaN.
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
    bos = np.asarray([] if bos_token_id is None else [bos_token_id], np.int32)
    unscored = _tokenize(texts, contexts, tokenizer, V)
    windows: list[_Window] = []
    for number, text in enumerate(unscored):
        context = len(bos) + text.context_tokens
        if context > n_positions:
            raise ValueError(
                f"context {number} has {context} tokens, but must have at most n_positions = "
                f"{n_positions}"
            )
        ids = np.concatenate([bos, text.ids])
        for start, stop, counted in spread(max(1, context), len(ids), n_positions, stride):
            scored, end = stop + 1 - counted, stop + 1 - len(bos)
            windows.append(_Window(number, ids[start : stop + 1], scored, end))
    return _scored(model, unscored, windows, batch_tokens)


class _Window(NamedTuple):
    """Tokens that are read together: all but the last, to score the last ``scored`` of them.

    Attributes:
        text: its number.
        ids: (L + 1,) int32.
        scored: how many of the ids are scored, at most L.
        end: where in the text the ids end.
    """

    text: int
    ids: np.ndarray
    scored: int
    end: int


def spread(first: int, count: int, n_positions: int, stride: int) -> Iterator[tuple[int, int, int]]:
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


def _scored(
    model: LanguageModel, scores: Sequence[Score], windows: list[_Window], batch_tokens: int
) -> Iterator[tuple[int, Score]]:
    """Write the log-probabilities of windows into scores, and yield each when it is complete."""
    structure, params = split(model)
    mesh = mesh_of(params)
    waiting = collections.Counter(window.text for window in windows)
    # A text of one token without a context has no windows.
    yield from ((number, each) for number, each in enumerate(scores) if number not in waiting)
    # The longest first: if memory does not suffice for them, that shows at once.
    windows.sort(key=lambda window: len(window.ids), reverse=True)
    lengths = [len(window.ids) - 1 for window in windows]
    following = iter(windows)
    for shape in batch_shapes(lengths, model.config.n_positions, batch_tokens, mesh):
        batch = list(itertools.islice(following, shape[0]))
        found = _score_batch(structure, params, batch, shape)
        for window, log_probs, is_greedy in zip(batch, *found, strict=True):
            here = slice(window.end - window.scored, window.end)
            scores[window.text].log_probs[here] = log_probs
            scores[window.text].is_greedy[here] = is_greedy
            waiting[window.text] -= 1
            if not waiting[window.text]:
                yield window.text, scores[window.text]


def batch_shapes(
    lengths: Sequence[int], n_positions: int, batch_tokens: int, mesh: Mesh | None = None
) -> Iterator[tuple[int, int]]:
    """Yield the shape (rows, length) of each batch of windows, one for each length.

    The first is as long as a power of two, so that calls with few windows share programs. A shorter
    one follows where that spares more padding than compiling another program is worth.

    Args:
        lengths: of the windows, the longest first.
        n_positions: the longest that one may be.
        batch_tokens: rows * length at most, unless that is less than one row.
        mesh: which divides the rows, if any.
    """
    if lengths and lengths[0] > lengths[-1]:  # else there is nothing to pad
        # A power of two, so that calls with about as many windows share programs.
        share = 1 << max(1, sum(lengths) // BATCHES).bit_length() - 1
        batch_tokens = min(batch_tokens, max(LEAST_TOKENS, share))

    def shape(length: int, left: int) -> tuple[int, int]:
        rows = _even_rows(left, max(1, batch_tokens // length))
        return rows if mesh is None else round_up_to_mesh(mesh, rows), length

    def tokens(shape: tuple[int, int], left: int) -> int:
        return -(-left // shape[0]) * shape[0] * shape[1]

    left = len(lengths)
    chosen = shape(min(bucket(max(lengths, default=1)), n_positions), left)
    while left > 0:
        length = min(_rounded(lengths[-left]), n_positions)
        shorter = shape(length, left)
        if length < chosen[1] and tokens(chosen, left) - tokens(shorter, left) >= COMPILATION:
            chosen = shorter
        yield chosen
        left -= chosen[0]


def _even_rows(left: int, most: int) -> int:
    """Return the rows of batches that so many windows fill evenly, at most ``most``.

    They are rounded up, so that calls share programs: to a power of two, or to an eighth of
    ``most``.
    """
    even = -(-left // max(1, -(-left // most)))
    step = max(1, most // 8)
    rows = 1 << (even - 1).bit_length() if even <= step else -(-even // step) * step
    return min(rows, most)


def _rounded(length: int) -> int:
    """Return ``length`` rounded up to an eighth of a power of two, and to a multiple of 4."""
    step = max(4, (1 << (length - 1).bit_length()) // 8)
    return -(-length // step) * step


def _score_batch(
    structure: ModelStructure[Any],
    params: Params,
    batch: Sequence[_Window],
    shape: tuple[int, int],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the log-probabilities of each window, and whether its tokens are the likeliest."""
    ids = np.zeros(shape, np.int32)
    packed = np.zeros((2, ids.size), np.int32)
    scored = np.cumsum([window.scored for window in batch])
    for row, window in enumerate(batch):
        stop = len(window.ids) - 1
        ids[row, :stop] = window.ids[:stop]
        here = slice(scored[row] - window.scored, scored[row])
        packed[0, here] = row * shape[1] + np.arange(stop - window.scored, stop)
        packed[1, here] = window.ids[-window.scored :]
    mesh = mesh_of(params)
    placed = ids if mesh is None else shard(ids, batch_shardings(mesh, ids))
    found = _log_probs(structure, params, placed, packed, scored[-1].astype(np.int32))
    log_probs, is_greedy = (np.split(np.asarray(each), scored)[:-1] for each in found)
    if not all(np.isfinite(row).all() for row in log_probs):
        raise not_finite("the logits", params)
    return log_probs, is_greedy


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
        is_greedy = logits.argmax(axis=-1) == targets

        def put(whole: jax.Array, part: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(whole, part, i * size, axis=0)

        return put(found[0], log_probs.astype(jnp.float32)), put(found[1], is_greedy)

    start = jnp.zeros(packed.shape[1], jnp.float32), jnp.zeros(packed.shape[1], bool)
    return jax.lax.fori_loop(0, (count + size - 1) // size, add, start)


def _tokenize(
    texts: Sequence[Text],
    contexts: Sequence[Context] | None,
    tokenizer: Tokenizer | None,
    vocab_size: int,
) -> list[Score]:
    """Return scores without their numbers: ids, tokens and spans."""
    for name, given in (("texts", texts), ("contexts", contexts)):
        if isinstance(given, str):
            raise TypeError(f"{name} is a single string, but must be a list of texts")
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
    for number, each in enumerate(found):
        check_ids(f"text {number}", each.ids, vocab_size, "vocab_size")
        own = each.spans[each.context_tokens :]
        only_template = bool(own) and all(start == end for start, end in own)  # [CLS] [SEP]
        if len(each.ids) == each.context_tokens or only_template:
            raise ValueError(f"text {number} has no tokens")
    return found


def _of_strings(texts: list[Any], contexts: list[Any], tokenizer: Tokenizer) -> list[Score]:
    before = [context if isinstance(context, str) else "" for context in contexts]
    joined = [context + text for context, text in zip(before, texts, strict=True)]
    encoding = tokenizer(joined, return_offsets_mapping=True)
    found = []
    for i, spans in enumerate(encoding["offset_mapping"]):
        ids, border = encoding["input_ids"][i], len(before[i])
        context_tokens = _count(i, contexts[i], len(ids))
        if context_tokens:
            border = spans[context_tokens - 1][1]
        elif border:
            ends = (k for k, (_, end) in enumerate(spans) if end > border)
            context_tokens = next(ends, len(ids))
        found.append(
            dataclasses.replace(
                _unscored(ids, context_tokens, tokenizer),
                spans=tuple(map(tuple, spans)),
                word_ids=tuple(encoding.word_ids(i)),
                raw_text=joined[i],
                characters=len(joined[i]) - border,
            )
        )
    return found


def _count(number: int, context: Any, tokens: int) -> int:
    """Return how many of the text's own tokens are context; 0 where that is not said."""
    if not is_integer(context):
        return 0
    if not 0 <= context < max(1, tokens):
        raise wrong(f"context {number}", context, f"in [0, {tokens}), the text's tokens")
    return context


def _of_ids(
    number: int, text: Any, context: Any, tokenizer: Tokenizer | None, vocab_size: int
) -> Score:
    rows = []
    for name, row in (("context", context), ("text", text)):
        is_count = name == "context" and is_integer(row)
        ids = host_array(f"{name} {number}", [] if row is None or is_count else row)
        if ids.ndim != 1:
            raise ValueError(f"{name} {number} has shape {ids.shape}, but must be (T,)")
        check_ids(f"{name} {number}", ids, vocab_size, "vocab_size")
        rows.append(ids.astype(np.int32))
    context_tokens = len(rows[0]) or _count(number, context, len(rows[1]))
    return _unscored(np.concatenate(rows), context_tokens, tokenizer)


def _unscored(ids: Any, context_tokens: int, tokenizer: Tokenizer | None) -> Score:
    ids = np.asarray(ids, np.int32)
    return Score(
        ids=ids,
        tokens=() if tokenizer is None else tuple(tokenizer.convert_ids_to_tokens(ids)),
        spans=(),
        word_ids=(),
        log_probs=np.full(len(ids), np.nan, np.float32),
        is_greedy=np.zeros(len(ids), bool),
        context_tokens=context_tokens,
    )
