"""gpt1-jax under another JAX: in a process of another Python, so that both run in turn."""

import contextlib
import os
import pickle
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]


class OtherJax:
    """The child, seen from the parent.

    Attributes:
        python: its version.
        jax: that of its JAX.
    """

    def __init__(self, name: str, process: subprocess.Popen[bytes]):
        self._name, self._process = name, process
        self.python, self.jax = self._ask("versions")

    @classmethod
    @contextlib.contextmanager
    def start(cls, python: Path) -> Iterator["OtherJax"]:
        """Start the child; it ends with the block.

        Raises:
            OSError: there is no such program.
            RuntimeError: it does not run gpt1-jax; what it says is on standard error.
        """
        process = subprocess.Popen(
            [python, "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,  # the first place where it looks for modules
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        # Closes the pipes; what an ended child has not read cannot be flushed.
        with contextlib.suppress(BrokenPipeError), process:
            try:
                yield cls(str(python), process)
            finally:
                process.kill()

    def forward(self, folder: Path, head: bool, dtype: str) -> Callable[[np.ndarray], "Output"]:
        """Return the forward; its output stays in the child until it is asked for."""
        number = self._load("forward", folder, head, dtype)

        def run(ids: np.ndarray) -> Output:
            self._ask("run", number, ids)
            return Output(self._ask)

        return run

    def generate(self, folder: Path, dtype: str) -> Callable[[np.ndarray, int], np.ndarray]:
        """Return greedy generation."""
        number = self._load("generate", folder, dtype)

        def run(prompts: np.ndarray, new: int) -> np.ndarray:
            self._ask("run", number, prompts, new)
            return self._ask("last")

        return run

    def train(self, folder: Path, *arguments: Any) -> Callable[[np.ndarray], float]:
        """Return a training step; the arguments are those of ``ours.train``."""
        number = self._load("train", folder, *arguments)

        def take(ids: np.ndarray) -> float:
            self._ask("run", number, ids)
            return self._ask("last")

        return take

    def _load(self, kind: str, folder: Path, *arguments: Any) -> int:
        # As a text: a Path of one Python cannot be unpickled by every other.
        return self._ask("load", kind, str(folder.absolute()), *arguments)

    def _ask(self, *request: Any) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            pickle.dump(request, stdin)
            stdin.flush()
            done, answer = pickle.load(stdout)
        except (EOFError, BrokenPipeError):
            status = self._process.wait()
            raise RuntimeError(f"{self._name} has ended with status {status}") from None
        if not done:
            raise RuntimeError(f"{self._name}: {answer}")
        return answer


class Output:
    """The child's last output, as numpy takes it."""

    def __init__(self, ask: Callable[..., Any]):
        self._ask = ask

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._ask("last"), dtype)


class _Child:
    """What the child does."""

    def __init__(self) -> None:
        self._runs: list[Callable[..., Any]] = []
        self._last: Any = None

    def versions(self) -> tuple[str, str]:
        import jax

        return platform.python_version(), jax.__version__

    def load(self, kind: str, folder: str, *arguments: Any) -> int:
        from benchmarks.peers import ours

        self._runs.append(getattr(ours, kind)(Path(folder), *arguments))
        return len(self._runs) - 1

    def run(self, number: int, *arguments: Any) -> None:
        self._last = self._runs[number](*arguments)

    def last(self) -> Any:
        return self._last if isinstance(self._last, float) else np.asarray(self._last)


def serve() -> None:
    """Be the child: answer one request after the other."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    child = _Child()
    while True:
        try:
            do, *arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = True, getattr(child, do)(*arguments)
        except Exception as error:
            answer = False, f"{type(error).__name__}: {error}"
        pickle.dump(answer, answers)
        answers.flush()
