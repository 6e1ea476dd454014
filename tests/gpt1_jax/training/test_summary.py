"""The lines that a run begins with."""

from typing import Any

import pytest

from gpt1_jax.training.summary import show_summary

BASE: dict[str, Any] = {
    "steps": 3000,
    "steps_per_epoch": 1000,
    "warmup_steps": 6.0,
    "first_learning_rate": 0.0,
    "highest_learning_rate": 6.2375e-5,
    "parameters": 116_537_088,
    "trained_parameters": 2304,
    "state_bytes": 466_176_000,
    "warnings": ["dev.tsv: 2 of 2"],
}
LAST = [
    "3,000 steps, 1,000 an epoch; 6 steps of warm-up; the learning rate is 0 at first and 6.24e-05 "
    "at most",
    "2,304 of 116,537,088 parameters are trained; weights, gradients and optimizer take 466 MB, "
    "activations more",
    "warning: dev.tsv: 2 of 2",
]


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        (
            {
                "train": {"rows": 1200, "classes": {"no": 1000, "yes": 200}},
                "valid": {"rows": 1, "classes": {"no": 1, "yes": 0}},
                "cut": {"rows": 2, "tokens": 254, "longest": 1901},
                "class_weights": {"no": 0.6, "yes": 3.0},
            },
            [
                "to train on: 1,200 rows, 2 classes: no (1,000), yes (200)",
                "to validate on: 1 row, 2 classes: no (1), yes (0)",
                "2 rows to train on have a text that is cut to 254 tokens; the longest has 1,901",
                "class weights: no 0.6, yes 3",
            ],
        ),
        (
            {
                "train": {"rows": 2, "lowest": 0.5, "highest": 4.0},
                "valid": None,
                "cut": {"rows": 0, "tokens": 254, "longest": 0},
            },
            ["to train on: 2 rows, labels from 0.5 to 4"],
        ),
        (
            {"train": {"rows": 12, "choices": dict.fromkeys(map(str, range(12)), 1)}},
            [
                f"to train on: 12 rows, 12 choices: {', '.join(f'{i} (1)' for i in range(10))}, "
                "and 2 more"
            ],
        ),
        (
            {"train": {"files": 2, "characters": 10_000, "tokens": 3000, "blocks": 1}},
            ["to train on: 2 files, 10,000 characters, 3,000 tokens, 1 block"],
        ),
    ],
)
def test_show_summary_prints_what_was_understood(
    capsys: pytest.CaptureFixture[str], fields: dict[str, Any], lines: list[str]
) -> None:
    show_summary({**BASE, **fields})
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [*lines, *LAST]
