"""The output folder of a run: which settings it was begun with, so that it resumes no other."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from gpt1_jax._conversion import files, json_file, locks, match
from gpt1_jax.sharding.processes import (
    assert_same_folder,
    assert_same_on_all_processes,
    is_main_process,
)

LOCK = ".gpt1-jax.run.lock"
SETTINGS = "run.json"
CHECKPOINTS = "checkpoints"
SUMMARY = "summary"  # a key of that file which is no setting
CONTENT = "_content"  # ends the key of what tells the content of a file from any other
LENGTH = ("epochs", "steps")  # which may grow when a run has ended
NEUTRAL = ("log_every", "checkpoint_every")  # which change no bit of the result
CHECKPOINT = (".json", ".txt", ".bpe", ".safetensors", ".bin", ".npy")


def content(path: str | os.PathLike[str]) -> str:
    """Return what tells a file's content from any other."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def checkpoint_content(folder: Path) -> str:
    """Return what tells a checkpoint, with its tokenizer, from any other."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in CHECKPOINT and path.is_file():
            digest.update(f"{path.name} {content(path)}\n".encode())
    return digest.hexdigest()[:16]


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the folder of a run in the block, in which no other training may write there.

    What killed processes left unfinished there is finished or removed.

    Args:
        out: made if need be.

    Raises:
        BlockingIOError: another training holds it; the message names its process.
        OSError: it cannot be made or written.
    """
    if not is_main_process():  # which alone writes there
        yield
        return
    with files.made_folder(out), ExitStack() as stack:
        try:
            stack.enter_context(locks.hold_lock(out / LOCK, doing="training there"))
        except BlockingIOError as error:
            message = f"cannot train into {out}: {error.strerror}; give another folder, or wait"
            raise files.os_error(message, error) from error
        files.remove_unfinished(out)
        yield


def claim(out: Path, settings: Mapping[str, object], mesh: Mesh | None) -> bool:
    """Check that all processes are to train the same into one folder that is free for the run.

    Args:
        out: see ``check``.
        settings: likewise.
        mesh: the devices to train on.

    Returns:
        Whether the run was begun before.

    Raises:
        ValueError: see ``check`` and ``processes.assert_same_on_all_processes``.
        OSError: see ``processes.assert_same_folder``.
    """
    assert_same_on_all_processes(settings, mesh)
    assert_same_folder(out)
    return check(out, settings)


def check(out: Path, settings: Mapping[str, object]) -> bool:
    """Check that a folder is free for a run, or holds what this very run has written.

    The names of files may differ where their contents are the same, as may what changes no bit of
    the result. A run that has ended may be made longer, see ``shorter_run``.

    Args:
        out: the folder, which need not be there.
        settings: all that the result depends on, as JSON holds it. What tells the content of NAME
            from any other is called "NAME_content".

    Returns:
        Whether the run was begun before.

    Raises:
        ValueError: the folder holds a run with other settings, or a checkpoint that is no run's;
            the message lists what differs.
    """
    path = out / SETTINGS
    if not path.is_file():
        if (out / "config.json").exists() or (out / CHECKPOINTS).exists():
            raise ValueError(
                f"{out} holds a checkpoint that no run has begun here ({SETTINGS} is missing): "
                "give an empty folder with --out"
            )
        return False
    settings = json.loads(json.dumps(settings))  # tuples are lists to JSON
    found = _read(path)
    differing = _differing(found, settings)
    if not differing:
        return True
    first = f"{out} holds a run with other settings; give another --out, or the same:"
    if set(differing) <= set(LENGTH):
        if _has_ended(out, found):
            return True
        first = (
            f"{out} holds a run that has not ended and cannot be made longer yet; give another "
            "--out, or the same settings:"
        )
    lines = [f"  {name}: {found.get(name)} there, {settings.get(name)} now" for name in differing]
    raise ValueError("\n".join([first, *match.first_faults(lines, "  ")]))


def shorter_run(out: Path, settings: Mapping[str, object], steps: int) -> int | None:
    """Return the steps of the run in a folder that a longer one goes on from; None if none does.

    Args:
        out: see ``check``, by which both have been found to fit.
        settings: likewise.
        steps: of the longer run.

    Raises:
        ValueError: it is not longer.
    """
    if not (out / SETTINGS).is_file():
        return None
    found = _read(out / SETTINGS)
    if not _differing(found, json.loads(json.dumps(settings))):
        return None
    taken = found[SUMMARY]["steps"]
    if steps <= taken:
        raise ValueError(
            f"{out} holds a run that has ended after {taken} steps, which a run of {steps} does "
            "not make longer: give more, or another --out"
        )
    return taken


def _read(path: Path) -> dict[str, Any]:
    found = json_file.read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, the settings of a run")
    return found


def _differing(found: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Return the names of settings that differ and that the result depends on."""
    return sorted(
        name
        for name in (found.keys() | settings.keys()) - {SUMMARY, *NEUTRAL}
        if found.get(name) != settings.get(name)
        and not _same_content(name + CONTENT, found, settings)
    )


def _same_content(key: str, found: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    return found.get(key) is not None and found[key] == settings.get(key)


def _has_ended(out: Path, found: Mapping[str, Any]) -> bool:
    """Return whether there is a checkpoint of the last step that was planned."""
    summary = found.get(SUMMARY)
    return isinstance(summary, dict) and (out / CHECKPOINTS / str(summary.get("steps"))).is_dir()


def begin(
    out: Path, settings: Mapping[str, object], summary: Mapping[str, object] | None = None
) -> bool:
    """Write down a run's settings in its folder, unless they are there, or are of a shorter run.

    From here on the folder is the run's: so do it when all that can be wrong has been checked.

    Args:
        out: see ``check``; made if need be.
        settings: likewise.
        summary: what the run makes of them, for people; a run that is resumed does not compare it.

    Returns:
        Whether the run was begun before.

    Raises:
        ValueError: see ``check``.
        OSError: it cannot be written.
    """
    begun = check(out, settings)
    if begun and not _differing(_read(out / SETTINGS), json.loads(json.dumps(settings))):
        return True
    fields = settings if summary is None else {**settings, SUMMARY: summary}
    with files.atomic_write(out) as new:
        new(SETTINGS).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    return begun
