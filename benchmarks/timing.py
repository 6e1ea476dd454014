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
    """Run functions that are warm ``rounds`` times in turn.

    Returns:
        The seconds of every round, by name.
    """
    seconds: dict[str, Seconds] = {name: [] for name in runs}
    for _ in range(rounds):
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
