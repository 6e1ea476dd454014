"""The order of the tests: whoever runs the slowest must not be the last to finish."""

import pytest

# The files that take longest, slowest first.
SLOWEST = (
    "test_killed.py",
    "test_parallel.py",
    "test_full_size.py",
    "test_trajectory.py",
    "test_parity.py",
    "test_plan.py",
    "test_rematerialization.py",
    "test_finetune.py",
    "test_attention_backends.py",
    "test_pretrain.py",
    "test_model.py",
    "test_export.py",
    "test_cli.py",
    "test_decode.py",
)


def is_unoptimized(item: pytest.Item) -> bool:
    return item.get_closest_marker("unoptimized") is not None


def place(item: pytest.Item) -> tuple[int, bool]:
    """Where a test stands: the slowest files first, those without optimisation together at last."""
    name = item.path.name
    slow = SLOWEST.index(name) if name in SLOWEST else len(SLOWEST)
    return slow, is_unoptimized(item)
