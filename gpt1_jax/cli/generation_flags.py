"""The fields of ``GenerationConfig`` as flags of the command line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Required, TypedDict, TypeVar

import tyro

from gpt1_jax.generation_config import GenerationConfig, read_generation_config

MAX_NEW_TOKENS = 40  # where neither the flags nor the checkpoint say
Value = TypeVar("Value")


def _read_ids(words: list[str]) -> tuple[int, ...]:
    return () if words == ["None"] else tuple(map(int, words[0].split(",")))


# A flag that may be left out, of which tyro need not say so.
Flag = Annotated[Value, tyro.conf.arg(help_behavior_hint="")]
Ids = Annotated[
    tuple[int, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="ID,ID,...",
        instance_from_str=_read_ids,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda ids: [",".join(map(str, ids))],
    ),
]
# One value a flag: a flag that took several words could take a prompt for one of them. Such a flag
# is empty, not missing, where it is not given.
Repeated = Required[tyro.conf.UseAppendAction[tuple[Value, ...]]]


class LengthFlags(TypedDict, total=False):
    """Flags for when a text ends.

    Attributes:
        max_new_tokens: how many tokens to add at most; 40 by default.
        min_new_tokens: add no end token before so many.
        eos_token_id: tokens that end a text; None for none. By default those of the model.
        stop_strings: a text ends with the token that completes this string in the printed text,
            which is lower-case and has spaces around punctuation.
        forced_eos_token_id: tokens of which one is the last if max-new-tokens is reached.
        pad_token_id: what fills up a batch after the end of a text; never printed.
        sliding_window: where a text uses up the model's positions, forget all but its last so many
            tokens, and go on; otherwise a text that might is an error.
        prompt_lookup_num_tokens: read so many tokens at once, guessed from what the text holds
            already: in float32 the same text, faster if it repeats itself.
    """

    max_new_tokens: Flag[int]
    min_new_tokens: Flag[int]
    eos_token_id: Flag[Ids]
    stop_strings: Repeated[str]
    forced_eos_token_id: Flag[Ids]
    pad_token_id: Flag[int | None]
    sliding_window: Flag[int | None]
    prompt_lookup_num_tokens: Flag[int | None]


class SamplingFlags(TypedDict, total=False):
    """Flags for draws.

    Attributes:
        do_sample: draw tokens instead of taking the likeliest.
        temperature: below 1 for likelier tokens, above 1 for more surprising ones.
        top_k: draw from so many likeliest tokens.
        top_p: draw from the likeliest tokens that together have this probability.
        min_p: draw from the tokens at least so likely relative to the likeliest.
        typical_p: draw from the tokens that are about as surprising as is to be expected and that
            together have this probability.
        seed: of the draws, 0 by default. Text n, counted from 0 over all prompts, draws with
            seed + n, whatever the batches.
        num_return_sequences: texts for each prompt: draws, or the best beams.
    """

    do_sample: Flag[bool]
    temperature: Flag[float]
    top_k: Flag[int | None]
    top_p: Flag[float]
    min_p: Flag[float]
    typical_p: Flag[float]
    seed: Flag[int]
    num_return_sequences: Flag[int]


class BeamFlags(TypedDict, total=False):
    """Flags for beam search.

    Attributes:
        num_beams: follow so many texts at once, and keep the likeliest.
        length_penalty: a text's score is its log-probability over its number of new tokens to this
            power; 1 by default.
        early_stopping: stop when num-beams texts have ended (True), when a running one is unlikely
            to become better (False, the default), or when none can (never).
    """

    num_beams: Flag[int]
    length_penalty: Flag[float]
    early_stopping: Flag[bool | Literal["never"]]


class ConstraintFlags(TypedDict, total=False):
    """Flags for constraints.

    Attributes:
        repetition_penalty: above 1 for fewer tokens that the text holds already.
        no_repeat_ngram_size: no sequence of so many tokens twice.
        bad_words_ids: a sequence of tokens that is never completed; None for none.
        suppress_tokens: tokens that are never chosen.
        forced_bos_token_id: the token that follows a prompt of one token.
    """

    repetition_penalty: Flag[float]
    no_repeat_ngram_size: Flag[int]
    bad_words_ids: Repeated[Ids]
    suppress_tokens: Flag[Ids]
    forced_bos_token_id: Flag[int | None]


def read_settings(folder: Path, *groups: Mapping[str, Any]) -> GenerationConfig:
    """Return what the flags say, else the checkpoint's ``generation_config.json``, else defaults.

    Args:
        folder: of the checkpoint.
        *groups: flags.

    Raises:
        ValueError: a setting is wrong, or the file.
    """
    given = {name: value for flags in groups for name, value in flags.items()}
    for name in ("stop_strings", "bad_words_ids"):
        if not given[name]:
            del given[name]
    if given.get("bad_words_ids") == ((),):
        given["bad_words_ids"] = ()  # None, in place of what the checkpoint says
    own = read_generation_config(folder)
    if own.get("max_new_tokens") is None and own.get("max_length") is None:
        given.setdefault("max_new_tokens", MAX_NEW_TOKENS)
    return GenerationConfig.from_pretrained(folder, **given)
