"""From the logits of a model to the logits that the next token is chosen from.

Each rule of Hugging Face's ``generate`` is a dataclass whose fields are traced arrays, so that
changing a value compiles nothing; a rule that is off costs a branch, and a call with none that is
on has a program without them (``SamplingParams``). They run in Hugging Face's order: ``processors``
always, ``warpers`` when sampling.

Dimensions: B rows, C slots for tokens, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Protocol, Self, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from gpt1_jax.generation_config import GenerationConfig, as_ids
from gpt1_jax.nn.pytree import pytree_dataclass, static
from gpt1_jax.pretrained import OpenAIGPTPreTrainedModel

Array = jax.Array | np.ndarray


class Inputs(TypedDict):
    """What a model reads: (B, T) ids or, in place of them, (B, T, E) embeddings; token types."""

    input_ids: jax.Array | None
    inputs_embeds: jax.Array | None
    token_type_ids: jax.Array | None


@pytree_dataclass
class GenerationState:
    """What a user's function of ``logits_processor`` or ``stopping_criteria`` is told of the texts.

    Attributes:
        tokens: (B, T) int32, every row's prompt and new tokens from place 0 on, then zeros; with a
            sliding window those that it has not forgotten.
        lengths: (B,) int32, the number of its tokens.
        step: () int32, the number of new tokens among them.
    """

    tokens: jax.Array
    lengths: jax.Array
    step: jax.Array


LogitsProcessor = Callable[[jax.Array, GenerationState], jax.Array]
StoppingCriterion = Callable[[GenerationState], jax.Array]


@pytree_dataclass
class PromptEmbeds:
    """Embeddings that are read in place of the tokens of prompts.

    Attributes:
        values: (B, C, E), for the slots of the prompts.
        start: (B,) int32, the slot of a row's first one.
        end: () int32, the slot after the last one.
    """

    values: jax.Array
    start: jax.Array
    end: jax.Array

    def take(self, rows: jax.Array) -> Self:
        """Return the embeddings of the texts numbered by ``rows`` (N,)."""
        return dataclasses.replace(self, values=self.values[rows], start=self.start[rows])


@pytree_dataclass
class DecodeContext:
    """The text that the next token continues.

    Attributes:
        tokens: (B, C) int32, every row's prompt and new tokens, padded on the left.
        start: (B,) int32, the slot of a row's first token.
        length: () int32, the number of slots filled.
        new: () int32, the number of tokens chosen so far.
        embeds: of prompts that are given as embeddings. Without ids beside them, ``start`` is the
            slot of the first new token.
        token_types: (B, C) int32, of every slot, those of new tokens too; None for no types.
    """

    tokens: jax.Array
    start: jax.Array
    length: jax.Array
    new: jax.Array
    embeds: PromptEmbeds | None = None
    token_types: jax.Array | None = None

    def append(self, token: jax.Array) -> Self:
        """Return the texts with one more token (B,) each."""
        place = (jnp.int32(0), self.length)
        return dataclasses.replace(
            self,
            tokens=jax.lax.dynamic_update_slice(self.tokens, token[:, None], place),
            length=self.length + 1,
            new=self.new + 1,
        )

    def take(self, rows: jax.Array) -> Self:
        """Return the texts numbered by ``rows`` (N,); embeddings and types stay as they are."""
        return dataclasses.replace(self, tokens=self.tokens[rows], start=self.start[rows])

    def inputs(self, model: OpenAIGPTPreTrainedModel, slot: jax.Array, tokens: int) -> Inputs:
        """Return what a model reads for so many slots from ``slot`` () on: ids or embeddings."""
        types = self.types_at(slot, tokens)
        ids = jax.lax.dynamic_slice_in_dim(self.tokens, slot, tokens, axis=1)
        if self.embeds is None:
            return {"input_ids": ids, "inputs_embeds": None, "token_type_ids": types}
        given = jax.lax.dynamic_slice_in_dim(self.embeds.values, slot, tokens, axis=1)
        is_given = slot + jnp.arange(tokens, dtype=jnp.int32) < self.embeds.end
        own = model.get_input_embeddings()(ids).astype(given.dtype)
        embeds = jnp.where(is_given[None, :, None], given, own)
        return {"input_ids": None, "inputs_embeds": embeds, "token_type_ids": types}

    def types_at(self, slot: jax.Array, tokens: int) -> jax.Array | None:
        """Return the types (B, tokens) of so many slots from ``slot`` () on, if there are any."""
        if self.token_types is None:
            return None
        return jax.lax.dynamic_slice_in_dim(self.token_types, slot, tokens, axis=1)

    def is_text(self, slots: jax.Array) -> jax.Array:
        """(T,) slots up to the end -> (B, T) bool, false where padding comes before a text."""
        start = self.start if self.embeds is None else self.embeds.start
        return slots[None, :] >= start[:, None]

    def for_user(self) -> GenerationState:
        """Return the texts as users' functions take them."""
        slots = self.start[:, None] + jnp.arange(self.tokens.shape[1], dtype=jnp.int32)[None, :]
        tokens = jnp.take_along_axis(self.tokens, slots, axis=1, mode="fill", fill_value=0)
        return GenerationState(
            tokens=jnp.where(slots < self.length, tokens, 0),
            lengths=self.length - self.start,
            step=self.new,
        )

    def filled(self) -> jax.Array:
        """(B, C) bool, true for the slots that hold a token of the text."""
        slots = jnp.arange(self.tokens.shape[1], dtype=jnp.int32)[None, :]
        return (slots >= self.start[:, None]) & (slots < self.length)

    def before(self, back: jax.Array) -> jax.Array:
        """(B,) the token ``back`` () places before the next one."""
        return jax.lax.dynamic_index_in_dim(self.tokens, self.length - back, 1, keepdims=False)

    def shifted(self, back: jax.Array) -> jax.Array:
        """(B, C) at every slot the token ``back`` () slots before it, around the end."""
        return jnp.roll(self.tokens, back, axis=1)


class Processor(Protocol):
    """One rule: (B, V) float32 logits and their context to (B, V) logits."""

    def active(self, context: DecodeContext) -> Array:
        """() bool, false where the rule would return the logits as they are."""
        ...

    def __call__(self, logits: jax.Array, context: DecodeContext) -> jax.Array:
        """Return the logits under this rule."""
        ...


def process(
    processors: Sequence[Processor], logits: jax.Array, context: DecodeContext
) -> jax.Array:
    """Apply the processors that are active, one after the other."""

    def one(logits: jax.Array, processor: Processor) -> jax.Array:
        return jax.lax.cond(
            processor.active(context),
            lambda logits: processor(logits, context),
            lambda logits: logits,
            logits,
        )

    return functools.reduce(one, processors, logits)


def processors(
    settings: GenerationConfig, vocab_size: int, functions: Sequence[LogitsProcessor] = ()
) -> tuple[Processor, ...]:
    """Return the rules that hold whether tokens are drawn or not.

    Args:
        settings: with the end tokens filled in (``GenerationConfig.for_model``).
        vocab_size: V.
        functions: the user's own, which come last.
    """
    eos = as_ids(settings.eos_token_id)
    last = np.asarray(settings.max_new_tokens - 1, np.int32)
    # An end token is not held to be a bad word.
    bad_words = [word for word in settings.bad_words_ids if len(word) > 1 or word[0] not in eos]
    forced_bos = as_ids(settings.forced_bos_token_id)
    forced_eos = as_ids(settings.forced_eos_token_id)
    end = token_mask(eos, vocab_size)
    return (
        RepetitionPenalty(np.asarray(settings.repetition_penalty, np.float32)),
        NoRepeatNGram(np.asarray(settings.no_repeat_ngram_size, np.int32)),
        NoBadWords.build(bad_words, vocab_size),
        MinNewTokens(np.asarray(settings.min_new_tokens if eos else 0, np.int32), end),
        ForcedBOS(np.asarray(bool(forced_bos)), token_mask(forced_bos, vocab_size)),
        ForcedEOS(np.asarray(bool(forced_eos)), last, token_mask(forced_eos, vocab_size)),
        SuppressTokens(
            np.asarray(bool(settings.suppress_tokens)),
            token_mask(settings.suppress_tokens, vocab_size),
        ),
        *map(UserProcessor, functions),
    )


def warpers(settings: GenerationConfig, vocab_size: int) -> tuple[Processor, ...]:
    """Return the rules that shape the distribution which tokens are drawn from."""
    # Beams have to go on when all end tokens are drawn.
    beams = settings.num_beams > 1
    keep = max(2, 1 + len(as_ids(settings.eos_token_id))) if beams else 1
    at_least = np.asarray(min(keep, vocab_size), np.int32)
    top_k = 0 if settings.top_k is None else min(max(settings.top_k, keep), vocab_size)
    return (
        Temperature(np.asarray(settings.temperature, np.float32)),
        TopK(np.asarray(top_k, np.int32)),
        TopP(np.asarray(1 - settings.top_p, np.float32), at_least),
        MinP(np.asarray(settings.min_p, np.float32), at_least),
        Typical(np.asarray(settings.typical_p, np.float32), at_least),
    )


def token_mask(ids: Sequence[int], vocab_size: int) -> np.ndarray:
    """(V,) bool, true for ``ids``."""
    mask = np.zeros(vocab_size, bool)
    mask[list(ids)] = True
    return mask


@pytree_dataclass
class RepetitionPenalty:
    """Makes the tokens of the text less likely: CTRL (arXiv:1909.05858), section 4.1."""

    penalty: Array  # () float32

    def active(self, context: DecodeContext) -> Array:
        return self.penalty != 1

    def __call__(self, logits: jax.Array, context: DecodeContext) -> jax.Array:
        seen = tokens_at(context.filled(), context, logits.shape[-1])
        penalized = jnp.where(logits < 0, logits * self.penalty, logits / self.penalty)
        return jnp.where(seen, penalized, logits)


@pytree_dataclass
class NoRepeatNGram:
    """Forbids tokens that would complete a sequence of ``size`` tokens a second time."""

    size: Array  # () int32

    def active(self, context: DecodeContext) -> Array:
        return (self.size > 0) & (self.size <= context.length)

    def __call__(self, logits: jax.Array, context: DecodeContext) -> jax.Array:
        # A slot completes a sequence like the one at hand if the tokens before it are the last
        # ones of the text.
        slots = jnp.arange(context.tokens.shape[1], dtype=jnp.int32)[None, :]
        fits = slots >= context.start[:, None] + self.size - 1

        def compare(back: jax.Array, same: jax.Array) -> jax.Array:
            return same & (context.shifted(back) == context.before(back)[:, None])

        same = jax.lax.fori_loop(jnp.int32(1), self.size, compare, fits & context.filled())
        return jnp.where(tokens_at(same, context, logits.shape[-1]), -jnp.inf, logits)


@pytree_dataclass
class NoBadWords:
    """Forbids the last token of each word where the tokens before it are those of the word."""

    single: Array  # (V,) bool, the words of one token
    words: Array  # (N, L) int32, longer ones, right-aligned
    lengths: Array  # (N,) int32, 0 for no word
    any: Array  # () bool

    @classmethod
    def build(cls, words: Sequence[Sequence[int]], vocab_size: int) -> "NoBadWords":
        """Build with room for 16 words of 16 tokens, or twice as many, so that few compile."""
        longer = [word for word in words if len(word) > 1]
        N = power_of_two(len(longer))
        L = power_of_two(max(map(len, longer), default=0))
        table, lengths = np.zeros((N, L), np.int32), np.zeros(N, np.int32)
        for i, word in enumerate(longer):
            table[i, -len(word) :] = word
            lengths[i] = len(word)
        single = token_mask([word[0] for word in words if len(word) == 1], vocab_size)
        return cls(single, table, lengths, np.asarray(bool(words)))

    def active(self, context: DecodeContext) -> Array:
        return self.any

    def __call__(self, logits: jax.Array, context: DecodeContext) -> jax.Array:
        (B, V), L = logits.shape, self.words.shape[1]
        words, lengths = jnp.asarray(self.words), jnp.asarray(self.lengths)
        back = jnp.arange(L - 1, 0, -1, dtype=jnp.int32)  # of a word's tokens but the last
        tail = jax.vmap(context.before, out_axes=1)(jnp.minimum(back, context.length))
        # Slots before the text's first token hold padding, which is not part of a word.
        is_text = back[None, :] <= (context.length - context.start)[:, None]
        same = (tail[:, None, :] == words[None, :, :-1]) & is_text[:, None, :]
        beyond = back[None, :] >= lengths[:, None]
        found = (same | beyond[None]).all(axis=-1) & (lengths > 0)[None]  # (B, N)
        banned = jnp.zeros((B, V), bool).at[:, words[:, -1]].max(found)
        return jnp.where(banned | self.single[None], -jnp.inf, logits)


@pytree_dataclass
class MinNewTokens:
    """Forbids the end tokens before ``least`` tokens are chosen."""

    least: Array  # () int32
    eos: Array  # (V,) bool

    def active(self, context: DecodeContext) -> Array:
        return context.new < self.least

    def __call__(self, logits: jax.Array, context: DecodeContext) -> jax.Array:
        return jnp.where(self.eos[None], -jnp.inf, logits)


@pytree_dataclass
class ForcedBOS:
    """Leaves one token after a prompt of one token."""

    any: Array  # () bool
    token: Array  # (V,) bool

    def active(self, context: DecodeContext) -> Array:
        # The one token that a sliding window may leave of a text is not a prompt.
        return self.any & (context.new == 0) & (context.length - context.start == 1).any()

    def __call__(self, logits: jax.Array, context: DecodeContext) -> jax.Array:
        first = context.length - context.start == 1
        return jnp.where(first[:, None], forced(self.token), logits)


@pytree_dataclass
class ForcedEOS:
    """Leaves the given tokens, equally likely, when all but one token are chosen."""

    any: Array  # () bool
    last: Array  # () int32, the number of tokens chosen before
    tokens: Array  # (V,) bool

    def active(self, context: DecodeContext) -> Array:
        return self.any & (context.new == self.last)

    def __call__(self, logits: jax.Array, context: DecodeContext) -> jax.Array:
        return jnp.broadcast_to(forced(self.tokens), logits.shape)


@pytree_dataclass
class SuppressTokens:
    """Forbids tokens."""

    any: Array  # () bool
    tokens: Array  # (V,) bool

    def active(self, context: DecodeContext) -> Array:
        return self.any

    def __call__(self, logits: jax.Array, context: DecodeContext) -> jax.Array:
        return jnp.where(self.tokens[None], -jnp.inf, logits)


@pytree_dataclass
class UserProcessor:
    """A function of the user's, from (B, V) float32 logits and the state to (B, V) logits."""

    function: LogitsProcessor = static()

    def active(self, context: DecodeContext) -> Array:
        return np.asarray(True)

    def __call__(self, logits: jax.Array, context: DecodeContext) -> jax.Array:
        changed = self.function(logits, context.for_user())
        if jnp.shape(changed) != logits.shape:
            name = getattr(self.function, "__qualname__", repr(self.function))
            raise ValueError(
                f"logits_processor {name} returned shape {jnp.shape(changed)}, but must return "
                f"logits of shape {logits.shape}"
            )
        return jnp.asarray(changed, logits.dtype)


@pytree_dataclass
class Temperature:
    """Divides the logits."""

    temperature: Array  # () float32

    def active(self, context: DecodeContext) -> Array:
        return self.temperature != 1

    def __call__(self, logits: jax.Array, context: DecodeContext) -> jax.Array:
        return logits / self.temperature


@pytree_dataclass
class TopK:
    """Keeps the ``k`` likeliest tokens, and those as likely as the last of them."""

    k: Array  # () int32, 0 for all

    def active(self, context: DecodeContext) -> Array:
        return self.k > 0

    def __call__(self, logits: jax.Array, context: DecodeContext) -> jax.Array:
        return jnp.where(logits >= largest(logits, self.k), logits, -jnp.inf)


@pytree_dataclass
class TopP:
    """Keeps the fewest likeliest tokens that together have the probability 1 - ``rest``.

    Nucleus sampling (arXiv:1904.09751). Of equally likely tokens all are kept or none, where
    Hugging Face cuts between them in the order that its sorting happens to give.
    """

    rest: Array  # () float32
    at_least: Array  # () int32, so many tokens are kept in any case

    def active(self, context: DecodeContext) -> Array:
        return self.rest > 0

    def __call__(self, logits: jax.Array, context: DecodeContext) -> jax.Array:
        p = jax.nn.softmax(logits, axis=-1)

        def suffices(least: jax.Array) -> jax.Array:
            below = jnp.where(logits < least, p, 0).sum(axis=-1, keepdims=True)
            return (below <= self.rest) & (count(logits >= least) >= self.at_least)

        return jnp.where(logits >= greatest(suffices, len(logits)), logits, -jnp.inf)


@pytree_dataclass
class MinP:
    """Keeps the tokens at least ``p`` times as likely as the likeliest (arXiv:2407.01082)."""

    p: Array  # () float32
    at_least: Array  # () int32

    def active(self, context: DecodeContext) -> Array:
        return self.p > 0

    def __call__(self, logits: jax.Array, context: DecodeContext) -> jax.Array:
        probabilities = jax.nn.softmax(logits, axis=-1)
        likely = probabilities >= self.p * probabilities.max(axis=-1, keepdims=True)
        spared = jax.lax.cond(
            self.at_least > 1,  # the likeliest token is kept anyway
            lambda: logits >= largest(logits, self.at_least),
            lambda: likely,
        )
        return jnp.where(likely | spared, logits, -jnp.inf)


@pytree_dataclass
class Typical:
    """Keeps the tokens whose information is nearest to the entropy, up to the probability ``p``.

    Locally typical sampling (arXiv:2202.00666). The token that crosses ``p`` is kept too.
    """

    p: Array  # () float32
    at_least: Array  # () int32

    def active(self, context: DecodeContext) -> Array:
        return self.p < 1

    def __call__(self, logits: jax.Array, context: DecodeContext) -> jax.Array:
        log_p = jax.nn.log_softmax(logits, axis=-1)
        p = jnp.exp(log_p)
        entropy = -jnp.where(p > 0, log_p * p, 0).sum(axis=-1, keepdims=True)
        distance = jnp.abs(-log_p - entropy)

        def lacks(farthest: jax.Array) -> jax.Array:
            nearer = distance < farthest
            mass = jnp.where(nearer, p, 0).sum(axis=-1, keepdims=True)
            return (mass < self.p) | (count(nearer) < self.at_least)

        return jnp.where(distance <= greatest(lacks, len(logits)), logits, -jnp.inf)


def largest(x: jax.Array, k: Array) -> jax.Array:
    """(B, V), () -> (B, 1), the k-th largest of each row."""
    return greatest(lambda least: count(x >= least) >= k, len(x))


def count(x: jax.Array) -> jax.Array:
    """(B, V) bool -> (B, 1) int32, how many are true."""
    return x.sum(axis=-1, keepdims=True, dtype=jnp.int32)


def greatest(holds: Callable[[jax.Array], jax.Array], rows: int) -> jax.Array:
    """Return the greatest float32 for which a condition holds, by bisection.

    Counting what lies above a number 32 times is several times faster than sorting a vocabulary.

    Args:
        holds: (rows, 1) float32 -> (rows, 1) bool; true up to some number and false beyond.
        rows: how many numbers to find.

    Returns:
        (rows, 1) float32, -inf where nothing holds.
    """

    def number(order: jax.Array) -> jax.Array:
        """Return the float32 at a place in their order: bits of negative ones count downward."""
        bits = jnp.where(order < 0, order ^ jnp.int32(0x7FFFFFFF), order)
        return jax.lax.bitcast_convert_type(bits, jnp.float32)

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low >> 1) + (high >> 1) + ((low | high) & 1)  # rounded up, without overflow
        right = holds(number(middle))
        return jnp.where(right, middle, low), jnp.where(right, high, middle - 1)

    infinity = np.float32(np.inf).view(np.int32)
    low, high = (jnp.full((rows, 1), bound, jnp.int32) for bound in (~infinity, infinity))
    low, _ = jax.lax.fori_loop(0, 32, halve, (low, high))
    return number(low)


def forced(tokens: Array) -> jax.Array:
    """(V,) mask -> (1, V) logits: 0 for the tokens, -inf for all others."""
    return jnp.where(tokens, jnp.float32(0), -jnp.inf)[None]


def tokens_at(chosen: jax.Array, context: DecodeContext, vocab_size: int) -> jax.Array:
    """(B, C) bool slots -> (B, V) bool, true for the tokens in them."""
    rows = jnp.arange(len(chosen), dtype=jnp.int32)[:, None]
    return jnp.zeros((len(chosen), vocab_size), bool).at[rows, context.tokens].max(chosen)


def power_of_two(length: int, least: int = 16) -> int:
    """Return the least power of two that is at least ``least`` and at least ``length``."""
    return max(least, 1 << (length - 1).bit_length()) if length else least
