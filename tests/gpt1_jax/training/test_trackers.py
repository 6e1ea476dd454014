"""Trackers report what the log says."""

import json
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.small_training import pretrain, write_text

from gpt1_jax.training.trackers import TrackerName, trackers


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """What TensorBoard's event files hold, by name and step; the later of two wins."""
    Event: Any = pytest.importorskip("tensorboardX.proto.event_pb2").Event

    found = {}
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
    return found


def logged(out: Path) -> dict[tuple[str, int], float]:
    """What log.jsonl holds, as trackers name it."""
    found = {}
    for line in (out / "log.jsonl").read_text().splitlines():
        record = json.loads(line)
        step = record.pop("step")
        for name, value in record.items():
            kind = "valid" if name.startswith("valid_") else "train"
            found[f"{kind}/{name.removeprefix('valid_')}", step] = value
    return found


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A stub of wandb, and the runs that it was asked for."""
    runs: list[Any] = []

    class Run:
        def __init__(self, **fields: Any):
            self.id = fields["id"] or "new"
            self.fields, self.summary = fields, {}
            self.logged: dict[tuple[str, int], float] = {}
            self.exit_code: int | None = None
            runs.append(self)

        def log(self, values: dict[str, float], step: int) -> None:
            self.logged |= {(name, step): value for name, value in values.items()}

        def finish(self, exit_code: int) -> None:
            self.exit_code = exit_code

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=Run, __spec__=True))
    return runs


def test_trackers_report_the_log(tmp_path: Path, wandb: list[Any]) -> None:
    pytest.importorskip("tensorboardX")
    text, out = write_text(tmp_path / "a.txt"), tmp_path / "out"
    run = {"steps": 4, "eval_every": 2, "valid": [text]}
    pretrain([text], out, callbacks=trackers(["tensorboard", "wandb"]), **run)
    expected = logged(out)
    assert {"train/loss", "train/grad_norm", "valid/loss"} <= {name for name, _ in expected}
    assert scalars(out / "tensorboard") == {
        key: pytest.approx(value, rel=1e-6) for key, value in expected.items()
    }
    (tracked,) = wandb
    assert tracked.logged == expected
    assert tracked.fields["config"] == json.loads((out / "run.json").read_text())
    assert tracked.fields["name"] == "out"
    assert tracked.exit_code == 0
    assert tracked.summary["best/loss"] == min(
        value for (name, _), value in expected.items() if name == "valid/loss"
    )
    pretrain([text], out, callbacks=trackers(["wandb"]), **run)  # a run that is resumed
    assert (wandb[1].fields["id"], wandb[1].fields["resume"]) == ("new", "allow")


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_trackers_name_a_missing_package(
    name: TrackerName, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'{package}.*: pip install "gpt1-jax\[{name}\]"'):
        trackers([name])
