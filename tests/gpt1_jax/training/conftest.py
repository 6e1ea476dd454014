"""What the tests of whole runs share."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(scope="module")
def quick_compilations() -> Iterator[None]:
    """Most of a tiny run is XLA's, at work on programs that then run for milliseconds."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
