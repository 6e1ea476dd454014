"""A command that keeps what it compiles, and one that finds it; in processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.start import COUNTED

COMMAND = ("generate", "the", "--max-new-tokens", "1", "--print-ids")


def compiled(*flags: object, **variables: str) -> dict[str, float]:
    """How many programs a command compiles, and how many of them it takes from the cache."""
    command = [sys.executable, "-c", COUNTED, *COMMAND, *map(str, flags)]
    environment = {k: v for k, v in os.environ.items() if "CACHE" not in k} | variables
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr.splitlines()[-1])


def test_compilation_cache_serves_the_second_run(tmp_path: Path) -> None:
    folder = tmp_path / "not there yet"
    first, second = (compiled("--compilation-cache", folder) for _ in range(2))
    assert first["count"] == second["count"] == second["from the cache"] > 0
    assert first["from the cache"] == 0


def test_compilation_cache_rejects_a_file(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    status, _, err = run(*COMMAND, "--compilation-cache", file)
    assert status == 2
    assert err == f"gpt1: the compilation cache {file} cannot be made: File exists\n"


@pytest.mark.nightly
def test_compilation_cache_respects_jax_variables(tmp_path: Path) -> None:
    """It works by itself; so that small programs are kept, JAX has a second one."""
    variables = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    _, second = (compiled(**variables) for _ in range(2))
    assert second["from the cache"] == second["count"] > 0
