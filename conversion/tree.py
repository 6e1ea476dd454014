"""The nested dict of parameters."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from conversion.layout import ParamSpec
from conversion.match import LazyTensor

# Arrays that are read at a time. Most of a read is the system's making of new pages: a new process
# reads the full size in 0.25 s with two, in 0.4 to 1.1 s with one, on two cores.
READERS = 2
# What becomes of each array as soon as it is read: jnp.asarray, say.
Leaf = Callable[[np.ndarray], Any]


def same(array: np.ndarray) -> np.ndarray:
    """Return the array itself."""
    return array


def _read_ahead(tensors: Sequence[LazyTensor]) -> Iterator[np.ndarray]:
    """Yield the arrays, each of which is read while those before it are used."""
    with ThreadPoolExecutor(READERS) as pool:
        reading: deque[Future[np.ndarray]] = deque()
        for one in tensors:
            reading.append(pool.submit(one.load))
            if len(reading) == READERS:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()


def load_params(fitted: Sequence[tuple[ParamSpec, LazyTensor]], leaf: Leaf) -> dict[str, Any]:
    """Read every array, and nest what ``leaf`` makes of each.

    The largest come first: while an array is both here and wherever ``leaf`` puts it, least of the
    others is, so that the peak is about one copy of the file.

    Returns:
        The nested dict, in the order of ``fitted``.
    """
    leaves: dict[tuple[str, ...], Any] = {}
    ordered = sorted(fitted, key=lambda pair: -pair[1].nbytes)
    for (row, _), array in zip(ordered, _read_ahead([one for _, one in ordered]), strict=True):
        made = leaf(row.from_torch(array))
        # JAX copies in the background, and keeps the array until it has: measured on a CPU, arrays
        # not waited for pile up to 0.6 of the file.
        getattr(made, "block_until_ready", lambda: None)()
        leaves[row.path] = made

    root: dict[str, Any] = {}
    for row, _ in fitted:
        node = root
        for key in row.path[:-1]:
            node = node.setdefault(key, {})
        node[row.path[-1]] = leaves[row.path]
    return root
