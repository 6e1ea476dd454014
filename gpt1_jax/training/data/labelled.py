"""Labelled sets: rows of named columns in a JSONL, CSV or TSV file."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

from gpt1_jax.training.data.records import Quoting, read_records

LABEL = "label"  # the role of the column that is to be learned; every other role is a text


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a labelled set.

    Attributes:
        place: where it is, "FILE, line N", for error messages.
        texts: the texts by their roles; none is blank.
        label: as the file spells it, without white space around it; not empty.
    """

    place: str
    texts: Mapping[str, str]
    label: str


def read_rows(
    path: str | os.PathLike[str], columns: Mapping[str, str], *, quoting: Quoting | None = None
) -> list[Row]:
    """Read the rows of a labelled set; other columns are ignored.

    Args:
        path: the file, see ``records.read_records``.
        columns: the name of the column for each role, that of ``LABEL`` included.
        quoting: of the cells of a .csv or .tsv file, see ``records.read_records``.

    Raises:
        OSError: the file is not there or cannot be read.
        ValueError: another suffix, no rows, or a row that is wrong; names the file and the line.
    """
    rows = []
    for place, record in read_records(Path(path), columns.values(), quoting):
        texts = {
            role: _text(place, column, record[column])
            for role, column in columns.items()
            if role != LABEL
        }
        label = _label(place, columns[LABEL], record[columns[LABEL]])
        rows.append(Row(place, texts, label))
    if not rows:
        raise ValueError(f"{path} holds no rows")
    return rows


def _text(place: str, column: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{place}: {column!r} is {json.dumps(value)[:60]}, but must be a string")
    if not value.strip():
        raise ValueError(f"{place}: {column!r} is empty")
    return value


def _label(place: str, column: str, value: object) -> str:
    """A label as CSV would spell it: JSON's 1 and "1" are the same."""
    if not isinstance(value, str | int | float):
        right = "a string or a number"
        raise ValueError(f"{place}: {column!r} is {json.dumps(value)[:60]}, but must be {right}")
    label = (value if isinstance(value, str) else json.dumps(value)).strip()
    if not label:
        raise ValueError(f"{place}: {column!r} is empty: the label is missing")
    return label
