"""Many prompts: continued in batches of like lengths, each as if it were alone."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from gpt1_jax.checks import is_integer, wrong
from gpt1_jax.generation.api import STEPS_PER_CALL, GenerateOutput, prepare, run
from gpt1_jax.generation.prompts import Prompt, append_new_tokens, bucket, most_slots, pieces
from gpt1_jax.generation_config import GenerationConfig, GenerationConfigLike
from gpt1_jax.model import OpenAIGPTLMHeadModel
from gpt1_jax.text.tokenizer import Tokenizer

# Prompts are sorted by length within so many batches: enough that those of a batch are alike, few
# enough that the texts of the first prompts come soon.
SORTED = 16
# What the caches of a batch may take by default, and how many prompts it may have. On two cores, 8,
# 16, 32 and 64 rows write 181, 231, 255 and 260 tokens a second at full size, and 7400, 7900, 7900
# and 9700 of the demo's; 128 no more.
CACHE_BYTES, SIZES = 1 << 30, (8, 16, 32, 64)
# By these figures a step takes as long as so many further rows do, besides its own. Reading a token
# of a prompt takes a part of what writing one does.
STEP_COST, READ_COST = 4.0, 0.25

T = TypeVar("T")


def generate_batches(
    model: OpenAIGPTLMHeadModel,
    prompts: Sequence[Sequence[int]],
    settings: GenerationConfigLike | None = None,
    *,
    batch_size: int | None = None,
    tokenizer: Tokenizer | None = None,
    token_type_ids: Sequence[Sequence[int]] | None = None,
    new_token_type_id: int | Sequence[int | None] | None = None,
    stop_in_prompt: bool = True,
) -> Iterator[tuple[int, GenerateOutput]]:
    """Continue many prompts, and yield the texts of each when its batch is done.

    They are what ``generate`` returns for the prompt alone, whatever the batches (in half
    precision, but for rounding: see there); prompt i draws with
    ``seed + i * num_return_sequences``, or with ``seed[i]``.

    Args:
        model: a language model.
        prompts: token ids, of any lengths.
        settings: how to choose tokens, as the ``generation_config`` of ``generate``.
        batch_size: how many prompts to continue at once, at most; by default
            ``default_batch_size``. Each takes memory for ``num_beams`` or
            ``num_return_sequences`` texts.
        tokenizer: needed for ``stop_strings``.
        token_type_ids: for each prompt the types of its tokens, as of ``generate``.
        new_token_type_id: the type of the new tokens, or one a prompt, as of ``generate``.
        stop_in_prompt: whether a stop string may begin in the prompt, as transformers has it.

    Yields:
        The number of a prompt, and its texts as lists of rows without padding. The longer of the
        prompts of 16 batches come first.

    Raises:
        ValueError: what ``generate`` raises, and a ``batch_size`` below 1; at the call and not at
            the first text.
    """
    if batch_size is not None and (not is_integer(batch_size) or batch_size < 1):
        raise wrong("batch_size", batch_size, "an integer, at least 1")
    rows, _, _ = prepare(
        model,
        list(prompts),
        None,
        settings,
        {},
        token_type_ids=token_type_ids,
        new_token_type_id=new_token_type_id,
    )
    full = model.generation_config.updated(settings).for_model(model.config)
    if full.stop_strings and tokenizer is None:
        raise ValueError(f"stop_strings is {full.stop_strings!r}, which needs a tokenizer")
    seeds = full.seeds(len(rows))[:: full.num_return_sequences]
    rows = [row._replace(hidden=not stop_in_prompt) for row in rows]
    lengths = [len(row.ids) for row in rows]
    if batch_size is None:
        batch_size = default_batch_size(model, full, lengths)
    size = _even(batch_size, len(rows))
    # Limits that depend on the length of a prompt may make many small batches.
    many_limits = full.max_length is not None or full.min_length > 0
    own_settings = {n: full.for_prompts(model.config, n) for n in set(lengths)}

    def texts() -> Iterator[tuple[int, GenerateOutput]]:
        for batch in _batches(lengths, size, own_settings):
            # One that is not full is filled up: a few rows more cost less than a compilation.
            rows_read = min(size, 1 << (len(batch) - 1).bit_length()) if many_limits else size
            filled = batch + batch[-1:] * (rows_read - len(batch))
            own = own_settings[lengths[batch[0]]]
            if own.do_sample:
                own = dataclasses.replace(own, seed=[int(seeds[i]) for i in filled])
            outputs = _continue(model, [rows[i] for i in filled], own, tokenizer)
            yield from zip(batch, outputs, strict=False)

    return texts()


def default_batch_size(
    model: OpenAIGPTLMHeadModel, settings: GenerationConfig, lengths: Sequence[int]
) -> int:
    """Return how many prompts to continue at once: 8 to 64, whichever should take the least time.

    More share the reading of the weights, but are padded to the longest of them; and the caches of
    a batch may take 1 GB.

    Args:
        model: a language model.
        settings: how many texts a prompt has, and how many new tokens; full.
        lengths: tokens of each prompt.
    """
    config, order = model.config, sorted(lengths, reverse=True)
    new = settings.for_prompts(config, order[0]).max_new_tokens
    slots = min(bucket(order[0] + new), most_slots(config.n_positions))
    beams = settings.num_beams  # whose caches are copied when they change places
    texts = settings.num_return_sequences if beams == 1 else 2 * beams
    text_bytes = 2 * config.n_layer * config.n_embd * slots * model.dtype.itemsize
    most = max(1, CACHE_BYTES // (text_bytes * texts))

    def cost(size: int) -> float:
        """In the time that a further row adds to a step."""
        size = _even(size, len(order))
        rows = size * texts
        widths = [pieces(longest - 1, rows) for longest in order[::size]]
        return sum(rows * (READ_COST * width + new) + STEP_COST * new for width in widths)

    return min((min(size, most) for size in SIZES), key=cost)


def _even(size: int, count: int) -> int:
    """Return the size of as many batches, all alike, or as near as can be."""
    return math.ceil(count / math.ceil(count / size))


def _batches(
    lengths: Sequence[int], size: int, settings: Mapping[int, GenerationConfig]
) -> Iterator[list[int]]:
    """Yield the numbers of prompts of so many tokens and like settings, ``size`` at a time.

    The numbers of new tokens depend on a prompt's length where max_length limits them.
    """
    for first in range(0, len(lengths), SORTED * size):
        numbers = range(len(lengths))[first : first + SORTED * size]
        # The longest first: if memory does not suffice for it, that shows at once.
        order = sorted(numbers, key=lambda i: -lengths[i])
        for _, group in itertools.groupby(order, lambda i: settings[lengths[i]]):
            alike = list(group)
            for begin in range(0, len(alike), size):
                yield alike[begin : begin + size]


def _continue(
    model: OpenAIGPTLMHeadModel,
    prompts: list[Prompt],
    settings: GenerationConfig,
    tokenizer: Tokenizer | None,
) -> Iterator[GenerateOutput]:
    """Yield the texts of each prompt of a batch."""
    texts = run(model, prompts, settings, tokenizer, steps=STEPS_PER_CALL)
    progress, totals = texts.progress, texts.sequences_scores
    each = settings.num_return_sequences
    rows = [prompt.ids for prompt in prompts]
    sequences = append_new_tokens(rows, None, progress.tokens, progress.lengths)
    for i in range(len(rows)):
        own = slice(i * each, (i + 1) * each)
        lengths = progress.lengths[own]
        yield GenerateOutput(
            sequences=sequences[own],
            transition_scores=_cut(progress.scores[own], lengths),
            log_probs=_cut(progress.log_probs[own], lengths),
            sequences_scores=None if totals is None else totals[own],
        )


def _cut(rows: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]


def reorder(numbered: Iterable[tuple[int, T]]) -> Iterator[T]:
    """Yield items that are numbered from 0 in that order, as soon as those before are there."""
    waiting: dict[int, T] = {}
    due = 0
    for number, item in numbered:
        waiting[number] = item
        while due in waiting:
            yield waiting.pop(due)
            due += 1
