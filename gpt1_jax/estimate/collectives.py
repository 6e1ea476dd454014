"""What devices exchange in a compiled program, as XLA's text of it tells."""

import dataclasses
import math
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "bf16": 16, "f16": 16, "s16": 16, "u16": 16, "f32": 32, "s32": 32, "u32": 32}
BITS |= {"f64": 64, "s64": 64, "u64": 64}
# "-start" begins what "-done" ends: only the first is counted.
_OPERATION = re.compile(rf"= (?P<result>.*?) (?P<kind>{'|'.join(KINDS)})(?:-start)?\(")
_SHAPE = re.compile(r"(?P<type>[a-z]+[0-9]*)\[(?P<sizes>[0-9,]*)\]")
_GROUPS = re.compile(
    r"replica_groups=(?:\[(?P<iota>[0-9,]+)\]<=|\{\{(?P<listed>[0-9,]*)\}|(?P<mesh>mesh\[[^\]]*\]) "
    r"\{(?P<axes>[^}]*)\})"
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """Operations of one kind.

    Attributes:
        kind: such as "all-reduce".
        count: how many stand in the program; one in a loop counts once.
        bytes: of their results on a device, all together; of a reduce-scatter, what goes in.
        wire: bytes that a device sends, of a ring: 2 (n - 1) / n of an all-reduce's bytes over n
            devices, (n - 1) / n of the others', all of a permutation's.
    """

    kind: str
    count: int
    bytes: float
    wire: float


def collectives(text: str, devices: int) -> list[Collective]:
    """Return what devices exchange.

    Args:
        text: of a compiled program.
        devices: that it runs on: the size of a group where the text does not tell it.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for line in text.splitlines():
        match = _OPERATION.search(line)
        if match is None:
            continue
        kind, group = match["kind"], _group(line, devices)
        size = _bytes(match["result"], started="-start(" in line)
        if kind == "reduce-scatter":
            size *= group
        share = {"all-reduce": 2 * (group - 1) / group, "collective-permute": 1.0}
        wire = size * share.get(kind, (group - 1) / group)
        found.setdefault(kind, []).append((size, wire))
    return [
        Collective(kind, len(each), sum(size for size, _ in each), sum(wire for _, wire in each))
        for kind, each in sorted(found.items())
    ]


def _bytes(result: str, *, started: bool) -> float:
    """Bytes of a result, a shape or several; of what only starts, the last half is the result."""
    sizes = [
        math.prod(map(int, filter(None, match["sizes"].split(","))))
        * BITS.get(match["type"], 8)
        / 8
        for match in _SHAPE.finditer(re.sub(r"\{[^}]*\}", "", result))
    ]
    if started and result.startswith("(") and len(sizes) > 1:
        sizes = sizes[len(sizes) // 2 :] if len(sizes) % 2 == 0 else sizes
    return float(sum(sizes))


def _group(line: str, devices: int) -> int:
    """Return the number of devices that exchange with each other."""
    match = _GROUPS.search(line)
    if match is None:
        return devices
    if match["iota"]:  # [groups, devices of each]
        return int(match["iota"].split(",")[-1])
    if match["listed"] is not None:
        return max(1, len(list(filter(None, match["listed"].split(",")))))
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", match["mesh"]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match["axes"]))
