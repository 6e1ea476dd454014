"""The fields of ``GenerationConfig`` as flags of the command line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Required, TypedDict, get_type_hints

import tyro

from gpt1_jax.cli.help import Fields
from gpt1_jax.generation_config import DEFAULTS, GenerationConfig


def _read_ids(words: list[str]) -> tuple[int, ...]:
    return () if words == ["None"] else tuple(map(int, words[0].split(",")))


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
# The types of flags, where these are not the fields' own.
TYPES = get_type_hints(GenerationConfig) | {
    "max_new_tokens": int | None,
    "eos_token_id": Ids,
    "forced_eos_token_id": Ids,
    "suppress_tokens": Ids,
    "seed": int,
}
# One value a flag: a flag that took several words could take a prompt for one of them. Such a flag
# is empty, not missing, where it is not given.
REPEATED = {"stop_strings": str, "bad_words_ids": Ids}
GROUPS = {
    "Stopping": """max_new_tokens max_length min_new_tokens min_length eos_token_id stop_strings
        forced_eos_token_id pad_token_id sliding_window prompt_lookup_num_tokens""",
    "Sampling": "do_sample temperature top_k top_p min_p typical_p seed num_return_sequences",
    "Beam search": "num_beams length_penalty early_stopping",
    "Constraints": """repetition_penalty no_repeat_ngram_size bad_words_ids suppress_tokens
        forced_bos_token_id""",
}


def kinds_of(group: str) -> dict[str, object]:
    """Return the annotations of the flags of a group, by their names."""
    kinds: dict[str, object] = {}
    for name in GROUPS[group].split():
        if name in REPEATED:
            kinds[name] = Required[tyro.conf.UseAppendAction[tuple[REPEATED[name], ...]]]
        else:  # tyro need not say that the flag may be left out
            kinds[name] = Annotated[TYPES[name], tyro.conf.arg(help_behavior_hint="")]
    return kinds


def flags(group: str) -> object:
    """Return what tyro makes the flags of a group from: a dict of those that are given."""
    kinds = kinds_of(group)
    made = TypedDict(group, kinds, total=False)  # pyright: ignore[reportArgumentType]
    made.__doc__ = GenerationConfig.__doc__
    return tyro.conf.arg(constructor=made)


def fields(group: str) -> Fields:
    """Return what the help makes the flags of a group from."""
    return Fields(group, kinds_of(group), DEFAULTS, GenerationConfig)


LengthFlags = Annotated[
    Mapping[str, object], tyro.conf.OmitArgPrefixes, flags("Stopping"), fields("Stopping")
]
SamplingFlags = Annotated[
    Mapping[str, object], tyro.conf.OmitArgPrefixes, flags("Sampling"), fields("Sampling")
]
BeamFlags = Annotated[
    Mapping[str, object], tyro.conf.OmitArgPrefixes, flags("Beam search"), fields("Beam search")
]
ConstraintFlags = Annotated[
    Mapping[str, object], tyro.conf.OmitArgPrefixes, flags("Constraints"), fields("Constraints")
]


def read_settings(folder: Path, *groups: Mapping[str, object]) -> GenerationConfig:
    """Return what the flags say, else the checkpoint's files, else defaults.

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
    return GenerationConfig.from_pretrained(folder, **given)
