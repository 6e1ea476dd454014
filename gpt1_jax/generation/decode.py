"""The loop: read the prompts, then choose and read one token after the other, in one compiled call.

Prompts of a batch are padded on the left, so that all rows end at the same slot of the cache;
positions and attention leave the padding out, and each row is what it would be alone. Lengths are
rounded up to powers of two, and settings are traced: few compilations serve all calls.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, Self, cast, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gpt1_jax.attention import Cache
from gpt1_jax.functional import merge
from gpt1_jax.generation.processors import keep_top, temper
from gpt1_jax.generation.settings import GenerationSettings
from gpt1_jax.inputs import ArrayLike, check_ids
from gpt1_jax.model import OpenAIGPTLMHeadModel
from gpt1_jax.pretrained import Params

# An array (batch, ...), or, for prompts of unequal lengths, a list of rows.
Sequences = Any
SHORTEST = 16  # below this, padding costs less than another compilation


@dataclasses.dataclass(frozen=True)
class GenerateOutput:
    """What ``generate`` returns with ``return_dict=True``.

    Attributes:
        sequences: what it returns otherwise.
        scores: log-probability of each new token under the distribution it was chosen from (after
            temperature, top-k and top-p), float32; for each row of ``sequences``, without padding
            where that is a list. As Hugging Face's normalised ``compute_transition_scores``.
    """

    sequences: Sequences
    scores: Sequences


@overload
def generate(
    model: OpenAIGPTLMHeadModel,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None = None,
    *,
    return_dict: Literal[False] = False,
    **settings: Any,
) -> Sequences: ...


@overload
def generate(
    model: OpenAIGPTLMHeadModel,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None = None,
    *,
    return_dict: Literal[True],
    **settings: Any,
) -> GenerateOutput: ...


def generate(
    model: OpenAIGPTLMHeadModel,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None = None,
    *,
    return_dict: bool = False,
    **settings: Any,
) -> Sequences | GenerateOutput:
    """Continue each prompt.

    Args:
        model: a language model.
        input_ids: (batch, T) prompts, or a list of prompts of any lengths.
        attention_mask: (batch, T), 0 where a prompt is padding, on either side.
        return_dict: return the scores of the new tokens too.
        **settings: fields of ``GenerationSettings``; ``eos_token_id`` and ``pad_token_id`` are the
            model configuration's by default.

    Returns:
        int32 (batch, T + new), the prompts as given and the new tokens; after the end token of a
        row, its padding. For prompts of unequal lengths a list of such rows, ending at their end.

    Raises:
        ValueError: an empty prompt, ids out of range, settings that make no sense, or prompts too
            long for the model to continue by ``max_new_tokens``; before any work is done.
        TypeError: a setting that does not exist.
    """
    if not isinstance(model, OpenAIGPTLMHeadModel):
        raise TypeError(f"the model is {type(model).__name__}, but must be OpenAIGPTLMHeadModel")
    config = model.config
    prompts, width = _prompts(config.vocab_size, input_ids, attention_mask)
    defaults = {"eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}
    chosen = GenerationSettings(**{**defaults, **settings})
    longest = max(map(len, prompts))
    chosen.check_for(config, longest)

    padded = np.zeros((len(prompts), bucket(longest)), np.int32)
    mask = np.zeros(padded.shape, np.float32)
    for row, prompt in enumerate(prompts):
        padded[row, -len(prompt) :] = prompt
        mask[row, -len(prompt) :] = 1
    state = _decoder(nnx.graphdef(model))(
        model.params,
        padded,
        mask,
        Choice.build(chosen, config.vocab_size, len(prompts)),
        capacity=bucket(chosen.max_new_tokens),
        do_sample=chosen.do_sample,
    )
    steps = int(state.step)
    new, scores = np.asarray(state.tokens)[:, :steps], np.asarray(state.scores)[:, :steps]
    if width is not None:
        given = np.asarray(input_ids, np.int32).reshape(len(prompts), width)
        sequences: Any = np.concatenate([given, new], axis=1)
    else:
        ends = _ends(new, chosen.eos_token_ids)
        sequences = [
            np.concatenate([prompt, row[:end]])
            for prompt, row, end in zip(prompts, new, ends, strict=True)
        ]
        scores = [row[:end] for row, end in zip(scores, ends, strict=True)]
    return GenerateOutput(sequences, scores) if return_dict else sequences


def bucket(length: int) -> int:
    """Return the length that ``length`` is rounded up to: a power of two."""
    return max(SHORTEST, 1 << (length - 1).bit_length())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Choice:
    """The settings of the loop that are traced.

    Attributes:
        max_new_tokens: () int32.
        temperature: () float32.
        top_k: () int32, the vocabulary's size for all tokens.
        top_p: () float32.
        eos: (number of end tokens,) int32.
        pad: () int32, what follows an end token.
        seeds: (B,) uint32, one a row.
    """

    max_new_tokens: np.ndarray
    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    eos: np.ndarray
    pad: np.ndarray
    seeds: np.ndarray

    @classmethod
    def build(cls, settings: GenerationSettings, vocab_size: int, rows: int) -> Self:
        """Build from the settings of a call for so many rows."""
        eos = settings.eos_token_ids
        pad = settings.pad_token_id if settings.pad_token_id is not None else (*eos, 0)[0]
        return cls(
            max_new_tokens=np.asarray(settings.max_new_tokens, np.int32),
            temperature=np.asarray(settings.temperature, np.float32),
            top_k=np.asarray(min(settings.top_k or vocab_size, vocab_size), np.int32),
            top_p=np.asarray(settings.top_p, np.float32),
            eos=np.asarray(eos, np.int32),
            pad=np.asarray(pad, np.int32),
            seeds=np.arange(rows, dtype=np.uint32) + np.uint32(settings.seed or 0),
        )

    def choose(
        self, logits: jax.Array, step: jax.Array, do_sample: bool
    ) -> tuple[jax.Array, jax.Array]:
        """(B, V) float32 logits -> (B,) tokens and their log-probabilities."""
        if do_sample:
            logits = temper(logits, self.temperature)
            everything = (self.top_k == logits.shape[-1]) & (self.top_p == 1)
            logits = jax.lax.cond(
                everything, lambda x: x, lambda x: keep_top(x, self.top_k, self.top_p), logits
            )
            keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), step))(self.seeds)
            token = jax.vmap(jax.random.categorical)(keys, logits)
        else:
            token = jnp.argmax(logits, axis=-1)
        log_probabilities = jax.nn.log_softmax(logits, axis=-1)
        score = jnp.take_along_axis(log_probabilities, token[:, None], axis=-1)[:, 0]
        return token.astype(jnp.int32), score


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Where the loop stands.

    Attributes:
        step: () int32 number of tokens chosen.
        tokens: (B, capacity) int32 the tokens chosen.
        scores: (B, capacity) float32 their log-probabilities.
        done: (B,) bool, rows that have reached an end token.
        cache: of the prompts and all tokens chosen but the last.
    """

    step: jax.Array
    tokens: jax.Array
    scores: jax.Array
    done: jax.Array
    cache: Cache

    def append(self, token: jax.Array, score: jax.Array, choice: Choice, cache: Cache) -> Self:
        """Return the state after (B,) tokens were chosen; rows that are done get padding."""
        token = jnp.where(self.done, choice.pad, token)
        score = jnp.where(self.done, 0, score)
        place = (jnp.int32(0), self.step)
        return dataclasses.replace(
            self,
            step=self.step + 1,
            tokens=jax.lax.dynamic_update_slice(self.tokens, token[:, None], place),
            scores=jax.lax.dynamic_update_slice(self.scores, score[:, None], place),
            done=self.done | (token[:, None] == choice.eos[None, :]).any(axis=-1),
            cache=cache,
        )


@functools.lru_cache(maxsize=32)
def _decoder(graphdef: nnx.GraphDef[Any]) -> Callable[..., State]:
    """Return the compiled loop of a model."""

    @functools.partial(jax.jit, static_argnames=("capacity", "do_sample"))
    def decode(
        params: Params,
        prompts: jax.Array,
        mask: jax.Array,
        choice: Choice,
        *,
        capacity: int,
        do_sample: bool,
    ) -> State:
        model: OpenAIGPTLMHeadModel = merge(graphdef, params)
        B, T = prompts.shape
        out = model(
            prompts,
            mask,
            positions_from_mask=True,
            cache=Cache.empty(model.config, B, T + capacity, model.dtype),
            logits_to_keep=1,
        )

        def append(state: State, out: Any) -> State:
            token, score = choice.choose(out.logits[:, -1], state.step, do_sample)
            return state.append(token, score, choice, out.cache)

        def unfinished(state: State) -> jax.Array:
            return (state.step < choice.max_new_tokens) & ~state.done.all()

        def step(state: State) -> State:
            last = jax.lax.dynamic_slice_in_dim(state.tokens, state.step - 1, 1, axis=1)
            return append(state, model(last, positions_from_mask=True, cache=state.cache))

        start = State(
            step=jnp.int32(0),
            tokens=jnp.zeros((B, capacity), jnp.int32),
            scores=jnp.zeros((B, capacity), jnp.float32),
            done=jnp.zeros(B, bool),
            cache=cast(Cache, out.cache),
        )
        return jax.lax.while_loop(unfinished, step, append(start, out))

    return decode


def _prompts(
    vocab_size: int, input_ids: Any, attention_mask: Any
) -> tuple[list[np.ndarray], int | None]:
    """Return the prompts without padding, and their common width, or None for a ragged list."""
    try:
        rows = [np.asarray(row) for row in input_ids]
        masks = None if attention_mask is None else [np.asarray(row) for row in attention_mask]
    except (TypeError, ValueError):
        raise ValueError("input_ids and attention_mask must be lists or arrays of rows") from None
    if rows and all(row.ndim == 0 for row in rows):  # one prompt
        rows, masks = [np.asarray(rows)], None if masks is None else [np.asarray(masks)]
    if not rows:
        raise ValueError("input_ids holds no prompt")
    shapes = [row.shape for row in rows]
    if any(len(shape) != 1 for shape in shapes):
        raise ValueError(f"the prompts have shapes {shapes}, but each must be (T,)")
    if masks is not None and [mask.shape for mask in masks] != shapes:
        raise ValueError(
            f"attention_mask has rows of {[mask.shape for mask in masks]}, but must have {shapes}"
        )
    prompts = []
    for i, row in enumerate(rows):
        if row.size:
            check_ids(f"prompt {i}", row, vocab_size, "vocab_size")
        prompt = row if masks is None else row[masks[i] != 0]
        if not prompt.size:
            raise ValueError(f"prompt {i} is empty, but must have at least one token")
        prompts.append(prompt.astype(np.int32))
    return prompts, shapes[0][0] if len(set(shapes)) == 1 else None


def _ends(new: np.ndarray, eos: tuple[int, ...]) -> list[int]:
    """Return where each row ends: behind its first end token."""
    is_end = np.isin(new, eos)
    return [int(row.argmax()) + 1 if row.any() else len(row) for row in is_end]
