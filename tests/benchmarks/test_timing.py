"""Rounds, spreads and ratios."""

from benchmarks.timing import Spread, interleave, ratio, steps


def test_interleave_alternates_within_rounds() -> None:
    order: list[str] = []
    seconds = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 3
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_steps_subtracts_the_median_start() -> None:
    assert steps([5.0, 9.0, 5.0], [1.0, 4.0, 1.0], 4) == [1.0, 2.0, 1.0]


def test_spread_holds_median_and_quartiles() -> None:
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0)


def test_ratio_is_taken_per_round() -> None:
    # The ratio of the medians would be 8 / 2.
    assert ratio([2.0, 9.0, 8.0], [1.0, 3.0, 2.0]) == Spread(3.0, 2.5, 3.5)
