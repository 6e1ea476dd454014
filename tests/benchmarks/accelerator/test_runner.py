"""Steps are run in their order and within their minutes, and written down as they end."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.accelerator import runner
from benchmarks.accelerator.runner import LeaveOutError, Result, Step, run

BENCH = SimpleNamespace(quick=False, deadline=0.0, chip=None)
ROWS = [{"": "gpt1-jax", "tokens/s": 1234.5}, {"": "torch", "torch / gpt1-jax": 2.0}]


def step(name: str, found: Any, seconds: float = 0.0) -> Step:
    def take(bench: Any) -> Result:
        if isinstance(found, Exception):
            raise found
        result: Any = found() if callable(found) else found
        return result

    return Step(name, seconds, take)


def record_of(out: Path) -> dict[str, Any]:
    record = json.loads((out / "accelerator.json").read_text())
    return {each["name"]: each for each in record["steps"]}


@pytest.fixture
def take(tmp_path: Path) -> Callable[..., tuple[int, Path]]:
    def call(*steps: Step, minutes: float = 8.0) -> tuple[int, Path]:
        status = run(BENCH, steps, out=tmp_path, minutes=minutes, arguments=["accelerator"])
        return status, tmp_path

    return call


def test_run_records_every_kind_of_step(take: Callable[..., tuple[int, Path]]) -> None:
    status, out = take(
        step("right", Result(ROWS, True)),
        step("wrong", Result(ROWS, False, "a note")),
        step("fast", Result(ROWS)),
        step("absent", LeaveOutError("torch is not installed")),
        step("broken", ValueError("what went wrong\nin detail")),
        step("last", Result([], True)),
    )
    assert status == 1
    found = record_of(out)
    assert {name: each["status"] for name, each in found.items()} == {
        "right": "passed",
        "wrong": "failed",
        "fast": "measured",
        "absent": "left out",
        "broken": "error",
        "last": "passed",
    }
    assert found["broken"]["note"] == "ValueError: what went wrong"
    assert found["absent"]["note"] == "torch is not installed"
    assert found["fast"]["rows"] == ROWS
    page = (out / "README.md").read_text()
    assert "| wrong | failed | 0 | a note |" in page
    assert "|  | tokens/s | torch / gpt1-jax |" in page
    assert "| gpt1-jax | 1,234 |  |" in page
    assert "| torch |  | 2 |" in page
    assert "![Speedup over torch on the same device](ratio.png)" in page
    assert (out / "ratio.png").read_bytes().startswith(b"\x89PNG")


def test_run_succeeds_without_a_failure(take: Callable[..., tuple[int, Path]]) -> None:
    status, _ = take(step("right", Result(ROWS, True)), step("absent", LeaveOutError("no torch")))
    assert status == 0


def test_run_leaves_out_steps_for_which_time_does_not_suffice(
    take: Callable[..., tuple[int, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def long() -> Result:
        nonlocal now
        now += 100
        return Result([], True)

    monkeypatch.setattr(runner.time, "monotonic", lambda: now)
    status, out = take(
        step("long", long, seconds=90),
        step("too long", Result([], False), seconds=30),
        step("short", Result([], True), seconds=10),
        minutes=2,
    )
    assert status == 0
    found = record_of(out)
    assert [each["status"] for each in found.values()] == ["passed", "left out", "passed"]
    assert found["too long"]["note"] == "it takes about 30 s, and 20 s are left"


def test_run_writes_the_record_after_every_step(
    take: Callable[..., tuple[int, Path]], tmp_path: Path
) -> None:
    seen: list[list[str]] = []

    def look() -> Result:
        written = (tmp_path / "accelerator.json").exists()
        seen.append(list(record_of(tmp_path)) if written else [])
        return Result([], True)

    take(step("first", look), step("second", look), step("third", look))
    assert seen == [[], ["first"], ["first", "second"]]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_run_keeps_what_was_done_when_it_is_stopped(
    take: Callable[..., tuple[int, Path]], tmp_path: Path, number: signal.Signals, status: int
) -> None:
    def stop() -> Result:
        os.kill(os.getpid(), number)
        return Result([], True)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        steps = step("done", Result(ROWS, True)), step("stopped", stop), step("never", ROWS)
        assert take(*steps)[0] == status
    finally:
        signal.signal(signal.SIGINT, before)
    found = record_of(tmp_path)
    assert {name: each["status"] for name, each in found.items()} == {
        "done": "passed",
        "stopped": "cut off",
    }
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
