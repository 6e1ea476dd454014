"""Arguments that several commands take."""

import os
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

DType = Literal["float32", "bfloat16", "float16"]
Quantize = Annotated[Literal["int8"] | None, tyro.conf.arg(help_behavior_hint="")]
Model = Annotated[str, tyro.conf.arg(metavar="FOLDER|HUB-ID")]
MaybeModel = Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB-ID", help_behavior_hint="")]
MaybeCheckpoint = Annotated[MaybeModel, tyro.conf.Positional]


def only_one(checkpoint: str | None, model: str | None) -> str:
    """Return the checkpoint of a command that takes it as an argument or as --model.

    Raises:
        ValueError: neither or both are given.
    """
    given = [name for name in (checkpoint, model) if name is not None]
    if len(given) != 1:
        raise ValueError("give one checkpoint, as an argument or with --model")
    return given[0]


def _path(words: list[str]) -> Path:
    if not words[0]:
        raise ValueError("an empty path was given; '.' is the working folder")
    word = os.path.expanduser(words[0])  # noqa: PTH111  (pathlib's raises where there is no home)
    try:
        os.fsencode(word)
    except UnicodeEncodeError:  # the system's encoding is ASCII perhaps, and the name is UTF-8
        word = os.fsdecode(word.encode())
    return Path(word)


# tyro takes an empty path for the working folder, and a ``~`` that no shell replaced for a name.
PATHS = ConstructorRegistry()


@PATHS.primitive_rule
def _path_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    if info.type is not Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=_path,
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda value: [str(value)],
    )
