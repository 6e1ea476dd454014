"""The pictures of the report."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.peers import OURS, dtype_of
from benchmarks.report.records import (
    Case,
    Record,
    describe,
    forward_cases,
    limit_shares,
    memory_cases,
    peer_names,
    speeds,
    step_seconds,
    timed_cases,
    times_as_fast,
)
from benchmarks.timing import Spread

# A panel's title, what is below its axis, the sizes there, and of each size every peer's number.
Panel = tuple[str, str, Sequence[int], Sequence[Mapping[str, Spread]]]

# A colour (of Okabe and Ito, told apart by the colour-blind) and a marker for each library, a line
# for each dtype.
LOOKS = {
    "gpt1-jax": ("#D55E00", "o"),
    "transformers": ("#0072B2", "s"),
    "torch.compile": ("#56B4E9", "^"),
    "onnxruntime": ("#009E73", "D"),
    "ctranslate2": ("#CC79A7", "v"),
}
ANY_LOOK = ("#777777", "x")
LINES = {"float32": "-", "bfloat16": "--", "int8": ":"}
WIDTH, DPI = 8.2, 110  # inches, and pixels an inch
LEGEND_COLUMNS = 3  # so many of the longest names fit beside each other
NOTHING = Spread(math.nan, math.nan, math.nan)


def draw_pictures(records: Sequence[Record]) -> dict[str, tuple[str, Any]]:
    """Return the pictures for which there are records: by file, what each shows and its figure.

    Raises:
        ImportError: matplotlib is not installed.
    """
    drawn = {
        "speedup": (f"How many times as fast as each float32 peer {OURS} is", _speedup(records)),
        "throughput": ("Tokens a second of the forward, by shape", _throughput(records)),
        "generate": ("Tokens a second of decoding, by batch", _generate(records)),
        "limit": ("Share of the machine's limit, of the forward and decoding", _limit(records)),
        "memory": ("Peak memory", _memory(records)),
    }
    return {f"{name}.png": found for name, found in drawn.items() if found[1] is not None}


def _speedup(records: Sequence[Record]) -> Any:
    def ratios(case: Case) -> dict[str, Spread]:
        found = times_as_fast(case["seconds"])
        return {name: ratio for name, ratio in found.items() if dtype_of(name) == "float32"}

    forwards = forward_cases(records).items()
    panels = [panel for head, cases in forwards for panel in _by_batch(f"{head}, ", cases, ratios)]
    title = f"Forward: how many times as fast {OURS} is in float32; above 1 it is faster"
    return _curves(title, "times as fast", panels, one=True)


def _throughput(records: Sequence[Record]) -> Any:
    for head, cases in forward_cases(records).items():  # the states only if there are no logits
        panels = _by_batch("", cases, lambda case: speeds(case["work"]["tokens"], case["seconds"]))
        title = f"Forward to the {head}: tokens a second, higher is better"
        return _curves(title, "tokens/s", panels)
    return None


def _generate(records: Sequence[Record]) -> Any:
    cases = _comparable(records)
    sizes = [case["case"]["batch"] for case in cases]
    found = [speeds(size, step_seconds(case)) for size, case in zip(sizes, cases, strict=True)]
    prompt = cases[0]["case"]["prompt"] if cases else 0
    title = f"Decoding after {prompt} tokens: tokens a second, higher is better"
    panel = ("", "rows that are written at once", sizes, found)
    return _curves(title, "tokens/s, all rows together", [panel])


def _limit(records: Sequence[Record]) -> Any:
    panels: list[Panel] = []
    for head, cases in list(forward_cases(records).items())[:1]:
        heading = f"forward to the {head}, "
        panels = _by_batch(heading, cases, lambda case: limit_shares(case, case["seconds"]))
    if cases := _comparable(records):
        found = [limit_shares(case, step_seconds(case)) for case in cases]
        panels.append(("decoding", "rows", [case["case"]["batch"] for case in cases], found))
    title = "How near to the machine's limit: 100% is best"
    return _curves(title, "share of the limit", panels, one=True, percent=True)


def _memory(records: Sequence[Record]) -> Any:
    # Of a suite the case that is largest for us: the others take no less in it, whatever we save.
    found = {
        suite: max(cases, key=lambda case: case["bytes"].get(OURS, 0))
        for suite, cases in memory_cases(records).items()
    }
    names = peer_names(case["bytes"] for case in found.values())
    if not names:
        return None
    title = "Peak memory of a process, in the largest case: lower is better"
    figure = _figure(title, len(found), height=1.5 + 0.3 * len(names))
    for axes, (suite, case) in zip(figure.axes, found.items(), strict=True):
        sizes = [case["bytes"].get(name, 0) / 1e9 for name in names]
        bars = axes.barh(names, sizes, color=[_look(name)["color"] for name in names], height=0.7)
        labels = [f"{size:.2f}" if size else "" for size in sizes]
        axes.bar_label(bars, labels, fontsize=9, padding=2)
        axes.margins(x=0.2)
        axes.grid(visible=False)
        axes.set_title(f"{suite}\n{describe(case)}", fontsize=10)
        axes.set_xlabel("GB")
    figure.axes[0].invert_yaxis()
    return figure


def _comparable(records: Sequence[Record]) -> list[Case]:
    """Return the generate cases that differ only in their batch: the most there are of such."""
    groups: dict[tuple[int, int], list[Case]] = {}
    for case in timed_cases(records, "generate"):
        groups.setdefault((case["case"]["prompt"], case["case"]["new"]), []).append(case)
    largest = max(groups.values(), key=len, default=[])
    return sorted(largest, key=lambda case: case["case"]["batch"])


def _by_batch(
    title: str, cases: Sequence[Case], numbers: Callable[[Case], Mapping[str, Spread]]
) -> list[Panel]:
    """Return a panel for each batch of the forward."""
    panels: list[Panel] = []
    for batch, group in itertools.groupby(cases, key=lambda case: case["case"]["batch"]):
        found = list(group)
        rows = f"{title}{batch} row{'s' * (batch != 1)}"
        sizes = [case["case"]["tokens"] for case in found]
        panels.append((rows, "tokens a row", sizes, list(map(numbers, found))))
    return panels


def _curves(
    title: str, unit: str, panels: Sequence[Panel], one: bool = False, percent: bool = False
) -> Any:
    """Return a figure with a line for each peer, over sizes that are evenly spaced, or None.

    Medians of neighbouring cases are joined, and bars reach to the quartiles. ``one`` adds a line
    at 1.
    """
    if not any(found for *_, numbers in panels for found in numbers):
        return None
    count = len(peer_names(numbers for *_, found in panels for numbers in found))
    figure = _figure(title, len(panels), height=3.4 + 0.22 * math.ceil(count / LEGEND_COLUMNS))
    lines = {}
    for axes, (heading, label, sizes, numbers) in zip(figure.axes, panels, strict=True):
        for name in peer_names(numbers):
            # A line breaks where there is no number, rather than passing through a case.
            points = [found.get(name, NOTHING) for found in numbers]
            below = [spread.median - spread.low for spread in points]
            above = [spread.high - spread.median for spread in points]
            y = [spread.median for spread in points]
            lines[name] = axes.errorbar(
                range(len(y)), y, yerr=[below, above], capsize=2, **_look(name)
            )
        if one:
            axes.axhline(1, color="#333333", linewidth=1)
        axes.set_xticks(range(len(sizes)), list(map(str, sizes)))
        axes.margins(x=0.08)
        axes.set_title(heading, fontsize=10)
        axes.set_xlabel(label)
    first = figure.axes[0]
    first.set_ylabel(unit)
    if percent:
        first.set_ylim(bottom=0)
        first.yaxis.set_major_formatter("{x:.0%}")
    else:
        first.set_yscale("log")
        first.minorticks_off()
        first.yaxis.get_major_locator().set_params(subs=(1, 1.5, 2, 3, 5, 7) if one else (1, 2, 5))
        first.yaxis.set_major_formatter("{x:,g}")
    names, place = peer_names([lines]), "outside lower center"
    handles = [lines[name] for name in names]
    figure.legend(
        handles, names, loc=place, ncols=LEGEND_COLUMNS, frameon=False, handlelength=3, fontsize=9
    )
    return figure


def _figure(title: str, columns: int, height: float = 4.0) -> Any:
    from matplotlib.figure import Figure

    # Not pyplot's, which is kept.
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    figure.suptitle(title)
    for axes in figure.subplots(1, columns, squeeze=False, sharey=True).flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.7)
    return figure


def _look(name: str) -> dict[str, Any]:
    """Return how a peer's line looks."""
    dtype = dtype_of(name)
    color, marker = LOOKS.get(name.removesuffix(f"-{dtype}"), ANY_LOOK)
    return {
        "color": color,
        "marker": marker,
        "markerfacecolor": color if dtype == "float32" else "white",
        "linestyle": LINES[dtype],
        "linewidth": 2.2 if name.startswith(OURS) else 1.3,
    }
