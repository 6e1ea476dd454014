"""Locks between processes: a file that one process at a time holds."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def hold_lock(path: Path, *, doing: str, wait: float = 0) -> Iterator[None]:
    """Hold a lock file, which says who holds it and is removed at the end.

    The system frees the lock of a process that dies, so the file that it leaves blocks nobody.

    Args:
        path: of the lock file, in a folder that exists.
        doing: what the holder does, for the error: "process 4711 on host is ``doing``".
        wait: seconds to wait for another process.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the file cannot be made.
    """
    from filelock import FileLock, Timeout

    # A file of its own: where the system has no such locks, the lock's file is filelock's record.
    holder = path.with_name(f"{path.name}.holder")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        raise BlockingIOError(errno.EAGAIN, f"{_read_holder(holder)} is {doing}") from None
    except OSError as error:
        reason = error.strerror or error
        raise OSError(error.errno, f"{path} cannot be locked: {reason}") from error
    try:
        holder.write_text(f"{os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        # Before it is free: afterwards the files may be another process's.
        for file in (holder, path):
            with suppress(OSError):
                file.unlink()
        lock.release()


def _read_holder(holder: Path) -> str:
    with suppress(OSError):
        if text := holder.read_text(encoding="utf-8", errors="replace"):
            return f"process {text}"
    return "another process"
