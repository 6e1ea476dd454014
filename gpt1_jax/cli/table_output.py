"""What a command found, written as a table, JSON, JSON lines or columns."""

import contextlib
import csv
import io
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import numpy as np
import tyro

from gpt1_jax._conversion import files

Format = Literal["table", "jsonl", "json", "csv", "tsv"]
OutputFormat = Annotated[Format | None, tyro.conf.arg(help_behavior_hint="")]
OutputFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Record = Mapping[str, Any]


def chosen_format(output_format: Format | None, out: Path | None) -> Format:
    """Return the format: by default the file suffix's, a table on a terminal, else jsonl."""
    if output_format is not None:
        return output_format
    if out is None:
        return "table" if sys.stdout.isatty() else "jsonl"
    by_suffix: dict[str, Format] = {".json": "json", ".csv": "csv", ".tsv": "tsv", ".txt": "table"}
    return by_suffix.get(out.suffix.lower(), "jsonl")


def number(x: Any) -> float | None:
    """Return a number for JSON, which has no NaN; of a float32 its few digits, not a float64's."""
    return None if math.isnan(x) else float(str(x)) if isinstance(x, np.floating) else float(x)


@contextlib.contextmanager
def output(out: Path | None) -> Iterator[TextIO]:
    """Open the output: standard output, or a file that is written whole or not at all."""
    if out is None:
        yield sys.stdout
        return
    with files.atomic_file(out) as new, new.open("w", encoding="utf-8", newline="") as file:
        yield file


def write_records(records: Iterable[Record], output_format: Format, file: TextIO) -> None:
    """Write records, as soon as they come in JSON lines.

    Args:
        records: with values of JSON; lists and objects are JSON in the cells of columns too.
        output_format: columns are all keys, in the order of their appearance.
        file: to write to.
    """
    if output_format == "jsonl":
        for record in records:
            print(json.dumps(record), file=file, flush=True)
    elif output_format == "json":
        print(json.dumps(list(records), indent=1), file=file)
    elif output_format == "table":
        print(_table(list(records)), file=file)
    else:
        rows = list(records)
        delimiter = "," if output_format == "csv" else "\t"
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
        writer.writerow(_columns(rows))
        writer.writerows([_cell(row.get(name)) for name in _columns(rows)] for row in rows)
        file.write(text.getvalue())


def _columns(rows: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return value if isinstance(value, (str, int, float)) else json.dumps(value)


def _table(rows: Sequence[Record]) -> str:
    from rich.table import Column, Table
    from rich.text import Text

    from gpt1_jax.explore.display import plain

    names = _columns(rows)
    numeric = {
        name for name in names if any(isinstance(row.get(name), (int, float)) for row in rows)
    }
    columns = [Column(name, justify="right" if name in numeric else "left") for name in names]
    table = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(Text(_shown(row.get(name))) for name in names))
    return plain(table)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(_cell(value))
    return text if text.isprintable() else repr(text)
