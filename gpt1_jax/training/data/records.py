"""Files of records, lists of named values: JSON, CSV, TSV, parquet and arrow; gzipped too."""

import contextlib
import csv
import gzip
import io
import threading
import warnings
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, cast

from gpt1_jax._conversion import extras, json_file
from gpt1_jax.sharding.processes import is_main_process

Quoting = Literal["csv", "none"]
Record = Mapping[str, object]

DELIMITERS = {".csv": ",", ".tsv": "\t"}
ARROW = (".parquet", ".arrow", ".feather")
SUFFIXES = (".jsonl", ".json", *DELIMITERS, *ARROW)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_CSV_LIMIT = threading.Lock()  # held while the limit of the csv module is another one


def kind_of(path: Path) -> str:
    """Return the suffix of a file in lower case, without the .gz of one that is gzipped."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix == ".gz" else suffix


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to read bytes, through gzip if it ends in .gz.

    Raises:
        OSError: it is not there or cannot be read.
        ValueError: it is not gzipped, or not as a whole.
    """
    if path.suffix.lower() != ".gz":
        with path.open("rb") as file:
            yield file
        return
    with gzip.open(path) as file:
        try:
            yield cast(IO[bytes], file)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole gzip file ({error})") from None


def read_records(
    path: Path,
    columns: Collection[str],
    quoting: Quoting | None = None,
    *,
    keep_others: bool = False,
) -> Iterator[tuple[str, Record]]:
    """Yield the records of a file with their places.

    The suffix says what the file is, UTF-8 with or without a byte-order mark if it is text:

    - .jsonl: a JSON object a line; blank lines are skipped;
    - .json: the same, or a list of objects;
    - .csv, .tsv: a header and rows of as many cells; blank lines are skipped;
    - .parquet, .arrow, .feather: a table, read through pyarrow.

    With .gz after it, the file is gzipped.

    Args:
        path: the file.
        columns: names that every record must have.
        quoting: of a .csv or .tsv file. "csv" reads cells in quotes as RFC 4180 has them, with a
            quote inside doubled; "none" takes quotes for a part of the text, and a line for a
            row. By default "csv" for .csv and "none" for .tsv, since the published TSV files
            (GLUE's) have bare quotes.
        keep_others: whether records of parquet and arrow have the other columns too.

    Yields:
        Such as "FILE, line N" for error messages, and the record.

    Raises:
        OSError: the file is not there or cannot be read.
        ImportError: pyarrow is needed and not installed.
        ValueError: another suffix, or a record that is wrong; names the file and where.
    """
    kind = kind_of(path)
    if kind not in SUFFIXES:
        raise ValueError(
            f"{path} must be a file of one of the kinds {', '.join(SUFFIXES)}, or a gzipped one "
            "with .gz after that"
        )
    with open_bytes(path) as file:
        if kind == ".jsonl":
            yield from json_lines(path, file, columns)
        elif kind == ".json":
            yield from _json_records(path, file.read(), columns)
        elif kind in ARROW:
            yield from _arrow_records(path, file.read(), columns, keep_others)
        else:
            yield from _table_records(path, file.read(), columns, quoting)


def records_in_memory(
    given: Iterable[Record], columns: Collection[str], name: str
) -> Iterator[tuple[str, Record]]:
    """Yield records such as a list of dicts or a dataset of ``datasets``, with their places.

    Args:
        given: the records.
        columns: names that every record must have; others are left out.
        name: what a place calls them, "NAME, row N".

    Raises:
        ValueError: one is not a mapping, or lacks a column; names its place.
    """
    for number, record in enumerate(given, start=1):
        place = f"{name}, row {number}"
        if not isinstance(record, Mapping):
            raise ValueError(f"{place} is {json_file.short(record)}, but must be a dict of columns")
        check_columns(place, record, columns)
        yield place, {column: _as_python(record[column]) for column in columns}


def _as_python(value: object) -> object:
    """Return a scalar of numpy or JAX as Python's."""
    scalar: Any = value
    return scalar.item() if getattr(value, "ndim", None) == 0 else value


def decode(path: Path, content: bytes, first_line: int = 1) -> str:
    """Return the text of a file, or of what begins at a line of it.

    Raises:
        ValueError: it is not UTF-8; names the line.
    """
    try:
        return content.removeprefix(BYTE_ORDER_MARK if first_line == 1 else b"").decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + first_line
        raise ValueError(f"{path}, line {line} is not UTF-8") from None


def json_lines(
    path: Path, file: Iterable[bytes], columns: Collection[str]
) -> Iterator[tuple[str, Record]]:
    """Yield the JSON objects of lines, with their places.

    Args:
        path: what a place calls the file.
        file: the lines.
        columns: names that every record must have.

    Raises:
        ValueError: a line is wrong; names the place.
    """
    # Lines of bytes end at \n alone, and not at characters that JSON allows inside a string.
    for number, content in enumerate(file, start=1):
        line = decode(path, content, number).removesuffix("\n")
        if line.strip():
            place = f"{path}, line {number}"
            yield place, _record(place, parse(place, line), columns)


def _json_records(
    path: Path, content: bytes, columns: Collection[str]
) -> Iterator[tuple[str, Record]]:
    if not content.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"["):
        yield from json_lines(path, io.BytesIO(content), columns)
        return
    for number, item in enumerate(parse(str(path), decode(path, content)), start=1):
        place = f"{path}, item {number}"
        yield place, _record(place, item, columns)


def parse(place: str, text: str) -> Any:
    """Return what a JSON text holds.

    Raises:
        ValueError: it is not JSON; names the place.
    """
    try:
        return json_file.parse_json(text, constants=False)
    except ValueError as error:
        raise ValueError(f"{place} {error}") from None


def _record(place: str, record: object, columns: Collection[str]) -> Record:
    if not isinstance(record, dict):
        raise ValueError(f"{place} is no JSON object: it must start with {{ and end with }}")
    check_columns(place, record, columns)
    return record


def _arrow_records(
    path: Path, content: bytes, columns: Collection[str], keep_others: bool
) -> Iterator[tuple[str, Record]]:
    extras.require(f"reading {path}", "pyarrow", extra="arrow")
    import pyarrow
    from pyarrow import ipc, parquet

    buffer = pyarrow.BufferReader(content)
    try:
        if kind_of(path) == ".parquet":
            table = parquet.read_table(buffer)
        else:  # datasets writes streams, most others files
            read = ipc.open_file if content.startswith(b"ARROW1") else ipc.open_stream
            table = read(buffer).read_all()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} cannot be read ({json_file.first_line(error)})") from None
    check_columns(str(path), table.column_names, columns)
    if not keep_others:
        table = table.select(list(dict.fromkeys(columns)))
    number = 0
    for batch in table.to_batches():
        for record in batch.to_pylist():
            number += 1
            yield f"{path}, row {number}", record


def _table_records(
    path: Path, content: bytes, columns: Collection[str], quoting: Quoting | None
) -> Iterator[tuple[str, Record]]:
    kind, text = kind_of(path), decode(path, content)
    if (quoting or ("csv" if kind == ".csv" else "none")) == "csv":
        lines = quoted_lines(path, text, DELIMITERS[kind])
    else:
        lines = plain_lines(text, DELIMITERS[kind])
    with _hint_of_quotes(kind == ".tsv" and quoting is None and '"' in text):
        header, rows = _table(path, lines, columns)
    if kind == ".tsv" and quoting is None:
        _warn_of_quotes(path, header, rows, columns)
    for number, cells in rows:
        yield f"{path}, line {number}", dict(zip(header, cells, strict=True))


Lines = list[tuple[int, list[str]]]  # the line that a row starts on, and its cells


def plain_lines(text: str, delimiter: str) -> Lines:
    """Return the rows of a table whose quotes are a part of the text; empty lines are skipped."""
    lines = enumerate((line.removesuffix("\r") for line in text.split("\n")), start=1)
    return [(number, line.split(delimiter)) for number, line in lines if line]


def quoted_lines(path: Path, text: str, delimiter: str) -> Lines:
    """Return the rows of a table whose cells may be quoted, as RFC 4180 has them.

    Raises:
        ValueError: a quote is never closed, or followed by text; names the line.
    """
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
    check_columns(place, header, columns)
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


@contextlib.contextmanager
def _hint_of_quotes(applies: bool) -> Iterator[None]:
    """Add to an error of a table that its cells may be quoted, if that applies."""
    try:
        yield
    except ValueError as error:
        if not applies:
            raise
        hint = 'if the file quotes its cells, pass quoting="csv" (--quoting csv)'
        raise ValueError(f"{error}; {hint}") from None


def _is_in_quotes(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"'


def check_columns(place: str, there: Collection[str], columns: Collection[str]) -> None:
    """Check that all of the ``columns`` are there.

    Raises:
        ValueError: one is not; names the place and those that are.
    """
    for column in columns:
        if column not in there:
            listed = ", ".join(map(repr, there)) or "none"
            raise ValueError(f"{place}: there is no column {column!r}; the columns are {listed}")
