"""The order of training data: shuffled anew in each epoch, and known by a position."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Protocol, TypeVar

from gpt1_jax.training.step import Batch

Record = TypeVar("Record")
Position = dict[str, Any]  # an object of JSON


class BatchIterator(Protocol):
    """An iterator of grain's over batches without end; its state is its position."""

    def __next__(self) -> Batch:
        """Return the next batch."""
        ...

    def get_state(self) -> Position:
        """Return the position."""
        ...

    def set_state(self, state: Position, /) -> None:
        """Go to a position."""


def count_steps(epochs: float, records: int, batch_size: int) -> int:
    """Return the steps of so many epochs, of ceil(records / batch_size) each; rounded up.

    The number of epochs counts as it is written: 0.1 epochs of 30 steps are 3.
    """
    return math.ceil(Fraction(str(epochs)) * math.ceil(records / batch_size))


def shuffled_batches(
    source: Sequence[Record],
    batch_size: int,
    seed: int,
    collate: Callable[[Sequence[Record]], Batch],
) -> BatchIterator:
    """Return grain's iterator over shuffled batches, without end: each epoch in another order.

    An epoch reads every record once; its last batch has what is left.

    Args:
        source: of records, by their index: it has a length.
        batch_size: records in a batch.
        seed: of the orders.
        collate: makes a batch of records, and fills it up where they are fewer than
            ``batch_size``.
    """
    import grain

    return (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()
        .batch(batch_size, batch_fn=collate)
        .repeat()  # after the batches, so that none reaches into the next epoch
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
        .__iter__()
    )
