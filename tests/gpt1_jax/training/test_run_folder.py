"""The settings that a folder's run was begun with."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from support.lock_holder import lock_held

from gpt1_jax.training.run_folder import LOCK, SETTINGS, begin, check, content, locked, shorter_run

ENDED = {"steps": 10}  # a summary
RUN: dict[str, Any] = {"texts": ("a.txt", "b.txt"), "steps": 10, "rate": 0.1, "valid": None}


def test_begin_writes_settings_once(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    assert begin(out, RUN) is False
    written = (out / SETTINGS).read_bytes()
    assert json.loads(written) == {**RUN, "texts": ["a.txt", "b.txt"]}
    assert begin(out, RUN) is True
    assert begin(out, {**RUN, "texts": ["a.txt", "b.txt"]}) is True
    assert (out / SETTINGS).read_bytes() == written
    assert [file.name for file in out.iterdir()] == [SETTINGS]


def test_begin_keeps_a_summary_and_does_not_compare_it(tmp_path: Path) -> None:
    assert begin(tmp_path, RUN, {"rows": 3}) is False
    written = json.loads((tmp_path / SETTINGS).read_text())
    assert written == {**json.loads(json.dumps(RUN)), "summary": {"rows": 3}}
    assert begin(tmp_path, RUN, {"rows": 4}) is True
    assert begin(tmp_path, RUN) is True
    assert json.loads((tmp_path / SETTINGS).read_text()) == written


def test_begin_resumes_killed_run(tmp_path: Path) -> None:
    begin(tmp_path, RUN)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("{}")
    assert begin(tmp_path, RUN) is True


def test_begin_lists_all_changed_settings(tmp_path: Path) -> None:
    begin(tmp_path, RUN)
    written = (tmp_path / SETTINGS).read_bytes()
    with pytest.raises(ValueError, match=r"holds a run with other settings") as caught:
        begin(tmp_path, {"texts": ("a.txt",), "rate": 0.1, "steps": 20, "valid": "v", "seed": 1})
    assert str(caught.value).splitlines() == [
        f"{tmp_path} holds a run with other settings; give another --out, or the same:",
        "  seed: None there, 1 now",
        "  steps: 10 there, 20 now",
        "  texts: ['a.txt', 'b.txt'] there, ['a.txt'] now",
        "  valid: None there, v now",
    ]
    assert (tmp_path / SETTINGS).read_bytes() == written


def test_begin_compares_contents_and_not_names(tmp_path: Path) -> None:
    run = {"train": "/data/a.csv", "train_content": "12", "valid": None, "valid_content": None}
    begin(tmp_path, run)
    assert begin(tmp_path, {**run, "train": "../moved.csv"}) is True
    for change in ({"train": "b.csv", "train_content": "34"}, {"valid": "c", "valid_content": "5"}):
        with pytest.raises(ValueError, match="other settings"):
            begin(tmp_path, {**run, **change})
    assert json.loads((tmp_path / SETTINGS).read_text()) == run


def test_begin_ignores_settings_that_change_no_bit(tmp_path: Path) -> None:
    run = {**RUN, "log_every": 10, "checkpoint_every": 500, "patience": 3}
    begin(tmp_path, run)
    assert begin(tmp_path, {**run, "log_every": 1, "checkpoint_every": 7}) is True
    with pytest.raises(ValueError, match="patience: 3 there, 4 now"):
        begin(tmp_path, {**run, "patience": 4})


def test_begin_makes_a_run_that_has_ended_longer(tmp_path: Path) -> None:
    run, longer = ({"epochs": epochs, "steps": None, "seed": 0} for epochs in (3.0, 6.0))
    begin(tmp_path, run, ENDED)
    (tmp_path / "checkpoints" / "9").mkdir(parents=True)
    with pytest.raises(ValueError, match="not ended and cannot be made longer yet") as caught:
        check(tmp_path, longer)
    assert str(caught.value).splitlines()[1:] == ["  epochs: 3.0 there, 6.0 now"]
    (tmp_path / "checkpoints" / "10").mkdir()
    assert check(tmp_path, longer) is True
    assert (shorter_run(tmp_path, run, 10), shorter_run(tmp_path, longer, 20)) == (None, 10)
    with pytest.raises(
        ValueError, match="ended after 10 steps, which a run of 5 does not make lon"
    ):
        shorter_run(tmp_path, {**run, "steps": 5}, 5)
    with pytest.raises(ValueError, match="other settings"):
        check(tmp_path, {**longer, "seed": 1})
    assert begin(tmp_path, longer, {"steps": 20}) is True
    assert json.loads((tmp_path / SETTINGS).read_text()) == {**longer, "summary": {"steps": 20}}
    assert shorter_run(tmp_path, longer, 20) is None
    with pytest.raises(ValueError, match="not ended"):  # the longer one
        check(tmp_path, {**longer, "epochs": 9.0})


def test_begin_reports_missing_setting(tmp_path: Path) -> None:
    begin(tmp_path, RUN)
    with pytest.raises(ValueError, match=r"\n  rate: 0\.1 there, None now$"):
        begin(tmp_path, {name: value for name, value in RUN.items() if name != "rate"})


@pytest.mark.parametrize("name", ["config.json", "checkpoints"])
def test_begin_rejects_checkpoint_without_settings(tmp_path: Path, name: str) -> None:
    if name == "checkpoints":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("{}")
    message = r"holds a checkpoint that no run has begun here \(run\.json is missing\)"
    with pytest.raises(ValueError, match=message):
        begin(tmp_path, RUN)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_begin_accepts_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    assert begin(tmp_path, RUN) is False


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("{", r"is not JSON \("),
        ("[1]", "must hold a JSON object, the settings of a run$"),
        ('{"seed": 1, "seed": 2}', "has the key 'seed' more than once$"),
    ],
)
def test_begin_rejects_unreadable_settings(tmp_path: Path, broken: str, message: str) -> None:
    (tmp_path / SETTINGS).write_text(broken)
    with pytest.raises(ValueError, match=rf"run\.json {message}"):
        begin(tmp_path, RUN)


def test_begin_rejects_file_as_folder(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(OSError, match=r"cannot write to .*out: "):
        begin(tmp_path / "out", RUN)


def test_content_hashes_the_file(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"abc")
    two.write_bytes(b"abd")
    assert content(one) == hashlib.sha256(b"abc").hexdigest()[:16] != content(two)
    with pytest.raises(FileNotFoundError, match="three"):
        content(tmp_path / "three")


def test_locked_rejects_second_training_at_once(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with locked(out):
        assert (out / LOCK).exists()
    assert list(tmp_path.iterdir()) == []  # nothing was written there
    out.mkdir(parents=True)
    message = r"cannot train into .*out: process {} on .* is training there; give another folder"
    with lock_held(out / LOCK, "training there") as process:
        with pytest.raises(BlockingIOError, match=message.format(process)), locked(out):
            pass
        assert all(path.name.startswith(LOCK) for path in out.iterdir())
    with locked(out):  # the lock of a dead process is no obstacle
        pass
    assert list(out.iterdir()) == []
