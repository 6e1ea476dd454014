"""What a device starts one after another in a compiled program, as XLA's text of it tells.

On a GPU each of them is a kernel, or a copy, that is launched; a TPU runs them as steps of one
program. A program of many short ones is slower than its bytes and operations suggest.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from gpt1_jax.estimate.collectives import BITS

# Operations that only name, group or order what others have computed.
FREE = {"add-dependency", "after-all", "bitcast", "constant", "domain", "get-tuple-element"}
FREE |= {"opt-barrier", "parameter", "partition-id", "replica-id", "tuple"}
# Custom calls that TPUs' compiler leaves in the text, and that compute nothing.
FREE_TARGETS = {"AssumeGatherIndicesInBound", "ConcatBitcast"}
KINDS = {"fusion": "fusions", "custom-call": "custom_calls", "copy": "copies", "slice": "copies"}
SLICES = {"dynamic-slice", "gather", "slice"}
UPDATE = "dynamic-update-slice"

_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) .*\{$")
_INSTRUCTION = re.compile(
    r"\s+(?P<root>ROOT )?%?(?P<name>[\w.-]+) = (?P<type>.*?) (?P<kind>[a-z][a-z0-9-]*)\("
    r"(?P<operands>.*?)\)(?=,|$)(?P<attributes>.*)"
)
_OPERAND = re.compile(r"%([\w.-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body)=%?([\w.-]+)")
_BRANCHES = re.compile(
    r"\bbranch_computations=\{([^}]*)\}|\b(?:true|false)_computation=%?([\w.-]+)"
)
_TARGET = re.compile(r'\bcustom_call_target="([^"]*)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"([0-9]+)"')
_ARRAY = re.compile(r"(?P<type>[a-z][a-z0-9]*)\[(?P<sizes>[0-9,]*)\](?P<layout>\{[^}]*\})?")


@dataclasses.dataclass(frozen=True)
class Launches:
    """What one call of a program starts on a device.

    Attributes:
        fusions: operations that XLA has merged into one.
        custom_calls: of a library, such as cuDNN.
        copies: of an array or of a slice of it.
        others: any other operation that runs by itself, such as a convolution, a sort or an
            all-reduce.
        bytes: of the operands and the results of all of these, together. Arrays that a TPU's
            compiler keeps on the chip count nothing. An operand from which only slices are taken,
            and an array that is updated in place, count as much as the slices; other operands
            count whole, even where a mask leaves most of them unread, and none is taken to come
            from a cache of the hardware.
    """

    fusions: int = 0
    custom_calls: int = 0
    copies: int = 0
    others: int = 0
    bytes: int = 0

    @property
    def total(self) -> int:
        """All that is started."""
        return self.fusions + self.custom_calls + self.copies + self.others

    def __add__(self, other: "Launches") -> "Launches":
        """Return what both start."""
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Launches(*(a + b for a, b in zip(mine, theirs, strict=True)))

    def __mul__(self, times: int) -> "Launches":
        """Return what is started by so many calls."""
        return Launches(*(each * times for each in dataclasses.astuple(self)))


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """A line of a computation; ``attributes`` is what follows the operands."""

    name: str
    type: str
    kind: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @property
    def called(self) -> str | None:
        """The computation that it runs, if it is but one."""
        match = _CALLED.search(self.attributes)
        return None if match is None else match[1]

    @property
    def run_inside(self) -> list[str]:
        """The computations, one or several to choose from, that it runs as they stand."""
        if self.kind == "conditional":
            found = (several or one for several, one in _BRANCHES.findall(self.attributes))
            return [name.strip().lstrip("%") for names in found for name in names.split(",")]
        if self.kind in ("async", "call", "while") and self.called is not None:
            return [self.called]
        return []

    @property
    def trips(self) -> int:
        """How often a loop runs its body; 1 for all else, and where it is not known."""
        match = _TRIPS.search(self.attributes)
        return 1 if match is None else int(match[1])


Computation = dict[str, _Instruction]
Computations = dict[str, Computation]


def launches(text: str) -> Launches:
    """Return what one call of a program starts on a device.

    A loop's body counts as often as it runs where the text tells that, else once. Of branches that
    are chosen at run time, the largest counts. An operation that is started and awaited apart
    ("-start", "-done") counts once, and a command buffer counts as all that is in it.

    Args:
        text: of a compiled program.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations, entry = _parse(text)
    return _count(computations, computations[entry])


def written_arrays(text: str) -> set[tuple[str, tuple[int, ...]]]:
    """Return the type and the sizes, such as ("f32", (8, 4)), of all that is written to a memory.

    What stays within one fusion is not among them: it is in registers at most.

    Args:
        text: of a compiled program.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations, entry = _parse(text)
    return {
        (array["type"], tuple(int(size) for size in array["sizes"].split(",") if size))
        for one in _started(computations, computations[entry])
        for array in _ARRAY.finditer(one.type)
    }


def _parse(text: str) -> tuple[Computations, str]:
    """Return all computations by name, and the name of the one that is the program."""
    computations: Computations = {}
    entry, current = None, None
    for line in text.splitlines():
        if current is None:
            match = _COMPUTATION.match(line)
            if match is not None:
                current = computations.setdefault(match["name"], {})
                entry = match["name"] if match["entry"] else entry
        elif line.startswith("}"):
            current = None
        elif (match := _INSTRUCTION.match(line)) is not None:
            operands = tuple(_OPERAND.findall(match["operands"]))
            if match["kind"] == "parameter":
                operands = (match["operands"],)  # its number
            root = match["root"] is not None
            current[match["name"]] = _Instruction(
                match["name"], match["type"], match["kind"], operands, match["attributes"], root
            )
    if entry is None:
        raise ValueError("expected the text of a compiled program, but it has no ENTRY")
    return computations, entry


def _count(computations: Computations, body: Computation) -> Launches:
    found = Launches()
    for one in map(functools.partial(_complete, body), body.values()):
        if one is None:
            continue
        inner = [_count(computations, computations[name]) for name in one.run_inside]
        if inner:
            found += max(inner, key=lambda each: (each.total, each.bytes)) * one.trips
            continue
        kind = KINDS.get(one.kind, "others")
        found += Launches(**{kind: 1, "bytes": _moved(computations, body, one)})
    return found


def _started(computations: Computations, body: Computation) -> Iterator[_Instruction]:
    """Yield all that is started, wherever it stands."""
    for one in map(functools.partial(_complete, body), body.values()):
        if one is not None:
            for name in one.run_inside:
                yield from _started(computations, computations[name])
            if not one.run_inside:
                yield one


def _complete(body: Computation, one: _Instruction) -> _Instruction | None:
    """Return an instruction that starts something, None for the others.

    What is started and awaited apart becomes one instruction, in the place of the latter.
    """
    if one.kind in FREE or one.kind.endswith(("-start", "-update")):
        return None
    if one.kind.endswith("-done"):
        start = body[one.operands[0]]
        while start.kind.endswith("-update"):
            start = body[start.operands[0]]
        if not start.kind.endswith("-start"):  # a send and its like, which count there
            return None
        kind = start.kind.removesuffix("-start")
        one = dataclasses.replace(start, kind=kind, type=one.type)
    target = _TARGET.search(one.attributes)
    return None if target is not None and target[1] in FREE_TARGETS else one


def _moved(computations: Computations, body: Computation, one: _Instruction) -> int:
    """Bytes that an instruction reads and writes in the device's memory."""
    read = 0
    for place, name in enumerate(one.operands):
        whole = _size(body[name].type)
        part = _part_of_operand(computations, one, place)
        read += whole if part is None else min(whole, part)
    return read + _written(computations, body, one)


def _part_of_operand(computations: Computations, one: _Instruction, place: int) -> int | None:
    """Bytes of an operand that are read, None for all of it."""
    if place == 0 and one.kind in SLICES:
        return _size(one.type, on_chip=True)
    if place == 0 and one.kind == UPDATE:
        return 0
    if one.kind != "fusion" or one.called is None:
        return None
    body = computations[one.called]
    parameter = next(
        each for each in body.values() if (each.kind, each.operands) == ("parameter", (f"{place}",))
    )
    return _part_of_value(computations, body, parameter.name)


def _part_of_value(computations: Computations, body: Computation, name: str) -> int | None:
    """Bytes of a value that are used in a fused computation, None for all of it."""
    outputs = _outputs(body)
    if name in outputs:
        return None
    found = 0
    for user in body.values():
        for place in (i for i, operand in enumerate(user.operands) if operand == name):
            if user.kind == "bitcast":
                part = _part_of_value(computations, body, user.name)
            elif user.kind == UPDATE and user.name not in outputs:
                part = None  # a new array, not the old one in place
            else:
                part = _part_of_operand(computations, user, place)
            if part is None:
                return None
            found += part
    return found


def _written(computations: Computations, body: Computation, one: _Instruction) -> int:
    """Bytes of the results; of an array that is updated in place, those of the update."""
    if one.kind == UPDATE:
        return min(_size(one.type), _size(body[one.operands[1]].type, on_chip=True))
    if one.kind != "fusion" or one.called is None:
        return _size(one.type)
    inner = computations[one.called]
    arrays = [array[0] for array in _ARRAY.finditer(one.type)]
    outputs = _outputs(inner)
    if len(arrays) != len(outputs):  # an operation with several results, as of an argmax
        return _size(one.type)
    found = 0
    for array, name in zip(arrays, outputs, strict=True):
        size = _size(array)
        if inner[name].kind == UPDATE:
            size = min(size, _size(inner[inner[name].operands[1]].type, on_chip=True))
        found += size
    return found


def _outputs(body: Computation) -> list[str]:
    """Return the values that a fused computation returns, as they are before they are renamed."""
    (root,) = (each for each in body.values() if each.root)
    found = []
    for name in root.operands if root.kind == "tuple" else (root.name,):
        while body[name].kind == "bitcast":
            (name,) = body[name].operands
        found.append(name)
    return found


def _size(shape: str, *, on_chip: bool = False) -> int:
    """Bytes of an array, or of several, without those on the chip unless they are asked for."""
    return sum(
        math.prod(int(size) for size in array["sizes"].split(",") if size)
        * BITS.get(array["type"], 8)
        // 8
        for array in _ARRAY.finditer(shape)
        if on_chip or "S(" not in (array["layout"] or "")
    )
