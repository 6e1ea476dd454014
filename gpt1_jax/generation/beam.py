"""Beam search and beam sampling: several texts a prompt at once, the likeliest kept.

The rules are those of Hugging Face's ``generate`` (transformers 5), number for number; but a prompt
whose search is over is left alone, so that it is what it would be without its neighbours.

Dimensions: B prompts, K beams each, M candidates each, C slots for tokens, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from gpt1_jax.generation.decode import (
    DecodeProgress,
    Decoder,
    SamplingParams,
    decode_step,
    first_steps,
    keep_step,
    prefill,
    start_context,
)
from gpt1_jax.generation.processors import Array, DecodeContext, process
from gpt1_jax.generation.prompts import Prompt, align, bucket, most_slots
from gpt1_jax.generation_config import GenerationConfig, as_ids
from gpt1_jax.model import OpenAIGPTLMHeadModel
from gpt1_jax.nn.attention import Cache
from gpt1_jax.nn.pytree import pytree_dataclass
from gpt1_jax.pretrained import Params
from gpt1_jax.pure import ModelStructure, merge

# In place of -inf for texts that are out of the running, as Hugging Face has it: added to a score,
# it leaves it comparable.
OUT = -1e9


@pytree_dataclass
class Search:
    """The settings of a search, traced.

    Attributes:
        sampling: of the choice of a token; the seeds are one a prompt.
        max_new_tokens: () int32.
        length_penalty: () float32.
        stop_early: () bool, whether K ended texts end a search (early_stopping=True).
        to_the_end: () bool, whether a running text is judged by the score it might have at its
            full length (early_stopping="never" and a positive length_penalty).
    """

    sampling: SamplingParams
    max_new_tokens: Array
    length_penalty: Array
    stop_early: Array
    to_the_end: Array

    @classmethod
    def build(cls, settings: GenerationConfig, sampling: SamplingParams) -> Self:
        """Build from settings whose end and padding are filled in."""
        never = settings.early_stopping == "never"
        return cls(
            sampling=sampling,
            max_new_tokens=np.asarray(settings.max_new_tokens, np.int32),
            length_penalty=np.asarray(settings.length_penalty, np.float32),
            stop_early=np.asarray(settings.early_stopping is True),
            to_the_end=np.asarray(never and settings.length_penalty > 0),
        )

    def score(self, log_prob: jax.Array, length: jax.Array) -> jax.Array:
        """Return log-probabilities of texts of so many new tokens as scores."""
        return log_prob / length.astype(jnp.float32) ** self.length_penalty


@pytree_dataclass
class Beams:
    """Texts of the new tokens, K a prompt or more.

    Attributes:
        tokens: (B, K, T) int32.
        scores: (B, K, T) float32, the log-probability of every token under the rules.
        log_probs: (B, K, T) float32, the same under the model itself.
        total: (B, K) float32, the text's score.
        length: (B, K) int32.
        ended: (B, K) bool.
        parents: (B, K, T) int32, the number of the running beam that each token was added to.
        stop_state: (B, K) int32, the state of the stop strings, if there are any.
    """

    tokens: jax.Array
    scores: jax.Array
    log_probs: jax.Array
    total: jax.Array
    length: jax.Array
    ended: jax.Array
    parents: jax.Array
    stop_state: jax.Array | None

    @classmethod
    def empty(cls, B: int, K: int, T: int, stop_state: jax.Array | None) -> Self:
        """Return texts of no tokens, all out of the running; ``stop_state`` is (B, K)."""
        return cls(
            tokens=jnp.zeros((B, K, T), jnp.int32),
            scores=jnp.zeros((B, K, T), jnp.float32),
            log_probs=jnp.zeros((B, K, T), jnp.float32),
            total=jnp.full((B, K), OUT, jnp.float32),
            length=jnp.zeros((B, K), jnp.int32),
            ended=jnp.zeros((B, K), bool),
            parents=jnp.zeros((B, K, T), jnp.int32),
            stop_state=stop_state,
        )

    def take(self, beams: jax.Array) -> Self:
        """Return the texts numbered by ``beams`` (B, N) in each prompt."""
        return jax.vmap(lambda texts, index: jax.tree.map(lambda x: x[index], texts))(self, beams)

    def append(
        self,
        place: jax.Array,
        token: jax.Array,
        score: jax.Array,
        log_prob: jax.Array,
        parent: jax.Array,
    ) -> Self:
        """Return the texts with one more token (B, K) each, at ``place`` ()."""

        def put(array: jax.Array, column: jax.Array) -> jax.Array:
            zero = jnp.int32(0)
            return jax.lax.dynamic_update_slice(array, column[:, :, None], (zero, zero, place))

        return dataclasses.replace(
            self,
            tokens=put(self.tokens, token),
            scores=put(self.scores, score),
            log_probs=put(self.log_probs, log_prob),
            parents=put(self.parents, parent),
            length=self.length + 1,
        )

    def best(self, K: int) -> tuple[Self, jax.Array]:
        """Return the K texts with the highest scores, and their numbers (B, K)."""
        _, index = jax.lax.top_k(self.total, K)
        return self.take(index), index


@pytree_dataclass
class SearchState:
    """Where a search stands.

    Attributes:
        running: K texts a prompt.
        ended: the best K that have ended.
        open: (B,) bool, prompts whose search goes on.
        finite: (B,) bool, whether all logits of the search were finite.
        context: of the running texts, (B * K, C).
        cache: of the tokens read, (B * K) rows.
        step_scores: (B * K, N, V) float32, the scores that the candidates of each step were chosen
            by, if asked for.
        step_logits: the model's logits, likewise.
    """

    running: Beams
    ended: Beams
    open: jax.Array
    finite: jax.Array
    context: DecodeContext
    cache: Cache
    step_scores: jax.Array | None
    step_logits: jax.Array | None


@dataclasses.dataclass(frozen=True)
class BeamOutput:
    """The best texts of a search.

    Attributes:
        progress: of (B * num_return_sequences) rows.
        scores: (rows,) of the texts.
        beam_indices: (rows, T) int32, the row of ``step_scores`` that each token was chosen by, -1
            after the end of a text.
        step_scores: (B * K, steps, V) float32, if asked for.
        step_logits: likewise.
    """

    progress: DecodeProgress
    scores: np.ndarray
    beam_indices: np.ndarray
    step_scores: np.ndarray | None
    step_logits: np.ndarray | None


def beam_search(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    settings: GenerationConfig,
    sampling: SamplingParams,
) -> BeamOutput:
    """Return the ``num_return_sequences`` best of ``num_beams`` texts for each prompt.

    Args:
        decoder: prepared for ``num_beams`` rows a prompt.
        prompts: one a search.
        settings: checked, with end and padding filled in.
        sampling: built from them, with a seed for each prompt.

    Raises:
        ValueError: the logits are not finite.
    """
    config, new, each = decoder.config, settings.max_new_tokens, settings.num_return_sequences
    K, stops = settings.num_beams, sampling.stop_strings
    tokens, start = align([prompt.ids for prompt in prompts])
    width = tokens.shape[1]
    slots = min(bucket(width + new - 1), most_slots(config.n_positions))
    tokens = np.pad(tokens, ((0, 0), (0, slots + 1 - width)))
    # As many that even if every end token is a candidate of every beam, K others are left.
    candidates = max(2, 1 + len(as_ids(settings.eos_token_id)))
    found = _search(
        decoder.structure,
        decoder.params,
        decoder.place(start_context(prompts, tokens, start, width)),
        None if stops is None else decoder.place(stops.after(prompts)),
        Search.build(settings, sampling),
        num_beams=K,
        candidates=min(candidates, config.vocab_size) * K,
        do_sample=settings.do_sample,
        kept_steps=bucket(new) if sampling.output_scores or sampling.output_logits else 0,
    )
    if not np.asarray(found.finite).all():
        raise decoder.not_finite()
    rows = len(prompts) * each
    best = jax.tree.map(lambda x: np.asarray(x)[:, :each].reshape(rows, *x.shape[2:]), found.ended)
    progress = DecodeProgress.cut(
        best.tokens,
        best.scores,
        best.log_probs,
        lengths=best.length,
        done=np.ones(rows, bool),
        pad=np.asarray(settings.pad_token_id or 0, np.int32),
    )
    T = progress.tokens.shape[1]
    after = np.arange(T)[None, :] >= best.length[:, None]
    first = np.repeat(np.arange(len(prompts), dtype=np.int32) * np.int32(K), each)
    steps = int(found.steps)
    return BeamOutput(
        progress,
        best.total,
        np.where(after, np.int32(-1), best.parents[:, :T] + first[:, None]),
        first_steps(found.step_scores, steps),
        first_steps(found.step_logits, steps),
    )


@pytree_dataclass
class Found:
    """What a search has found; see ``SearchState``.

    Attributes:
        ended: the best texts.
        finite: (B,) bool.
        steps: () int32, the number of steps.
        step_scores: (B * K, N, V) float32, if asked for.
        step_logits: likewise.
    """

    ended: Beams
    finite: jax.Array
    steps: jax.Array
    step_scores: jax.Array | None
    step_logits: jax.Array | None


@functools.partial(
    jax.jit,
    static_argnames=("structure", "num_beams", "candidates", "do_sample", "kept_steps"),
)
def _search(
    structure: ModelStructure[OpenAIGPTLMHeadModel],
    params: Params,
    prompts: DecodeContext,
    stop_state: jax.Array | None,
    search: Search,
    *,
    num_beams: int,
    candidates: int,
    do_sample: bool,
    kept_steps: int,
) -> Found:
    """Search to the end of the best texts of (B, C) prompts.

    Args:
        structure: of the model.
        params: likewise.
        prompts: before any new token.
        stop_state: (B,) int32, the states of the stop strings after the prompts, if there are any.
        search: the settings.
        num_beams: K.
        candidates: M.
        do_sample: whether candidates are drawn.
        kept_steps: room for the logits of so many steps, where these are asked for.
    """
    model = merge(structure, params)

    def step(state: SearchState) -> SearchState:
        return _step(model, search, state, candidates, do_sample)

    state = _start(model, prompts, stop_state, search.sampling, num_beams, kept_steps)
    state = jax.lax.while_loop(lambda state: state.open.any(), step, state)
    steps = state.context.new
    return Found(state.ended, state.finite, steps, state.step_scores, state.step_logits)


def _start(
    model: OpenAIGPTLMHeadModel,
    prompts: DecodeContext,
    stop_state: jax.Array | None,
    sampling: SamplingParams,
    num_beams: int,
    kept_steps: int,
) -> SearchState:
    """Return the state with the prompts read, K times each."""
    (B, C), K = prompts.tokens.shape, num_beams
    cache = Cache.empty(model.config, B, C - 1, model.dtype, squeeze=True)
    cache = prefill(model, prompts, cache, jnp.int32(0))
    rows = jnp.repeat(jnp.arange(B), K)
    if stop_state is not None:
        stop_state = stop_state[rows].reshape(B, K)
    # All beams begin alike: only one may go on, or they would stay alike.
    running = Beams.empty(B, K, C - 1, stop_state)
    running = dataclasses.replace(running, total=running.total.at[:, 0].set(0))

    def kept(wanted: bool) -> jax.Array | None:
        shape = (B * K, kept_steps, model.config.vocab_size)
        return jnp.zeros(shape, jnp.float32) if wanted else None

    types = prompts.token_types
    return SearchState(
        running=running,
        ended=Beams.empty(B, K, C - 1, stop_state),
        open=jnp.ones(B, bool),
        finite=jnp.ones(B, bool),
        context=dataclasses.replace(
            prompts.take(rows),
            embeds=prompts.embeds and prompts.embeds.take(rows),
            token_types=None if types is None else types[rows],
        ),
        cache=cache.take(rows),
        step_scores=kept(sampling.output_scores),
        step_logits=kept(sampling.output_logits),
    )


def _step(
    model: OpenAIGPTLMHeadModel,
    search: Search,
    state: SearchState,
    candidates: int,
    do_sample: bool,
) -> SearchState:
    """Return the state with a token more in each running text."""
    B, K = state.running.total.shape
    context, new = state.context, state.context.new + 1
    logits, cache = decode_step(model, state.cache, **context.inputs(model, context.length - 1, 1))
    logits = logits[:, -1]
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    scores = process(search.sampling.processors, log_probs, context)
    if do_sample:
        scores = process(search.sampling.warpers, scores, context)
    longer, beams = _continue(search, state, scores, log_probs, candidates, do_sample)
    ended = _keep_ended(search, state, longer)

    # Go on with the best K that have not ended.
    in_running = dataclasses.replace(longer, total=longer.total + out_where(longer.ended))
    running, index = in_running.best(K)
    parent = jnp.take_along_axis(beams, index, axis=1)
    rows = (parent + jnp.arange(B, dtype=parent.dtype)[:, None] * K).reshape(B * K)
    last = jnp.take_along_axis(running.tokens, (running.length - 1)[:, :, None], axis=2)

    # Could the best running text become better than the worst that ended?
    length = jnp.where(search.to_the_end, search.max_new_tokens, new)
    hope = search.score(running.total[:, :1], length)
    worst = jnp.where(ended.ended, ended.total.min(axis=1, keepdims=True), OUT)
    improvable = (hope > worst).any(axis=1)
    settled = ended.ended.all(axis=1) & search.stop_early
    # A NaN or inf among a row's logits makes all of its log-probabilities NaN.
    finite = jnp.isfinite(log_probs[:, :1]).reshape(B, K).all(axis=1)
    return SearchState(
        running=running,
        ended=ended,
        open=state.open & improvable & ~settled & ~longer.ended.all(axis=1),
        finite=state.finite & (finite | ~state.open),
        context=context.take(rows).append(last.reshape(B * K)),
        cache=cache.take(rows),
        step_scores=keep_step(state.step_scores, scores, context),
        step_logits=keep_step(state.step_logits, logits, context),
    )


def _continue(
    search: Search,
    state: SearchState,
    scores: jax.Array,
    log_probs: jax.Array,
    candidates: int,
    do_sample: bool,
) -> tuple[Beams, jax.Array]:
    """Return the M best, or drawn, texts that are one token longer than the running ones.

    Args:
        search: the settings.
        state: before this step.
        scores: (B * K, V), the log-probabilities of the next tokens under the rules.
        log_probs: the same under the model itself.
        candidates: M.
        do_sample: whether the texts are drawn.

    Returns:
        These texts, and the beams (B, M) they come from.
    """
    (B, K), M, context = state.running.total.shape, candidates, state.context
    sampling, V = search.sampling, scores.shape[-1]
    totals = (scores.reshape(B, K, V) + state.running.total[:, :, None]).reshape(B, K * V)
    ranked = totals
    if do_sample:
        # The M largest of logits with Gumbel noise are M draws without replacement, in order
        # (arXiv:1903.06059).
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (K * V,)))
        ranked = totals + noise(sampling.keys(context.new))
    _, index = jax.lax.top_k(ranked, M)
    beams, token = index // V, (index % V).astype(jnp.int32)

    def of(table: jax.Array) -> jax.Array:
        return jnp.take_along_axis(table.reshape(B, K * V), index, axis=1)

    longer = state.running.take(beams)
    longer = longer.append(context.new, token, of(scores), of(log_probs), beams.astype(jnp.int32))
    stop_state = None if longer.stop_state is None else longer.stop_state.reshape(-1)
    rows = (beams + jnp.arange(B, dtype=beams.dtype)[:, None] * K).reshape(-1)
    ends, stop_state = sampling.ends(
        token.reshape(-1), stop_state, context.take(rows).append(token.reshape(-1))
    )
    longer = dataclasses.replace(
        longer,
        total=of(totals),
        ended=ends.reshape(B, M) | (context.new + 1 >= search.max_new_tokens),
        stop_state=None if stop_state is None else stop_state.reshape(B, M),
    )
    return longer, beams


def _keep_ended(search: Search, state: SearchState, longer: Beams) -> Beams:
    """Return the best K texts that have ended, before or among the best K candidates now."""
    K = state.running.total.shape[1]
    counts = longer.ended & (jnp.arange(longer.total.shape[1]) < K)[None, :]
    full = state.ended.ended.all(axis=1, keepdims=True) & search.stop_early
    total = search.score(longer.total, state.context.new + 1) + out_where(full | ~counts)
    new = dataclasses.replace(longer, total=total, ended=counts)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), state.ended, new)
    best, _ = both.best(K)
    return jax.tree.map(
        lambda new, old: jnp.where(state.open.reshape(-1, *[1] * (new.ndim - 1)), new, old),
        best,
        state.ended,
    )


def out_where(condition: jax.Array) -> jax.Array:
    """Return what takes the texts where ``condition`` holds out of the running, by addition."""
    return jnp.where(condition, jnp.float32(OUT), jnp.float32(0))
