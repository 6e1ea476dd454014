"""The page and the pictures of a run on an accelerator."""

import importlib.util
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Record = Mapping[str, Any]

RATIO = "torch / gpt1-jax"  # the column of a ratio of times: above 1, gpt1-jax is faster
SHARE = "share of the peak"


def show(step: Row) -> None:
    """Print a step: its status, its table and its note."""
    taken = f", {step['seconds']:.1f} s" if "seconds" in step else ""
    print(f"{step['name']}: {step['status']}{taken}")
    if rows := step.get("rows"):
        cells = _cells(rows)
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for line in cells:
            pairs = zip(line, widths, strict=True)
            print("  " + "  ".join(f"{cell:>{width}}" for cell, width in pairs))
    if step.get("note"):
        print(f"  {step['note']}")
    print(end="", flush=True)


def write_page(record: Record, pictures: Mapping[str, str]) -> str:
    """Return the page, in Markdown.

    Args:
        record: of the run, finished or cut off.
        pictures: their files' names, and what each shows.
    """
    return "\n".join(_lines(record, pictures)).rstrip("\n") + "\n"


def _lines(record: Record, pictures: Mapping[str, str]) -> Iterator[str]:
    environment = record["environment"]
    devices = environment["devices"]
    yield f"# gpt1-jax on {len(devices)} x {devices[0]}\n"
    if environment["quick"]:
        yield "**This run used a tiny model and shows only that everything works.**\n"
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    yield f"{environment['date'][:10]}, commit {environment['commit'] or 'unknown'}; {versions};"
    yield f"Python {environment['python']}; host: {environment['processor']},"
    yield f"{environment['threads']} threads.\n"
    if record["peaks"] is not None:
        yield f"Shares are of the peaks in {record['peaks']['source']}.\n"
    yield f"Run again with `python -m benchmarks {shlex.join(record['arguments'])}`.\n"
    yield "| step | result | seconds | |\n| :--- | :--- | ---: | :--- |"
    for step in record["steps"]:
        seconds = f"{step['seconds']:.0f}" if "seconds" in step else ""
        yield f"| {step['name']} | {step['status']} | {seconds} | {step.get('note', '')} |"
    yield ""
    for name, text in pictures.items():
        yield f"![{text}]({name})\n"
    for step in record["steps"]:
        if not step.get("rows"):
            continue
        yield f"## {step['name'][0].upper()}{step['name'][1:]}\n"
        head, *cells = _cells(step["rows"])
        yield f"| {' | '.join(head)} |"
        yield "|" + " :--- |" + " ---: |" * (len(head) - 1)
        for line in cells:
            yield f"| {' | '.join(line)} |"
        yield ""
        if step["note"]:
            yield f"{step['note']}\n"


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    """Return a table as text, its head first; a row may lack a column."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [columns, *([_text(row.get(name)) for name in columns] for row in rows)]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value).replace("\n", " ").replace("|", "\\|")
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def draw_pictures(record: Record) -> dict[str, tuple[str, Any]]:
    """Return the pictures for which there are figures: by file, what each shows and its figure.

    Without matplotlib there are none.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return {}
    drawn = {
        "ratio.png": ("Speedup over torch on the same device", _bars(record, RATIO, 1.0)),
        "share.png": (
            "Share of the chip's peak: memory bandwidth in decoding, FLOP/s elsewhere",
            _bars(record, SHARE, None),
        ),
    }
    return {name: found for name, found in drawn.items() if found[1] is not None}


def _bars(record: Record, column: str, line: float | None) -> Any:
    """Return a figure with a bar for every row that has the column, or None."""
    bars = [
        (f"{step['name']}: {next(iter(row.values()))}", row[column])
        for step in record["steps"]
        for row in step.get("rows", ())
        if isinstance(row.get(column), float)
    ]
    if not bars:
        return None
    from matplotlib.figure import Figure

    names, values = zip(*reversed(bars), strict=True)
    figure = Figure(figsize=(8.2, 0.8 + 0.28 * len(bars)), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(bars)), values, color="#D55E00", height=0.7)
    axes.set_yticks(range(len(bars)), names, fontsize=8)
    axes.set_xlabel(column)
    axes.spines[["top", "right"]].set_visible(False)
    if line is not None:
        axes.axvline(line, color="#444444", linewidth=0.8)
    return figure
