"""Where the time goes: what runs on the device in a step, and the gaps between."""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.accelerator import races
from benchmarks.accelerator.bench import Bench
from benchmarks.accelerator.runner import LeaveOutError, Result, Row

TOP = 12  # kernels that are named


@dataclasses.dataclass(frozen=True)
class Event:
    """What ran on the device: a kernel, a copy, or on a TPU an operation; nanoseconds."""

    name: str
    start: float
    end: float


def decode_step(bench: Bench) -> Result:
    """Profile generation in bfloat16, one row; figures are those of one new token."""
    rows = bench.sizes.generate[0]
    whole, _ = races.generation(bench, rows, "bfloat16")
    return _profile(bench, whole, bench.sizes.context, f"{rows} rows, bfloat16, one new token")


def training_step(bench: Bench) -> Result:
    """Profile the training step in bfloat16."""
    shape = bench.sizes.train[0]
    runner = races.training(bench, shape, "bfloat16")
    return _profile(bench, runner, 1, f"{shape[0]} x {shape[1]} tokens, bfloat16, one step")


def _profile(bench: Bench, runner: races.Runner, steps: int, what: str) -> Result:
    runner.once(1)
    events = record(bench.folder / f"profile {what}", lambda: runner.once(1))
    if not events:
        raise LeaveOutError("the profile names nothing that ran on a device")
    return Result(summarize(events, steps), note=f"{what[0].upper()}{what[1:]}.")


def record(folder: Path, call: Callable[[], object]) -> list[Event]:
    """Return what ran on the first device during a call."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # the host's calls cost time, and are not what is looked for
    with jax.profiler.trace(str(folder), profiler_options=options):
        call()
    [file] = folder.rglob("*.xplane.pb")
    events = _events(jax.profiler.ProfileData.from_file(str(file)))
    # What runs others lasts as long as they do.
    return [event for event in events if not re.match("%?(while|conditional|call)\\b", event.name)]


def _events(profile: Any) -> Iterator[Event]:
    """Yield the operations of the first device, or on a CPU those that XLA names."""
    planes = list(profile.planes)
    devices = [plane for plane in planes if re.fullmatch(r"/device:(GPU|TPU):\d+", plane.name)]
    devices.sort(key=lambda plane: plane.name)
    # A GPU has a line for each stream, a TPU one of operations beside others of whole steps.
    for plane in devices[:1]:
        for line in plane.lines:
            of_gpu = "GPU" in plane.name and line.name.startswith("Stream")
            if of_gpu or ("TPU" in plane.name and line.name == "XLA Ops"):
                for event in line.events:
                    yield Event(event.name, event.start_ns, event.end_ns)
    if devices:
        return
    for plane in planes:
        for line in plane.lines:
            for event in line.events:
                if any(name == "hlo_op" for name, _ in event.stats):
                    yield Event(event.name, event.start_ns, event.end_ns)


def summarize(events: Sequence[Event], steps: int) -> list[Row]:
    """Return the time of a step by kernel, the longest first, with its gaps in total.

    Args:
        events: of all steps.
        steps: how many there were.
    """
    kinds: dict[str, list[float]] = collections.defaultdict(list)
    for event in events:
        kinds[_kind(event.name)].append(event.end - event.start)
    span = max(event.end for event in events) - min(event.start for event in events)
    busy = _union(events)

    def row(name: str, number: float, nanoseconds: float) -> Row:
        return {
            "": name,
            "number": number / steps,
            "microseconds": nanoseconds / steps / 1e3,
            "share": nanoseconds / span if span else 0.0,
        }

    longest = sorted(kinds.items(), key=lambda item: -sum(item[1]))
    rows = [row("a step", len(events), span), row("gaps", 0, span - busy)]
    rows += [row(f"`{name}`", len(each), sum(each)) for name, each in longest[:TOP]]
    rest = [each for _, times in longest[TOP:] for each in times]
    return [*rows, row("the rest", len(rest), sum(rest))] if rest else rows


def _kind(name: str) -> str:
    """Return a kernel's name without its number: ``loop_fusion_12`` is of the kind of the 13th."""
    return name.rstrip("0123456789").rstrip("._")[:80] or name


def _union(events: Sequence[Event]) -> float:
    """Return the nanoseconds in which at least one of the events goes on."""
    total, until = 0.0, float("-inf")
    for event in sorted(events, key=lambda event: event.start):
        total += max(0.0, event.end - max(event.start, until))
        until = max(until, event.end)
    return total
