"""``generate``: prompts and settings in, texts out."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, overload

import jax
import jax.numpy as jnp
import numpy as np

from gpt1_jax.checks import short
from gpt1_jax.generation.beam import beam_search
from gpt1_jax.generation.decode import DecodeProgress, Decoder, Extras, SamplingParams, decode
from gpt1_jax.generation.processors import LogitsProcessor, StoppingCriterion
from gpt1_jax.generation.prompts import Prompt, append_new_tokens, read_prompts
from gpt1_jax.generation.stop_strings import StopStrings
from gpt1_jax.generation_config import GenerationConfig, GenerationConfigLike
from gpt1_jax.model import OpenAIGPTLMHeadModel
from gpt1_jax.nn.validation import ArrayLike, host_array
from gpt1_jax.outputs import ModelOutput
from gpt1_jax.text.decoding import warn_of_unknown_ids
from gpt1_jax.text.tokenizer import Tokenizer

# An array (batch, ...), or, for prompts of unequal lengths, a list of rows. A caller knows
# which it gets, so a union of the two would only be in the way.
Sequences = Any
Prompts = ArrayLike | str | Sequence[str]
NO_EXTRAS = Extras()
STEPS_PER_CALL = 8  # tokens a compiled call where the host looks at the text in between


@dataclasses.dataclass(frozen=True)
class GenerateOutput(ModelOutput):
    """What ``generate`` returns with ``return_dict_in_generate=True``; see ``ModelOutput``.

    Attributes:
        sequences: the prompts and the new tokens, as ``generate`` returns them otherwise.
        transition_scores: float32 log-probability of each new token under the distribution that it
            was chosen from, after all settings; 0 for padding. A row for each row of ``sequences``,
            without padding where that is a list. It equals Hugging Face's normalized
            ``compute_transition_scores``. With beams these are the terms of the beam's score, which
            are not normalized again.
        log_probs: log-probability of each new token under the model itself, before all settings.
        sequences_scores: (rows,) float32 with beams: the sum of a row's transition scores, divided
            by its number of new tokens to the power length_penalty. As in Hugging Face, it is -1e9
            for an empty row, which stands where fewer texts exist than were asked for. None without
            beams.
        scores: with ``output_scores``, for each step the logits that the tokens were chosen by,
            (rows, V) float32; with beams log-probabilities, (prompts * num_beams, V). They have no
            meaning after the end of a text.
        logits: with ``output_logits``, for each step the model's own logits, in the same shape.
        beam_indices: (rows, T) int32 with beams: the row of ``scores`` that each new token was
            chosen by, -1 after the end of a text. None without beams.
    """

    sequences: Sequences
    transition_scores: Sequences
    log_probs: Sequences
    sequences_scores: np.ndarray | None = None
    scores: tuple[np.ndarray, ...] | None = None
    logits: tuple[np.ndarray, ...] | None = None
    beam_indices: np.ndarray | None = None


class Streamer(Protocol):
    """Takes ids as they are chosen, as transformers' streamers do."""

    def put(self, value: np.ndarray) -> None:
        """Take the prompts (B, T), or the next token of each text (rows,), int32."""

    def end(self) -> None:
        """End the output: the last token has been put."""


@overload
def generate(
    model: OpenAIGPTLMHeadModel,
    input_ids: Prompts | None = None,
    attention_mask: ArrayLike | None = None,
    generation_config: GenerationConfigLike | None = None,
    *,
    inputs_embeds: ArrayLike | None = None,
    token_type_ids: ArrayLike | None = None,
    new_token_type_id: int | Sequence[int | None] | None = None,
    tokenizer: Tokenizer | None = None,
    logits_processor: Iterable[LogitsProcessor] | None = None,
    stopping_criteria: Iterable[StoppingCriterion] | None = None,
    streamer: Streamer | None = None,
    key: jax.Array | None = None,
    return_dict_in_generate: Literal[False] = False,
    **changes: object,
) -> Sequences: ...


@overload
def generate(
    model: OpenAIGPTLMHeadModel,
    input_ids: Prompts | None = None,
    attention_mask: ArrayLike | None = None,
    generation_config: GenerationConfigLike | None = None,
    *,
    inputs_embeds: ArrayLike | None = None,
    token_type_ids: ArrayLike | None = None,
    new_token_type_id: int | Sequence[int | None] | None = None,
    tokenizer: Tokenizer | None = None,
    logits_processor: Iterable[LogitsProcessor] | None = None,
    stopping_criteria: Iterable[StoppingCriterion] | None = None,
    streamer: Streamer | None = None,
    key: jax.Array | None = None,
    return_dict_in_generate: Literal[True],
    **changes: object,
) -> GenerateOutput: ...


def generate(
    model: OpenAIGPTLMHeadModel,
    input_ids: Prompts | None = None,
    attention_mask: ArrayLike | None = None,
    generation_config: GenerationConfigLike | None = None,
    *,
    inputs_embeds: ArrayLike | None = None,
    token_type_ids: ArrayLike | None = None,
    new_token_type_id: int | Sequence[int | None] | None = None,
    tokenizer: Tokenizer | None = None,
    logits_processor: Iterable[LogitsProcessor] | None = None,
    stopping_criteria: Iterable[StoppingCriterion] | None = None,
    streamer: Streamer | None = None,
    key: jax.Array | None = None,
    **changes: object,
) -> Sequences | GenerateOutput:
    """Continue each prompt.

    In float32 a text does not depend on the rest of its batch, unless ``max_length``,
    ``min_length`` or inferred padding count the width of the batch: products of another batch
    differ by 1e-6 or so, which hardly ever changes a token. In bfloat16 and float16 they differ by
    1e-2, which occasionally does. ``max_length`` and the default length count from the width of the
    array, or from the longest prompt of a list.

    Args:
        model: a language model.
        input_ids: (batch, T) ids of the prompts, or a list of prompts of any lengths; with a
            ``tokenizer`` also a text, or a list of texts.
        attention_mask: (batch, T), 0 where a prompt is padding, on either side. Without a mask,
            every ``pad_token_id`` in an array of prompts is padding, if that token is set and does
            not end texts.
        generation_config: how to choose tokens: a configuration of this package or transformers, a
            dict of settings, or the path of a checkpoint. Settings that it leaves out are those of
            ``model.generation_config``, whose default is greedy decoding.
        inputs_embeds: (batch, T, E) embeddings to read in place of those of ``input_ids``; without
            ids, the result has the new tokens alone.
        token_type_ids: ids in the shape of the prompts, of tokens whose embeddings are added, such
            as the speakers of a dialogue.
        new_token_type_id: the type of all new tokens, or one a prompt; by default that of the
            prompt's last token, as in transformers.
        tokenizer: needed for ``stop_strings``, and for prompts that are texts.
        logits_processor: functions from logits (B, V) float32 and a ``GenerationState`` to logits,
            applied after the settings' own rules and before those of sampling. Like the criteria,
            they are traced into the decoding loop, and compiled once for each function. A row that
            they leave without a finite logit goes on with id 0 and a score of NaN.
        stopping_criteria: functions from a ``GenerationState`` to (B,) bool, True for texts that
            end with the token chosen last.
        streamer: an object that receives the prompts, and then the next token of each text at
            every step.
        key: a ``jax.random.key`` for sampling, in place of the setting ``seed``.
        **changes: fields of ``GenerationConfig`` that override those of ``generation_config``; None
            stands for the default.

    Returns:
        (batch * num_return_sequences, T + new) int32: the prompts as given, the new tokens, and
        padding after the end of a text. For prompts of unequal lengths, a list of rows without
        padding. The texts of one prompt follow each other. With the setting
        ``return_dict_in_generate``, a ``GenerateOutput``.

    Raises:
        ValueError: a prompt is empty, ids are out of range, settings contradict each other, or
            prompts are too long to continue by ``max_new_tokens`` or up to ``max_length``: all
            found before any work is done. Or the logits are not finite; the message names the
            parameter that is not.
        TypeError: a setting does not exist.
    """
    if attention_mask is not None and not hasattr(attention_mask, "__len__"):
        kind = type(attention_mask).__name__
        raise ValueError(f"attention_mask is a {kind}; generation_config= takes settings")
    functions = Extras(
        _functions("logits_processor", logits_processor, "f(logits, state) -> logits"),
        _functions("stopping_criteria", stopping_criteria, "f(state) -> bool, one a text"),
    )
    ids = _encode(input_ids, tokenizer)
    embeds = None if inputs_embeds is None else _check_embeds(model, ids, inputs_embeds)
    prompts, given, settings = prepare(
        model,
        np.zeros(embeds.shape[:2], np.int32) if ids is None and embeds is not None else ids,
        attention_mask,
        generation_config,
        changes,
        infer_padding=embeds is None,
        token_type_ids=token_type_ids,
        new_token_type_id=new_token_type_id,
    )
    if key is not None:
        settings = _with_key(settings, key, len(prompts))
    rows = [prompt.ids for prompt in prompts]
    if embeds is not None:
        prompts = _with_embeds(prompts, embeds, attention_mask, settings, hidden=ids is None)
    if ids is None:  # the texts are the new tokens alone
        given, rows = np.zeros((len(rows), 0), np.int32), [row[:0] for row in rows]
    if streamer is not None:
        if settings.num_beams > 1 or given is None:
            raise ValueError("a streamer needs num_beams = 1, and prompts of one width")
        streamer.put(np.repeat(given, settings.num_return_sequences, axis=0))
    if tokenizer is not None:
        warn_of_unknown_ids(tokenizer, model.config.vocab_size)
    texts = run(model, prompts, settings, tokenizer, functions, streamer=streamer)
    progress = texts.progress
    sequences = append_new_tokens(rows, given, progress.tokens, progress.lengths)
    if not settings.return_dict_in_generate:
        return sequences
    scores, log_probs = progress.scores, progress.log_probs
    if given is None:
        scores, log_probs = (
            [row[:length] for row, length in zip(rows, progress.lengths, strict=True)]
            for rows in (scores, log_probs)
        )
    return GenerateOutput(
        sequences,
        scores,
        log_probs,
        sequences_scores=texts.sequences_scores,
        scores=_by_step(texts.step_scores),
        logits=_by_step(texts.step_logits),
        beam_indices=texts.beam_indices,
    )


def _functions(name: str, given: Iterable[Any] | None, form: str) -> tuple[Any, ...]:
    """Return the functions of a list as a tuple.

    Raises:
        ValueError: something else, such as an object of a class of transformers.
    """
    if given is None:
        return ()
    functions = (given,) if callable(given) else tuple(given)
    for function in functions:
        bases = type(function).__mro__
        if not callable(function) or any(b.__module__.startswith("transformers.") for b in bases):
            raise ValueError(f"{name} has {short(function)}, but must have functions {form}")
    return functions


def _encode(prompts: Prompts | None, tokenizer: Tokenizer | None) -> Any:
    """Return texts as lists of ids, and ids as they are."""
    texts = [prompts] if isinstance(prompts, str) else prompts
    if isinstance(texts, np.ndarray) and texts.dtype.kind == "U":
        texts = texts.tolist()
    if not isinstance(texts, list | tuple) or not any(isinstance(text, str) for text in texts):
        return prompts
    if tokenizer is None:
        raise ValueError(f"the prompts are texts, {short(texts[0])} for one, and need a tokenizer")
    return [tokenizer.encode_prompt(text) for text in texts]


def _check_embeds(
    model: OpenAIGPTLMHeadModel, ids: ArrayLike | None, inputs_embeds: ArrayLike
) -> np.ndarray:
    """Return embeddings (batch, T, E) as float32, if the model can read them."""
    embeds = host_array("inputs_embeds", inputs_embeds)
    E = model.config.n_embd
    if embeds.dtype.kind not in "fiu" or not np.isfinite(embeds).all():
        raise ValueError(f"inputs_embeds must hold finite numbers; its dtype is {embeds.dtype}")
    if embeds.ndim != 3 or embeds.shape[2] != E or 0 in embeds.shape:
        raise ValueError(f"inputs_embeds has shape {embeds.shape}, but must have (batch, T, {E})")
    if ids is not None and np.shape(ids) != embeds.shape[:2]:
        raise ValueError(
            f"input_ids has shape {np.shape(ids)}, but must have {embeds.shape[:2]}, those of "
            "inputs_embeds, or be left out"
        )
    return embeds.astype(np.float32)


def _with_embeds(
    prompts: Sequence[Prompt],
    embeds: np.ndarray,
    attention_mask: ArrayLike | None,
    settings: GenerationConfig,
    *,
    hidden: bool,
) -> list[Prompt]:
    """Return the prompts with their embeddings, of (batch, T, E); see ``Prompt``."""
    for name in ("sliding_window", "prompt_lookup_num_tokens"):
        if getattr(settings, name) is not None:
            raise ValueError(f"{name} needs input_ids without inputs_embeds: it reads ids again")
    masks = np.ones(embeds.shape[:2]) if attention_mask is None else np.asarray(attention_mask)
    return [
        prompt._replace(embeds=values[mask != 0], hidden=hidden)
        for prompt, values, mask in zip(prompts, embeds, masks, strict=True)
    ]


def _with_key(settings: GenerationConfig, key: jax.Array, prompts: int) -> GenerationConfig:
    """Return the settings with a seed for each prompt, drawn by ``key``."""
    if not settings.do_sample:
        raise ValueError("key has no effect without do_sample=True")
    if settings.seed is not None:
        raise ValueError("give either key or seed, not both")
    if not isinstance(key, jax.Array) or not (
        (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0)
        or (key.dtype == jnp.uint32 and key.shape == (2,))
    ):
        raise ValueError(f"key is {short(key)}, but must be one key: jax.random.key(seed)")
    return dataclasses.replace(settings, seed=jax.random.bits(key, (prompts,), jnp.uint32))


def _by_step(logits: np.ndarray | None) -> tuple[np.ndarray, ...] | None:
    """(rows, steps, V) -> (rows, V) of each step."""
    return None if logits is None else tuple(np.moveaxis(logits, 1, 0))


def prepare(
    model: OpenAIGPTLMHeadModel,
    input_ids: ArrayLike | None,
    attention_mask: ArrayLike | None,
    generation_config: GenerationConfigLike | None,
    changes: Mapping[str, object],
    *,
    infer_padding: bool = False,
    token_type_ids: ArrayLike | None = None,
    new_token_type_id: int | Sequence[int | None] | None = None,
) -> tuple[list[Prompt], np.ndarray | None, GenerationConfig]:
    """Check what ``generate`` takes; return the prompts (``read_prompts``) and full settings."""
    if not isinstance(model, OpenAIGPTLMHeadModel):
        raise TypeError(f"the model is {type(model).__name__}, but must be OpenAIGPTLMHeadModel")
    settings = model.generation_config.updated(generation_config, **changes)
    padding = settings.padding() if infer_padding else None
    prompts, given = read_prompts(
        model.config.vocab_size,
        input_ids,
        attention_mask,
        padding,
        token_type_ids,
        new_token_type_id,
    )
    width = None if given is None else given.shape[1]
    settings.warn_of_unused()
    settings = settings.for_model(model.config)
    settings = settings.for_prompts(model.config, max(len(prompt.ids) for prompt in prompts), width)
    settings.check_for(model.config, len(prompts))
    return prompts, given, settings


@dataclasses.dataclass(frozen=True)
class Texts:
    """The texts of a call; see ``GenerateOutput``.

    Attributes:
        progress: at the end.
        step_scores: (rows, steps, V).
        step_logits: likewise.
        sequences_scores: with beams.
        beam_indices: with beams.
    """

    progress: DecodeProgress
    step_scores: np.ndarray | None
    step_logits: np.ndarray | None
    sequences_scores: np.ndarray | None = None
    beam_indices: np.ndarray | None = None


def run(
    model: OpenAIGPTLMHeadModel,
    prompts: list[Prompt],
    settings: GenerationConfig,
    tokenizer: Tokenizer | None,
    extras: Extras = NO_EXTRAS,
    *,
    steps: int | None = None,
    streamer: Streamer | None = None,
) -> Texts:
    """Continue checked prompts to the end.

    Args:
        model: a language model.
        prompts: that ``prepare`` returned.
        settings: likewise.
        tokenizer: for stop strings.
        extras: functions of the user's.
        steps: tokens a compiled call, where an interruption is to be heard in between.
        streamer: see ``generate``.
    """
    if settings.num_beams == 1:
        steps = steps if streamer is None else 1
        progress = progress_of(model, prompts, settings, tokenizer, extras, steps=steps)
        *_, last = progress if streamer is None else _put(progress, streamer)
        return Texts(last, last.step_scores, last.step_logits)
    texts, beams = (
        len(prompts) * each for each in (settings.num_return_sequences, settings.num_beams)
    )
    found = beam_search(*_prepare_decoding(model, prompts, settings, tokenizer, extras))
    return Texts(
        found.progress.first(texts),
        None if found.step_scores is None else found.step_scores[:beams],
        None if found.step_logits is None else found.step_logits[:beams],
        found.scores[:texts],
        found.beam_indices[:texts],
    )


def _put(progress: Iterator[DecodeProgress], streamer: Streamer) -> Iterator[DecodeProgress]:
    """Hand each token to a streamer on its way."""
    for texts in progress:
        streamer.put(texts.tokens[:, -1])
        yield texts
    streamer.end()


def progress_of(
    model: OpenAIGPTLMHeadModel,
    prompts: list[Prompt],
    settings: GenerationConfig,
    tokenizer: Tokenizer | None,
    extras: Extras = NO_EXTRAS,
    *,
    steps: int | None = None,
) -> Iterator[DecodeProgress]:
    """Yield the texts after every compiled call, without beams; see ``run``."""
    decoder, padded, full, sampling = _prepare_decoding(model, prompts, settings, tokenizer, extras)
    each = settings.num_return_sequences
    rows = [prompt for prompt in padded for _ in range(each)]
    progress = decode(decoder, rows, full, sampling, steps=steps)
    return (found.first(len(prompts) * each) for found in progress)


def _prepare_decoding(
    model: OpenAIGPTLMHeadModel,
    prompts: list[Prompt],
    settings: GenerationConfig,
    tokenizer: Tokenizer | None,
    extras: Extras,
) -> tuple[Decoder, list[Prompt], GenerationConfig, SamplingParams]:
    """Return the model, prompts and settings as decoding and beam search take them.

    Raises:
        ValueError: stop strings without a tokenizer, or that no text of it holds.
    """
    K, each, V = settings.num_beams, settings.num_return_sequences, model.config.vocab_size
    if settings.stop_strings:
        if tokenizer is None:
            raise ValueError(f"stop_strings is {settings.stop_strings!r}, which needs a tokenizer")
        stops = StopStrings.build(tokenizer, settings.stop_strings, V)
        extras = dataclasses.replace(extras, stop_strings=stops)
    decoder = Decoder.prepare(model, len(prompts) * max(K, each))
    prompts, settings = decoder.pad(prompts, settings)
    seeds = settings.seeds(len(prompts))  # of a search there is one
    sampling = SamplingParams.build(settings, V, seeds[::each] if K > 1 else seeds, extras)
    return decoder, prompts, settings, sampling
