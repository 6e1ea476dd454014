"""What tests share: the main function of the command."""

import sys
from collections.abc import Callable

import pytest

from gpt1_jax import cli


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run ``gpt1`` with arguments: exit status, standard output, standard error."""

    def gpt1_command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gpt1", *map(str, arguments)])
        monkeypatch.delenv("FORCE_COLOR", raising=False)
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return gpt1_command
