"""Text while it is being decoded."""

import itertools
from collections.abc import Iterator, Mapping

import numpy as np

from gpt1_jax.checks import is_integer, wrong
from gpt1_jax.generation.api import prepare, progress_of
from gpt1_jax.generation_config import GenerationConfigLike
from gpt1_jax.model import OpenAIGPTLMHeadModel
from gpt1_jax.text.decoding import warn_of_unknown_ids
from gpt1_jax.text.detokenize import detokenized, settled
from gpt1_jax.text.tokenizer import Tokenizer


def stream(
    model: OpenAIGPTLMHeadModel,
    tokenizer: Tokenizer,
    prompt: str,
    generation_config: GenerationConfigLike | None = None,
    *,
    steps: int = 4,
    **changes: object,
) -> Iterator[str]:
    """Continue one text, and yield its new pieces as they come.

    A piece ends where a word does, so words of several tokens and characters of several bytes come
    whole. The pieces joined are what ``generate`` adds to the prompt, decoded.
    Closing the iterator stops the work.

    Args:
        model: a language model.
        tokenizer: the model's tokenizer.
        prompt: the beginning of the text.
        generation_config: how to choose tokens, as for ``generate``.
        steps: number of tokens that are decoded before the text is looked at. More are a little
            faster; with fewer, the pieces come sooner.
        **changes: fields of ``GenerationConfig`` that override those of ``generation_config``.

    Raises:
        ValueError: as ``generate``, at the call and not at the first piece; also for beams and
            several texts, whose pieces can change later.
    """
    given, rows = _start(model, tokenizer, prompt, generation_config, steps, changes)

    def texts() -> Iterator[tuple[str, int]]:
        for ids in rows:
            text = tokenizer.decode(ids)
            yield text, end_of_words(text)

    return _pieces(texts(), len(tokenizer.decode(given)))


def stream_detokenized(
    model: OpenAIGPTLMHeadModel,
    tokenizer: Tokenizer,
    prompt: str,
    generation_config: GenerationConfigLike | None = None,
    *,
    steps: int = 4,
    **changes: object,
) -> Iterator[str]:
    """Continue one text, and yield it from its beginning on, in pieces as they come.

    Joined, the pieces are ``Tokenizer.detokenize`` of what ``generate`` returns. A piece is held
    back until no further word can close up to it.

    Args:
        model: as for ``stream``.
        tokenizer: likewise.
        prompt: likewise.
        generation_config: likewise.
        steps: likewise.
        **changes: likewise.

    Raises:
        ValueError: as ``stream``.
    """
    given, rows = _start(model, tokenizer, prompt, generation_config, steps, changes)

    def texts() -> Iterator[tuple[str, int]]:
        for ids in itertools.chain([given], rows):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            yield detokenized(text), len(settled(text))

    return _pieces(texts(), 0)


def _start(
    model: OpenAIGPTLMHeadModel,
    tokenizer: Tokenizer,
    prompt: str,
    generation_config: GenerationConfigLike | None,
    steps: int,
    changes: Mapping[str, object],
) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """Return the ids of a prompt, and an iterator over them with those that are new so far."""
    prompts, _, settings = prepare(
        model, [tokenizer.encode_prompt(prompt)], None, generation_config, changes
    )
    for name in ("num_beams", "num_return_sequences"):
        if getattr(settings, name) != 1:
            raise ValueError(f"{name} is {getattr(settings, name)}, but must be 1 to be streamed")
    if not is_integer(steps) or steps < 1:
        raise wrong("steps", steps, "an integer, at least 1")
    warn_of_unknown_ids(tokenizer, model.config.vocab_size)
    progress = progress_of(model, prompts, settings, tokenizer, steps=steps)
    given = np.asarray(prompts[0].ids)
    rows = (np.concatenate([given, so_far.tokens[0, : so_far.lengths[0]]]) for so_far in progress)
    return given, rows


def _pieces(texts: Iterator[tuple[str, int]], printed: int) -> Iterator[str]:
    """Yield the new pieces of a text that grows.

    Args:
        texts: what there is of it so far, and where the part ends that will not change.
        printed: where the first piece begins.
    """
    text = ""
    for text, end in texts:
        if end > printed:
            yield text[printed:end]
            printed = end
    if text[printed:]:
        yield text[printed:]


def end_of_words(text: str) -> int:
    """Return where the last word that no further token can change ends."""
    return max(text.rfind(" "), text.rfind("\n"), 0)
