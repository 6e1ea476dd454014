"""The host's side: what the device has to agree with, computed on the CPU in a process of its own.

``python -m benchmarks.accelerator.host CHECKPOINT FOLDER [--quick]`` writes ``float64.npz``,
``texts.json`` and ``losses.json`` into the folder, each whole, in this order.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from conversion.files import atomic_write

FLOAT64, TEXTS, LOSSES = "float64.npz", "texts.json", "losses.json"


def compute(checkpoint: Path, folder: Path, quick: bool) -> None:
    """Compute the references and write them: the child's work."""
    import jax

    jax.config.update("jax_platforms", "cpu")

    from benchmarks.accelerator import work

    if quick:
        work.compile_quickly()
    sizes = work.QUICK if quick else work.FULL
    with jax.enable_x64(True):
        model = work.load(checkpoint, dtype="float64", param_dtype="float64")
        ids = work.random_ids(model.config, *sizes.logits)
        exact = work.logits_and_gradients(model, ids)
    model = work.load(checkpoint)
    # What float32 costs on a processor that computes in it: the yardstick for the device.
    host = work.logits_and_gradients(model, ids)
    arrays: dict[str, Any] = {**exact, **{f"host {name}": each for name, each in host.items()}}
    with atomic_write(folder) as new, new(FLOAT64).open("wb") as file:
        np.savez(file, **arrays)
    with atomic_write(folder) as new:
        new(TEXTS).write_text(json.dumps(work.texts(model, sizes)))
    with atomic_write(folder) as new:
        new(LOSSES).write_text(json.dumps(work.training_losses(model, sizes)))


def python_path() -> str:
    """Return the PYTHONPATH of a child: this checkout, and where the parent looks besides."""
    found = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
    return os.pathsep.join(filter(None, found))


class Host:
    """The child, seen from the parent."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, errors: Path):
        self._process, self._folder, self._errors = process, folder, errors

    @classmethod
    @contextlib.contextmanager
    def start(cls, checkpoint: Path, folder: Path, quick: bool) -> Iterator["Host"]:
        """Start the child; it ends with the block."""
        errors = folder / "host.err"
        command = [sys.executable, "-m", __name__, str(checkpoint), str(folder)]
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                [*command, *["--quick"] * quick],
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,  # an interrupt from the keyboard is the parent's alone
                env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": python_path()},
            )
        try:
            yield cls(process, folder, errors)
        finally:
            process.kill()
            process.wait()

    def wait_for(self, name: str, deadline: float) -> Any:
        """Return what a file holds, when it is there.

        Raises:
            RuntimeError: the child has ended without it; the message is its last.
            TimeoutError: it is not there in time.
        """
        file = self._folder / name
        while not file.exists():
            if self._process.poll() is not None and not file.exists():
                said = self._errors.read_text(errors="replace").strip() or "nothing was said"
                raise RuntimeError(f"the host's process failed: {said.splitlines()[-1]}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"the host has not computed {name} in time")
            time.sleep(0.05)
        return json.loads(file.read_bytes()) if file.suffix == ".json" else dict(np.load(file))


if __name__ == "__main__":
    compute(Path(sys.argv[1]), Path(sys.argv[2]), "--quick" in sys.argv)
