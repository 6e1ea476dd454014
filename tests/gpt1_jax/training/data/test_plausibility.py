"""What is probably wrong with a labelled set: what is named, dropped, refused, and what is not."""

import pytest

from gpt1_jax.training.data.labelled import Row
from gpt1_jax.training.data.plausibility import (
    check_no_regression,
    drop_unlabelled,
    find_alike_classes,
    find_shared_rows,
)


def rows_of(*labels: str) -> list[Row]:
    return [Row(f"a, b.csv, line {i}", {"text": f"text {i}"}, x) for i, x in enumerate(labels, 2)]


def test_drop_unlabelled_leaves_out_rows_without_gold_label() -> None:
    rows = rows_of(*"012" * 7, "-1", "-")
    without, line = drop_unlabelled(rows)
    assert without == rows[:21]
    assert line is not None
    assert line.startswith("a, b.csv: 2 of 23 rows are left out for their label -1 or -, which sta")
    assert drop_unlabelled(rows[:21]) == (rows[:21], None)


def test_drop_unlabelled_keeps_a_class_of_that_name() -> None:
    for rows in (rows_of("-1", "0", "1"), rows_of("-1"), rows_of(*"012" * 3, "-1")):
        assert drop_unlabelled(rows) == (rows, None)  # a tenth of the rows
    rows = rows_of(*"01" * 10, "-1")
    assert drop_unlabelled(rows, ["-1", "0", "1"]) == (rows, None)
    assert drop_unlabelled(rows, ["0", "1"])[0] == rows[:20]


@pytest.mark.parametrize(
    "labels",
    [
        [str(number / 10) for number in range(21)] * 50,
        ["0.5", "1.25", "3", "4", "2.75"] * 2,
        [str(number) for number in range(21)] * 2,
    ],
)
def test_check_no_regression_refuses_many_numbers(labels: list[str]) -> None:
    match = rf"^a, b\.csv: the labels are numbers, {len(set(labels))} diff.*--task regression"
    with pytest.raises(ValueError, match=match):
        check_no_regression(rows_of(*labels))


@pytest.mark.parametrize(
    "labels",
    [
        ["0", "1"],
        ["1", "2", "3", "4", "5"] * 2,
        ["0.5", "1.0"],
        [str(number / 2) for number in range(1, 11)] * 10,  # stars
        [str(number) for number in range(77)] * 4,
        [*(str(number / 10) for number in range(30)), "none"],
    ],
)
def test_check_no_regression_accepts_classes(labels: list[str]) -> None:
    check_no_regression(rows_of(*labels))


def test_find_alike_classes_names_case_blanks_and_numbers() -> None:
    labels = ["Pos", "pos", "very good", "very  good", "1", "1.0", "1.5", "neg", "nan", "NaN"]
    found = find_alike_classes(rows_of(*labels, "pos"))
    assert [line.partition(" are ")[0] for line in found] == [
        "a, b.csv: the classes '1' (1 rows) and '1.0' (1 rows)",
        "a, b.csv: the classes 'NaN' (1 rows) and 'nan' (1 rows)",
        "a, b.csv: the classes 'Pos' (1 rows) and 'pos' (2 rows)",
        "a, b.csv: the classes 'very  good' (1 rows) and 'very good' (1 rows)",
    ]
    assert find_alike_classes(rows_of("pos", "neg", "1", "2.0")) == []


def test_find_shared_rows_counts_texts_of_both_sets() -> None:
    train, valid = rows_of("a", "b", "a"), rows_of("b", "b")
    assert [line.partition(" of rows")[0] for line in find_shared_rows(train, valid)] == [
        "a, b.csv: 2 of 2 rows have the texts"
    ]
    other = [Row("c.csv, line 2", {"text": "another"}, "a")]
    assert find_shared_rows(train, other) == []
