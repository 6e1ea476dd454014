"""Interleaved rounds and their medians: a shared machine is noisy, but alike to all in a round."""

import os
import statistics
import time
from collections.abc import Callable, Mapping

Seconds = list[float]


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
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Seconds, ours: Seconds) -> tuple[float, float, float]:
    """Return the median, least and greatest of the ratios to ``ours``, round by round."""
    ratios = [theirs / own for theirs, own in zip(seconds, ours, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)
