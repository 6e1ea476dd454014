"""The order of training data: shuffled anew in each epoch, and known by a position."""

from collections.abc import Callable, Sequence
from typing import Any


def shuffled_batches(
    source: Any, batch_size: int, seed: int, collate: Callable[[Sequence[Any]], Any]
) -> Any:
    """Return grain's iterator over shuffled batches, without end: each epoch in another order.

    ``get_state`` and ``set_state`` of it tell and set its position.

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
