"""The nested dict of parameters."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from conversion.layout import ParamSpec
from conversion.match import LazyTensor

# What becomes of each array as soon as it is read: jnp.asarray, say.
Leaf = Callable[[np.ndarray], Any]


def same(array: np.ndarray) -> np.ndarray:
    """The array itself."""
    return array


def load_params(fitted: Sequence[tuple[ParamSpec, LazyTensor]], leaf: Leaf) -> dict[str, Any]:
    """Read every array, and nest what ``leaf`` makes of each.

    The largest come first: while an array is both here and wherever ``leaf`` puts it, least of the
    others is, so that the peak is about one copy of the file.

    Returns:
        The nested dict, in the order of ``fitted``.
    """
    leaves: dict[tuple[str, ...], Any] = {}
    for row, stored in sorted(fitted, key=lambda pair: -pair[1].nbytes):
        made = leaf(row.from_torch(stored.load()))
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
