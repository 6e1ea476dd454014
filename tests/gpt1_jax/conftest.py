"""What tests share: the command as a user runs it, its main function, and quick compilations."""

import sys
from collections.abc import Callable, Iterator

import jax
import pytest

from gpt1_jax import cli


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run ``gpt1`` with arguments: exit status, standard output, standard error."""

    def gpt1_command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gpt1", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return gpt1_command


@pytest.fixture(scope="module")
def quick_compilations() -> Iterator[None]:
    """Programs as XLA leaves them without optimisation, which takes most of a small test's time.

    For tests of behaviour. Those of parity run the programs that users run.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
