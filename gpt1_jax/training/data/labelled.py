"""Labelled sets: rows of named columns, in a file or in memory."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from gpt1_jax.training.data.records import (
    Quoting,
    Record,
    check_columns,
    read_records,
    records_in_memory,
)


@runtime_checkable
class RecordSource(Protocol):
    """What reads its records by itself, such as ``recipes.PublishedSet``; ``str`` names it."""

    def read_records(self) -> Iterator[tuple[str, Record]]:
        """Yield the records with their places; a record's keys are the roles of a task."""
        ...


# A file, or records in memory: a list of dicts, or a dataset of the package ``datasets``.
Source = str | os.PathLike[str] | Iterable[Record] | RecordSource

LABEL = "label"  # the role of the column that is to be learned; every other role is a text


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a labelled set.

    Attributes:
        place: where it is, "FILE, line N", for error messages.
        texts: the texts by their roles; none is blank.
        label: as the file spells it, without white space around it; empty if it was not read.
        labels: those of a row that may have any number of them, each spelt as ``label`` is; None
            for a row with one.
    """

    place: str
    texts: Mapping[str, str]
    label: str
    labels: tuple[str, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The labels, or the only one."""
        return (self.label,) if self.labels is None else self.labels


def read_rows(
    source: Source,
    columns: Mapping[str, str],
    *,
    quoting: Quoting | None = None,
    separator: str | None = None,
    name: str = "the rows",
) -> list[Row]:
    """Read the rows of a labelled set; other columns are ignored.

    Args:
        source: a file, see ``records.read_records``, or records in memory.
        columns: the name of the column for each role, that of ``LABEL`` included.
        quoting: of the cells of a .csv or .tsv file, see ``records.read_records``.
        separator: see ``make_row``.
        name: what errors call records in memory.

    Raises:
        OSError: the file is not there or cannot be read.
        ValueError: another suffix, no rows, or a row that is wrong; names the file and the line.
    """
    if isinstance(source, (str, os.PathLike)):
        name, records = str(source), read_records(Path(source), columns.values(), quoting)
    elif isinstance(source, RecordSource):
        name, records = str(source), records_by_column(source, columns)
    else:
        records = records_in_memory(source, columns.values(), name)
    rows = [make_row(place, record, columns, separator) for place, record in records]
    if not rows:
        raise ValueError(f"{name} holds no rows")
    return rows


def records_by_column(
    source: RecordSource, columns: Mapping[str, str]
) -> Iterator[tuple[str, Record]]:
    """Yield the records of a source with their places, by columns in place of roles.

    Raises:
        ValueError: a record lacks a role; names the place.
    """
    for place, record in source.read_records():
        check_columns(place, record, columns)
        yield place, {column: record[role] for role, column in columns.items()}


def make_row(
    place: str,
    record: Mapping[str, object],
    columns: Mapping[str, str],
    separator: str | None = None,
) -> Row:
    """Return the row of a record; without a label where ``columns`` has none.

    Args:
        place: where the record is.
        record: with all of the columns.
        columns: the name of the column for each role.
        separator: of the labels of a row that may have any number of them, where they are a string
            and not a list; None for a row with one label.

    Raises:
        ValueError: a text or the label is wrong; names the place.
    """
    texts = {
        role: _text(place, column, record[column])
        for role, column in columns.items()
        if role != LABEL
    }
    if LABEL not in columns:
        return Row(place, texts, "")
    column, value = columns[LABEL], record[columns[LABEL]]
    if separator is None:
        return Row(place, texts, _label(place, column, value))
    if isinstance(value, str):
        value = value.split(separator) if value.strip() else []
    if not isinstance(value, list | tuple):
        right = f"a list of labels, or a string of them with {separator!r} between"
        raise ValueError(f"{place}: {column!r} is {_shown(value)}, but must be {right}")
    return Row(place, texts, "", tuple(_label(place, column, each) for each in value))


def take_out(
    rows: Sequence[Row], share: float, seed: int, *, by_label: bool
) -> tuple[list[Row], list[Row]]:
    """Divide rows at random into those that stay and a share that is taken out; both in order.

    Args:
        rows: to divide.
        share: above 0 and below 1, of all rows; rounded, and at least one row.
        seed: the same one takes out the same rows.
        by_label: whether as large a share is taken of each label, but for rounding, and at least
            one row of it stays.

    Raises:
        ValueError: too few rows to take so many out.
    """
    rng = np.random.default_rng([seed, 0])
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row.label if by_label else "", []).append(number)
    wanted = max(1, round(share * len(rows)))
    exact = {label: share * len(numbers) for label, numbers in groups.items()}
    taken = {label: min(math.floor(exact[label]), len(groups[label]) - 1) for label in groups}
    # What is missing is taken where the most was rounded off.
    for label in sorted(groups, key=lambda label: taken[label] - exact[label]):
        if sum(taken.values()) < wanted and taken[label] < len(groups[label]) - 1:
            taken[label] += 1
    if sum(taken.values()) < 1:
        raise ValueError(f"{len(rows)} rows are too few to take a share of {share:g} out of them")
    out = {i for label in groups for i in rng.permutation(groups[label])[: taken[label]].tolist()}
    return (
        [row for i, row in enumerate(rows) if i not in out],
        [row for i, row in enumerate(rows) if i in out],
    )


def draw_rows(rows: Sequence[Row], number: int, seed: int) -> list[Row]:
    """Return so many rows, drawn at random, in their order; those of fewer are among those of more.

    Raises:
        ValueError: there are fewer.
    """
    if number > len(rows):
        raise ValueError(f"train_rows is {number}, but there are {len(rows)} rows to train on")
    drawn = np.random.default_rng([seed, 1]).permutation(len(rows))[:number]
    return [rows[i] for i in sorted(drawn.tolist())]


def content_of_rows(rows: Sequence[Row]) -> str:
    """Return what tells the content of rows from any other, wherever they are from."""
    digest = hashlib.sha256()
    for row in rows:
        labels = row.label if row.labels is None else row.labels
        digest.update(json.dumps([list(row.texts.items()), labels]).encode())
    return digest.hexdigest()[:16]


def _text(place: str, column: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{place}: {column!r} is {_shown(value)}, but must be a string")
    if not value.strip():
        raise ValueError(f"{place}: {column!r} is empty")
    return value


def _shown(value: object) -> str:
    return json.dumps(value, default=repr)[:60]  # of Python, a value may be anything


def _label(place: str, column: str, value: object) -> str:
    """A label as CSV would spell it: JSON's 1 and "1" are the same."""
    if not isinstance(value, str | int | float):
        right = "a string or a number"
        if isinstance(value, list):
            right += "; for rows with any number of labels pass multi_label=True (--multi-label)"
        raise ValueError(f"{place}: {column!r} is {_shown(value)}, but must be {right}")
    label = (value if isinstance(value, str) else json.dumps(value)).strip()
    if not label:
        raise ValueError(f"{place}: {column!r} is empty: the label is missing")
    return label
