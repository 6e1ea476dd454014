"""Kernels of a step and the gaps between them."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.accelerator.profiling import Event, summarize


def test_summarize_counts_gaps_and_overlaps() -> None:
    events = [
        Event("gemm_1", 0, 4_000),
        Event("gemm_2", 2_000, 6_000),  # beside the first, on another stream
        Event("fusion.7", 8_000, 10_000),
    ]
    rows = {row[""]: row for row in summarize(events, steps=2)}
    assert rows["a step"]["microseconds"] == pytest.approx(5)
    assert rows["gaps"]["microseconds"] == pytest.approx(1)
    assert rows["gaps"]["share"] == pytest.approx(0.2)
    assert rows["`gemm`"] == {
        "": "`gemm`",
        "number": 1,
        "microseconds": pytest.approx(4),
        "share": pytest.approx(0.8),
    }
    assert rows["`fusion`"]["number"] == 0.5


def test_summarize_names_the_longest_and_adds_up_the_rest() -> None:
    events = [
        Event(f"{letter}_1", i * 10, i * 10 + i) for i, letter in enumerate("abcdefghijklmno")
    ]
    rows = summarize(events, steps=1)
    assert rows[2][""] == "`o`"
    assert rows[-1][""] == "the rest"
    total = sum(row["microseconds"] for row in rows[2:])
    assert total == pytest.approx(sum(range(15)) / 1e3)


# In a process of its own, as the command is: where many tests had run before, JAX 0.12.0 once
# aborted while reading what it had recorded.
RECORD = """
import sys
from pathlib import Path
import jax
import jax.numpy as jnp
from benchmarks.accelerator.profiling import record

multiply = jax.jit(lambda x: jnp.tanh(x @ x))
x = jnp.ones((200, 200))
jax.block_until_ready(multiply(x))
events = record(Path(sys.argv[1]), lambda: jax.block_until_ready(multiply(x)))
assert events
assert all(event.end >= event.start for event in events)
"""


def test_record_finds_the_operations_of_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RECORD, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
