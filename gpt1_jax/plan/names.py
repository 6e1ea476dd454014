"""The names of the programs that are planned."""

from typing import Literal, get_args

Name = Literal["forward", "prefill", "decode", "train"]
NAMES: tuple[Name, ...] = get_args(Name)
