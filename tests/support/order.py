"""The order of the tests: slow files start first, on both workers."""

from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
# The files that take longest, slowest first.
SLOWEST = (
    "gpt1_jax/test_parity.py",
    "gpt1_jax/test_full_size.py",
    "gpt1_jax/generation/test_parity.py",
    "gpt1_jax/training/test_killed.py",
    "gpt1_jax/test_parallel.py",
    "gpt1_jax/training/test_finetune.py",
    "gpt1_jax/test_model.py",
    "gpt1_jax/test_attention_backends.py",
    "gpt1_jax/test_cli.py",
    "gpt1_jax/training/test_trajectory.py",
    "gpt1_jax/training/test_pretrain.py",
    "gpt1_jax/test_rematerialization.py",
    "gpt1_jax/generation/test_decode.py",
    "gpt1_jax/plan/test_plan.py",
    "gpt1_jax/test_export.py",
)


def is_unoptimized(item: pytest.Item) -> bool:
    """Return whether a test compiles without XLA's optimisation."""
    return item.get_closest_marker("unoptimized") is not None


def arrange(items: list[pytest.Item]) -> None:
    """Sort tests in place.

    pytest-xdist gives each worker one stretch of the list, from whose end others may steal. The
    files are dealt to the two halves in turn; each half starts with its slow files, and has its
    unoptimised tests together, since a switch drops the compiled programs.
    """
    files = dict.fromkeys(item.path.relative_to(TESTS).as_posix() for item in items)
    ordered = [name for name in SLOWEST if name in files]
    ordered += [name for name in files if name not in SLOWEST]
    rank = {name: i for i, name in enumerate(ordered)}

    def key(item: pytest.Item) -> tuple[int, int, bool, int]:
        name = item.path.relative_to(TESTS).as_posix()
        slow = rank[name] if name in SLOWEST else len(SLOWEST)
        return rank[name] % 2, slow, is_unoptimized(item), rank[name]

    items.sort(key=key)
