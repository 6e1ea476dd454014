"""The loop: read the prompts, then choose and read one token after the other, in one compiled call.

Prompts of a batch are padded on the left, so that all rows end at the same slot; positions and
attention leave the padding out, and each row is what it would be alone, but for rounding. The state
between calls is a value, donated: a call goes on where the one before stopped, so the same compiled
function runs a text to its end, or a few tokens at a time. Settings are traced and lengths rounded
up: few compilations serve all calls.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, cast

import jax
import jax.numpy as jnp
import numpy as np

from gpt1_jax.generation.processors import (
    Array,
    DecodeContext,
    Processor,
    process,
    processors,
    token_mask,
    warpers,
)
from gpt1_jax.generation.prompts import PREFILL_CHUNK, PREFILL_TOKENS, align, bucket, pieces
from gpt1_jax.generation.speculation import draft
from gpt1_jax.generation.transposed_kernels import (
    should_transpose,
    transpose_kernels,
    with_transposed_kernels,
)
from gpt1_jax.generation_config import GenerationConfig, as_ids
from gpt1_jax.model import OpenAIGPTLMHeadModel
from gpt1_jax.nn.attention import Cache
from gpt1_jax.nn.keys import key_of
from gpt1_jax.nn.pytree import pytree_dataclass
from gpt1_jax.pretrained import Params
from gpt1_jax.pure import merge, not_finite, split
from gpt1_jax.sharding.mesh import batch_shardings, constrain_like, mesh_of, shard


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

    def append(
        self, token: jax.Array, score: jax.Array, log_prob: jax.Array, sampling: SamplingParams
    ) -> Self:
        """Return the state after (B,) tokens were chosen; texts that have ended get padding."""
        context, done = self.context, self.done
        place = (jnp.int32(0), context.length)

        def put(array: jax.Array, column: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice(array, column[:, None], place)

        token = jnp.where(done, sampling.pad, token)
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


def decode(
    model: OpenAIGPTLMHeadModel,
    prompts: Sequence[np.ndarray],
    settings: GenerationConfig,
    seeds: np.ndarray,
    *,
    steps: int | None = None,
    ended: Callable[[DecodeProgress], np.ndarray] | None = None,
) -> Iterator[DecodeProgress]:
    """Decode greedily or by sampling, and yield after every compiled call.

    Args:
        model: a language model.
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
    config, window = model.config, settings.sliding_window
    graphdef, params = split(model)
    num_draft_tokens = settings.prompt_lookup_num_tokens or 0
    transpose = should_transpose(model, params, rows=len(prompts))
    if transpose:
        params = transpose_kernels(model, params)
    run = _decoder(graphdef, num_draft_tokens, transpose)
    sampling = SamplingParams.build(settings, config.vocab_size, seeds)
    mesh = mesh_of(params)
    state, width = _start(model, prompts, settings)
    last = width + settings.max_new_tokens
    length, cut = width, np.full(len(prompts), -1)
    while True:
        until = last if steps is None else min(last, length + steps)
        if window is not None:
            state = _slide(state, config.n_positions, window)
            until = min(until, int(state.context.start.min()) + config.n_positions + 1)
        if mesh is not None:
            state = shard(state, batch_shardings(mesh, state))
        state = run(params, state, sampling, np.asarray(until, np.int32))
        length = int(state.context.length)
        progress = _progress(state, width, sampling, cut)
        # A NaN or inf among the logits is one in their sum: no step has to look at them once more.
        if not np.isfinite(progress.log_probs).all():
            raise not_finite("the logits", params)
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
    model: OpenAIGPTLMHeadModel, prompts: Sequence[np.ndarray], settings: GenerationConfig
) -> tuple[State, int]:
    """Return the state before anything is read, and the slot of the first new token."""
    config, new = model.config, settings.max_new_tokens
    tokens, start = align(prompts)
    most = pieces(config.n_positions) + PREFILL_CHUNK
    if settings.sliding_window is None:
        num_draft_tokens = settings.prompt_lookup_num_tokens or 0
        room = min(bucket(tokens.shape[1] + new - 1 + num_draft_tokens), most)
        slots = room + 1  # the last token is not read
    else:
        # A window is read in whole pieces too: the first of them may begin before the text.
        tokens, start = (
            np.pad(tokens, ((0, 0), (PREFILL_CHUNK, 0))),
            start + np.int32(PREFILL_CHUNK),
        )
        room, slots = most, bucket(tokens.shape[1] + new)
    width = tokens.shape[1]
    tokens = jnp.asarray(np.pad(tokens, ((0, 0), (0, slots - width))))
    state = State(
        context=DecodeContext(tokens, jnp.asarray(start), jnp.int32(width), jnp.int32(0)),
        scores=jnp.zeros(tokens.shape, jnp.float32),
        log_probs=jnp.zeros(tokens.shape, jnp.float32),
        done=jnp.zeros(len(prompts), bool),
        cache=Cache.empty(config, len(prompts), room, model.dtype),
        offset=jnp.int32(0 if settings.sliding_window is None else PREFILL_CHUNK),
    )
    return state, width


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


def prefill(
    model: OpenAIGPTLMHeadModel, context: DecodeContext, cache: Cache, offset: jax.Array
) -> Cache:
    """Return the cache with all tokens of the texts but the last, read piece by piece.

    Args:
        model: inside a compiled function.
        context: of texts whose unread tokens, the last apart, are whole pieces.
        cache: of the tokens read so far.
        offset: () int32, the slot of the first token in the cache.
    """

    def read_pieces(cache: Cache, piece: int) -> Cache:
        def unread(cache: Cache) -> jax.Array:
            return offset + cache.index + piece < context.length

        def step(cache: Cache) -> Cache:
            place = offset + cache.index
            ids = jax.lax.dynamic_slice_in_dim(context.tokens, place, piece, axis=1)
            slots = place + jnp.arange(piece, dtype=jnp.int32)
            is_text = slots[None, :] >= context.start[:, None]
            out = model.transformer(ids, is_text, positions_from_mask=True, cache=unpack(cache))
            return pack(cast(Cache, out.cache))

        return unpack(jax.lax.while_loop(unread, step, pack(cache)))

    long = PREFILL_TOKENS // len(context.tokens) // PREFILL_CHUNK * PREFILL_CHUNK
    if PREFILL_CHUNK < long < cache.length:
        cache = read_pieces(cache, long)
    return read_pieces(cache, PREFILL_CHUNK)


@functools.lru_cache(maxsize=32)
def _decoder(graphdef: Any, num_draft_tokens: int, transpose: bool) -> Callable[..., State]:
    """Return the compiled loop of a model.

    Args:
        graphdef: of the model.
        num_draft_tokens: how many draft tokens it reads at once; 0 for none.
        transpose: whether its kernels are transposed.
    """

    @functools.partial(jax.jit, donate_argnames="state")
    def run(params: Params, state: State, sampling: SamplingParams, until: jax.Array) -> State:
        model: OpenAIGPTLMHeadModel = merge(graphdef, params)
        if transpose:
            model = with_transposed_kernels(model)
        cache = prefill(model, state.context, state.cache, state.offset)

        def unfinished(state: State) -> jax.Array:
            return (state.context.length < until) & ~state.done.all()

        def forward(state: State, ids: jax.Array) -> tuple[State, jax.Array]:
            """(B, T) ids -> the state with these read, and the (B, T, V) logits after each."""
            out = model(ids, positions_from_mask=True, cache=unpack(state.cache))
            state = dataclasses.replace(state, cache=pack(cast(Cache, out.cache)))
            return state, cast(jax.Array, out.logits)

        def sample(state: State, logits: jax.Array) -> State:
            token, score = sampling.sample(logits, state.context)
            _, log_prob = gather_log_prob(logits, token)
            return state.append(token, score, log_prob, sampling)

        def step(state: State) -> State:
            last = state.context.before(jnp.int32(1))[:, None]
            state, logits = forward(state, last)
            return sample(state, logits[:, -1])

        def can_verify(state: State) -> jax.Array:
            """() bool, whether there is a guess for every row, and room to read it."""
            context = state.context
            _, found = draft(context, num_draft_tokens)
            end = context.length + num_draft_tokens
            fits = (end - state.offset <= state.cache.length) & (
                end - context.start.min() <= model.config.n_positions
            )
            return fits & (found | state.done).all()

        def verify_draft(state: State) -> State:
            """Choose tokens for as long as the (B, D) guesses, read at once, are right."""
            draft_tokens, _ = draft(state.context, num_draft_tokens)
            last = state.context.before(jnp.int32(1))[:, None]
            state, logits = forward(state, jnp.concatenate([last, draft_tokens], axis=1))

            def right(carry: tuple[jax.Array, State]) -> jax.Array:
                right, state = carry
                chosen = state.context.before(jnp.int32(1))
                as_drafted = (chosen == draft_tokens[:, right - 1]) | state.done
                return unfinished(state) & (right <= num_draft_tokens) & as_drafted.all()

            def go_on(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
                right, state = carry
                return right + 1, sample(state, logits[:, right])

            _, state = jax.lax.while_loop(right, go_on, go_on((jnp.int32(0), state)))
            # What was read of wrong guesses will be overwritten.
            index = state.context.length - 1 - state.offset
            return dataclasses.replace(state, cache=dataclasses.replace(state.cache, index=index))

        def steps_and_drafts(state: State) -> State:
            # Loops within the loop, where branches would copy the cache.
            state = jax.lax.while_loop(lambda s: unfinished(s) & ~can_verify(s), step, state)
            return jax.lax.while_loop(lambda s: unfinished(s) & can_verify(s), verify_draft, state)

        advance = steps_and_drafts if num_draft_tokens else step
        state = dataclasses.replace(state, cache=pack(cache))
        state = jax.lax.while_loop(unfinished, advance, state)
        return constrain_like(
            dataclasses.replace(state, cache=unpack(state.cache)), batch_shardings
        )

    return run


def pack(cache: Cache) -> Cache:
    """Return the cache as a loop carries it: one row without the dimension of rows.

    With a dimension of 1, XLA's CPU compiler makes two arrays of each, one to keep and one to
    compute with, and copies both at every step.
    """
    return _each_array(cache, lambda array: array[0] if len(array) == 1 else array)


def unpack(cache: Cache) -> Cache:
    """Return what was packed."""
    return _each_array(cache, lambda array: array[None] if array.ndim == 3 else array)


def _each_array(cache: Cache, change: Callable[[jax.Array], jax.Array]) -> Cache:
    return dataclasses.replace(
        cache, keys=tuple(map(change, cache.keys)), values=tuple(map(change, cache.values))
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
    T = int(lengths.max())  # less where the host found the ends of all texts before the last step
    tokens, scores, log_probs = tokens[:, :T], scores[:, :T], log_probs[:, :T]
    after = np.arange(T)[None, :] >= lengths[:, None]
    return DecodeProgress(
        tokens=np.where(after, sampling.pad, tokens),
        scores=np.where(after, np.float32(0), scores),
        log_probs=np.where(after, np.float32(0), log_probs),
        lengths=lengths,
        done=np.asarray(state.done) | (cut >= 0),
    )
