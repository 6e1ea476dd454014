"""Interleaved rounds and their medians: a shared machine is noisy, but alike to all in a round."""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Seconds = list[float]

clock = time.perf_counter  # tests replace it


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def interleave(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Seconds]:
    """Run functions that are warm ``rounds`` times in turn, three times where that takes long.

    Returns:
        The seconds of every round, by name.
    """
    seconds: dict[str, Seconds] = {name: [] for name in runs}
    for done in range(rounds):
        if done >= LEAST_ROUNDS and sum(map(sum, seconds.values())) > LONG:
            break
        for name, run in runs.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def steps(whole: Seconds, start: Seconds, number: int) -> Seconds:
    """Return the seconds of a step, round by round, of runs that also have a start.

    The start, which is measured apart, is taken off as its median: a round in which it was slow
    would make steps look fast.
    """
    median = statistics.median(start)
    return [(seconds - median) / number for seconds in whole]


# A case stops after so many rounds if they took more than so many seconds.
LEAST_ROUNDS, LONG = 3, 30.0
# How far apart quartiles may lie, over the median, and by what the median may move from the first
# rounds to the last, before a warning.
WIDE, MOVED = 0.25, 1.5


@dataclasses.dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> Spread:
    """Return the spread of the ratios to ``ours``, round by round."""
    return Spread.of([their / our for their, our in zip(theirs, ours, strict=True)])


def unsteady(seconds: Seconds) -> str | None:
    """Return why the median of these rounds should not be relied on, or None."""
    spread = Spread.of(seconds)
    if spread.median <= 0:  # a difference of two times
        return "the noise hides it"
    half = max(1, len(seconds) // 2)
    first, last = statistics.median_low(seconds[:half]), statistics.median_low(seconds[-half:])
    if max(first, last) > MOVED * min(first, last):
        return f"the median went from {1e3 * first:.3g} to {1e3 * last:.3g} ms during the rounds"
    apart = (spread.high - spread.low) / spread.median
    return f"the quartiles lie {apart:.0%} of the median apart" if apart > WIDE else None
