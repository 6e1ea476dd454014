"""Beam search and beam sampling: several texts a prompt at once, the likeliest kept.

The rules are those of Hugging Face's ``generate`` (transformers 5), number for number; but a prompt
whose search is over is left alone, so that it is what it would be without its neighbours.

Dimensions: B prompts, K beams each, M candidates each, C slots for tokens, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Self, cast

import jax
import jax.numpy as jnp
import numpy as np

from gpt1_jax.generation.decode import DecodeProgress, SamplingParams, prefill
from gpt1_jax.generation.processors import Array, DecodeContext, process
from gpt1_jax.generation.prompts import PREFILL_CHUNK, align, bucket, pieces
from gpt1_jax.generation.transposed_kernels import (
    should_transpose,
    transpose_kernels,
    with_transposed_kernels,
)
from gpt1_jax.generation_config import GenerationConfig, as_ids
from gpt1_jax.model import OpenAIGPTLMHeadModel
from gpt1_jax.nn.attention import Cache
from gpt1_jax.nn.pytree import pytree_dataclass
from gpt1_jax.pretrained import Params
from gpt1_jax.pure import merge, not_finite, split
from gpt1_jax.sharding.mesh import batch_shardings, mesh_of, shard

# In place of -inf for texts that are out of the running, as Hugging Face has it: added to a score,
# it leaves it comparable.
OUT = -1e9


@pytree_dataclass
class Search:
    """The settings of a search, traced.

    Attributes:
        rules: of the choice of a token; the seeds are one a prompt.
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
    model: OpenAIGPTLMHeadModel, prompts: Sequence[np.ndarray], settings: GenerationConfig
) -> BeamOutput:
    """Return the ``num_return_sequences`` best of ``num_beams`` texts for each prompt.

    Args:
        model: a language model.
        prompts: (T,) int32 each.
        settings: checked, with end and padding filled in.

    Raises:
        ValueError: the logits are not finite.
    """
    V, new = model.config.vocab_size, settings.max_new_tokens
    tokens, start = align(prompts)
    width = tokens.shape[1]
    most = pieces(model.config.n_positions) + PREFILL_CHUNK
    slots = min(bucket(width + new - 1), most)
    seeds = settings.seeds(len(prompts))[:: settings.num_return_sequences]
    # As many that even if every end token is a candidate of every beam, K others are left.
    candidates = max(2, 1 + len(as_ids(settings.eos_token_id)))
    graphdef, params = split(model)
    transpose = should_transpose(model, params, rows=len(prompts) * settings.num_beams)
    if transpose:
        params = transpose_kernels(model, params)
    texts = np.pad(tokens, ((0, 0), (0, slots + 1 - width))), start
    if (mesh := mesh_of(params)) is not None:
        texts = shard(texts, batch_shardings(mesh, texts))
    ended, finite = _searcher(graphdef, transpose)(
        params,
        *texts,
        np.asarray(width, np.int32),
        Search.build(settings, V, seeds),
        num_beams=settings.num_beams,
        candidates=min(candidates * settings.num_beams, V * settings.num_beams),
        do_sample=settings.do_sample,
    )
    if not np.asarray(finite).all():
        raise not_finite("the logits", params)
    rows = len(prompts) * settings.num_return_sequences
    best = jax.tree.map(
        lambda x: np.asarray(x)[:, : settings.num_return_sequences].reshape(rows, *x.shape[2:]),
        ended,
    )
    T = int(best.length.max())
    after = np.arange(T)[None, :] >= best.length[:, None]
    progress = DecodeProgress(
        tokens=np.where(after, np.int32(settings.pad_token_id or 0), best.tokens[:, :T]),
        scores=np.where(after, np.float32(0), best.scores[:, :T]),
        log_probs=np.where(after, np.float32(0), best.log_probs[:, :T]),
        lengths=best.length,
        done=np.ones(rows, bool),
    )
    return BeamOutput(progress, best.total)


@functools.lru_cache(maxsize=32)
def _searcher(graphdef: Any, transpose: bool) -> Callable[..., Any]:
    """Return the compiled search of a model, whose kernels may be transposed."""

    @functools.partial(jax.jit, static_argnames=("num_beams", "candidates", "do_sample"))
    def run(
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
        model: OpenAIGPTLMHeadModel = merge(graphdef, params)
        if transpose:
            model = with_transposed_kernels(model)
        B, K, M, C = len(tokens), num_beams, candidates, tokens.shape[1]
        V, sampling = model.config.vocab_size, search.sampling

        def each(x: jax.Array) -> jax.Array:
            """(B, ...) -> (B * K, ...), every row K times."""
            return jnp.repeat(x, K, axis=0)

        def flat(x: jax.Array) -> jax.Array:
            """(B, K, ...) -> (B * K, ...)."""
            return x.reshape(B * K, *x.shape[2:])

        def continuations(state: SearchState) -> tuple[Beams, jax.Array, Cache, jax.Array]:
            """The M best texts one token longer, the beams (B, M) they come from, the cache, and
            whether the logits were finite (B,).
            """
            context = state.context
            last = context.before(jnp.int32(1))[:, None]
            out = model(last, positions_from_mask=True, cache=state.cache)
            log_probs = jax.nn.log_softmax(cast(jax.Array, out.logits)[:, -1], axis=-1)
            scores = process(sampling.processors, log_probs, context)
            if do_sample:
                scores = process(sampling.warpers, scores, context)
            totals = (scores.reshape(B, K, V) + state.running.total[:, :, None]).reshape(B, K * V)
            if do_sample:
                # The M largest of logits with Gumbel noise are M draws without replacement, in
                # order (arXiv:1903.06059).
                noise = jax.vmap(lambda key: jax.random.gumbel(key, (K * V,)))
                _, index = jax.lax.top_k(totals + noise(sampling.keys(context.new)), M)
            else:
                _, index = jax.lax.top_k(totals, M)
            beams, token = index // V, (index % V).astype(jnp.int32)
            longer = state.running.take(beams)

            def put(array: jax.Array, column: jax.Array) -> jax.Array:
                place = (jnp.int32(0), jnp.int32(0), context.new)
                return jax.lax.dynamic_update_slice(array, column[:, :, None], place)

            def of(table: jax.Array) -> jax.Array:
                return jnp.take_along_axis(table.reshape(B, K * V), index, axis=1)

            longer = Beams(
                tokens=put(longer.tokens, token),
                scores=put(longer.scores, of(scores)),
                log_probs=put(longer.log_probs, of(log_probs)),
                total=of(totals.reshape(B, K, V)),
                length=longer.length + 1,
                ended=sampling.eos[token] | (context.new + 1 >= search.max_new_tokens),
            )
            # A NaN or inf among a row's logits makes all of its log-probabilities NaN.
            finite = jnp.isfinite(log_probs[:, :1]).reshape(B, K).all(axis=1)
            return longer, beams, cast(Cache, out.cache), finite

        def step(state: SearchState) -> SearchState:
            longer, beams, cache, finite = continuations(state)
            new = state.context.new + 1
            hits = longer.ended

            # Go on with the best K that have not ended.
            in_running = longer.total + out_where(hits)
            running, index = dataclasses.replace(longer, total=in_running).best(K)
            parent = jnp.take_along_axis(beams, index, axis=1)
            rows = flat(parent + jnp.arange(B, dtype=parent.dtype)[:, None] * K)

            # Texts among the best K candidates that have ended are kept while they are better than
            # those that ended before.
            counts = hits & (jnp.arange(M) < K)[None, :]
            total = search.score(longer.total, new)
            full = state.ended.ended.all(axis=1, keepdims=True) & search.stop_early
            total = total + out_where(full | ~counts)
            merged = jax.tree.map(
                lambda a, b: jnp.concatenate([a, b], axis=1),
                state.ended,
                dataclasses.replace(longer, total=total, ended=counts),
            )
            ended, _ = merged.best(K)
            ended = jax.tree.map(
                lambda new, old: jnp.where(state.open.reshape(B, *[1] * (new.ndim - 1)), new, old),
                ended,
                state.ended,
            )

            # Could the best running text become better than the worst that ended?
            length = jnp.where(search.to_the_end, search.max_new_tokens, new)
            hope = search.score(running.total[:, :1], length)
            worst = jnp.where(ended.ended, ended.total.min(axis=1, keepdims=True), OUT)
            improvable = (hope > worst).any(axis=1)
            settled = ended.ended.all(axis=1) & search.stop_early
            context = state.context
            last = jnp.take_along_axis(running.tokens, (running.length - 1)[:, :, None], axis=2)
            tokens = jax.lax.dynamic_update_slice(
                context.tokens[rows], flat(last), (jnp.int32(0), context.length)
            )
            return SearchState(
                running=running,
                ended=ended,
                open=state.open & improvable & ~settled & ~hits.all(axis=1),
                finite=state.finite & (finite | ~state.open),
                context=DecodeContext(tokens, context.start, context.length + 1, new),
                cache=reorder_cache(cache, rows),
            )

        def goes_on(state: SearchState) -> jax.Array:
            return state.open.any()

        prompts = DecodeContext(tokens, start, length, jnp.int32(0))
        cache = Cache.empty(model.config, B, C - 1, model.dtype)
        cache = prefill(model, prompts, cache, jnp.int32(0))
        T = C - 1
        running = Beams.empty(B, K, T)
        state = SearchState(
            # All beams begin alike: only one may go on, or they would stay alike.
            running=dataclasses.replace(running, total=running.total.at[:, 0].set(0)),
            ended=Beams.empty(B, K, T),
            open=jnp.ones(B, bool),
            finite=jnp.ones(B, bool),
            context=dataclasses.replace(prompts, tokens=each(tokens), start=each(start)),
            cache=dataclasses.replace(
                jax.tree.map(each, dataclasses.replace(cache, index=jnp.zeros(B))),
                index=cache.index,
            ),
        )
        state = jax.lax.while_loop(goes_on, step, state)
        return state.ended, state.finite

    return run


def out_where(condition: jax.Array) -> jax.Array:
    """Return what takes the texts where ``condition`` holds out of the running, by addition."""
    return jnp.where(condition, jnp.float32(OUT), jnp.float32(0))


def reorder_cache(cache: Cache, rows: jax.Array) -> Cache:
    """Return the cache whose row i is row ``rows[i]``."""
    return dataclasses.replace(
        cache,
        keys=tuple(keys[rows] for keys in cache.keys),
        values=tuple(values[rows] for values in cache.values),
        mask=cache.mask[rows],
    )
