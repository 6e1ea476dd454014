"""Runs that are killed at random moments and begun again end bit by bit as if they had not been.

``pytest -s -m nightly tests/gpt1_jax/training/test_killed.py`` says in the midst of what.
"""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from support.compilation_cache import cache_variables
from support.small_models import leaves_equal
from support.small_training import QUICK, SIZES, write_checkpoint, write_rows, write_text

KILLS = 10  # of each kind of run
START = 0.25  # the share of kills at any moment after the start; the others are in the loop
TIMEOUT = 600  # seconds, in which a run has to begin or end, even on a busy machine
# Validations with and without a checkpoint after them.
OFTEN = {"dropout": 0.1, "checkpoint_every": 4, "eval_every": 26}
COMMON = {**QUICK, **OFTEN}


def flags(fields: dict[str, Any]) -> list[str]:
    return [
        word
        for name, value in fields.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def pretraining(folder: Path) -> list[str]:
    write_text(folder / "train.txt")
    write_text(folder / "valid.txt", lines=8, seed=1)
    return ["pretrain", "train.txt", "--valid", "valid.txt", *flags({**COMMON, "steps": 80})]


def finetuning(folder: Path) -> list[str]:
    write_checkpoint(folder / "base")
    rng = np.random.default_rng(0)
    for name, number in (("train.csv", 37), ("valid.csv", 16)):
        words = rng.choice(["cat", "dog", "hill", "mat"], (number, 5))
        rows = [{"text": " ".join(row), "label": row[0] in ("cat", "dog")} for row in words]
        write_rows(folder / name, rows)
    fields = {name: value for name, value in COMMON.items() if name not in SIZES}
    files = {"task": "classification", "train": "train.csv", "valid": "valid.csv", "model": "base"}
    return ["finetune", *flags({**files, **fields, "epochs": 16})]  # 80 steps


class Attempt:
    """One process of a command, and what its log tells from outside."""

    def __init__(self, command: list[str], out: Path):
        self.log = out / "log.jsonl"
        self.errors = out.with_suffix(".err")
        self.start = time.monotonic()
        arguments = [sys.executable, "-m", "gpt1_jax.cli", *command, "--out", out.name]
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                arguments,
                cwd=out.parent,
                stdout=errors,
                stderr=errors,
                # A kill can damage the compilation cache, so it must not be the suite's.
                env={
                    **os.environ,
                    **cache_variables(out.parent / "compiled"),
                    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
                },
            )

    def wait(self) -> None:
        status = self.process.wait(TIMEOUT)
        assert status == 0, self.errors.read_text()

    def wait_for_the_loop(self) -> bool:
        """Return when a line is appended to the log, or when the process ends: False then."""
        before = self._stat()
        while self.process.poll() is None:
            now = self._stat()
            # A run that goes on first puts a new file in the place of the old one.
            if now[0] == before[0] and now[1] > before[1]:
                return True
            before = now
            assert time.monotonic() - self.start < TIMEOUT
            time.sleep(0.002)
        return False

    def kill_after(self, seconds: float) -> bool:
        """Let it run on for so long, then kill it; False if it ends before."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait() != 0
        return False

    def _stat(self) -> tuple[int, int]:
        try:
            stat = self.log.stat()
        except FileNotFoundError:
            return -1, 0
        return stat.st_ino, stat.st_size


def unfinished(out: Path) -> set[Path]:
    """The checkpoints and the other files that are not whole yet."""
    return {*out.glob("checkpoints/*tmp*"), *out.rglob(".*.tmp/*")}


def what_was_going_on(out: Path, in_loop: bool, left_before: set[Path]) -> str:
    """In the midst of what a process was killed, by what it has left."""
    if left := sorted(unfinished(out) - left_before):
        return f"writing {'a checkpoint' if left[0].parent.name == 'checkpoints' else left[0].name}"
    if not in_loop:
        return "start-up, or compilation"
    last = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
    if "valid_loss" in last:
        return "after a validation"
    return "validation" if last["step"] % OFTEN["eval_every"] == 0 else "steps"


def checkpoints_of(out: Path) -> dict[int, Any]:
    """The arrays of every finished checkpoint: all can be read."""
    folders = [path for path in (out / "checkpoints").glob("*") if path.name.isdigit()]
    with ocp.StandardCheckpointer() as reader:
        return {int(path.name): reader.restore(path.absolute() / "arrays") for path in folders}


def records_of(out: Path) -> list[dict[str, Any]]:
    """The lines of the log, but for how fast it went."""
    lines = (out / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in lines]


def files_of(out: Path) -> set[str]:
    return {str(p.relative_to(out)) for p in out.rglob("*") if "checkpoints" not in p.parts}


# orbax warns that arrays come back on the devices that they were saved from, which is right here.
@pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning")
@pytest.mark.nightly
@pytest.mark.parametrize("kind", [pretraining, finetuning])
def test_cli_training_resumes_exactly_after_kills(kind: Any, tmp_path: Path) -> None:
    command = kind(tmp_path)
    whole = tmp_path / "whole"
    attempt = Attempt(command, whole)
    assert attempt.wait_for_the_loop()
    starting = time.monotonic() - attempt.start
    attempt.wait()
    looping = time.monotonic() - attempt.start - starting
    expected = checkpoints_of(whole)
    assert sorted(expected) == [76, 80]

    rng = np.random.default_rng(0)
    killed: Counter[str] = Counter()
    runs = 0
    while killed.total() < KILLS:
        runs += 1
        out = tmp_path / f"killed{runs}"
        done = False
        while killed.total() < KILLS and not done:
            left_before = unfinished(out)
            attempt = Attempt(command, out)
            in_loop = rng.random() >= START
            if in_loop:
                in_loop = attempt.wait_for_the_loop()
            # So that all kills together find their place in one run.
            longest = 2 * looping / KILLS if in_loop else starting
            done = not attempt.kill_after(rng.uniform(0, longest))
            if not done:
                killed[what_was_going_on(out, in_loop, left_before)] += 1
                checkpoints_of(out)
            else:
                attempt.wait()
        Attempt(command, out).wait()  # does the rest, or finds that all is done

        assert (out / "model.safetensors").read_bytes() == (
            whole / "model.safetensors"
        ).read_bytes()
        found = checkpoints_of(out)
        assert found.keys() == expected.keys()
        for step, arrays in expected.items():
            assert leaves_equal(jax.tree.leaves(found[step]), jax.tree.leaves(arrays)), step
        assert records_of(out) == records_of(whole)
        assert files_of(out) == files_of(whole)
    print(f"\n{kind.__name__}: {killed.total()} kills over {runs} runs: {dict(killed)}")
