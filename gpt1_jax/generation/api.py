"""``generate``: prompts and settings in, texts out."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, overload

import numpy as np

from gpt1_jax.generation.beam import beam_search
from gpt1_jax.generation.decode import DecodeProgress, Decoder, decode
from gpt1_jax.generation.prompts import append_new_tokens, read_prompts
from gpt1_jax.generation.stop_strings import StopStrings
from gpt1_jax.generation_config import GenerationConfig
from gpt1_jax.model import OpenAIGPTLMHeadModel
from gpt1_jax.nn.validation import ArrayLike
from gpt1_jax.text.tokenizer import Tokenizer

# An array (batch, ...), or, for prompts of unequal lengths, a list of rows. A caller knows
# which it gets, so a union of the two would only be in the way.
Sequences = Any
DEFAULT = GenerationConfig()
STEPS_PER_CALL = 8  # tokens a compiled call where the host looks at the text in between


@dataclasses.dataclass(frozen=True)
class GenerateOutput:
    """What ``generate`` returns with ``return_dict=True``.

    Attributes:
        sequences: what it returns otherwise.
        scores: log-probability of each new token under the distribution it was chosen from, after
            all settings; float32, 0 for padding; for each row of ``sequences``, without padding
            where that is a list. As Hugging Face's normalised ``compute_transition_scores``. With
            beams, the terms of the beam's score, which are not normalised again.
        log_probs: the same under the model itself, whatever the settings.
        sequences_scores: (rows,) float32 with beams: the sum of a row's scores over its number of
            new tokens to the power length_penalty; None without. -1e9, as Hugging Face's, of an
            empty row in place of a text where fewer are possible than were asked for.
    """

    sequences: Sequences
    scores: Sequences
    log_probs: Sequences
    sequences_scores: np.ndarray | None = None


@overload
def generate(
    model: OpenAIGPTLMHeadModel,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None = None,
    generation_config: GenerationConfig | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    return_dict: Literal[False] = False,
    **changes: object,
) -> Sequences: ...


@overload
def generate(
    model: OpenAIGPTLMHeadModel,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None = None,
    generation_config: GenerationConfig | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    return_dict: Literal[True],
    **changes: object,
) -> GenerateOutput: ...


def generate(
    model: OpenAIGPTLMHeadModel,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None = None,
    generation_config: GenerationConfig | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    return_dict: bool = False,
    **changes: object,
) -> Sequences | GenerateOutput:
    """Continue each prompt.

    Every text is what it would be without the others. In float32, that is: a batch's products are
    rounded in another order, by 1e-6 or so, which no choice is likely to depend on. In bfloat16
    or float16 they differ by 1e-2, and now and then another token is chosen.

    Args:
        model: a language model.
        input_ids: (batch, T) prompts, or a list of prompts of any lengths.
        attention_mask: (batch, T), 0 where a prompt is padding, on either side.
        generation_config: how to choose tokens; by default greedily.
        tokenizer: needed for ``stop_strings``.
        return_dict: return the scores of the new tokens too.
        **changes: fields of ``GenerationConfig`` that override those of ``generation_config``.

    Returns:
        int32 (batch * num_return_sequences, T + new), the prompts as given and the new tokens;
        after the end of a text, padding. For prompts of unequal lengths a list of such rows, ending
        at their end. The texts of one prompt follow each other.

    Raises:
        ValueError: an empty prompt, ids out of range, settings that make no sense, or prompts too
            long for the model to continue by ``max_new_tokens``; before any work is done. Logits
            that are not finite, with the parameter that is not.
        TypeError: a setting that does not exist.
    """
    prompts, given, settings = prepare(model, input_ids, attention_mask, generation_config, changes)
    progress, sequences_scores = run(model, prompts, settings, tokenizer)
    sequences = append_new_tokens(prompts, given, progress.tokens, progress.lengths)
    if not return_dict:
        return sequences
    scores, log_probs = progress.scores, progress.log_probs
    if given is None:
        scores, log_probs = (
            [row[:length] for row, length in zip(rows, progress.lengths, strict=True)]
            for rows in (scores, log_probs)
        )
    return GenerateOutput(sequences, scores, log_probs, sequences_scores)


def prepare(
    model: OpenAIGPTLMHeadModel,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None,
    generation_config: GenerationConfig | None,
    changes: Mapping[str, object],
) -> tuple[list[np.ndarray], np.ndarray | None, GenerationConfig]:
    """Check what ``generate`` takes; return the prompts (``read_prompts``) and full settings."""
    if not isinstance(model, OpenAIGPTLMHeadModel):
        raise TypeError(f"the model is {type(model).__name__}, but must be OpenAIGPTLMHeadModel")
    if generation_config is not None and not isinstance(generation_config, GenerationConfig):
        kind = type(generation_config).__name__
        raise TypeError(f"generation_config is a {kind}, but must be a GenerationConfig")
    settings = dataclasses.replace(generation_config or DEFAULT, **changes)
    prompts, given = read_prompts(model.config.vocab_size, input_ids, attention_mask)
    settings = settings.for_model(model.config)
    settings.check_for(model.config, len(prompts), max(map(len, prompts)))
    return prompts, given, settings


def run(
    model: OpenAIGPTLMHeadModel,
    prompts: list[np.ndarray],
    settings: GenerationConfig,
    tokenizer: Tokenizer | None,
    steps: int | None = None,
) -> tuple[DecodeProgress, np.ndarray | None]:
    """Continue checked prompts to the end; return their texts, and with beams the texts' scores.

    Args:
        model: a language model.
        prompts: what ``prepare`` returned.
        settings: likewise.
        tokenizer: for stop strings.
        steps: tokens a compiled call, where an interruption is to be heard in between.
    """
    texts = len(prompts) * settings.num_return_sequences
    decoder = Decoder.prepare(model, max(texts, len(prompts) * settings.num_beams))
    prompts, settings = decoder.pad_to_mesh(prompts, settings)
    if settings.num_beams > 1:
        beams = beam_search(decoder, prompts, settings)
        return _first(beams.progress, texts), beams.scores[:texts]
    rows = [prompt for prompt in prompts for _ in range(settings.num_return_sequences)]
    ended = None
    if settings.stop_strings:
        if tokenizer is None:
            raise ValueError(f"stop_strings is {settings.stop_strings!r}, which needs a tokenizer")
        ended, steps = StopStrings(tokenizer, rows, settings.stop_strings), STEPS_PER_CALL
    seeds = settings.seeds(len(prompts))
    *_, last = decode(decoder, rows, settings, seeds, steps=steps, ended=ended)
    return _first(last, texts), None


def _first(progress: DecodeProgress, texts: int) -> DecodeProgress:
    return DecodeProgress(**{name: rows[:texts] for name, rows in vars(progress).items()})
