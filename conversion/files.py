"""Files that are written whole or not at all."""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from conversion.json_file import read_json
from conversion.locks import hold_lock

# What ``atomic_write`` works with, beside the files that it writes: a lock, and a folder of new
# files. In that folder are the second names of old files and, from the first change to the folder
# on until the last, the list of all changes.
LOCK = ".gpt1-jax.lock"
UNFINISHED = ".gpt1-jax.*.tmp"
OLD = ".old"
CHANGES = ".changes.json"
WAIT = 10.0  # seconds for a process that writes other files into the same folder
# Programs that take the weights beside them, as ``gpt1 export`` writes them.
FORWARD, DECODE = "forward", "decode"
PROGRAM, TEXT = ".jax", ".mlir"
PROGRAMS = {name + suffix for name in (FORWARD, DECODE) for suffix in (PROGRAM, TEXT)}
GENERATION_CONFIG = "generation_config.json"


def weight_files(folder: Path) -> list[Path]:
    """Return every file in ``folder`` that is weights, in any format, or belongs to them alone.

    That is a program that takes them, and the settings of their generation.
    """
    return [path for path in sorted(folder.iterdir()) if _is_weights(path.name)]


def _is_weights(name: str) -> bool:
    if name in PROGRAMS or name == GENERATION_CONFIG:
        return True
    stems = ("model", ".safetensors"), ("model.int8", ".safetensors"), ("pytorch_model", ".bin")
    for stem, suffix in stems:
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


def expand_home(path: str | os.PathLike[str]) -> Path:
    """Return a path with ``~`` as the home folder, where there is one."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  (pathlib's raises where there is none)


def output_path(path: str | os.PathLike[str]) -> Path:
    """Return where to write a folder or a file, with ``~`` as the home folder.

    Raises:
        ValueError: the path is empty, which pathlib takes for the working folder.
        FileNotFoundError: a part of it is a link to what does not exist.
    """
    if not os.fspath(path):
        raise ValueError("the path to write to is empty; '.' is the working folder")
    found = expand_home(path)
    for part in (found, *found.parents):
        if part.is_symlink() and not part.exists():
            raise FileNotFoundError(
                errno.ENOENT, f"{part} is a link to {part.readlink()}, which does not exist"
            )
    return found


@contextmanager
def atomic_write(
    folder: str | os.PathLike[str], *, weights: bool = False
) -> Iterator[Callable[[str], Path]]:
    """Write files into ``folder``: all of them, or none.

    The block is given a function from a file's name to a temporary path, at which the block writes
    the file. When the block ends, the files are flushed to the disk and renamed, in the order in
    which they were asked for; whatever fails, the folder is left as it was. One process at a time
    writes to a folder; what killed ones have left there is finished or removed first, see
    ``finish_writes``.

    Args:
        folder: made if it does not exist; see ``output_path``.
        weights: write a checkpoint. Weights and exported programs that lie there under other names
            than the new ones are removed, since a folder holds one checkpoint, and another process
            that is writing there is not waited for, since one of the two would be lost.

    Raises:
        ValueError: the path is empty.
        OSError: the folder cannot be made or written; the message names it.
    """
    folder = output_path(folder)
    try:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file, not a folder")
        with made_folder(folder), _locked(folder, wait=0 if weights else WAIT):
            _finish(folder)
            # A folder, since libraries write beside the path that they are given: safetensors a
            # file of a random name, which a kill leaves there.
            unfinished = folder / UNFINISHED.replace("*", secrets.token_hex(4))
            try:
                yield from _write(folder, unfinished, weights)
            finally:
                if not (unfinished / CHANGES).exists():  # of an undo that was cut off
                    shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        message = f"cannot write to {folder}: {error.strerror or error}"
        raise os_error(message, error) from error
    with suppress(OSError):  # all is done; some file systems cannot flush a folder
        _flush(folder)


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a folder for the block. What was made is removed at the end where it is still empty."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write one file, whole or not at all: the block writes at a temporary path.

    See ``atomic_write``.
    """
    path = output_path(path).absolute()
    with atomic_write(path.parent) as new:
        yield new(path.name)


def finish_writes(folder: Path) -> None:
    """Finish what killed processes had begun to put in place in ``folder``, before it is read.

    A process that is killed before that leaves the old files as they were.

    Raises:
        ValueError: the list of changes is damaged.
        OSError: the changes cannot be finished, or a living process is making them.
    """
    if not any(folder.glob(f"{UNFINISHED}/{CHANGES}")):
        return
    try:
        with _locked(folder, wait=WAIT):
            _finish(folder)
    except BlockingIOError as error:
        raise os_error(f"cannot read {folder} now: {error.strerror}", error) from error
    except OSError as error:
        message = (
            f"a process was killed while it replaced files of {folder}, and this one cannot finish "
            f"that: {error.strerror or error}"
        )
        raise os_error(message, error) from error


def remove_unfinished(folder: Path) -> None:
    """Finish or remove, in ``folder`` and below it, what killed processes have left there."""
    for parent in {path.parent for path in folder.rglob(UNFINISHED)}:
        with _locked(parent, wait=WAIT):
            _finish(parent)


def _locked(folder: Path, *, wait: float) -> AbstractContextManager[None]:
    return hold_lock(folder / LOCK, doing="writing there", wait=wait)


def _finish(folder: Path) -> None:
    """Do the rest of each list of changes in ``folder``, and remove all that is unfinished.

    Whoever holds the lock may: none of it is a living process's.
    """
    for unfinished in folder.glob(UNFINISHED):
        if (unfinished / CHANGES).is_file():
            changes = _read_changes(unfinished / CHANGES)
            for name, stamps in changes.items():
                if _stamp(folder / name) not in (None, *stamps):
                    raise FileExistsError(
                        errno.EEXIST,
                        f"{name} was written after a process was killed that was replacing it: "
                        f"remove {unfinished} to keep the files as they are",
                    )
            for name, (new, _) in changes.items():
                if new is None:
                    (folder / name).unlink(missing_ok=True)
                elif (unfinished / name).exists():
                    (unfinished / name).replace(folder / name)
        shutil.rmtree(unfinished)


# A file's size and the time of its last change, which renaming keeps; None stands for no file.
Stamp = list[int] | None


def _stamp(path: Path) -> Stamp:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _read_changes(listed: Path) -> dict[str, list[Stamp]]:
    """Return the stamps of the new file and the old one by their name."""
    changes = read_json(listed)
    right = isinstance(changes, dict) and all(
        Path(name).name == name != ".." and isinstance(stamps, list) and len(stamps) == 2
        for name, stamps in changes.items()
    )
    if not right:
        raise ValueError(
            f"{listed} is not a list of changes to the folder above it: remove {listed.parent}"
        )
    return changes


def _write(folder: Path, unfinished: Path, weights: bool) -> Iterator[Callable[[str], Path]]:
    """Have the files written into ``unfinished``, then rename them into ``folder``."""
    modes: dict[str, int] = {}

    def temporary(name: str) -> Path:
        unfinished.mkdir(exist_ok=True)
        path = unfinished / name
        path.touch(exist_ok=False)
        # safetensors makes its files private; the umask's mode is put back below.
        modes[name] = path.stat().st_mode & 0o777
        return path

    yield temporary
    for name, mode in modes.items():
        (unfinished / name).chmod(mode)
        _flush(unfinished / name)
    obsolete = [old.name for old in weight_files(folder) if old.name not in modes]
    if modes:
        _commit(folder, unfinished, list(modes), obsolete if weights else [])


def _commit(folder: Path, unfinished: Path, new: list[str], obsolete: list[str]) -> None:
    """Rename the new files into place and remove the obsolete ones; undo it if any step fails."""
    old = [*(name for name in new if os.path.lexists(folder / name)), *obsolete]
    for name in old:
        if (folder / name).is_dir():
            raise IsADirectoryError(errno.EISDIR, f"{name} is a folder, not a file")
    if len(new) == 1 and not obsolete:  # a single rename is whole by itself
        os.replace(unfinished / new[0], folder / new[0])  # noqa: PTH105  (tests make it fail)
        return
    listed, kept = unfinished / CHANGES, unfinished / OLD
    kept.mkdir()
    try:
        _write_changes(folder, listed, new, obsolete)
        for name in old:
            try:
                # A second name, so that there is a file under the first one at every moment.
                os.link(folder / name, kept / name, follow_symlinks=False)
            except (OSError, NotImplementedError):  # a file system without hard links
                (folder / name).rename(kept / name)
        for name in new:
            os.replace(unfinished / name, folder / name)  # noqa: PTH105  (tests make it fail)
        for name in obsolete:
            (folder / name).unlink(missing_ok=True)
    except BaseException:
        # By what is where, since an interrupt comes between a rename and the next line too; and in
        # an order that ``_finish`` could go on from, were this cut off as well.
        for name in new:
            if not (unfinished / name).exists():
                (folder / name).rename(unfinished / name)
        for name in old:
            if os.path.lexists(kept / name) and not os.path.lexists(folder / name):
                (kept / name).rename(folder / name)
        listed.unlink(missing_ok=True)
        raise
    listed.unlink(missing_ok=True)


def _write_changes(folder: Path, listed: Path, new: list[str], obsolete: list[str]) -> None:
    changes = {name: [_stamp(listed.with_name(name)), _stamp(folder / name)] for name in new}
    changes |= {name: [None, _stamp(folder / name)] for name in obsolete}
    written = listed.with_suffix(".part")
    written.write_text(json.dumps(changes), encoding="utf-8")
    _flush(written)
    written.rename(listed)
    _flush(listed.parent)


def _flush(path: Path) -> None:
    """Have the disk hold what was written; a folder too, where the system can."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
