"""What peers print: kept while they succeed, shown when they fail."""

import os
import sys
import warnings

import pytest

from benchmarks.quiet import quiet


def chatter(fail: bool = False) -> None:
    print("from Python")
    print("to the log", file=sys.stderr)
    os.write(1, b"from C\n")
    warnings.warn("deprecated", DeprecationWarning, stacklevel=1)
    if fail:
        raise ValueError("no model")


def test_quiet_keeps_what_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    print("before")
    with quiet():
        chatter()
    print("after")
    assert capfd.readouterr() == ("before\nafter\n", "")


def test_quiet_shows_what_was_printed_before_a_failure(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match="no model"), quiet():
        chatter(fail=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert {"from Python", "to the log", "from C"} <= set(err.splitlines())
