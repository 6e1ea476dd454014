"""Checks of settings: the type of a field says what its value must be, and the error repeats it.

Rules stand beside a type, ``Annotated[int | None, INTEGER, at_least(1)]``, and hold one after
another; a ``Literal`` is a rule of its own. None is right where the type admits it.
"""

import difflib
import functools
import sys
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from types import NoneType
from typing import Annotated, Any, NamedTuple, TypeGuard

import numpy as np


class Rule(NamedTuple):
    """What a value must be: in the words that end the error, and as a test of it."""

    right: str
    holds: Callable[[Any], bool]


def is_integer(value: object) -> TypeGuard[int]:
    """Return whether a value is an integer, of Python's or numpy's; True and False are not."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is an int or a float, and finite; True and False are not."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max  # an int may be beyond every float


def at_least(low: int) -> Rule:
    """Return the rule for values from ``low`` on."""
    return Rule(f"at least {low}", lambda value: value >= low)


def at_most(high: int) -> Rule:
    """Return the rule for values up to ``high``."""
    return Rule(f"at most {high}", lambda value: value <= high)


def one_of(choices: Sequence[object]) -> Rule:
    """Return the rule for a few values."""
    return Rule("one of " + ", ".join(map(repr, choices)), lambda value: value in choices)


INTEGER = Rule("an integer", is_integer)
NUMBER = Rule("a number", is_number)
BOOL = Rule("true or false", lambda value: isinstance(value, bool))

Count = Annotated[int, INTEGER, at_least(1)]
MaybeCount = Annotated[int | None, INTEGER, at_least(1)]
POSITIVE_INTEGER = Rule("a positive integer", lambda n: is_integer(n) and n >= 1)
PositiveInteger = Annotated[int, POSITIVE_INTEGER]
ABOVE_0 = Rule("a number above 0", lambda x: is_number(x) and x > 0)
Positive = Annotated[float, ABOVE_0]
MaybePositive = Annotated[float | None, ABOVE_0]
NotNegative = Annotated[float, Rule("a number, at least 0", lambda x: is_number(x) and x >= 0)]
DropoutRate = Annotated[
    float, Rule("a dropout rate in [0, 1)", lambda p: is_number(p) and 0 <= p < 1)
]
Switch = Annotated[bool, BOOL]


def short(value: object) -> str:
    """Return a value as an error shows it: its repr, cut where it is long."""
    from gpt1_jax._conversion import json_file

    return json_file.short(value)


def wrong(name: str, value: object, right: str) -> ValueError:
    """Return the error that a setting or an argument has a wrong value, and what would be right."""
    return ValueError(f"{name} is {short(value)}, but must be {right}")


def check(name: str, value: object, *rules: Rule) -> None:
    """Check a value by rules.

    Raises:
        ValueError: one does not hold; the message has the name, the value and the rule.
    """
    for rule in rules:
        if not rule.holds(value):
            raise wrong(name, value, rule.right)


def check_fields(settings: object, skip: Collection[str] = ()) -> None:
    """Check the fields of a dataclass by their types; numbers of numpy and JAX become Python's.

    Args:
        settings: the dataclass.
        skip: names of fields that may have any value.

    Raises:
        ValueError: a value is not what its type says; the message has both.
    """
    for name, (optional, rules) in _rules(type(settings)).items():
        if name in skip:
            continue
        value = getattr(settings, name)
        if getattr(value, "ndim", None) == 0:
            value = value.item()
            object.__setattr__(settings, name, value)
        if value is not None or not optional:
            check(name, value, *rules)


@functools.cache
def _rules(settings: type) -> dict[str, tuple[bool, list[Rule]]]:
    """Return of each field whether its type admits None, and the rules beside the type."""
    types = typing.get_type_hints(settings)
    found = {}
    for name, kind in typing.get_type_hints(settings, include_extras=True).items():
        rules = [note for note in getattr(kind, "__metadata__", ()) if isinstance(note, Rule)]
        members = typing.get_args(types[name])
        if typing.get_origin(types[name]) is typing.Literal:
            words = " or ".join(f'"{choice}"' for choice in members)
            rules.append(Rule(words, members.__contains__))
        if optional := NoneType in members:
            rules = [Rule(f"{rule.right}, or None", rule.holds) for rule in rules]
        if rules:
            found[name] = optional, rules
    return found


MOST_NAMES = 16  # that an error lists


class ForeignKeyword(NamedTuple):
    """A keyword of transformers that a function of this package does not have.

    Attributes:
        instead: what to write in its place, as the end of the error.
        accepted: values that ask for nothing but what happens anyway.
    """

    instead: str
    accepted: tuple[object, ...] = (None,)


def check_keywords(
    function: str,
    given: Mapping[str, Any],
    own: Collection[str],
    foreign: Mapping[str, ForeignKeyword],
) -> dict[str, Any]:
    """Return the keywords that a function was given, without those that change nothing.

    Args:
        function: what the error calls it.
        given: the keywords.
        own: the names of its arguments.
        foreign: transformers' keywords that are not among them.

    Raises:
        TypeError: keywords that the function does not have, each with what to write instead.
    """
    faults = []
    for name, value in given.items():
        if name in own:
            continue
        if name in foreign:
            # Arrays, which compare element by element, are of another type.
            if not any(
                type(value) is type(each) and value == each for each in foreign[name].accepted
            ):
                faults.append(f"{function} takes no {name}: {foreign[name].instead}")
        elif near := difflib.get_close_matches(name, own, n=1):
            faults.append(f"{function} takes no {name}: did you mean {near[0]}?")
        else:
            names = f"; its arguments are {', '.join(own)}" if len(own) <= MOST_NAMES else ""
            faults.append(f"{function} takes no {name}{names}")
    if faults:
        raise TypeError("\n".join(faults))
    return {name: value for name, value in given.items() if name in own}
