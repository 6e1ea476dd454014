"""Files that are written whole or not at all, and what a killed process leaves of them."""

import signal
import subprocess
import sys
from pathlib import Path

from conversion.files import remove_unfinished

# A save as libraries do it: to a file of a random name beside the path, which is then renamed.
KILLED = """
import os, signal, sys
from pathlib import Path
from conversion.files import atomic_write

with atomic_write(Path(sys.argv[1])) as new:
    new("model.safetensors").with_name(".tmp01gPIE").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_remove_unfinished_removes_what_libraries_write_beside_the_path(tmp_path: Path) -> None:
    for name in ("model.safetensors", ".mine.tmp", ".tmp0abcde"):
        (tmp_path / name).write_bytes(b"old")
    before = sorted(tmp_path.rglob("*"))
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.rglob("*"))) > len(before)
    remove_unfinished(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
