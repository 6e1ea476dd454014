"""``python -m benchmarks all --quick``: every suite on a tiny model, and what each has recorded.

Peers that are not installed are absent; in CI all have to be there.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import benchmarks
from benchmarks.machine import STATUS
from benchmarks.peers import OURS
from benchmarks.scaling import QUICK
from benchmarks.start import CACHED

pytestmark = pytest.mark.nightly

Case = dict[str, Any]
needs_status = pytest.mark.skipif(not STATUS.exists(), reason=f"memory is read from {STATUS}")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the records, and what was printed."""
    out = tmp_path_factory.mktemp("results")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "all", "--quick", "--out", str(out)],
        cwd=Path(benchmarks.__path__[0]).parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def record(run: tuple[Path, str], suite: str) -> dict[str, Any]:
    return json.loads((run[0] / f"{suite}.json").read_text())


def test_every_suite_has_a_record_and_the_report_is_made(run: tuple[Path, str]) -> None:
    names = {"forward", "generate", "train", "load", "scaling", "start"}
    memory = {"forward-memory", "train-memory"} if STATUS.exists() else set()
    assert {path.stem for path in run[0].glob("*.json")} == names | memory
    assert (run[0] / "README.md").stat().st_size > 1000
    assert list(run[0].glob("*.png"))
    for path in run[0].glob("*.json"):
        absent = json.loads(path.read_text())["absent"]
        assert not (absent and "CI" in os.environ), f"{path.name}: {absent}"


def test_load_records_seconds_and_memory(run: tuple[Path, str]) -> None:
    (case,) = record(run, "load")["cases"]
    assert case["case"].keys() == {"checkpoint bytes"}
    assert 100e3 < case["case"]["checkpoint bytes"] < 200e3
    assert OURS in case["seconds"]
    assert all(len(times) == 2 and min(times) > 0 for times in case["seconds"].values())
    assert all(len(speeds) == 2 for speeds in case["limits"].values())
    if STATUS.exists():
        assert list(case["bytes"]) == [OURS]  # in a quick run
        assert min(case["bytes"].values()) > 10e6
    assert "of the speed of a plain sum" in run[1]
    assert ("ctranslate2 converts it first" in run[1]) == ("ctranslate2" in case["seconds"])


def test_start_takes_every_program_from_the_cache(run: tuple[Path, str]) -> None:
    (case,) = record(run, "start")["cases"]
    assert list(case["seconds"]) == list(case["compilations"]) == [OURS, CACHED]
    cold, warm = case["compilations"].values()
    assert cold["count"] == warm["count"] == warm["from the cache"] > 0
    assert cold["from the cache"] == 0


def test_scaling_records_every_size_and_exponents(run: tuple[Path, str]) -> None:
    *cases, last = record(run, "scaling")["cases"]
    parts = {"decode": "context", "length": "tokens", "batch": "batch"}
    assert [case["case"] for case in cases] == [
        {"what": what, size: n} for what, size in parts.items() for n in QUICK
    ]
    for case in cases:
        assert all(len(times) == 2 for times in case["seconds"].values())
        assert case["left_out"] == {}
        assert "bytes" in case["limits"]
    assert last["case"] == {"what": "exponents"}
    assert last["exponents"].keys() == parts.keys()
    assert all(OURS in found for found in last["exponents"].values())
    assert "grows as the power" in run[1]


@needs_status
@pytest.mark.parametrize("suite", ["forward-memory", "train-memory"])
def test_memory_is_that_of_a_process(run: tuple[Path, str], suite: str) -> None:
    for case in record(run, suite)["cases"]:
        assert 1e8 < case["bytes"][OURS] < 1e10
