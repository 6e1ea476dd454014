"""What is probably wrong with a labelled set though every row can be read."""

from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Sequence

from gpt1_jax.training.data.labelled import Row

UNLABELLED = ("-1", "-")  # how SNLI and MNLI spell that annotators did not agree
FEW_CLASSES = 20


def drop_unlabelled(
    rows: Sequence[Row], classes: Collection[str] = ()
) -> tuple[list[Row], str | None]:
    """Leave out the rows of an entailment that have no gold label, and return a line that says so.

    They are those with the label "-1" or "-", if that is none of ``classes`` and they are fewer
    than a tenth of the rows: more of them are a class.
    """
    without = [row for row in rows if row.label not in UNLABELLED or row.label in classes]
    dropped = len(rows) - len(without)
    if not dropped or 10 * dropped >= len(rows):
        return list(rows), None
    return without, (
        f"{_file(rows)}: {dropped} of {len(rows)} rows are left out for their label -1 or -, which "
        "stands for no gold label in SNLI and MNLI; give the class another name to keep them"
    )


def check_no_regression(rows: Sequence[Row]) -> None:
    """Check that the labels of a classification are not numbers of which most are different.

    Raises:
        ValueError: they are. Integers are so from 21 different ones on, if these are more than a
            third of the rows; where there are fractions, 21 are enough, or from 5 on a third.
    """
    names = {row.label for row in rows}
    numbers = [_number(name) for name in names]
    if any(number is None for number in numbers):
        return
    fractions = any(number % 1 for number in numbers if number is not None)
    third = len(rows) / 3
    if len(names) > (max(4, min(FEW_CLASSES, third)) if fractions else max(FEW_CLASSES, third)):
        raise ValueError(
            f"{_file(rows)}: the labels are numbers, {len(names)} different ones in {len(rows)} "
            "rows, which is a regression: pass the task regression (--task regression)"
        )


def find_alike_classes(rows: Sequence[Row]) -> list[str]:
    """Return a line for each group of classes that differ in case, blanks, or as numbers alone."""
    counts = Counter(name for row in rows for name in row.names)
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for name in sorted(counts):
        number = _number(name)
        groups[" ".join(name.casefold().split()) if number is None else number].append(name)
    named = [
        " and ".join(f"{name!r} ({counts[name]} rows)" for name in names)
        for names in groups.values()
        if len(names) > 1
    ]
    return [
        f"{_file(rows)}: the classes {names} are learned as different ones; spell them alike if "
        "they are one class"
        for names in named
    ]


def find_shared_rows(train: Sequence[Row], valid: Sequence[Row]) -> list[str]:
    """Return a line if texts of the validation set stand in the training set too."""
    known = {tuple(row.texts.values()) for row in train}
    shared = sum(tuple(row.texts.values()) in known for row in valid)
    if not shared:
        return []
    return [
        f"{_file(valid)}: {shared} of {len(valid)} rows have the texts of rows to train on, so its "
        "measures are too good; take them out of one of the sets"
    ]


def _file(rows: Sequence[Row]) -> str:
    return rows[0].place.rpartition(", ")[0]


def _number(name: str) -> float | None:
    """Return a label as a number; None for words, nan and infinities among them."""
    try:
        number = float(name)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None
