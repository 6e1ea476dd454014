"""Several processes that train one model: the same trajectory, and an end when one is gone."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.compilation_cache import cache_variables
from support.ports import free_port
from support.small_training import QUICK, words, write_checkpoint, write_rows, write_text

from gpt1_jax.sharding.processes import DeviceSettings, devices

PRETRAIN = {
    **QUICK,
    "valid": "valid.txt",
    "steps": 20,
    "batch_size": 16,
    "accumulate": 2,
    "dropout": 0.1,
    "eval_every": 10,
    "checkpoint_every": 5,
    "mesh": "data=4,fsdp=2",
}
FINETUNE = {
    "task": "classification",
    "train": "train.csv",
    "valid": "valid.csv",
    "model": "base",
    "epochs": 1,
    "batch_size": 16,
    "dropout": 0.1,
    "learning_rate": 3e-3,
    "warmup": 0,
    "log_every": 1,
    "mesh": "data=4,fsdp=2",
}
TIMEOUT = 600  # seconds, in which a run has to end, even on a busy machine


def start(
    out: Path,
    number: int,
    command: list[str],
    fields: dict[str, Any],
    last: tuple[str, ...] = (),
    folders: Sequence[Path] | None = None,
    ids: Sequence[int] | None = None,
    coordinator: str | None = None,
    optimized: bool = False,
) -> list[subprocess.Popen[str]]:
    """Begin a training in so many processes, the last with flags of its own, on eight devices.

    They work in the folder that ``out`` is in, or each in one of ``folders``; ``ids`` are those to
    begin, all by default.
    """
    coordinator = coordinator or f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "gpt1_jax.cli", *command, "--out", out.name]
    for name, value in fields.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        # Nearly all of the time is XLA's.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(not optimized)),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // number}",
        # A kill can damage the compilation cache, so it must not be the suite's.
        **cache_variables(out.parent / "compiled"),
    }
    runs = []
    for i in range(number) if ids is None else ids:
        own = [*command]
        if number > 1:
            own += ["--distributed", "--coordinator", coordinator]
            own += ["--process-id", str(i), "--num-processes", str(number)]
        own += last if i == number - 1 else ()
        folder = out.parent if folders is None else folders[i]
        with out.with_name(f"{out.name}{i}.err").open("w") as errors:
            runs.append(
                subprocess.Popen(own, cwd=folder, env=environment, stderr=errors, text=True)
            )
    return runs


def finish(runs: list[subprocess.Popen[str]], out: Path) -> None:
    for i, run in enumerate(runs):
        error = out.with_name(f"{out.name}{i}.err")
        assert run.wait(TIMEOUT) == 0, error.read_text()


def records(out: Path) -> list[dict[str, Any]]:
    """The lines of the log, but for how fast it went."""
    lines = (out / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in lines]


def wait_for_step(out: Path, step: int) -> None:
    end = time.monotonic() + TIMEOUT
    while not (out / "checkpoints" / str(step)).is_dir():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.nightly
def test_pretrain_in_two_processes_matches_one_after_a_kill(tmp_path: Path) -> None:
    write_text(tmp_path / "train.txt")
    write_text(tmp_path / "valid.txt", lines=8, seed=1)
    one, two = tmp_path / "one", tmp_path / "two"
    command = ["pretrain", "train.txt"]
    finish(start(one, 1, command, PRETRAIN, optimized=True), one)

    runs = start(two, 2, command, PRETRAIN, optimized=True)
    wait_for_step(two, 5)
    runs[1].kill()
    runs[1].wait()
    killed = time.monotonic()
    assert runs[0].wait(TIMEOUT) != 0
    assert time.monotonic() - killed < 60
    error = (tmp_path / "two0.err").read_text()
    assert "another task died" in error or "the connection to another process" in error

    finish(start(two, 2, command, PRETRAIN, optimized=True), two)
    compare(records(two), records(one))


@pytest.mark.nightly
def test_finetune_in_two_processes_matches_one(tmp_path: Path) -> None:
    """Ragged rows, each process reading its own; of the last batch the second one has none."""
    write_checkpoint(tmp_path / "base")
    rng = np.random.default_rng(0)
    for name, number in (("train", 72), ("valid", 11)):
        labels = rng.choice(["good", "bad"], number)
        rows = [
            {"text": " ".join([*words(rng, int(rng.integers(1, 8))), label]), "label": label}
            for label in labels
        ]
        write_rows(tmp_path / f"{name}.csv", rows)
    one, two = tmp_path / "one", tmp_path / "two"
    finish(start(one, 1, ["finetune"], FINETUNE, optimized=True), one)
    finish(start(two, 2, ["finetune"], FINETUNE, optimized=True), two)
    compare(records(two), records(one))


@pytest.mark.nightly
def test_pretrain_rejects_different_settings_per_process(tmp_path: Path) -> None:
    write_text(tmp_path / "train.txt")
    out = tmp_path / "run"
    fields = {
        name: value for name, value in PRETRAIN.items() if name not in ("valid", "eval_every")
    }
    runs = start(out, 2, ["pretrain", "train.txt"], fields, last=("--seed", "1"))
    for i, run in enumerate(runs):
        assert run.wait(TIMEOUT) == 2
        error = (tmp_path / f"run{i}.err").read_text().splitlines()[-1]
        assert error.startswith("gpt1: the processes of this training were given different settin")
        assert "(seed)" in error
    assert not out.exists()


def reports(module: str, folder: Path) -> list[list[Any]]:
    """Run a module of tests/support in two processes, and return the lines that each reports."""
    coordinator = str(free_port())
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", f"support.{module}", coordinator, str(i), "2", folder],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    lines = []
    for run in runs:
        out, errors = run.communicate(timeout=TIMEOUT)
        assert run.returncode == 0, errors
        lines.append([json.loads(line) for line in out.splitlines() if line.startswith('["')])
    return lines


@pytest.mark.nightly
def test_trainings_end_alike_in_two_processes(tmp_path: Path) -> None:
    """At "stop" and an error of a callback in process 0, and at a signal to process 1."""
    lines = reports("two_trainings", tmp_path)
    for i, error in enumerate(["FileNotFoundError: ", "ProcessesError: process 0 failed: "]):
        assert lines[i] == [
            ["heard outside of a training", [signal.SIGTERM], 0],
            ["stop", None, 2],
            ["stop", None, 6],
            ["error", f"{error}no target", 2],
            ["signal", f"KeyboardInterrupt: {signal.SIGTERM}", 4],
        ]
    for case, steps in {"stop": ["2", "6"], "signal": ["4"]}.items():
        assert sorted(path.name for path in (tmp_path / case / "checkpoints").iterdir()) == steps


@pytest.mark.nightly
def test_error_of_one_process_reaches_the_other(tmp_path: Path) -> None:
    lines = reports("two_processes", tmp_path)
    missing = f"no file \N{GRINNING FACE}{'x' * 2000}"
    differing = "the processes of this training were given different settings (of 0, of 1, seed): "
    folders = f"the output folder {tmp_path / '1'} is not that of process 0, {tmp_path / '0'}: "
    for i in range(2):

        def told(process: int, i: int = i) -> list[str]:
            if process == i:
                return ["FileNotFoundError", missing]
            return ["ProcessesError", f"process {process} failed: {missing}"]

        expected = [
            ["nothing is wrong", None, None],
            ["before settings are compared", *told(1)],
            ["settings differ", "ProcessesError", differing],
            ["folders differ", "ValueError", folders],
            ["while process 0 goes first", *told(0)],
            ["while the others follow", *told(1)],
            ["in the end", *told(1)],
            ["nothing is wrong any more", None, None],
        ]
        if i == 0:
            expected[3][1:] = ["ProcessesError", f"process 1 failed: {folders}"]
        assert [case for case, *_ in lines[i]] == [case for case, *_ in expected]
        for (case, kind, message), (_, right_kind, right) in zip(lines[i], expected, strict=True):
            assert kind == right_kind, case
            # Of a long message the others hear the beginning.
            assert message is None or message.startswith(right[:900]), case


# What one process gets otherwise than the other, and what both say of it.
MISFITS = {
    "out": "the output folder .* is not that of process 0, ",
    "file": "no file train.txt",
    "num_processes": "num_processes is 2 in process 0, but 3 in process 1: ",
}


@pytest.mark.nightly
@pytest.mark.parametrize("misfit", MISFITS)
def test_pretrain_ends_where_processes_do_not_fit_together(misfit: str, tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"] if misfit == "file" else [tmp_path] * 2
    for folder in folders:
        folder.mkdir(exist_ok=True)
    write_text(folders[0] / "train.txt")
    last = {
        "out": ("--out", "other"),
        "file": (),
        "num_processes": ("--num-processes", "3"),
    }[misfit]
    fields = {
        name: value for name, value in PRETRAIN.items() if name not in ("valid", "eval_every")
    }
    begin = time.monotonic()
    runs = start(tmp_path / "run", 2, ["pretrain", "train.txt"], fields, last, folders)
    for i, run in enumerate(runs):
        assert run.wait(TIMEOUT) == 2
        error = (tmp_path / f"run{i}.err").read_text().splitlines()[-1]
        assert re.search(MISFITS[misfit], error), error
    assert time.monotonic() - begin < 60


@pytest.mark.nightly
def test_pretrain_refuses_a_second_process_of_the_same_number(tmp_path: Path) -> None:
    write_text(tmp_path / "train.txt")
    fields = {
        name: value for name, value in PRETRAIN.items() if name not in ("valid", "eval_every")
    }
    coordinator = f"127.0.0.1:{free_port()}"
    command = ["pretrain", "train.txt"]
    runs = start(tmp_path / "run", 2, command, fields, coordinator=coordinator)
    wait_for_step(tmp_path / "run", 5)
    begin = time.monotonic()
    *_, again = start(tmp_path / "again", 2, command, fields, ids=(1,), coordinator=coordinator)
    assert again.wait(TIMEOUT) == 2
    assert time.monotonic() - begin < 60
    error = (tmp_path / "again1.err").read_text().splitlines()[-1]
    assert f"process 0 at {coordinator} has ended, or has begun without this process" in error
    finish(runs, tmp_path / "run")


def test_devices_reports_port_in_use() -> None:
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = DeviceSettings(
            distributed=True, coordinator=address, process_id=0, num_processes=2
        )
        with pytest.raises(OSError, match="process 0 cannot listen at port"), devices(settings):
            pass


def compare(ours: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [record.keys() for record in ours] == [record.keys() for record in expected]
    for record, other in zip(ours, expected, strict=True):
        for name, value in other.items():
            # Measured: 4.8e-7, as between any two orders of the same sums.
            assert record[name] == pytest.approx(value, rel=2e-6), (record["step"], name)


def test_devices_reports_unreachable_coordinator() -> None:
    address = f"127.0.0.1:{free_port()}"
    settings = DeviceSettings(distributed=True, coordinator=address, process_id=1, num_processes=2)
    begin = time.monotonic()
    right = f"^the coordinator {address} could not be reached in 1 seconds"
    with pytest.raises(OSError, match=right), devices(settings, start=1):
        pass
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mesh": "rows=2"}, "the mesh 'rows=2' must be such as"),
        ({"coordinator": "host:1"}, "coordinator has no effect without distributed"),
        ({"distributed": True, "process_id": 0}, "needs coordinator, num_processes as well"),
        (
            {"distributed": True, "coordinator": "host", "process_id": 0, "num_processes": 1},
            "coordinator is 'host', but must be host:port",
        ),
        (
            {"distributed": True, "coordinator": "host:1", "process_id": 2, "num_processes": 2},
            r"process_id is 2, but must be in \[0, 2\)",
        ),
    ],
)
def test_device_settings_rejects_inconsistent_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeviceSettings(**fields)
