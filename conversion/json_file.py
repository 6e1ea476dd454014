"""JSON that a user wrote: what Python's own parser passes over, or fails at oddly, is one error."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

_SHORT = 500  # characters that an error quotes of a value


def read_json(path: Path, *, constants: bool = True) -> Any:
    """Return what a JSON file holds; see ``parse_json``.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: as ``parse_json``; the message begins with the file.
    """
    try:
        return parse_json(path.read_bytes(), constants=constants)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path.parent} has no {path.name}") from None
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None


def parse_json(text: str | bytes, *, constants: bool = True) -> Any:
    """Return what a JSON text holds.

    Args:
        text: bytes are UTF-8, with or without a byte-order mark, or UTF-16 or UTF-32.
        constants: whether NaN and Infinity may stand in it, which Python writes but JSON lacks.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or has a number of too many digits or a
            key twice. The message is a predicate, for the name of the text to stand before it.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text))
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=None if constants else _refuse
        )
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in error.doc.strip() else ""
        raise ValueError(f"is not JSON ({error.msg}, {line}character {error.colno})") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"is not JSON (byte {error.start + 1} is not {error.encoding.upper()})"
        ) from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except _RefusedError:
        raise
    except ValueError:  # of int: Python reads no integer of more than 4300 digits
        raise ValueError("contains a number of too many digits") from None


def short(value: Any) -> str:
    """Return a value from a file as an error shows it: its repr, cut where it is long."""
    try:
        text = repr(value)
    except RecursionError:
        return f"a {type(value).__name__} that is nested too deeply"
    return _cut(text)


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error, which may quote what it read, or its class."""
    return _cut(next(iter(str(error).splitlines()), "") or type(error).__name__)


def _cut(text: str) -> str:
    return text if len(text) <= _SHORT else f"{text[:_SHORT]} ... ({len(text)} characters)"


class _RefusedError(ValueError):
    """Something that Python reads, and that is refused all the same."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise _RefusedError(f"has the key {short(name)} more than once")
    return found


def _refuse(name: str) -> None:
    raise _RefusedError(f"contains {name}, which JSON does not allow")
