"""The cache of compiled programs that the commands keep in the user's cache folder.

It is JAX's own. A program is compiled for the very processor that it is compiled on, and crashes on
another, so each kind of processor has a folder, as each jaxlib has.
"""

import contextlib
import itertools
import os
import platform
import re
import sys
import warnings
import zlib
from pathlib import Path
from typing import Annotated, TextIO

import jax
import jaxlib
import tyro

Cache = Annotated[Path | None, tyro.conf.arg(metavar="DIR|none", help_behavior_hint="")]
VARIABLE = "GPT1_CACHE"
OFF = "none"
MAX_BYTES = 1_000_000_000
PROGRAMS = "*-cache"


def enable_compilation_cache(folder: Path | None = None) -> None:
    """Keep what this process compiles on disk, and take from there what others have compiled.

    To be called before anything is compiled: JAX decides then whether it has a cache. Without
    ``folder``, a cache that cannot be made, read or written is silently left out; a damaged program
    is compiled again.

    Args:
        folder: of the cache; "none" for no cache at all. By default it is that of JAX, if
            ``JAX_COMPILATION_CACHE_DIR`` names one, else ``GPT1_CACHE``, else ``gpt1-jax`` in the
            user's folder of caches.

    Raises:
        OSError: the folder cannot be made, or is a file.
    """
    if folder is not None and str(folder) == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    of_jax = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if folder is None and of_jax is not None:
        return
    root = folder or default_folder()
    if root is None:
        return
    programs = root.absolute() / f"{jaxlib.__version__}-{machine()}"
    try:
        programs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if folder is None:
            return
        reason = error.strerror or error
        raise OSError(f"cannot create the compilation cache {folder}: {reason}") from error
    prune(root)
    _remove_damaged(programs)
    jax.config.update("jax_compilation_cache_dir", str(programs))
    # By default only programs that take a second to compile are kept.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def default_folder() -> Path | None:
    """Return the cache's folder where no flag names one; None for no cache."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return None if chosen == OFF else Path(os.path.expanduser(chosen))  # noqa: PTH111
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    # Where there is no home, "~" stays as it is.
    return Path(caches, "gpt1-jax") if os.path.isabs(caches) else None  # noqa: PTH117


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return a name of this system and of what its processor can do."""
    try:
        with cpuinfo.open() as file:
            first_core = list(itertools.takewhile(str.strip, file))
    except OSError:
        first_core = []
    fields = r"vendor_id|cpu family|model|flags|CPU implementer|CPU part|Features"
    described = [line for line in first_core if re.match(rf"({fields})\s*:", line)]
    # Elsewhere than on Linux, each machine has a folder of its own.
    features = zlib.crc32("".join(described or [platform.node()]).encode())
    return f"{sys.platform}-{platform.machine()}-{features:08x}"


def prune(root: Path, max_bytes: int = MAX_BYTES) -> None:
    """Remove the programs that were not used for longest, until the others fit into a size."""
    found = []
    for path in root.glob(f"*/{PROGRAMS}"):
        with contextlib.suppress(OSError):  # another process may be pruning
            status = path.stat()
            found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = 0
    for _, size, path in sorted(found, reverse=True):
        total += size
        if total > max_bytes:
            _remove(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _remove_damaged(programs: Path) -> None:
    """Have JAX's warnings of programs that it cannot read or write remove these, and not be shown.

    JAX writes no program over one that is there, so that it would warn of a damaged one for ever.
    The warning has the first part of the file's name alone.
    """
    message = r"Error (?:reading|writing) persistent compilation cache entry for '(\w+)'"
    show = warnings.showwarning

    def remove_or_show(
        warning: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if found := re.match(message, str(warning)):
            for path in programs.glob(f"{found[1]}-{PROGRAMS}"):
                _remove(path)
        else:
            show(warning, category, filename, lineno, file, line)

    warnings.filterwarnings("always", message)
    warnings.showwarning = remove_or_show
