"""The suite's compilation cache: one folder for all workers, child processes and later runs."""

import platform
import zlib
from pathlib import Path

import jaxlib
import numpy as np
from platformdirs import user_cache_path

MAX_BYTES = 1_000_000_000


def cache_folder() -> Path:
    """The folder of this jaxlib and processor, for which alone its programs are compiled."""
    features = np.show_config(mode="dicts")["SIMD Extensions"]  # pyright: ignore
    processor = f"{platform.machine()}-{zlib.crc32(repr(features).encode()):08x}"
    return user_cache_path("gpt1-jax") / "tests" / f"{jaxlib.__version__}-{processor}"


def variables(folder: Path) -> dict[str, str]:
    """The environment of a process that keeps every program it compiles in a folder."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def prune(folder: Path, max_bytes: int = MAX_BYTES) -> None:
    """Remove the programs that were used least recently, until the others fit into a size."""
    programs = [(path, path.stat()) for path in folder.glob("*") if path.is_file()]
    programs.sort(key=lambda each: max(each[1].st_atime, each[1].st_mtime), reverse=True)
    total = 0
    for path, stat in programs:
        total += stat.st_size
        if total > max_bytes:
            path.unlink(missing_ok=True)
