"""Settings for all tests, made before JAX is imported, and the order in which they run."""

import os
from pathlib import Path

import pytest
from hypothesis import settings
from support.compilation_cache import cache_folder, cache_variables, prune, sizes_and_times

os.environ.update({"JAX_PLATFORMS": "cpu", **cache_variables(cache_folder()), **os.environ})

import jax
from support.optimization import set_optimization
from support.order import arrange

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The first example of a property compiles, so no deadline tells a slow example from a fast one.
settings.register_profile(
    "gpt1", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("gpt1")


def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        prune()


def pytest_report_header() -> str:
    folder = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    sizes = [size for size, _ in sizes_and_times(folder).values()]
    return f"compilation cache: {folder}, {len(sizes)} programs, {sum(sizes) / 1e6:.0f} MB"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files without smoke tests under ``-m smoke``: importing all takes half a minute."""
    if config.getoption("markexpr") == "smoke" and collection_path.is_file():
        return "pytest.mark.smoke" not in collection_path.read_text(encoding="utf-8") or None
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    arrange(items)


@pytest.hookimpl(tryfirst=True)  # before the test's fixtures, which compile too
def pytest_runtest_setup(item: pytest.Item) -> None:
    marks = {mark.name for mark in item.iter_markers()}
    set_optimization("optimized" in marks)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of public data, which is not a part of the repository."""
    checkout = Path(__file__).parents[1]
    folder = Path(os.environ.get("GPT1_DATA") or checkout.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data: {folder} is not a folder; set GPT1_DATA")
    return folder
