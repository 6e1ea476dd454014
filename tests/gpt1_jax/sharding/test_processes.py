"""Several processes that train one model: the same trajectory, and an end when one is gone."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.compilation_cache import cache_variables
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


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(
    out: Path,
    number: int,
    command: list[str],
    fields: dict[str, Any],
    last: tuple[str, ...] = (),
) -> list[subprocess.Popen[str]]:
    """Begin a training in so many processes, the last with flags of its own, on eight devices."""
    coordinator = f"127.0.0.1:{port()}"
    command = [sys.executable, "-m", "gpt1_jax.cli", *command, "--out", out.name]
    for name, value in fields.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # nearly all of the time is XLA's
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // number}",
        # A kill can damage the compilation cache, so it must not be the suite's.
        **cache_variables(out.parent / "compiled"),
    }
    runs = []
    for i in range(number):
        own = [*command]
        if number > 1:
            own += ["--distributed", "--coordinator", coordinator]
            own += ["--process-id", str(i), "--num-processes", str(number)]
        own += last if i == number - 1 else ()
        with out.with_name(f"{out.name}{i}.err").open("w") as errors:
            runs.append(
                subprocess.Popen(own, cwd=out.parent, env=environment, stderr=errors, text=True)
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
    finish(start(one, 1, command, PRETRAIN), one)

    runs = start(two, 2, command, PRETRAIN)
    wait_for_step(two, 5)
    runs[1].kill()
    runs[1].wait()
    killed = time.monotonic()
    assert runs[0].wait(TIMEOUT) != 0
    assert time.monotonic() - killed < 60
    error = (tmp_path / "two0.err").read_text()
    assert "another task died" in error or "have lost each other" in error

    finish(start(two, 2, command, PRETRAIN), two)
    compare(records(two), records(one))


@pytest.mark.nightly
def test_finetune_in_two_processes_matches_one(tmp_path: Path) -> None:
    """Ragged rows, each process reading its own; the last batch is not full."""
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
    finish(start(one, 1, ["finetune"], FINETUNE), one)
    finish(start(two, 2, ["finetune"], FINETUNE), two)
    compare(records(two), records(one))


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
    address = f"127.0.0.1:{port()}"
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
        ({"coordinator": "host:1"}, "coordinator is of several processes, which need distributed"),
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
