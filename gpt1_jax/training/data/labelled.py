"""Labelled sets: rows of named columns in a JSONL, CSV or TSV file."""

import csv
import dataclasses
import io
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from gpt1_jax._conversion import json_file

LABEL = "label"  # the role of the column that is to be learned; every other role is a text

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".jsonl", *DELIMITERS)


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


def read_rows(path: str | os.PathLike[str], columns: Mapping[str, str]) -> list[Row]:
    """Read the rows of a labelled set, UTF-8 with or without a byte-order mark.

    A .jsonl file holds one JSON object a line. A .csv or .tsv file starts with a header; a cell
    may be quoted with ", doubled inside. Blank lines are skipped, other columns ignored.

    Args:
        path: the file; its suffix says what it is.
        columns: the name of the column for each role, that of ``LABEL`` included.

    Raises:
        OSError: the file is not there or cannot be read.
        ValueError: another suffix, no rows, or a row that is wrong; names the file and the line.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} must be a file of one of the kinds {', '.join(SUFFIXES)}")
    text = _read_text(path)
    if suffix == ".jsonl":
        records = _json_records(path, text, columns.values())
    else:
        records = _csv_records(path, text, columns.values(), DELIMITERS[suffix])
    rows = []
    for place, record in records:
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


def _read_text(path: Path) -> str:
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line} is not UTF-8") from None


def _json_records(
    path: Path, text: str, columns: Collection[str]
) -> Iterator[tuple[str, Mapping[str, object]]]:
    # Not splitlines, which also splits at characters that JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            record = json_file.parse_json(line, constants=False)
        except ValueError as error:
            raise ValueError(f"{place} {error}") from None
        if not isinstance(record, dict):
            raise ValueError(f"{place} is no JSON object: it must start with {{ and end with }}")
        _check_columns(place, record, columns)
        yield place, record


def _csv_records(
    path: Path, text: str, columns: Collection[str], delimiter: str
) -> Iterator[tuple[str, Mapping[str, object]]]:
    # strict, so that a quote that is never closed does not swallow the rest of the file.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    start = 1  # a row with line ends in its cells takes several lines
    try:
        for cells in reader:
            place, start = f"{path}, line {start}", reader.line_num + 1
            if not cells:
                continue
            if not header:
                header = cells
                if twice := sorted({name for name in header if header.count(name) > 1}):
                    named = ", ".join(map(repr, twice))
                    raise ValueError(f"{place}: the header has {named} more than once")
                _check_columns(place, header, columns)
            elif len(cells) != len(header):
                raise ValueError(f"{place} has {len(cells)} cells, but the header {len(header)}")
            else:
                yield place, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}, line {start}: {error}") from None


def _check_columns(place: str, there: Collection[str], columns: Collection[str]) -> None:
    for column in columns:
        if column not in there:
            listed = ", ".join(map(repr, there)) or "none"
            raise ValueError(f"{place}: there is no column {column!r}; the columns are {listed}")


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
