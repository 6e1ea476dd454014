"""Arguments that several commands take."""

from typing import Annotated, Literal

import tyro

DType = Literal["float32", "bfloat16", "float16"]
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
