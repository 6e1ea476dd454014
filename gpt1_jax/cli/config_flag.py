"""The flag ``--config`` of the training commands: a file of flags."""

import argparse
import dataclasses
import itertools
import json as json_format
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from gpt1_jax._conversion import json_file

POSITIONAL = ("texts", "files")


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
        raise FileNotFoundError(f"--config {path}: there is no such file")
    fields = json_file.read_json(path)
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold a JSON object of flags")
    flags = _flags(function)
    if unknown := sorted(fields.keys() - flags.keys()):
        right = ", ".join(sorted(flags))
        raise ValueError(f"{path}: gpt1 {command} has no {unknown[0]!r}; it has {right}")
    read_files, read_flags = [], []
    for name, value in fields.items():
        try:
            spelled = _words(value, flags[name])
        except ValueError as error:
            raise ValueError(f"{path}: {name} is {json_format.dumps(value)}, {error}") from None
        if name in POSITIONAL:
            read_files += spelled or []
        elif isinstance(value, bool):
            read_flags.append(_flag(name if value else f"no_{name}"))
        elif spelled is not None:
            read_flags += [_flag(name), *spelled]
    files = list(itertools.takewhile(lambda word: not word.startswith("-"), given))
    return [command, *(files or read_files), *read_flags, *given[len(files) :]]


def _flags(command: Callable[..., None]) -> dict[str, Any]:
    """Return the types of a command's arguments, by their names."""
    types = {}
    for name, kind in get_type_hints(command).items():
        types |= get_type_hints(kind) if dataclasses.is_dataclass(kind) else {name: kind}
    del types["return"]
    return types


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _words(value: Any, kind: Any) -> list[str] | None:
    """Return a value of a --config file as on the command line; None to leave the flag out.

    Args:
        value: as JSON has it.
        kind: the type of the flag.

    Raises:
        ValueError: another kind of value than the flag takes.
    """
    if value is None:
        return ["None"] if type(None) in get_args(kind) else None
    if isinstance(value, bool) != (kind is bool):
        raise ValueError("but must be true or false" if kind is bool else "but is no switch")
    if isinstance(value, Mapping | list) and get_origin(kind) is not tuple:
        raise ValueError("but must be a single value")
    if isinstance(value, Mapping):
        return [f"{key}={item}" for key, item in value.items()]
    return list(map(str, value if isinstance(value, list) else [value]))
