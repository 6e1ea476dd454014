"""Decoding: read the prompts, then choose and read one token after the other, in one compiled call.

``Decoder`` is a model prepared for it. ``decode_step`` is what one step computes, for greedy
decoding, sampling, draft tokens and beams alike; ``prefill`` reads the prompts. ``decode`` is the
loop on the host: a call of ``_decode_until``, which is compiled, or several, between which the host
looks at the texts.

Prompts of a batch are padded on the left, so that all rows end at the same slot; positions and
attention leave the padding out, and each row is what it would be alone, but for rounding. The state
between calls is a value, donated: a call goes on where the one before stopped, so the same compiled
function runs a text to its end, or a few tokens at a time. Settings are traced and lengths rounded
up: few compilations serve all calls. Greedy decoding without constraints has a program of its own.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int32

from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.generation.processors import (
    Array,
    DecodeContext,
    LogitsProcessor,
    Processor,
    PromptEmbeds,
    StoppingCriterion,
    process,
    processors,
    token_mask,
    warpers,
)
from gpt1_jax.generation.prompts import (
    PREFILL_CHUNK,
    PREFILL_TOKENS,
    Prompt,
    align,
    bucket,
    chunk,
    most_slots,
    pieces,
)
from gpt1_jax.generation.speculation import draft
from gpt1_jax.generation.stop_strings import StopStrings
from gpt1_jax.generation.transposed_kernels import should_transpose, transpose_kernels
from gpt1_jax.generation_config import GenerationConfig, as_ids
from gpt1_jax.model import OpenAIGPTLMHeadModel
from gpt1_jax.nn.attention import Cache
from gpt1_jax.nn.keys import key_of
from gpt1_jax.nn.pytree import pytree_dataclass, static
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
        least_rows: to decode at a time on each device.
    """

    structure: ModelStructure[OpenAIGPTLMHeadModel]
    params: Params
    config: OpenAIGPTConfig
    dtype: jnp.dtype
    mesh: Mesh | None
    least_rows: int

    @classmethod
    def prepare(cls, model: OpenAIGPTLMHeadModel, rows: int) -> Self:
        """Prepare a model to decode so many rows at a time."""
        structure, params = split(model)
        if should_transpose(model, rows):
            structure, params = transpose_kernels(model, structure, params)
        (platform,) = {device.platform for device in jax.tree.leaves(params)[0].devices()}
        return cls(
            structure,
            params,
            model.config,
            model.dtype,
            mesh_of(params),
            least_rows(platform),
        )

    def pad(
        self, prompts: list[Prompt], settings: GenerationConfig
    ) -> tuple[list[Prompt], GenerationConfig]:
        """Return the prompts, the last of them repeated until each device has as many rows.

        It is repeated with its seed, since other draws might end later.
        """
        devices = 1 if self.mesh is None else round_up_to_mesh(self.mesh, 1)
        rows = max(settings.num_beams, settings.num_return_sequences)  # of a prompt
        each = max(math.ceil(len(prompts) / devices), math.ceil(self.least_rows / rows))
        more = devices * each - len(prompts)
        if more and settings.do_sample:
            seeds = settings.seeds(len(prompts))[:: settings.num_return_sequences].tolist()
            settings = dataclasses.replace(settings, seed=seeds + seeds[-1:] * more)
        return prompts + prompts[-1:] * more, settings

    def place(self, rows: Tree) -> Tree:
        """Return arrays (rows, ...) and caches on the mesh, if there is one."""
        return rows if self.mesh is None else shard(rows, batch_shardings(self.mesh, rows))

    def not_finite(self) -> ValueError:
        """Return the error that the logits are not finite, with the reason."""
        return not_finite("the logits", self.params)


def least_rows(platform: str) -> int:
    """Return how many rows to decode at a time at least: two on a GPU.

    XLA's GPU compiler turns the products of a single row into multiplications and sums, which write
    what they multiplied to memory. A step of two equal rows is 138 kernels and 256 MB in bfloat16,
    and in float32 137 and 508 MB, where that of one would be 212 and 770 MB (compiled for an H100
    by JAX 0.10.2; not timed).
    """
    return 2 if platform in ("gpu", "cuda", "rocm") else 1


def decode_step(
    model: OpenAIGPTLMHeadModel,
    cache: Cache,
    input_ids: Int32[jax.Array, "B T"] | None,
    inputs_embeds: Float[jax.Array, "B T E"] | None = None,
    token_type_ids: Int32[jax.Array, "B T"] | None = None,
) -> tuple[Float[jax.Array, "B T V"], Cache]:
    """Read the next tokens of every text: the pure step that all decoding is made of.

    The cache says which tokens came before, and which of them are padding; positions go on after
    those that are not. The step itself knows nothing of settings, prompts or what is chosen.

    Args:
        model: merged inside a compiled function.
        cache: of the tokens read so far, with room for T more.
        input_ids: of tokens, none of them padding; T is 1, or more with draft tokens.
        inputs_embeds: in place of the ids.
        token_type_ids: of the tokens, if they have types.

    Returns:
        The logits of what follows each of them, and the cache with them in it.
    """
    out = model.forward(
        input_ids,
        token_type_ids=token_type_ids,
        inputs_embeds=inputs_embeds,
        positions_from_mask=True,
        cache=cache,
    )
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
            slot = offset + cache.index
            out = model.transformer.forward(
                **context.inputs(model, slot, piece),
                attention_mask=context.is_text(slot + jnp.arange(piece, dtype=jnp.int32)),
                positions_from_mask=True,
                cache=cache,
            )
            return out.cache

        return jax.lax.while_loop(unread, read, cache)

    rows = len(context.tokens)
    short = chunk(rows)
    long = PREFILL_TOKENS // rows // short * short
    if short < long < cache.length:
        cache = read_pieces(cache, long)
    return read_pieces(cache, short)


@dataclasses.dataclass(frozen=True)
class Extras:
    """What a call may bring besides its settings.

    Attributes:
        logits_processors: functions of the user's; each one compiles anew.
        stopping_criteria: likewise.
        stop_strings: that end a text.
    """

    logits_processors: tuple[LogitsProcessor, ...] = ()
    stopping_criteria: tuple[StoppingCriterion, ...] = ()
    stop_strings: StopStrings | None = None


@pytree_dataclass
class SamplingParams:
    """The settings of a call, traced.

    Attributes:
        processors: what changes the logits in any case; none where the call is plain.
        warpers: what changes them before a draw; none where the call is plain.
        do_sample: () bool. None where the call is plain (``GenerationConfig.is_plain``): such calls
            have a program of their own, without the branches that rules and draws are in.
        seeds: (B,) uint32.
        eos: (V,) bool, the tokens that end a text.
        pad: () int32, what follows the end.
        stop_strings: that end a text, if any.
        stopping_criteria: the user's functions that say of each text whether it ends.
        output_scores: whether the logits that tokens were chosen by are kept.
        output_logits: whether those of the model are kept.
    """

    processors: tuple[Processor, ...]
    warpers: tuple[Processor, ...]
    do_sample: Array | None
    seeds: Array
    eos: Array
    pad: Array
    stop_strings: StopStrings | None
    stopping_criteria: tuple[StoppingCriterion, ...] = static()
    output_scores: bool = static()
    output_logits: bool = static()

    @classmethod
    def build(
        cls,
        settings: GenerationConfig,
        vocab_size: int,
        seeds: np.ndarray,
        extras: Extras,
    ) -> Self:
        """Build from settings whose end and padding are filled in, and the rows' seeds."""
        functions = extras.logits_processors
        plain = settings.is_plain and not functions
        return cls(
            processors=() if plain else processors(settings, vocab_size, functions),
            warpers=() if plain else warpers(settings, vocab_size),
            do_sample=None if plain else np.asarray(settings.do_sample),
            seeds=seeds,
            eos=token_mask(as_ids(settings.eos_token_id), vocab_size),
            pad=np.asarray(settings.pad_token_id, np.int32),
            stop_strings=extras.stop_strings,
            stopping_criteria=extras.stopping_criteria,
            output_scores=settings.output_scores,
            output_logits=settings.output_logits,
        )

    def sample(
        self, logits: jax.Array, context: DecodeContext
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Choose the next token of every text by (B, V) float32 logits.

        Returns:
            (B,) tokens, their log-probabilities under these rules, and with ``output_scores`` the
            logits under the rules.
        """
        logits = process(self.processors, logits, context)

        def draw(logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
            logits = process(self.warpers, logits, context)
            token = jax.vmap(jax.random.categorical)(self.keys(context.new), logits)
            return *gather_log_prob(logits, token), logits if self.output_scores else None

        def likeliest(logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
            token = jnp.argmax(logits, axis=-1)
            return *gather_log_prob(logits, token), logits if self.output_scores else None

        if self.do_sample is None:
            return likeliest(logits)
        return jax.lax.cond(self.do_sample, draw, likeliest, logits)

    def ends(
        self, token: jax.Array, stop_state: jax.Array | None, context: DecodeContext
    ) -> tuple[jax.Array, jax.Array | None]:
        """Say which texts end with their last token.

        Args:
            token: (B,) the last token of each text.
            stop_state: (B,) int32, the state of the stop strings before it; None without any.
            context: of the texts with this token.

        Returns:
            (B,) bool, and the next states of the stop strings.

        Raises:
            ValueError: a criterion returns something else than (B,) bool, while it is traced.
        """
        ends = jnp.asarray(self.eos)[token]
        if self.stop_strings is not None and stop_state is not None:
            stop_state, stops = self.stop_strings.next(stop_state, token)
            ends |= stops
        for criterion in self.stopping_criteria:
            stops = criterion(context.for_user())
            if jnp.shape(stops) != ends.shape or jnp.result_type(stops) != jnp.bool_:
                name = getattr(criterion, "__qualname__", repr(criterion))
                raise ValueError(
                    f"stopping_criteria {name} returned {jnp.result_type(stops)} of shape "
                    f"{jnp.shape(stops)}, but must return bool of shape {ends.shape}"
                )
            ends |= stops
        return ends, stop_state

    def keys(self, step: jax.Array) -> jax.Array:
        """(B,) random keys, one a row, for the draw of step ()."""
        return jax.vmap(lambda seed: jax.random.fold_in(key_of(seed), step))(self.seeds)


def gather_log_prob(logits: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(B, V) logits, (B,) tokens -> the tokens in int32, and their log-probabilities."""
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return token.astype(jnp.int32), chosen - jax.nn.logsumexp(logits, axis=-1)


def keep_step(
    kept: jax.Array | None, logits: jax.Array | None, context: DecodeContext
) -> jax.Array | None:
    """Return the logits kept of each step, (B, N, V), with those of one more, if they are kept."""
    if kept is None or logits is None:
        return None
    place = (jnp.int32(0), context.new, jnp.int32(0))
    return jax.lax.dynamic_update_slice(kept, logits[:, None], place)


@pytree_dataclass
class State:
    """Where the loop stands.

    Attributes:
        context: the texts.
        scores: (B, C) float32, at every new token its log-probability under the rules.
        log_probs: (B, C) float32, the same under the model itself.
        done: (B,) bool, texts that have ended; they go on with padding.
        lengths: (B,) int32, the number of new tokens of each text.
        cache: of the tokens read.
        offset: () int32, the slot of the first token in the cache.
        stop_state: (B,) int32, the state of the stop strings, if there are any.
        step_scores: (B, N, V) float32, the logits that each new token was chosen by, if asked for.
        step_logits: the model's, likewise.
    """

    context: DecodeContext
    scores: jax.Array
    log_probs: jax.Array
    done: jax.Array
    lengths: jax.Array
    cache: Cache
    offset: jax.Array
    stop_state: jax.Array | None
    step_scores: jax.Array | None
    step_logits: jax.Array | None

    def read(
        self, model: OpenAIGPTLMHeadModel, draft_tokens: jax.Array | None = None
    ) -> tuple[jax.Array, Self]:
        """Read the last token of each text, and (B, D) draft tokens after it.

        Returns:
            The logits (B, 1 + D, V) of what follows each of them, and the state with these read.
        """
        context = self.context
        if draft_tokens is None:
            inputs = context.inputs(model, context.length - 1, 1)
            logits, cache = decode_step(model, self.cache, **inputs)
        else:
            last = context.before(jnp.int32(1))[:, None]
            ids = jnp.concatenate([last, draft_tokens], axis=1)
            types = None
            if context.token_types is not None:
                types = context.types_at(context.length - 1, ids.shape[1])
            logits, cache = decode_step(model, self.cache, ids, token_type_ids=types)
        return logits, dataclasses.replace(self, cache=cache)

    def sample(self, logits: jax.Array, sampling: SamplingParams) -> Self:
        """Return the state after a token was chosen by (B, V) logits; padding after an end."""
        context, done = self.context, self.done
        token, score, step_scores = sampling.sample(logits, context)
        _, log_prob = gather_log_prob(logits, token)
        token = jnp.where(done, sampling.pad, token)

        def put(array: jax.Array, column: jax.Array) -> jax.Array:
            place = (jnp.int32(0), context.length)
            return jax.lax.dynamic_update_slice(array, column[:, None], place)

        longer = context.append(token)
        ends, stop_state = sampling.ends(token, self.stop_state, longer)
        return dataclasses.replace(
            self,
            context=longer,
            scores=put(self.scores, jnp.where(done, 0, score)),
            log_probs=put(self.log_probs, jnp.where(done, 0, log_prob)),
            done=done | ends,
            lengths=self.lengths + (~done).astype(jnp.int32),
            stop_state=stop_state,
            step_scores=keep_step(self.step_scores, step_scores, context),
            step_logits=keep_step(self.step_logits, logits, context),
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
        step_scores: (B, T, V) float32, see ``State``.
        step_logits: (B, T, V) float32, see ``State``.
    """

    tokens: np.ndarray
    scores: np.ndarray
    log_probs: np.ndarray
    lengths: np.ndarray
    done: np.ndarray
    step_scores: np.ndarray | None = None
    step_logits: np.ndarray | None = None

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

    def first(self, texts: int) -> Self:
        """Return the first texts alone."""
        return dataclasses.replace(
            self, **{name: rows[:texts] for name, rows in vars(self).items() if rows is not None}
        )


def sample_next(model: OpenAIGPTLMHeadModel, sampling: SamplingParams, state: State) -> State:
    """Return the state with the last tokens read, and the next ones chosen."""
    logits, state = state.read(model)
    return state.sample(logits[:, -1], sampling)


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
    logits, state = state.read(model, draft_tokens)

    def is_right(carry: tuple[jax.Array, State]) -> jax.Array:
        chosen, state = carry
        last = state.context.before(jnp.int32(1))
        as_drafted = (last == draft_tokens[:, chosen - 1]) | state.done
        return state.unfinished(until) & (chosen <= num_draft_tokens) & as_drafted.all()

    def go_on(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
        chosen, state = carry
        return chosen + 1, state.sample(logits[:, chosen], sampling)

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
    prompts: Sequence[Prompt],
    settings: GenerationConfig,
    sampling: SamplingParams,
    *,
    steps: int | None = None,
) -> Iterator[DecodeProgress]:
    """Decode greedily or by sampling, and yield after every compiled call.

    Args:
        decoder: prepared for so many rows.
        prompts: one a row.
        settings: checked, with end and padding filled in.
        sampling: built from them.
        steps: tokens a call; by default all.

    Yields:
        All that has been decoded; the last time with every text at its end.

    Raises:
        ValueError: the logits are not finite.
    """
    n_positions, window = decoder.config.n_positions, settings.sliding_window
    state, width = _start(decoder, prompts, settings, sampling)
    last = width + settings.max_new_tokens
    length = width
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
        progress = _progress(state, width, sampling)
        # A NaN or inf among the logits is one in their sum: no step has to look at them once more.
        if not np.isfinite(progress.log_probs).all():
            raise decoder.not_finite()
        finished = length == last or bool(progress.done.all())
        yield progress
        if finished:
            return


def _start(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    settings: GenerationConfig,
    sampling: SamplingParams,
) -> tuple[State, int]:
    """Return the state before anything is read, and the slot of the first new token."""
    new, n_positions = settings.max_new_tokens, decoder.config.n_positions
    tokens, start = align([prompt.ids for prompt in prompts])
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
    stops = sampling.stop_strings
    state = empty_state(
        start_context(prompts, np.pad(tokens, ((0, 0), (0, slots - width))), start, width),
        np.asarray(offset, np.int32),
        None if stops is None else stops.after(prompts),
        config=decoder.config,
        dtype=decoder.dtype,
        room=room,
        kept_scores=bucket(new) if sampling.output_scores else 0,
        kept_logits=bucket(new) if sampling.output_logits else 0,
    )
    return state, width


def start_context(
    prompts: Sequence[Prompt], tokens: np.ndarray, start: np.ndarray, width: int
) -> DecodeContext:
    """Return the context of prompts that lie in the first ``width`` slots, before any new token.

    Its arrays are still numpy's: those that go into a compiled function next.
    """
    length, embeds, types = np.asarray(width, np.int32), None, None
    if prompts[0].types is not None:
        types = np.zeros(tokens.shape, np.int32)
        for row, prompt in enumerate(prompts):
            assert prompt.types is not None
            types[row, start[row] : width] = prompt.types[:-1]
            types[row, width:] = prompt.types[-1]
    if prompts[0].embeds is not None:
        values = np.zeros((*tokens.shape, prompts[0].embeds.shape[-1]), np.float32)
        for row, prompt in enumerate(prompts):
            values[row, start[row] : width] = prompt.embeds
        given: Any = (values, start, length)
        embeds = PromptEmbeds(*given)
        if prompts[0].hidden:
            start = np.full_like(start, width)
    arrays: Any = (tokens, start, length, np.asarray(0, np.int32), embeds, types)
    return DecodeContext(*arrays)


@functools.partial(
    jax.jit, static_argnames=("config", "dtype", "room", "kept_scores", "kept_logits")
)
def empty_state(
    context: DecodeContext,
    offset: jax.Array,
    stop_state: jax.Array | None = None,
    *,
    config: OpenAIGPTConfig,
    dtype: jnp.dtype,
    room: int,
    kept_scores: int = 0,
    kept_logits: int = 0,
) -> State:
    """Return the state before any token is read; compiled, since it has many arrays."""
    B = len(context.tokens)

    def kept(steps: int) -> jax.Array | None:
        return jnp.zeros((B, steps, config.vocab_size), jnp.float32) if steps else None

    return State(
        context=context,
        scores=jnp.zeros(context.tokens.shape, jnp.float32),
        log_probs=jnp.zeros(context.tokens.shape, jnp.float32),
        done=jnp.zeros(B, bool),
        lengths=jnp.zeros(B, jnp.int32),
        cache=Cache.empty(config, B, room, dtype, squeeze=True),
        offset=offset,
        stop_state=stop_state,
        step_scores=kept(kept_scores),
        step_logits=kept(kept_logits),
    )


def _slide(state: State, n_positions: int, window: int) -> State:
    """Cut the texts that have used up all positions, and have what is left read again."""
    context = state.context
    start, length = np.asarray(context.start), int(context.length)
    full = length - start > n_positions
    if not full.any():
        return state
    start = np.where(full, length - window, start).astype(np.int32)
    offset = length - 1 - pieces(length - 1 - int(start.min()), len(start))
    return dataclasses.replace(
        state,
        context=dataclasses.replace(context, start=jnp.asarray(start)),
        cache=dataclasses.replace(
            state.cache, mask=jnp.zeros_like(state.cache.mask), index=jnp.int32(0)
        ),
        offset=jnp.int32(offset),
    )


def _progress(state: State, width: int, sampling: SamplingParams) -> DecodeProgress:
    """Return what the state holds."""
    # Slices of JAX's arrays would compile for every length: these are numpy's.
    end = int(state.context.length)
    tokens, scores, log_probs = (
        np.asarray(array)[:, width:end]
        for array in (state.context.tokens, state.scores, state.log_probs)
    )
    progress = DecodeProgress.cut(
        tokens,
        scores,
        log_probs,
        lengths=np.asarray(state.lengths),
        done=np.asarray(state.done),
        pad=sampling.pad,
    )
    return dataclasses.replace(
        progress,
        step_scores=first_steps(state.step_scores, end - width),
        step_logits=first_steps(state.step_logits, end - width),
    )


def first_steps(kept: jax.Array | None, steps: int) -> np.ndarray | None:
    """Return the logits that so many steps have kept, if any, (B, steps, V)."""
    return None if kept is None else np.asarray(kept)[:, :steps]
