"""Files of records: JSONL, CSV and TSV as lists of named values, each with its place."""

import csv
import io
import threading
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from gpt1_jax._conversion import json_file
from gpt1_jax.sharding.processes import is_main_process

Quoting = Literal["csv", "none"]
Record = Mapping[str, object]

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".jsonl", *DELIMITERS)

_CSV_LIMIT = threading.Lock()  # held while the limit of the csv module is another one


def read_records(
    path: Path, columns: Collection[str], quoting: Quoting | None = None
) -> Iterator[tuple[str, Record]]:
    """Yield the records of a file, UTF-8 with or without a byte-order mark, with their places.

    A .jsonl file holds one JSON object a line. A .csv or .tsv file starts with a header. Blank
    lines are skipped.

    Args:
        path: the file; its suffix says what it is.
        columns: names that every record must have.
        quoting: of a .csv or .tsv file. "csv" reads cells in quotes as RFC 4180 has them, with a
            quote inside doubled; "none" takes quotes for a part of the text, and a line for a
            row. By default "csv" for .csv and "none" for .tsv, since the published TSV files
            (GLUE's) have bare quotes.

    Yields:
        "FILE, line N" for error messages, and the record.

    Raises:
        OSError: the file is not there or cannot be read.
        ValueError: another suffix, or a record that is wrong; names the file and the line.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} must be a file of one of the kinds {', '.join(SUFFIXES)}")
    text = _read_text(path)
    if suffix == ".jsonl":
        yield from _json_records(path, text, columns)
        return
    delimiter = DELIMITERS[suffix]
    if (quoting or ("csv" if suffix == ".csv" else "none")) == "csv":
        lines = _quoted_lines(path, text, delimiter)
    else:
        lines = _plain_lines(text, delimiter)
    header, rows = _table(path, lines, columns)
    if suffix == ".tsv" and quoting is None:
        _warn_of_quotes(path, header, rows, columns)
    for number, cells in rows:
        yield f"{path}, line {number}", dict(zip(header, cells, strict=True))


def _read_text(path: Path) -> str:
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line} is not UTF-8") from None


def _json_records(path: Path, text: str, columns: Collection[str]) -> Iterator[tuple[str, Record]]:
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


Lines = list[tuple[int, list[str]]]  # the line that a row starts on, and its cells


def _plain_lines(text: str, delimiter: str) -> Lines:
    lines = enumerate((line.removesuffix("\r") for line in text.split("\n")), start=1)
    return [(number, line.split(delimiter)) for number, line in lines if line]


def _quoted_lines(path: Path, text: str, delimiter: str) -> Lines:
    lines: Lines = []
    start = 1  # a row with line ends in its cells takes several lines
    with _CSV_LIMIT:
        # The limit of 131,072 characters a cell is the whole process's.
        limit = csv.field_size_limit(max(len(text), 1))
        try:
            # strict, so that a quote that is never closed does not swallow the rest of the file.
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
            for cells in reader:
                if cells:
                    lines.append((start, cells))
                start = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{path}, line {start}: {error}") from None
        finally:
            csv.field_size_limit(limit)
    return lines


def _table(path: Path, lines: Lines, columns: Collection[str]) -> tuple[list[str], Lines]:
    """Return the header, and the rows below it, each of which has as many cells."""
    if not lines:
        return [], []
    (number, header), *rows = lines
    place = f"{path}, line {number}"
    if twice := sorted({name for name in header if header.count(name) > 1}):
        named = ", ".join(map(repr, twice))
        raise ValueError(f"{place}: the header has {named} more than once")
    _check_columns(place, header, columns)
    for number, cells in rows:
        if len(cells) != len(header):
            raise ValueError(
                f"{path}, line {number} has {len(cells)} cells, but the header {len(header)}"
            )
    return header, rows


def _warn_of_quotes(
    path: Path, header: Sequence[str], rows: Lines, columns: Collection[str]
) -> None:
    """Warn once where quotes around cells look as if a CSV writer had put them there."""
    for column in columns if rows and is_main_process() else ():
        at = header.index(column)
        inside = [cells[at][1:-1] for _, cells in rows if _is_in_quotes(cells[at])]
        doubled = any('""' in text and '"' not in text.replace('""', "") for text in inside)
        if doubled or 10 * len(inside) >= len(rows):
            warnings.warn(
                f"{path}: {len(inside)} of {len(rows)} cells in the column {column!r} begin and "
                'end with a quote, which is read as a part of the text: pass quoting="csv" '
                "(--quoting csv) if the file quotes its cells as a CSV file does",
                stacklevel=2,
            )
            return


def _is_in_quotes(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"'


def _check_columns(place: str, there: Collection[str], columns: Collection[str]) -> None:
    for column in columns:
        if column not in there:
            listed = ", ".join(map(repr, there)) or "none"
            raise ValueError(f"{place}: there is no column {column!r}; the columns are {listed}")
