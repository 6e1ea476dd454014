"""Settings for all tests, made before JAX is imported: the CPU, and no silent promotion."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The first example of a property compiles, so no deadline tells a slow example from a fast one.
settings.register_profile(
    "gpt1", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("gpt1")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of public data, which is not a part of the repository."""
    checkout = Path(__file__).parents[1]
    folder = Path(os.environ.get("GPT1_DATA") or checkout.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data: {folder} is not a folder; set GPT1_DATA")
    return folder
