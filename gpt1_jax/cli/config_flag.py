"""The flag ``--config`` of the training commands: a file of flags."""

import argparse
import dataclasses
import itertools
import json as json_format
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Literal, get_args, get_origin, get_type_hints

from gpt1_jax._conversion import json_file
from gpt1_jax.cli.help import Flag

POSITIONAL = ("texts", "files")
CONFIG = Flag(
    name="config",
    metavar="FILE",
    description='JSON file with an object of flags, such as {"batch_size": 8}; flags of the '
    "command line win.",
    section="Input",
)


def with_config(arguments: Sequence[str], function: Callable[..., None]) -> list[str]:
    """Return a command line with the flags of its --config file in place of that flag.

    They come first, so that flags of the command line win.

    Args:
        arguments: command and flags, as a user types them.
        function: the function of the command, whose parameters are its flags.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a JSON object, has a key that is not a flag of the command, or
            a value that the flag does not take.
    """
    command, *words = arguments
    parser = argparse.ArgumentParser(prog=f"gpt1 {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path, metavar="FILE")
    found, given = parser.parse_known_args(words)
    path = found.config
    if path is None:
        return list(arguments)
    if not path.is_file():
        raise FileNotFoundError(f"--config {path}: the file does not exist")
    fields = json_file.read_json(path)
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold a JSON object of flags")
    kinds = _kinds(function)
    if unknown := sorted(fields.keys() - kinds.keys()):
        right = ", ".join(sorted(kinds))
        raise ValueError(f"{path}: gpt1 {command} has no {unknown[0]!r}; it has {right}")
    read_files, read_flags = [], []
    for name, value in fields.items():
        try:
            read = _words(name, value, kinds[name])
        except ValueError as error:
            raise ValueError(f"{path}: {name} is {json_format.dumps(value)}, {error}") from None
        (read_files if name in POSITIONAL else read_flags).extend(read)
    files = list(itertools.takewhile(lambda word: not word.startswith("-"), given))
    return [command, *(files or read_files), *read_flags, *given[len(files) :]]


def _kinds(command: Callable[..., None]) -> dict[str, object]:
    """Return the types of a command's flags, by their names."""
    kinds = {}
    for name, kind in get_type_hints(command).items():
        kinds |= get_type_hints(kind) if dataclasses.is_dataclass(kind) else {name: kind}
    del kinds["return"]
    return kinds


def _words(name: str, value: object, kind: object) -> list[str]:
    """Return a value of a --config file as on the command line, the flag included.

    Args:
        name: the flag's.
        value: as JSON has it; None is None where the flag takes it, and else the flag's default.
        kind: the type of the flag.

    Raises:
        ValueError: another kind of value than the flag takes.
    """
    if value is None:
        kinds = get_args(kind)  # a choice that may be left out has no word for it, and no default
        is_choice = any(get_origin(each) is Literal for each in kinds)
        return [f"--{name}", "None"] if NoneType in kinds and not is_choice else []
    if isinstance(value, bool) != (kind is bool):
        raise ValueError(
            "but must be true or false" if kind is bool else "but the flag needs a value"
        )
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no_{name}"]
    if isinstance(value, Mapping | list) and get_origin(kind) is not tuple:
        raise ValueError("but must be a single value")
    if isinstance(value, Mapping):
        value = [f"{key}={item}" for key, item in value.items()]
    words = [str(item) for item in value] if isinstance(value, list) else [str(value)]
    return words if name in POSITIONAL else [f"--{name}", *words]
