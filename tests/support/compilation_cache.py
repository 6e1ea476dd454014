"""The suite's compilation cache: one folder for all workers, child processes and later runs."""

import contextlib
import platform
import zlib
from pathlib import Path

import jaxlib
import numpy as np
from platformdirs import user_cache_path

ROOT = user_cache_path("gpt1-jax") / "tests"
MAX_BYTES = 1_000_000_000


def cache_folder() -> Path:
    """Return the folder for this jaxlib and processor."""
    features = np.show_config(mode="dicts")["SIMD Extensions"]  # pyright: ignore
    processor = f"{platform.machine()}-{zlib.crc32(repr(features).encode()):08x}"
    return ROOT / f"{jaxlib.__version__}-{processor}"


def cache_variables(folder: Path) -> dict[str, str]:
    """Return the environment variables that make JAX keep every program in a folder."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def sizes_and_times(folder: Path) -> dict[Path, tuple[int, float]]:
    """Return the size in bytes and the time of writing of every program below a folder."""
    found = {}
    for path in folder.rglob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another run may be pruning
            stat = path.stat()
            found[path] = stat.st_size, stat.st_mtime
    return found


def prune(folder: Path = ROOT, max_bytes: int = MAX_BYTES) -> None:
    """Remove the oldest programs below a folder until the others fit into a size."""
    programs = sizes_and_times(folder)
    total = sum(size for size, _ in programs.values())
    for path in sorted(programs, key=lambda path: programs[path][1]):
        if total <= max_bytes:
            break
        total -= programs[path][0]
        path.unlink(missing_ok=True)
