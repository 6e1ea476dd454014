"""Files that are damaged at random, and what reading one may do."""

import json
import random
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")

# Values of every kind that JSON has, the awkward ones of each.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 2**31, 10**9, 10**30, 0.5, 1.0, -0.0, 1e400),
    *("", "0", "true", "é", "</w>", "\x00", "\ud800", "x" * 10_000),
    *([], [None], [[]], {}, {"": 0}, list(range(5_000))),
)
ERRORS = (ValueError, FileNotFoundError, OSError, ImportError)
LONGEST = 4_000  # characters of an error


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Change a few bytes, or put in, take out, repeat or blank a part."""
    start, stop = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    if rng.random() < 0.5:  # near the beginning, where headers are
        start, stop = (min(i, len(data) - 1) % 200 for i in (start, stop))
        start, stop = min(start, stop), max(start, stop)
    part = data[start:stop]
    kind = rng.randrange(8)
    if kind == 0:
        return data[:start]
    if kind == 1:
        return data[:start] + data[stop:]
    if kind == 2:
        return data[:stop] + part[:64] + data[stop:]
    if kind == 3:
        return data[:start] + bytes(len(part)) + data[stop:]
    if kind == 4:
        return data[:start] + rng.randbytes(rng.randrange(1, 9)) + data[start:]
    if kind == 5:
        return data + rng.randbytes(rng.randrange(1, 65))
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        i = rng.randrange(len(data)) if kind == 6 else min(start, len(data) - 1)
        changed[i] ^= 1 << rng.randrange(8)
    return bytes(changed)


def mutate_json(rng: random.Random, data: bytes) -> bytes:
    """Change one value at random: another value, none, a key twice, or many brackets."""
    root = [json.loads(data)]
    holder: Any = root
    key: Any = 0
    while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.8:
        holder = holder[key]
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    kind = rng.randrange(8)
    if kind == 0 and holder is not root:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(("", "new", "n_layer", "é"))] = holder.pop(key)
    elif kind == 2:
        depth = rng.choice((2, 90, 300, 900, 990, 1_000, 100_000))
        holder[key] = "@"
        return json.dumps(root[0]).encode().replace(b'"@"', b"[" * depth + b"]" * depth, 1)
    elif kind == 3:
        holder[key] = "@"
        digits = b"9" * rng.choice((20, 400, 4_300, 4_301))
        return json.dumps(root[0]).encode().replace(b'"@"', digits, 1)
    elif kind == 4 and isinstance(holder, dict):
        twice = json.dumps(key) + ": 0, "
        text = json.dumps(root[0])
        return text.replace(json.dumps(key) + ":", twice + json.dumps(key) + ":", 1).encode()
    else:
        holder[key] = rng.choice(VALUES)
    return json.dumps(root[0]).encode()


def read_or_refuse(read: Callable[[], Result]) -> Result | None:
    """Return what ``read`` returns, or None where it raises an error that a user can read."""
    try:
        return read()
    except ERRORS as error:
        message = str(error)
    assert 0 < len(message) < LONGEST, message[:LONGEST]
    return None
