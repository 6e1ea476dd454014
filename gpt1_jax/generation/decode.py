"""Decoding: read the prompts, then choose and read one token after the other, in one compiled call.

``Decoder`` is a model prepared for it. ``decode_step`` is what one step computes, for greedy
decoding, sampling, draft tokens and beams alike; ``prefill`` reads the prompts. ``decode`` is the
loop on the host: a call of ``_decode_until``, which is compiled, or several, between which the host
looks at the texts.

Prompts of a batch are padded on the left, so that all rows end at the same slot; positions and
attention leave the padding out, and each row is what it would be alone, but for rounding. The state
between calls is a value, donated: a call goes on where the one before stopped, so the same compiled
function runs a text to its end, or a few tokens at a time. Settings are traced and lengths rounded
up: few compilations serve all calls.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int32

from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.generation.processors import (
    Array,
    DecodeContext,
    Processor,
    process,
    processors,
    token_mask,
    warpers,
)
from gpt1_jax.generation.prompts import (
    PREFILL_CHUNK,
    PREFILL_TOKENS,
    align,
    bucket,
    most_slots,
    pieces,
)
from gpt1_jax.generation.speculation import draft
from gpt1_jax.generation.transposed_kernels import should_transpose, transpose_kernels
from gpt1_jax.generation_config import GenerationConfig, as_ids
from gpt1_jax.model import OpenAIGPTLMHeadModel
from gpt1_jax.nn.attention import Cache
from gpt1_jax.nn.keys import key_of
from gpt1_jax.nn.pytree import pytree_dataclass
from gpt1_jax.pretrained import Params
from gpt1_jax.pure import ModelStructure, merge, not_finite, split
from gpt1_jax.sharding.mesh import (
    batch_shardings,
    constrain_like,
    mesh_of,
    round_up_to_mesh,
    shard,
)

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A language model prepared for decoding, in whichever way.

    Attributes:
        structure: of the model, for ``merge`` inside a compiled function.
        params: laid out for decoding.
        config: of the model.
        dtype: of the computation, and of the cache.
        mesh: that the model lies on, or None.
    """

    structure: ModelStructure[OpenAIGPTLMHeadModel]
    params: Params
    config: OpenAIGPTConfig
    dtype: jnp.dtype
    mesh: Mesh | None

    @classmethod
    def prepare(cls, model: OpenAIGPTLMHeadModel, rows: int) -> Self:
        """Prepare a model to decode so many rows at a time."""
        structure, params = split(model)
        if should_transpose(model, rows):
            structure, params = transpose_kernels(model, structure, params)
        table = params["transformer"]["tokens_embed"]["embedding"]  # it lies where all of it does
        return cls(structure, params, model.config, model.dtype, mesh_of(table))

    def pad_to_mesh(
        self, prompts: list[np.ndarray], settings: GenerationConfig
    ) -> tuple[list[np.ndarray], GenerationConfig]:
        """Return the prompts, the last of them repeated until the mesh divides their number."""
        rows = len(prompts) if self.mesh is None else round_up_to_mesh(self.mesh, len(prompts))
        more = rows - len(prompts)
        if more and isinstance(settings.seed, Sequence):
            seeds = [*settings.seed, *[settings.seed[-1]] * more]
            settings = dataclasses.replace(settings, seed=seeds)
        return prompts + prompts[-1:] * more, settings

    def place(self, rows: Tree) -> Tree:
        """Return arrays (rows, ...) and caches on the mesh, if there is one."""
        return rows if self.mesh is None else shard(rows, batch_shardings(self.mesh, rows))

    def not_finite(self) -> ValueError:
        """Return the error that the logits are not finite, with the reason."""
        return not_finite("the logits", self.params)


def decode_step(
    model: OpenAIGPTLMHeadModel, cache: Cache, ids: Int32[jax.Array, "B T"]
) -> tuple[Float[jax.Array, "B T V"], Cache]:
    """Read the next tokens of every text: the pure step that all decoding is made of.

    The cache says which tokens came before, and which of them are padding; positions go on after
    those that are not. The step itself knows nothing of settings, prompts or what is chosen.

    Args:
        model: merged inside a compiled function.
        cache: of the tokens read so far, with room for T more.
        ids: of tokens, none of them padding; T is 1, or more with draft tokens.

    Returns:
        The logits of what follows each of them, and the cache with them in it.
    """
    out = model.forward(ids, positions_from_mask=True, cache=cache)
    return out.logits, out.cache


def prefill(
    model: OpenAIGPTLMHeadModel, context: DecodeContext, cache: Cache, offset: jax.Array
) -> Cache:
    """Return the cache with all tokens of the texts but the last, read piece by piece.

    Args:
        model: merged inside a compiled function.
        context: of texts whose unread tokens, the last apart, are whole pieces.
        cache: of the tokens read so far.
        offset: () int32, the slot of the first token in the cache.
    """

    def read_pieces(cache: Cache, piece: int) -> Cache:
        def unread(cache: Cache) -> jax.Array:
            return offset + cache.index + piece < context.length

        def read(cache: Cache) -> Cache:
            place = offset + cache.index
            ids = jax.lax.dynamic_slice_in_dim(context.tokens, place, piece, axis=1)
            slots = place + jnp.arange(piece, dtype=jnp.int32)
            is_text = slots[None, :] >= context.start[:, None]
            out = model.transformer.forward(ids, is_text, positions_from_mask=True, cache=cache)
            return out.cache

        return jax.lax.while_loop(unread, read, cache)

    long = PREFILL_TOKENS // len(context.tokens) // PREFILL_CHUNK * PREFILL_CHUNK
    if PREFILL_CHUNK < long < cache.length:
        cache = read_pieces(cache, long)
    return read_pieces(cache, PREFILL_CHUNK)


@pytree_dataclass
class SamplingParams:
    """The settings of a call, traced.

    Attributes:
        processors: what changes the logits in any case.
        warpers: what changes them before a draw.
        do_sample: () bool.
        seeds: (B,) uint32.
        eos: (V,) bool, the tokens that end a text.
        pad: () int32, what follows the end.
    """

    processors: tuple[Processor, ...]
    warpers: tuple[Processor, ...]
    do_sample: Array
    seeds: Array
    eos: Array
    pad: Array

    @classmethod
    def build(cls, settings: GenerationConfig, vocab_size: int, seeds: np.ndarray) -> Self:
        """Build from settings whose end and padding are filled in, and the rows' seeds."""
        return cls(
            processors=processors(settings, vocab_size),
            warpers=warpers(settings, vocab_size),
            do_sample=np.asarray(settings.do_sample),
            seeds=seeds,
            eos=token_mask(as_ids(settings.eos_token_id), vocab_size),
            pad=np.asarray(settings.pad_token_id, np.int32),
        )

    def sample(self, logits: jax.Array, context: DecodeContext) -> tuple[jax.Array, jax.Array]:
        """(B, V) float32 logits -> (B,) tokens and their log-probabilities under these rules."""
        logits = process(self.processors, logits, context)

        def draw(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = process(self.warpers, logits, context)
            return gather_log_prob(
                logits, jax.vmap(jax.random.categorical)(self.keys(context.new), logits)
            )

        def likeliest(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
            return gather_log_prob(logits, jnp.argmax(logits, axis=-1))

        return jax.lax.cond(self.do_sample, draw, likeliest, logits)

    def keys(self, step: jax.Array) -> jax.Array:
        """(B,) random keys, one a row, for the draw of step ()."""
        return jax.vmap(lambda seed: jax.random.fold_in(key_of(seed), step))(self.seeds)


def gather_log_prob(logits: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(B, V) logits, (B,) tokens -> the tokens in int32, and their log-probabilities."""
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return token.astype(jnp.int32), chosen - jax.nn.logsumexp(logits, axis=-1)


@pytree_dataclass
class State:
    """Where the loop stands.

    Attributes:
        context: the texts.
        scores: (B, C) float32, at every new token its log-probability under the rules.
        log_probs: (B, C) float32, the same under the model itself.
        done: (B,) bool, texts that have ended; they go on with padding.
        cache: of the tokens read.
        offset: () int32, the slot of the first token in the cache.
    """

    context: DecodeContext
    scores: jax.Array
    log_probs: jax.Array
    done: jax.Array
    cache: Cache
    offset: jax.Array

    def last(self) -> jax.Array:
        """(B, 1) the last token of each text, the one that is not read yet."""
        return self.context.before(jnp.int32(1))[:, None]

    def sample(self, logits: jax.Array, sampling: SamplingParams) -> Self:
        """Return the state after a token was chosen by (B, V) logits; padding after an end."""
        context, done = self.context, self.done
        token, score = sampling.sample(logits, context)
        _, log_prob = gather_log_prob(logits, token)
        token = jnp.where(done, sampling.pad, token)
        place = (jnp.int32(0), context.length)

        def put(array: jax.Array, column: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice(array, column[:, None], place)

        return dataclasses.replace(
            self,
            context=dataclasses.replace(
                context,
                tokens=put(context.tokens, token),
                length=context.length + 1,
                new=context.new + 1,
            ),
            scores=put(self.scores, jnp.where(done, 0, score)),
            log_probs=put(self.log_probs, jnp.where(done, 0, log_prob)),
            done=done | sampling.eos[token],
        )

    def unfinished(self, until: jax.Array) -> jax.Array:
        """() bool, whether there are tokens to choose before slot ``until`` ()."""
        return (self.context.length < until) & ~self.done.all()


@dataclasses.dataclass(frozen=True)
class DecodeProgress:
    """What has been decoded so far, on the host.

    Attributes:
        tokens: (B, T) int32 the new tokens, padding after the end of a text.
        scores: (B, T) float32, see ``State``.
        log_probs: (B, T) float32, see ``State``.
        lengths: (B,) how many of the tokens belong to each text.
        done: (B,) bool, texts that have ended.
    """

    tokens: np.ndarray
    scores: np.ndarray
    log_probs: np.ndarray
    lengths: np.ndarray
    done: np.ndarray

    @classmethod
    def cut(
        cls,
        tokens: np.ndarray,
        scores: np.ndarray,
        log_probs: np.ndarray,
        *,
        lengths: np.ndarray,
        done: np.ndarray,
        pad: Array,
    ) -> Self:
        """Return texts that end after ``lengths`` (B,) tokens, padded up to the longest."""
        T = int(lengths.max())
        after = np.arange(T)[None, :] >= lengths[:, None]
        return cls(
            tokens=np.where(after, pad, tokens[:, :T]),
            scores=np.where(after, np.float32(0), scores[:, :T]),
            log_probs=np.where(after, np.float32(0), log_probs[:, :T]),
            lengths=lengths,
            done=done,
        )


def sample_next(model: OpenAIGPTLMHeadModel, sampling: SamplingParams, state: State) -> State:
    """Return the state with the last tokens read, and the next ones chosen."""
    logits, cache = decode_step(model, state.cache, state.last())
    return dataclasses.replace(state, cache=cache).sample(logits[:, -1], sampling)


def can_verify(model: OpenAIGPTLMHeadModel, state: State, num_draft_tokens: int) -> jax.Array:
    """() bool, whether there are draft tokens for every row, and room to read them."""
    context = state.context
    _, found = draft(context, num_draft_tokens)
    end = context.length + num_draft_tokens
    fits = (end - state.offset <= state.cache.length) & (
        end - context.start.min() <= model.config.n_positions
    )
    return fits & (found | state.done).all()


def verify_draft(
    model: OpenAIGPTLMHeadModel,
    sampling: SamplingParams,
    state: State,
    num_draft_tokens: int,
    until: jax.Array,
) -> State:
    """Return the state after draft tokens were read at once: as many are chosen as are right."""
    draft_tokens, _ = draft(state.context, num_draft_tokens)
    ids = jnp.concatenate([state.last(), draft_tokens], axis=1)
    logits, cache = decode_step(model, state.cache, ids)

    def is_right(carry: tuple[jax.Array, State]) -> jax.Array:
        chosen, state = carry
        as_drafted = (state.last()[:, 0] == draft_tokens[:, chosen - 1]) | state.done
        return state.unfinished(until) & (chosen <= num_draft_tokens) & as_drafted.all()

    def go_on(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
        chosen, state = carry
        return chosen + 1, state.sample(logits[:, chosen], sampling)

    state = dataclasses.replace(state, cache=cache)
    _, state = jax.lax.while_loop(is_right, go_on, go_on((jnp.int32(0), state)))
    # What was read of wrong draft tokens will be overwritten.
    index = state.context.length - 1 - state.offset
    return dataclasses.replace(state, cache=dataclasses.replace(state.cache, index=index))


@functools.partial(
    jax.jit, static_argnames=("structure", "num_draft_tokens"), donate_argnames="state"
)
def _decode_until(
    structure: ModelStructure[OpenAIGPTLMHeadModel],
    params: Params,
    state: State,
    sampling: SamplingParams,
    until: jax.Array,
    num_draft_tokens: int,
) -> State:
    """Read what is unread, and choose tokens up to slot ``until`` () or the ends of all texts."""
    model = merge(structure, params)
    cache = prefill(model, state.context, state.cache, state.offset)
    state = dataclasses.replace(state, cache=cache)

    def unfinished(state: State) -> jax.Array:
        return state.unfinished(until)

    def step(state: State) -> State:
        return sample_next(model, sampling, state)

    def steps_and_drafts(state: State) -> State:
        # Loops within the loop, where branches would copy the cache.
        state = jax.lax.while_loop(
            lambda s: unfinished(s) & ~can_verify(model, s, num_draft_tokens), step, state
        )
        return jax.lax.while_loop(
            lambda s: unfinished(s) & can_verify(model, s, num_draft_tokens),
            lambda s: verify_draft(model, sampling, s, num_draft_tokens, until),
            state,
        )

    state = jax.lax.while_loop(unfinished, steps_and_drafts if num_draft_tokens else step, state)
    return constrain_like(state, batch_shardings)


def decode(
    decoder: Decoder,
    prompts: Sequence[np.ndarray],
    settings: GenerationConfig,
    seeds: np.ndarray,
    *,
    steps: int | None = None,
    ended: Callable[[DecodeProgress], np.ndarray] | None = None,
) -> Iterator[DecodeProgress]:
    """Decode greedily or by sampling, and yield after every compiled call.

    Args:
        decoder: prepared for so many rows.
        prompts: (T,) int32 each, one a row.
        settings: checked, with end and padding filled in.
        seeds: (B,) uint32.
        steps: tokens a call; by default all.
        ended: says of each row (B,) how many of its tokens are a whole text, or -1: a condition
            that cannot be compiled, looked at between calls.

    Yields:
        All that has been decoded; the last time with every text at its end.

    Raises:
        ValueError: the logits are not finite.
    """
    n_positions, window = decoder.config.n_positions, settings.sliding_window
    sampling = SamplingParams.build(settings, decoder.config.vocab_size, seeds)
    state, width = _start(decoder, prompts, settings)
    last = width + settings.max_new_tokens
    length, cut = width, np.full(len(prompts), -1)
    while True:
        until = last if steps is None else min(last, length + steps)
        if window is not None:
            state = _slide(state, n_positions, window)
            until = min(until, int(state.context.start.min()) + n_positions + 1)
        state = _decode_until(
            decoder.structure,
            decoder.params,
            decoder.place(state),
            sampling,
            np.asarray(until, np.int32),
            num_draft_tokens=settings.prompt_lookup_num_tokens or 0,
        )
        length = int(state.context.length)
        progress = _progress(state, width, sampling, cut)
        # A NaN or inf among the logits is one in their sum: no step has to look at them once more.
        if not np.isfinite(progress.log_probs).all():
            raise decoder.not_finite()
        if ended is not None:
            found = ended(progress)
            cut = np.where((cut < 0) & (found >= 0), found, cut)
            progress = _progress(state, width, sampling, cut)
            state = dataclasses.replace(state, done=jnp.asarray(progress.done))
        finished = length == last or bool(progress.done.all())
        yield progress
        if finished:
            return


def _start(
    decoder: Decoder, prompts: Sequence[np.ndarray], settings: GenerationConfig
) -> tuple[State, int]:
    """Return the state before anything is read, and the slot of the first new token."""
    new, n_positions = settings.max_new_tokens, decoder.config.n_positions
    tokens, start = align(prompts)
    most = most_slots(n_positions)
    offset = 0
    if settings.sliding_window is None:
        num_draft_tokens = settings.prompt_lookup_num_tokens or 0
        room = min(bucket(tokens.shape[1] + new - 1 + num_draft_tokens), most)
        slots = room + 1  # the last token is not read
    else:
        # A window is read in whole pieces too: the first of them may begin before the text.
        offset = PREFILL_CHUNK
        tokens, start = np.pad(tokens, ((0, 0), (offset, 0))), start + np.int32(offset)
        room, slots = most, bucket(tokens.shape[1] + new)
    width = tokens.shape[1]
    state = _empty_state(
        np.pad(tokens, ((0, 0), (0, slots - width))),
        start,
        np.asarray(width, np.int32),
        np.asarray(offset, np.int32),
        config=decoder.config,
        dtype=decoder.dtype,
        room=room,
    )
    return state, width


@functools.partial(jax.jit, static_argnames=("config", "dtype", "room"))
def _empty_state(
    tokens: jax.Array,
    start: jax.Array,
    length: jax.Array,
    offset: jax.Array,
    *,
    config: OpenAIGPTConfig,
    dtype: jnp.dtype,
    room: int,
) -> State:
    """Return the state before any token is read; compiled, since it has many arrays."""
    return State(
        context=DecodeContext(tokens, start, length, jnp.int32(0)),
        scores=jnp.zeros(tokens.shape, jnp.float32),
        log_probs=jnp.zeros(tokens.shape, jnp.float32),
        done=jnp.zeros(len(tokens), bool),
        cache=Cache.empty(config, len(tokens), room, dtype, squeeze=True),
        offset=offset,
    )


def _slide(state: State, n_positions: int, window: int) -> State:
    """Cut the texts that have used up all positions, and have what is left read again."""
    context = state.context
    start, length = np.asarray(context.start), int(context.length)
    full = length - start > n_positions
    if not full.any():
        return state
    start = np.where(full, length - window, start).astype(np.int32)
    offset = length - 1 - pieces(length - 1 - int(start.min()))
    return dataclasses.replace(
        state,
        context=dataclasses.replace(context, start=jnp.asarray(start)),
        cache=dataclasses.replace(
            state.cache, mask=jnp.zeros_like(state.cache.mask), index=jnp.int32(0)
        ),
        offset=jnp.int32(offset),
    )


def _progress(
    state: State, width: int, sampling: SamplingParams, cut: np.ndarray
) -> DecodeProgress:
    """Return what the state holds; texts are cut where ``cut`` (B,) is not -1."""
    # Slices of JAX's arrays would compile for every length: these are numpy's.
    end = int(state.context.length)
    tokens, scores, log_probs = (
        np.asarray(array)[:, width:end]
        for array in (state.context.tokens, state.scores, state.log_probs)
    )
    is_end = np.asarray(sampling.eos)[tokens]
    T = tokens.shape[1]
    lengths = np.where(is_end.any(axis=1), is_end.argmax(axis=1) + 1, T)
    lengths = np.where(cut >= 0, np.minimum(lengths, cut), lengths)
    done = np.asarray(state.done) | (cut >= 0)
    return DecodeProgress.cut(
        tokens, scores, log_probs, lengths=lengths, done=done, pad=sampling.pad
    )
