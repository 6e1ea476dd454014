"""The order of training data: shuffled anew in each epoch, and known by a position."""

from collections.abc import Callable, Sequence
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


def shuffled_batches(
    source: Sequence[Record],
    batch_size: int,
    seed: int,
    collate: Callable[[Sequence[Record]], Batch],
) -> BatchIterator:
    """Return grain's iterator over shuffled batches, without end: each epoch in another order.

    Args:
        source: of records, by their index: it has a length.
        batch_size: records in a batch; one may reach into the next epoch.
        seed: of the orders.
        collate: makes a batch of records.
    """
    import grain

    return (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()
        .repeat()
        .batch(batch_size, batch_fn=collate)
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
        .__iter__()
    )
