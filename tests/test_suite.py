"""What the suite itself relies on: its compilation cache, its order, and compilations as marked."""

import os
from pathlib import Path

import jax
import pytest
from support.compilation_cache import prune
from support.compilations import compilations
from support.optimization import set_optimization
from support.order import SLOWEST, TESTS
from support.planted_faults import FAULTS
from support.small_models import random_ids, small_model

import gpt1_jax as gpt1


def test_prune_removes_the_oldest_programs(tmp_path: Path) -> None:
    (tmp_path / "0.10").mkdir()
    names = ("newest-cache", "middle-cache", "0.10/oldest-cache", "older file")
    for age, name in enumerate(names):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    prune(tmp_path, 250)
    assert {name for name in names if not (tmp_path / name).exists()} == {"0.10/oldest-cache"}
    prune(tmp_path / "not there yet")


def test_slowest_names_files() -> None:
    assert all((TESTS / name).is_file() for name in SLOWEST)


def test_faults_can_be_planted() -> None:
    for fault in FAULTS:
        assert (TESTS.parent / fault.file).read_text().count(fault.right) == 1, fault.name


@pytest.mark.nightly
def test_set_optimization_keeps_programs_apart() -> None:
    """The package keeps its functions, and JAX their programs: each kind is found again."""
    apply, params = gpt1.functional(small_model(gpt1.OpenAIGPTLMHeadModel, n_embd=4))
    ids = random_ids(1, 3)

    def compiled(on: bool) -> int:
        set_optimization(on)
        with compilations() as found:
            apply(params, ids)
        return len(found)

    try:
        assert [compiled(on) for on in (False, True, False, True)] == [1, 1, 0, 0]
    finally:
        set_optimization(True)


@pytest.mark.parametrize("on", [False, pytest.param(True, marks=pytest.mark.optimized)])
def test_optimized_switches_optimization_on(on: bool) -> None:
    assert jax.config.values["jax_disable_most_optimizations"] is not on
