"""What the suite itself relies on: its compilation cache, its order, and compilations as marked."""

import os
from pathlib import Path

import jax
import pytest
from support.compilation_cache import prune
from support.compilations import compilations
from support.optimization import set_optimization
from support.order import SLOWEST
from support.small_models import random_ids, small_model

import gpt1_jax as gpt1


def test_prune_removes_what_was_used_least_recently(tmp_path: Path) -> None:
    for age, name in enumerate(("newest", "middle", "oldest")):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    prune(tmp_path, 250)
    assert {path.name for path in tmp_path.iterdir()} == {"newest", "middle"}
    prune(tmp_path / "not there yet")


def test_the_slowest_files_are_tests() -> None:
    names = {path.name for path in Path(__file__).parent.rglob("test_*.py")}
    assert set(SLOWEST) <= names


def test_programs_without_optimization_do_not_stay() -> None:
    """The package keeps its functions, and JAX their programs, whatever they were compiled with."""
    apply, params = gpt1.functional(small_model(gpt1.OpenAIGPTLMHeadModel, n_embd=4))
    ids = random_ids(1, 3)

    def compiled() -> int:
        with compilations() as found:
            apply(params, ids)
        return len(found)

    try:
        set_optimization(False)
        assert compiled() == 1
        assert compiled() == 0
        set_optimization(True)
        assert compiled() == 1
    finally:
        set_optimization(True)


@pytest.mark.parametrize("off", [False, pytest.param(True, marks=pytest.mark.unoptimized)])
def test_the_mark_switches_optimization_off(off: bool) -> None:
    assert jax.config.values["jax_disable_most_optimizations"] is off
