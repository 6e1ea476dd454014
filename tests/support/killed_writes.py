"""Writes of a folder that are killed at every change they make, one after another.

    python killed_writes.py MODULE FUNCTION TEMPLATE WORK

calls ``FUNCTION(folder)`` of MODULE on a copy of TEMPLATE, in a process that is killed just before
its first change to a file's name, on another copy before its second change, and so on, until a call
ends. The copies are WORK/0, WORK/1 and so on; the last one is that of the call that ended.
"""

import importlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

CHANGES = ("os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir")


def killed_writes(module: Path, function: str, template: Path, work: Path) -> list[Path]:
    """Return the copies of ``template``, that of the whole write last.

    Args:
        module: a file of Python, which must not import JAX: the process forks.
        function: its name there; takes the folder.
        template: the folder before the write.
        work: where to put the copies.
    """
    command = [sys.executable, __file__, str(module), function, str(template), str(work)]
    subprocess.run(command, check=True, timeout=120)
    return sorted(work.iterdir(), key=lambda path: int(path.name))


def _die_before(count: int) -> None:
    seen = itertools.count()

    def hook(event: str, arguments: object) -> None:
        if event in CHANGES and next(seen) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main(module: str, function: str, template: str, work: str) -> None:
    sys.path.insert(0, str(Path(module).parent))
    write = getattr(importlib.import_module(Path(module).stem), function)
    for count in itertools.count():
        folder = Path(work) / str(count)
        shutil.copytree(template, folder)
        child = os.fork()
        if not child:
            _die_before(count)
            write(folder)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return
        assert os.WTERMSIG(status) == signal.SIGKILL


if __name__ == "__main__":
    main(*sys.argv[1:])
