"""The log that a resumed run goes on with, and the picture of it."""

import errno
import json
import math
from pathlib import Path
from typing import Any, NoReturn

import pytest

from gpt1_jax.training.log import Log, draw_losses, read_log


def write(path: Path, *records: Any, cut: str = "") -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + cut)


def test_log_write_then_read_returns_records(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.jsonl"
    log = Log(path, 0)
    assert path.read_text() == ""
    log.write(step=1, loss=0.1)
    log.write(step=2, valid_loss=math.nan, note="ü")
    first, second = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert first == {"step": 1, "loss": 0.1}
    assert math.isnan(second["valid_loss"])
    assert read_log(path)[0] == first
    assert read_log(path)[1]["note"] == "ü"


def test_log_resume_drops_later_records(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    records = [{"step": step, "loss": 1 / step} for step in (10, 20, 20, 30, 40)]
    write(path, *records)
    log = Log(path, 20)
    assert read_log(path) == records[:3]
    log.write(step=30, loss=7.0)
    assert read_log(path) == [*records[:3], {"step": 30, "loss": 7.0}]
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]


@pytest.mark.parametrize("cut", ['{"st', '{"step": 11, "loss": 0.1}', '{"step": 3', "\0\0"])
def test_log_drops_incomplete_last_line(tmp_path: Path, cut: str) -> None:
    """Even where it is whole but for its end: the next record goes on a line of its own."""
    path = tmp_path / "log.jsonl"
    write(path, {"step": 10}, cut=cut)
    assert read_log(path) == [{"step": 10}]
    Log(path, 20).write(step=20)
    assert path.read_text() == '{"step": 10}\n{"step": 20}\n'


@pytest.mark.parametrize(
    "line",
    [b"", b"no", b"[1]", b'{"loss": 1}', b'{"step": "1"}', b'"step"', b"\xff", b"[" * 100_000],
)
def test_log_rejects_malformed_lines(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "log.jsonl"
    content = b'{"step": 1}\n' + line + b"\n"
    path.write_bytes(content)
    message = r'^.*log\.jsonl, line 2 is no JSON object with a "step"$'
    with pytest.raises(ValueError, match=message):
        Log(path, 1)
    assert path.read_bytes() == content


def test_log_write_reports_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path / "log.jsonl", 0)

    def full(*args: Any, **kwargs: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match=r"cannot write to .*log\.jsonl: No space left") as caught:
        log.write(step=1)
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.nightly
@pytest.mark.parametrize(
    "records",
    [
        [{"step": step, "loss": 1 / step} for step in range(1, 50)],
        [{"step": 1, "loss": 2.0}, {"step": 1, "valid_loss": 2.0}],
        [{"step": 1, "valid_loss": math.nan, "valid_accuracy": 0.5}],
        [],
    ],
)
def test_draw_losses_writes_png(tmp_path: Path, records: list[Any]) -> None:
    from matplotlib.image import imread

    log, picture = tmp_path / "log.jsonl", tmp_path / "loss.png"
    write(log, *records, cut='{"step": ')
    picture.write_bytes(b"the one before")
    draw_losses(log, picture)
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = imread(picture)
    assert pixels.shape == (480, 840, 4)
    assert len({tuple(pixel) for pixel in pixels.reshape(-1, 4)}) > 2  # something is drawn
    assert sorted(file.name for file in tmp_path.iterdir()) == ["log.jsonl", "loss.png"]


def test_draw_losses_draws_separate_curves(tmp_path: Path) -> None:
    pictures = []
    parts = ["loss", "task_loss", "lm_loss"]
    for names in (["loss"], ["valid_loss"], ["loss", "valid_loss"], parts, [*parts, "valid_loss"]):
        write(tmp_path / "log.jsonl", *({"step": s, n: 1 / s} for s in (1, 2) for n in names))
        draw_losses(tmp_path / "log.jsonl", tmp_path / "loss.png")
        pictures.append((tmp_path / "loss.png").read_bytes())
    assert len(set(pictures)) == 5
