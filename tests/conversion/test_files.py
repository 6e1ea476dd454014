"""Files that are written whole or not at all, and what a killed process leaves of them."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.killed_writes import killed_writes
from support.lock_holder import lock_held

import conversion
from conversion.files import (
    CHANGES,
    LOCK,
    atomic_file,
    atomic_write,
    finish_writes,
    output_path,
    remove_unfinished,
)

# A save as libraries do it: to a file of a random name beside the path, which is then renamed.
KILLED = """
import os, signal, sys
from pathlib import Path
from conversion.files import atomic_write

with atomic_write(Path(sys.argv[1])) as new:
    new("model.safetensors").with_name(".tmp01gPIE").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
# The write of the second of two checkpoints, which differ in their weights and in a field that
# shows in no shape.
WRITER = """
import conversion
config, params = conversion.read("{source}")
def write(folder):
    conversion.write(folder, config, params, format="{format}")
"""


# A write of a checkpoint where no file may be larger than so many bytes, as on a full disk.
LIMITED = """
import resource, sys
import conversion
config, params = conversion.read(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    conversion.write(sys.argv[2], config, params, **eval(sys.argv[3]))
except OSError as error:
    print(error)
"""


def write_both(folder: Path, text: str) -> None:
    with atomic_write(folder, weights=True) as new:
        for name in ("model.safetensors", "config.json"):
            new(name).write_text(text)


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


NEW = {"model.safetensors": "new", "config.json": "new"}


def interrupted_after(monkeypatch: pytest.MonkeyPatch, changes: int, *, links: bool) -> None:
    """Raise KeyboardInterrupt after so many changes to names, as the handler of a signal does."""
    left = changes

    def interrupting(event: str, change: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> None:
            nonlocal left
            if event == "link" and not links:
                raise PermissionError(errno.EPERM, "Operation not permitted")
            change(*args, **kwargs)
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

        return call

    for event in ("replace", "rename", "link", "unlink"):
        monkeypatch.setattr(os, event, interrupting(event, getattr(os, event)))


@pytest.mark.parametrize("links", [True, False])
def test_atomic_write_restores_folder_after_an_interrupt_behind_any_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    write_both(tmp_path, "old")
    (tmp_path / "pytorch_model.bin").write_text("old")
    before = texts(tmp_path)
    changes, found = 0, before
    while found == before:
        changes += 1
        with monkeypatch.context() as patch:
            interrupted_after(patch, changes, links=links)
            with pytest.raises(KeyboardInterrupt):
                write_both(tmp_path, "new")
        finish_writes(tmp_path)
        found = texts(tmp_path)
    assert found == NEW
    assert changes >= 7  # the list, three second names, two new files, the obsolete one


def test_atomic_write_keeps_both_versions_where_the_undo_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_both(tmp_path, "old")
    replace, rename = os.replace, os.rename

    def fail_at_config(source: Any, target: Any) -> None:
        if Path(target).name == "config.json":
            monkeypatch.setattr(os, "rename", interrupted)
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    def interrupted(source: Any, target: Any) -> None:
        rename(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail_at_config)
    with pytest.raises(KeyboardInterrupt):
        write_both(tmp_path, "new")
    monkeypatch.undo()
    finish_writes(tmp_path)
    assert texts(tmp_path) == NEW


def unfinished_write(folder: Path, changes: object) -> Path:
    """What a killed process leaves: the list of changes, and a new file of each name in it."""
    unfinished = folder / ".gpt1-jax.0123abcd.tmp"
    unfinished.mkdir(parents=True)
    (unfinished / "model.safetensors").write_text("new")
    (unfinished / CHANGES).write_text(changes if isinstance(changes, str) else json.dumps(changes))
    return unfinished


@pytest.mark.parametrize(
    "changes",
    [
        "{",
        [],
        {"model.safetensors": 1},
        {"model.safetensors": [None]},
        {"../victim": [None, [6, 0]]},
        {"PLACE/victim": [None, [6, 0]]},
        {"..": [None, None]},
    ],
)
def test_finish_writes_rejects_list_of_changes_that_is_not_its_own(
    tmp_path: Path, changes: Any
) -> None:
    (tmp_path / "victim").write_text("victim")
    if isinstance(changes, dict):
        changes = {name.replace("PLACE", str(tmp_path)): it for name, it in changes.items()}
    unfinished_write(tmp_path / "model", changes)
    with pytest.raises(ValueError, match=r"\.changes\.json is not"):
        finish_writes(tmp_path / "model")
    assert (tmp_path / "victim").read_text() == "victim"


def test_finish_writes_refuses_to_replace_what_was_written_since(tmp_path: Path) -> None:
    unfinished = unfinished_write(tmp_path, {"model.safetensors": [[3, 1], [5, 1]]})
    (tmp_path / "model.safetensors").write_text("newer still")
    for write in (finish_writes, lambda folder: write_both(folder, "new")):
        with pytest.raises(FileExistsError, match=r"model\.safetensors was written after .*remove"):
            write(tmp_path)
    assert (tmp_path / "model.safetensors").read_text() == "newer still"
    shutil.rmtree(unfinished)
    finish_writes(tmp_path)
    assert texts(tmp_path) == {"model.safetensors": "newer still"}


def test_atomic_write_of_no_files_changes_nothing(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_output_path_rejects_empty_path(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"mine")
    for write in (output_path, lambda path: atomic_write(path, weights=True).__enter__()):
        with pytest.raises(ValueError, match=r"the path to write to is empty; '\.' is the working"):
            write("")
    assert [path.name for path in tmp_path.iterdir()] == ["model-00001-of-00002.safetensors"]


def test_output_path_expands_the_home_folder(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert output_path("~/out") == output_path(Path("~/out")) == tmp_path / "out"
    assert output_path("~no-such-user/out") == Path("~no-such-user/out")


@pytest.mark.parametrize("inside", [".", "deep/file.png"])
def test_output_path_rejects_link_to_nothing(tmp_path: Path, inside: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for write in (
        lambda path: atomic_write(path).__enter__(),
        lambda path: atomic_file(path).__enter__(),
    ):
        with pytest.raises(FileNotFoundError, match=r"link is a link to .*gone, which does not"):
            write(tmp_path / "link" / inside)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_atomic_write_removes_what_a_killed_process_left_and_nothing_else(tmp_path: Path) -> None:
    for name in ("model.safetensors", ".mine.tmp", ".tmp0abcde", ".0123abcd.tmp"):
        (tmp_path / name).write_bytes(b"old")
    before = sorted(tmp_path.rglob("*"))
    for again in (remove_unfinished, lambda folder: atomic_write(folder).__enter__()):
        killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert len(list(tmp_path.rglob("*"))) > len(before)
        again(tmp_path)
        assert sorted(tmp_path.rglob("*")) == before


def test_atomic_write_of_weights_rejects_second_writer_at_once(checkpoint, tmp_path: Path) -> None:
    made = checkpoint("OpenAIGPTLMHeadModel")
    conversion.write(tmp_path, made.config, made.params)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    message = rf"^\[.*cannot write to .*{tmp_path.name}: process %d on .* is writing there$"
    with lock_held(tmp_path / LOCK, "writing there") as process:
        with pytest.raises(BlockingIOError, match=message % process):
            conversion.write(tmp_path, made.config, made.params, format="openai")
        assert {path.name: path.read_bytes() for path in tmp_path.glob("[!.]*")} == before
    conversion.write(tmp_path, made.config, made.params)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.nightly
@pytest.mark.parametrize("format", ["huggingface", "openai"])
def test_checkpoint_is_old_or_new_after_a_kill_at_any_change(
    checkpoint, identical, tmp_path: Path, format: Any
) -> None:
    old = checkpoint("OpenAIGPTLMHeadModel", n_head=3)
    new = checkpoint("OpenAIGPTLMHeadModel", n_head=4)
    new.params["transformer"]["h"]["0"]["ln_1"]["bias"] += 1
    conversion.write(tmp_path / "old", old.config, old.params, max_shard_size="4KB")
    conversion.write(tmp_path / "new", new.config, new.params, format=format)
    (tmp_path / "writer.py").write_text(WRITER.format(source=tmp_path / "new", format=format))
    copies = killed_writes(tmp_path / "writer.py", "write", tmp_path / "old", tmp_path / "killed")
    whole = sorted(path.name for path in copies[-1].iterdir())
    heads = []
    for folder in copies:
        config, params = conversion.read(folder)
        heads.append(config["n_head"])
        assert identical(params, {3: old, 4: new}[config["n_head"]].params)
        conversion.write(folder, new.config, new.params, format=format)
        assert sorted(path.name for path in folder.iterdir()) == whole
    assert heads[-1] == 4
    assert heads == sorted(heads)
    # Each new file is renamed and each old one, shards, index and config, gets a second name; the
    # kills in the midst of that are among them.
    assert len(copies) > 2 * len(whole) + 4
    assert heads.count(4) > len(whole)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, r"I/O error: File too large .*"),
        ({"format": "openai"}, "File too large"),
        ({"safe_serialization": False}, "torch cannot write it: .*"),
    ],
)
def test_write_reports_full_disk(
    checkpoint, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    if not options.get("safe_serialization", True):
        pytest.importorskip("torch")
    # Wide, so that a tenth of the weights is more than the limit.
    made = checkpoint("OpenAIGPTLMHeadModel", n_embd=36)
    conversion.write(tmp_path / "source", made.config, made.params)
    arguments = [str(tmp_path / "source"), str(tmp_path / "target"), repr(options)]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(rf".*cannot write to .*target: .*{reason}\n", done.stdout), done.stdout
    assert not (tmp_path / "target").exists()
