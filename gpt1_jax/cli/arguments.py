"""Arguments that several commands take."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

DType = Literal["float32", "bfloat16", "float16"]
Quantize = Annotated[Literal["int8"] | None, tyro.conf.arg(help_behavior_hint="")]
Model = Annotated[str, tyro.conf.arg(metavar="FOLDER|HUB-ID")]
Adapter = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
MaybeModel = Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB-ID", help_behavior_hint="")]
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME...", help_behavior_hint="")]
MaybeQuoting = Annotated[Literal["csv", "none"] | None, tyro.conf.arg(help_behavior_hint="")]
Columns = Annotated[Names, tyro.conf.arg(metavar="ROLE=NAME...")]
Weights = Annotated[Names, tyro.conf.arg(metavar="balanced|NAME=NUMBER...")]
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


def columns_by_role(columns: Sequence[str]) -> dict[str, str]:
    """Return the names of columns by their roles, as --columns gives them.

    Raises:
        ValueError: one is not ROLE=NAME.
    """
    named = {}
    for pair in columns:
        role, _, name = pair.partition("=")
        if not role or not name:
            raise ValueError(f"--columns {pair}: must be ROLE=NAME, such as text=sentence")
        named[role] = name
    return named


def weights_by_class(words: Sequence[str]) -> dict[str, float] | Literal["balanced"] | None:
    """Return the weights of classes by their names, as --class-weights gives them; None for none.

    Raises:
        ValueError: one is not NAME=NUMBER.
    """
    if list(words) == ["balanced"]:
        return "balanced"
    weights = {}
    for pair in words:
        name, _, number = pair.rpartition("=")  # a name may have such a sign, a number has none
        try:
            weights[name] = float(number)
        except ValueError:
            name = ""
        if not name:
            raise ValueError(
                f"--class-weights {pair}: must be balanced, or NAME=NUMBER for each class, such as "
                "yes=2 no=1"
            )
    return weights or None


def _path(words: list[str]) -> Path:
    if not words[0]:
        raise ValueError("an empty path was given; '.' is the working folder")
    word = os.path.expanduser(words[0])  # noqa: PTH111  (pathlib's raises where there is no home)
    try:
        os.fsencode(word)
    except UnicodeEncodeError:  # the system's encoding is ASCII perhaps, and the name is UTF-8
        word = os.fsdecode(word.encode())
    return Path(word)


# How words of the command line become values, where tyro would do otherwise: it takes an empty path
# for the working folder, and a ``~`` that no shell replaced for a name.
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


@PATHS.primitive_rule
def _optional_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Give a value that may be left out its own metavar and errors, without tyro's None.

    The word None still stands for None, except among choices.
    """
    kinds = get_args(info.type)
    if get_origin(info.type) not in (Union, UnionType) or len(kinds) != 2 or NoneType not in kinds:
        return None
    (kind,) = (kind for kind in kinds if kind is not NoneType)
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kind, info.markers))
    if not isinstance(spec, PrimitiveConstructorSpec) or spec.nargs != 1:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=spec.metavar,
        instance_from_str=lambda words: (
            None if words == ["None"] and spec.choices is None else spec.instance_from_str(words)
        ),
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: (
            ["None"] if value is None else spec.str_from_instance(value)
        ),
        choices=spec.choices,
    )
