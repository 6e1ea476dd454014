"""Files that are written whole or not at all."""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# The names that ``atomic_write`` works with: a folder of new files, and second names of old files.
UNFINISHED = re.compile(r"\.[0-9a-f]{8}\.tmp|\..+\.[0-9a-f]{8}\.old")
# Programs that take the weights beside them, as ``gpt1 export`` writes them.
FORWARD, DECODE = "forward", "decode"
PROGRAM, TEXT = ".jax", ".mlir"
PROGRAMS = {name + suffix for name in (FORWARD, DECODE) for suffix in (PROGRAM, TEXT)}


def weight_files(folder: Path) -> list[Path]:
    """Every file in ``folder`` that is weights, in any format, or a program that takes them."""
    return [path for path in sorted(folder.iterdir()) if _is_weights(path.name)]


def _is_weights(name: str) -> bool:
    if name in PROGRAMS:
        return True
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        if name in (stem + suffix, f"{stem}{suffix}.index.json"):
            return True
        if name.startswith(stem + "-") and name.endswith(suffix):
            shard, of, total = name[len(stem) + 1 : -len(suffix)].partition("-of-")
            return bool(of) and shard.isdecimal() and total.isdecimal()
    piece = name.removeprefix("params_").removesuffix(".npy")
    return name == "params_shapes.json" or (name == f"params_{piece}.npy" and piece.isdecimal())


def os_error(message: str, cause: Exception) -> OSError:
    """Return an OSError with the number of its cause, if that has one."""
    # OSError chooses its own subclass by the number.
    return OSError(*filter(None, [getattr(cause, "errno", None)]), message)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes have left of ``atomic_write`` in ``folder`` and below it.

    Nothing else may be writing there.
    """
    for path in list(folder.rglob(".*")):
        if not UNFINISHED.fullmatch(path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def atomic_write(folder: Path, *, weights: bool = False) -> Iterator[Callable[[str], Path]]:
    """Write files into ``folder``: all of them, or none.

    The block is given a function from a file's name to a temporary path, at which the block writes
    the file. When the block ends, the files are flushed to the disk and renamed, in the order in
    which they were asked for; whatever fails, the folder is left as it was.

    Args:
        folder: made if it does not exist.
        weights: remove weights and exported programs that lie there under other names than the new
            ones, since a folder holds one checkpoint.

    Raises:
        OSError: the folder cannot be made or written; the message names it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    new: dict[str, Path] = {}
    modes: dict[str, int] = {}
    # A folder, since libraries write beside the path that they are given: safetensors a file of a
    # random name, which a kill leaves there.
    unfinished = folder / f".{secrets.token_hex(4)}.tmp"

    def temporary(name: str) -> Path:
        unfinished.mkdir(exist_ok=True)
        path = unfinished / name
        path.touch(exist_ok=False)
        # safetensors makes its files private; the umask's mode is put back below.
        new[name], modes[name] = path, path.stat().st_mode & 0o777
        return path

    try:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file, not a folder")
        folder.mkdir(parents=True, exist_ok=True)
        yield temporary
        for name, path in new.items():
            path.chmod(modes[name])
            _flush(path)
        obsolete = [old for old in weight_files(folder) if old.name not in new] if weights else []
        _commit(folder, new, obsolete)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        for path in made:
            with suppress(OSError):
                path.rmdir()
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            message = f"cannot write to {folder}: {reason}"
            raise os_error(message, error) from error
        raise
    shutil.rmtree(unfinished, ignore_errors=True)
    with suppress(OSError):  # all is done; some file systems cannot flush a folder
        _flush(folder)


def _commit(folder: Path, new: dict[str, Path], obsolete: list[Path]) -> None:
    """Rename the new files into place and remove the obsolete ones; undo it if any step fails."""
    kept: list[tuple[Path, Path]] = []  # (where it was, its second name)
    placed: list[Path] = []
    try:
        for old in [*(folder / name for name in new if os.path.lexists(folder / name)), *obsolete]:
            if old.is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{old.name} is a folder, not a file")
            backup = folder / f".{old.name}.{secrets.token_hex(4)}.old"
            try:
                # A second name, so that there is a file under the first one at every moment.
                os.link(old, backup, follow_symlinks=False)
            except (OSError, NotImplementedError):  # a file system without hard links
                old.rename(backup)
            kept.append((old, backup))
        for name, path in new.items():
            os.replace(path, folder / name)  # noqa: PTH105  (the call that tests make fail)
            placed.append(folder / name)
        for old in obsolete:
            old.unlink(missing_ok=True)
    except BaseException:
        for path in placed:
            path.unlink(missing_ok=True)
        for old, backup in kept:
            if os.path.lexists(old):
                backup.unlink()
            else:
                backup.rename(old)
        raise
    for _, backup in kept:
        with suppress(OSError):
            backup.unlink()


def _flush(path: Path) -> None:
    """Have the disk hold what was written; a folder too, where the system can."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
