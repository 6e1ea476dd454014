"""Locks between processes."""

import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.lock_holder import lock_held

from conversion.locks import hold_lock


def test_hold_lock_names_the_process_that_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock_held(path, "writing there") as process:
        for _ in range(2):  # that the first refusal leaves the name of the holder there
            with (
                pytest.raises(BlockingIOError, match=rf"^.*process {process} on .* is mine$"),
                hold_lock(path, doing="mine"),
            ):
                pass


def test_hold_lock_of_dead_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock_held(path, "writing there"):
        pass
    assert path.exists()
    with hold_lock(path, doing="writing there"):
        pass
    assert not path.exists()


def test_hold_lock_waits_for_the_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with ExitStack() as stack:
        stack.enter_context(lock_held(path, "writing there"))
        release = threading.Timer(0.3, stack.close)
        release.start()
        with hold_lock(path, doing="writing there", wait=60):
            assert not release.is_alive() or release.finished.is_set()
        release.join()


def test_hold_lock_names_the_file_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with (
        pytest.raises(OSError, match=r"lock cannot be locked: "),
        hold_lock(tmp_path / "lock", doing="writing there"),
    ):
        pass
