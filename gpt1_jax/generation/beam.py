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
    prefill,
)
from gpt1_jax.generation.processors import Array, DecodeContext, process
from gpt1_jax.generation.prompts import align, bucket, most_slots
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
    def build(cls, settings: GenerationConfig, vocab_size: int, seeds: np.ndarray) -> Self:
        """Build from settings whose end and padding are filled in, and the prompts' seeds."""
        never = settings.early_stopping == "never"
        return cls(
            sampling=SamplingParams.build(settings, vocab_size, seeds),
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
    """

    tokens: jax.Array
    scores: jax.Array
    log_probs: jax.Array
    total: jax.Array
    length: jax.Array
    ended: jax.Array

    @classmethod
    def empty(cls, B: int, K: int, T: int) -> Self:
        """Return texts of no tokens, all out of the running."""
        return cls(
            tokens=jnp.zeros((B, K, T), jnp.int32),
            scores=jnp.zeros((B, K, T), jnp.float32),
            log_probs=jnp.zeros((B, K, T), jnp.float32),
            total=jnp.full((B, K), OUT, jnp.float32),
            length=jnp.zeros((B, K), jnp.int32),
            ended=jnp.zeros((B, K), bool),
        )

    def take(self, beams: jax.Array) -> Self:
        """Return the texts numbered by ``beams`` (B, N) in each prompt."""
        return jax.vmap(lambda texts, index: jax.tree.map(lambda x: x[index], texts))(self, beams)

    def append(
        self, place: jax.Array, token: jax.Array, score: jax.Array, log_prob: jax.Array
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
    """

    running: Beams
    ended: Beams
    open: jax.Array
    finite: jax.Array
    context: DecodeContext
    cache: Cache


@dataclasses.dataclass(frozen=True)
class BeamOutput:
    """The best texts: ``progress`` of (B * num_return_sequences) rows, and their ``scores``."""

    progress: DecodeProgress
    scores: np.ndarray


def beam_search(
    decoder: Decoder, prompts: Sequence[np.ndarray], settings: GenerationConfig
) -> BeamOutput:
    """Return the ``num_return_sequences`` best of ``num_beams`` texts for each prompt.

    Args:
        decoder: prepared for ``num_beams`` rows a prompt.
        prompts: (T,) int32 each.
        settings: checked, with end and padding filled in.

    Raises:
        ValueError: the logits are not finite.
    """
    config, new, each = decoder.config, settings.max_new_tokens, settings.num_return_sequences
    tokens, start = align(prompts)
    width = tokens.shape[1]
    slots = min(bucket(width + new - 1), most_slots(config.n_positions))
    tokens = np.pad(tokens, ((0, 0), (0, slots + 1 - width)))
    # As many that even if every end token is a candidate of every beam, K others are left.
    candidates = max(2, 1 + len(as_ids(settings.eos_token_id)))
    ended, finite = _search(
        decoder.structure,
        decoder.params,
        *decoder.place((tokens, start)),
        np.asarray(width, np.int32),
        Search.build(settings, config.vocab_size, settings.seeds(len(prompts))[::each]),
        num_beams=settings.num_beams,
        candidates=min(candidates, config.vocab_size) * settings.num_beams,
        do_sample=settings.do_sample,
    )
    if not np.asarray(finite).all():
        raise decoder.not_finite()
    rows = len(prompts) * each
    best = jax.tree.map(lambda x: np.asarray(x)[:, :each].reshape(rows, *x.shape[2:]), ended)
    progress = DecodeProgress.cut(
        best.tokens,
        best.scores,
        best.log_probs,
        lengths=best.length,
        done=np.ones(rows, bool),
        pad=np.asarray(settings.pad_token_id or 0, np.int32),
    )
    return BeamOutput(progress, best.total)


@functools.partial(jax.jit, static_argnames=("structure", "num_beams", "candidates", "do_sample"))
def _search(
    structure: ModelStructure[OpenAIGPTLMHeadModel],
    params: Params,
    tokens: jax.Array,
    start: jax.Array,
    length: jax.Array,
    search: Search,
    *,
    num_beams: int,
    candidates: int,
    do_sample: bool,
) -> tuple[Beams, jax.Array]:
    """Search to the end: (B, C) prompts -> their best texts, and whether all logits were finite."""
    model = merge(structure, params)
    prompts = DecodeContext(tokens, start, length, jnp.int32(0))

    def step(state: SearchState) -> SearchState:
        return _step(model, search, state, candidates, do_sample)

    state = _start(model, prompts, num_beams)
    state = jax.lax.while_loop(lambda state: state.open.any(), step, state)
    return state.ended, state.finite


def _start(model: OpenAIGPTLMHeadModel, prompts: DecodeContext, num_beams: int) -> SearchState:
    """Return the state with the prompts read, K times each."""
    (B, C), K = prompts.tokens.shape, num_beams
    cache = Cache.empty(model.config, B, C - 1, model.dtype, squeeze=True)
    cache = prefill(model, prompts, cache, jnp.int32(0))
    running = Beams.empty(B, K, C - 1)
    return SearchState(
        # All beams begin alike: only one may go on, or they would stay alike.
        running=dataclasses.replace(running, total=running.total.at[:, 0].set(0)),
        ended=Beams.empty(B, K, C - 1),
        open=jnp.ones(B, bool),
        finite=jnp.ones(B, bool),
        context=dataclasses.replace(
            prompts,
            tokens=jnp.repeat(prompts.tokens, K, axis=0),
            start=jnp.repeat(prompts.start, K, axis=0),
        ),
        cache=cache.take(jnp.repeat(jnp.arange(B), K)),
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
    longer, beams, cache, finite = _continue(model, search, state, candidates, do_sample)
    ended = _keep_ended(search, state, longer)

    # Go on with the best K that have not ended.
    in_running = dataclasses.replace(longer, total=longer.total + out_where(longer.ended))
    running, index = in_running.best(K)
    parent = jnp.take_along_axis(beams, index, axis=1)
    rows = (parent + jnp.arange(B, dtype=parent.dtype)[:, None] * K).reshape(B * K)
    last = jnp.take_along_axis(running.tokens, (running.length - 1)[:, :, None], axis=2)
    tokens = jax.lax.dynamic_update_slice(
        context.tokens[rows], last.reshape(B * K, 1), (jnp.int32(0), context.length)
    )

    # Could the best running text become better than the worst that ended?
    length = jnp.where(search.to_the_end, search.max_new_tokens, new)
    hope = search.score(running.total[:, :1], length)
    worst = jnp.where(ended.ended, ended.total.min(axis=1, keepdims=True), OUT)
    improvable = (hope > worst).any(axis=1)
    settled = ended.ended.all(axis=1) & search.stop_early
    return SearchState(
        running=running,
        ended=ended,
        open=state.open & improvable & ~settled & ~longer.ended.all(axis=1),
        finite=state.finite & (finite | ~state.open),
        context=DecodeContext(tokens, context.start, context.length + 1, new),
        cache=cache.take(rows),
    )


def _continue(
    model: OpenAIGPTLMHeadModel,
    search: Search,
    state: SearchState,
    candidates: int,
    do_sample: bool,
) -> tuple[Beams, jax.Array, Cache, jax.Array]:
    """Return the M best, or drawn, texts that are one token longer than the running ones.

    Returns:
        These texts; the beams (B, M) they come from; the cache with the last tokens read; and
        whether the logits were finite (B,).
    """
    (B, K), M, context = state.running.total.shape, candidates, state.context
    sampling = search.sampling
    logits, cache = decode_step(model, state.cache, context.before(jnp.int32(1))[:, None])
    log_probs = jax.nn.log_softmax(logits[:, -1], axis=-1)
    scores = process(sampling.processors, log_probs, context)
    if do_sample:
        scores = process(sampling.warpers, scores, context)
    V = scores.shape[-1]
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

    longer = state.running.take(beams).append(context.new, token, of(scores), of(log_probs))
    longer = dataclasses.replace(
        longer,
        total=of(totals),
        ended=sampling.eos[token] | (context.new + 1 >= search.max_new_tokens),
    )
    # A NaN or inf among a row's logits makes all of its log-probabilities NaN.
    finite = jnp.isfinite(log_probs[:, :1]).reshape(B, K).all(axis=1)
    return longer, beams, cache, finite


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
