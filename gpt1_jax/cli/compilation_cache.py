"""JAX's persistent cache of compiled programs, as the command's flag turns it on."""

from pathlib import Path

import jax


def enable_compilation_cache(folder: Path | None) -> None:
    """Keep what this process compiles in a folder, and take from there what others have compiled.

    JAX's own ``JAX_COMPILATION_CACHE_DIR`` does the same for programs that take a second to
    compile; here all are kept, since a command has many small ones. To be called before anything is
    compiled: JAX decides then whether it has a cache.

    Args:
        folder: made if need be; None leaves JAX as it is.

    Raises:
        OSError: it cannot be made, or is a file.
    """
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"the compilation cache {folder} cannot be made: {reason}") from error
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
