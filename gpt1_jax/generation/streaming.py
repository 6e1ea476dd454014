"""Text while it is being decoded."""

from collections.abc import Iterator

import numpy as np

from gpt1_jax.checks import is_integer, wrong
from gpt1_jax.generation.api import prepare, progress_of
from gpt1_jax.generation_config import GenerationConfigLike
from gpt1_jax.model import OpenAIGPTLMHeadModel
from gpt1_jax.text.decoding import warn_of_unknown_ids
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

    def pieces() -> Iterator[str]:
        given = prompts[0].ids
        printed = len(tokenizer.decode(given))
        text = ""
        for so_far in progress:
            new = so_far.tokens[0, : so_far.lengths[0]]
            text = tokenizer.decode(np.concatenate([given, new]))
            whole = end_of_words(text)
            if whole > printed:
                yield text[printed:whole]
                printed = whole
        if text[printed:]:
            yield text[printed:]

    return pieces()


def end_of_words(text: str) -> int:
    """Return where the last word that no further token can change ends."""
    return max(text.rfind(" "), text.rfind("\n"), 0)
