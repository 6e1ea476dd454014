"""The order of the tests: slow files start first, on both workers."""

from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
# The files that take longest, slowest first.
SLOWEST = (
    "gpt1_jax/training/test_killed.py",
    "gpt1_jax/test_full_size.py",
    "gpt1_jax/test_parity.py",
    "gpt1_jax/training/test_finetune.py",
    "test_readme.py",
    "gpt1_jax/generation/test_decode.py",
    "gpt1_jax/generation/test_parity.py",
    "gpt1_jax/training/test_pretrain.py",
    "gpt1_jax/nn/test_remat.py",
    "gpt1_jax/test_model.py",
    "gpt1_jax/sharding/test_mesh.py",
    "gpt1_jax/generation/test_api.py",
    "gpt1_jax/test_quantization.py",
    "gpt1_jax/test_export.py",
    "gpt1_jax/nn/test_attention_backends.py",
    "gpt1_jax/generation/test_batches.py",
    "gpt1_jax/cli/test_cli.py",
    "gpt1_jax/estimate/test_planning.py",
)


def arrange(items: list[pytest.Item]) -> None:
    """Sort tests in place, the slowest files first.

    pytest-xdist gives each worker one stretch of the list, from whose end others may steal. The
    files are therefore dealt to the two halves of the list in turn.
    """
    files = [item.path.relative_to(TESTS).as_posix() for item in items]
    order = [*(name for name in SLOWEST if name in files), *files]
    rank = {name: i for i, name in enumerate(dict.fromkeys(order))}
    ranks = {item: rank[name] for item, name in zip(items, files, strict=True)}
    items.sort(key=lambda item: (ranks[item] % 2, ranks[item]))
