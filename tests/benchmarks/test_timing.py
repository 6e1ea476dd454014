"""Rounds, spreads and ratios."""

import pytest

from benchmarks.timing import Spread, interleave, ratio, steps, unsteady


def test_interleave_alternates_within_rounds() -> None:
    order: list[str] = []
    seconds = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 3
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_interleave_ends_long_cases_after_three_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("benchmarks.timing.clock", lambda: now[0])

    def run(taken: float) -> None:
        now[0] += taken

    def rounds(taken: float) -> int:
        return len(interleave({"a": lambda: run(taken), "b": lambda: run(taken)}, 5)["b"])

    assert (rounds(6.0), rounds(4.0), rounds(0.1)) == (3, 4, 5)


def test_steps_subtracts_the_median_start() -> None:
    assert steps([5.0, 9.0, 5.0], [1.0, 4.0, 1.0], 4) == [1.0, 2.0, 1.0]


def test_spread_holds_median_and_quartiles() -> None:
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0)


def test_ratio_is_taken_per_round() -> None:
    # The ratio of the medians would be 8 / 2.
    assert ratio([2.0, 9.0, 8.0], [1.0, 3.0, 2.0]) == Spread(3.0, 2.5, 3.5)


@pytest.mark.parametrize(
    ("seconds", "why"),
    [
        ([1.0], None),
        ([1.0, 1.1, 1.0, 1.05, 1.1], None),
        # A slow round changes no median.
        ([1.0, 1.0, 9.0, 1.0, 1.0], None),
        ([1.0, 1.0, 1.0, 1.0, 9.0], None),
        ([1.0, 1.4, 1.2, 1.4, 1.0], "the quartiles lie 33% of the median apart"),
        ([0.001, 0.001, 0.001, 0.0016, 0.0017], "the median went from 1 to 1.6 ms"),
        ([0.02, 0.02, 0.01], "the median went from 20 to 10 ms"),
        ([-1.0, 0.0, 1.0], "the noise hides it"),
    ],
)
def test_unsteady_names_wide_quartiles_and_moved_medians(
    seconds: list[float], why: str | None
) -> None:
    found = unsteady(seconds)
    assert found == why or (why is not None and found is not None and found.startswith(why))
