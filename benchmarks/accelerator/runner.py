"""Run the steps in turn within their minutes, and write what was done after each of them."""

import contextlib
import dataclasses
import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks.accelerator.page import draw_pictures, show, write_page
from benchmarks.machine import environment
from conversion.files import atomic_write

RECORD = "accelerator.json"
Row = dict[str, Any]
Status = Literal["passed", "failed", "measured", "left out", "error", "cut off"]


class LeaveOutError(Exception):
    """A step cannot run here; the message says why."""


class Stopped(BaseException):
    """SIGTERM was received."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a step found.

    Attributes:
        rows: of a table; the names of the columns are the keys, which may differ from row to row.
        passed: whether what was compared agrees; None where nothing was to be.
        note: what a reader has to know.
    """

    rows: Sequence[Row]
    passed: bool | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: of it.
        seconds: that it takes at full size, about; it is left out where fewer are left.
        run: what it does.
    """

    name: str
    seconds: float
    run: Callable[[Any], Result]


def run(
    bench: Any,
    steps: Sequence[Step],
    *,
    out: Path | None,
    minutes: float,
    arguments: Sequence[str],
    begin: float | None = None,
) -> int:
    """Run the steps, and return an exit status.

    Args:
        bench: what the steps are given; its ``quick`` says whether they are small.
        steps: the most important first.
        out: the folder to write to; by default one named after the device.
        minutes: after which no step is begun.
        arguments: of the command, for the record.
        begin: when the minutes began, of ``time.monotonic``; by default now.

    Returns:
        0, 1 where a check failed or a step ended in an error, or 143 after SIGTERM.
    """
    begin = time.monotonic() if begin is None else begin
    record: dict[str, Any] = {
        "suite": "accelerator",
        "arguments": list(arguments),
        "environment": {**environment(), "quick": bench.quick},
        "peaks": None if bench.chip is None else dataclasses.asdict(bench.chip),
        "steps": [],
    }
    device = record["environment"]["devices"][0].lower().replace(" ", "-")
    name = device + ("-quick" if bench.quick else "")
    folder = out or Path("benchmarks/results") / name
    devices = record["environment"]["devices"]
    print(f"{len(devices)} x {devices[0]}, {minutes:g} minutes; writing to {folder}", flush=True)
    status = 0
    with sigterm_raises():
        try:
            for step in steps:
                left = 60 * minutes - (time.monotonic() - begin)
                needed = 0.0 if bench.quick else step.seconds
                bench.deadline = time.monotonic() + left
                record["steps"].append({"name": step.name, "status": "cut off"})
                if left < needed or left <= 0:
                    why = (
                        f"it takes about {step.seconds:.0f} s, and {max(0.0, left):.0f} s are left"
                    )
                    found: Row = {"status": "left out", "note": why}
                else:
                    found = _take(step, bench)
                record["steps"][-1].update(found)
                if found["status"] in ("failed", "error"):
                    status = 1
                show(record["steps"][-1])
                _write(folder, record)
        except Stopped:
            status = 128 + signal.SIGTERM
        except KeyboardInterrupt:
            status = 128 + signal.SIGINT
        record["seconds"] = time.monotonic() - begin
        _write(folder, record, pictures=True)
    print(f"\n{folder / 'README.md'}", flush=True)
    return status


def _take(step: Step, bench: Any) -> Row:
    print(f"\n{step.name} ...", flush=True)
    begin = time.monotonic()
    try:
        found = step.run(bench)
    except LeaveOutError as error:
        return {"status": "left out", "note": str(error)}
    except Exception as error:  # the other steps can still tell something
        traceback.print_exc()
        return {"status": "error", "note": f"{type(error).__name__}: {error}".splitlines()[0]}
    status = {None: "measured", True: "passed", False: "failed"}[found.passed]
    taken = round(time.monotonic() - begin, 2)
    return {"status": status, "note": found.note, "seconds": taken, "rows": list(found.rows)}


def _write(out: Path, record: dict[str, Any], *, pictures: bool = False) -> None:
    """Write the record and its page, whole or not at all."""
    drawn = draw_pictures(record) if pictures else {}
    with atomic_write(out) as new:
        new(RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        for name, (_, figure) in drawn.items():
            figure.savefig(new(name), format="png")
        texts = {name: text for name, (text, _) in drawn.items()}
        new("README.md").write_text(write_page(record, texts), encoding="utf-8")


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Raise ``Stopped`` at SIGTERM, so that what was begun is ended."""

    def stop(number: int, frame: Any) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
