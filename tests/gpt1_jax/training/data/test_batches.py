"""The order of training data: every record once an epoch, from any position."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt1_jax.training.data.batches import count_steps, shuffled_batches


def numbers(count: int, batch_size: int, seed: int = 0) -> Any:
    """Batches of so many numbers, as lists."""
    return shuffled_batches(range(count), batch_size, seed, lambda batch: {"numbers": list(batch)})


def take(batches: Any, steps: int) -> list[list[int]]:
    return [next(batches)["numbers"] for _ in range(steps)]


def joined(batches: list[list[int]]) -> list[int]:
    return [number for batch in batches for number in batch]


@pytest.mark.nightly
@given(
    count=st.integers(1, 14),
    batch_size=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
    before=st.integers(0, 12),
)
@settings(max_examples=12)
def test_shuffled_batches_read_all_once_an_epoch_from_any_position(
    count: int, batch_size: int, seed: int, before: int
) -> None:
    per_epoch = math.ceil(count / batch_size)
    batches = numbers(count, batch_size, seed)
    found = take(batches, before)
    position = batches.get_state()
    resumed = numbers(count, batch_size, seed)
    take(resumed, 1)
    resumed.set_state(position)
    found += take(resumed, per_epoch)
    assert found[before:] == take(batches, per_epoch)
    for start in range(0, len(found) - per_epoch + 1, per_epoch):
        epoch = found[start : start + per_epoch]
        assert {len(batch) for batch in epoch[:-1]} <= {batch_size}
        assert sorted(joined(epoch)) == list(range(count))


def test_shuffled_batches_depend_on_epoch_and_seed() -> None:
    found = take(numbers(12, 5), 12)
    epochs = [joined(found[start : start + 3]) for start in range(0, 12, 3)]
    assert len({tuple(epoch) for epoch in [*epochs, range(12)]}) == 5
    assert take(numbers(12, 5), 12) == found
    assert take(numbers(12, 5, seed=1), 12) != found


@pytest.mark.parametrize(
    ("epochs", "records", "batch_size", "steps"),
    [
        (1, 1, 32, 1),
        (3, 15, 32, 3),
        (3, 33, 32, 6),
        (0.5, 48, 8, 3),
        (0.5, 24, 8, 2),
        (1e-9, 1000, 8, 1),
        (0.1, 30 * 8, 8, 3),  # as floats, 0.1 * 30 is above 3
        (0.07, 100 * 8, 8, 7),
        (1e20, 10, 4, 3 * 10**20),
    ],
)
def test_count_steps_rounds_up(epochs: float, records: int, batch_size: int, steps: int) -> None:
    assert count_steps(epochs, records, batch_size) == steps
