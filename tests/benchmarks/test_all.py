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
from benchmarks.peers import OURS, PEERS
from benchmarks.scaling import QUICK
from benchmarks.start import CACHED


@pytest.mark.nightly
def test_run_all_records_every_suite(tmp_path: Path) -> None:
    """Check every suite in one test, since workers would each repeat a fixture of minutes."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "all", "--quick", "--out", str(tmp_path)],
        cwd=Path(benchmarks.__path__[0]).parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    records = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    names = {"forward", "generate", "train", "load", "scaling", "start", "prompts"}
    names |= {"score"} if "CI" in os.environ or (tmp_path / "score.json").exists() else set()
    memory = {"forward-memory", "train-memory"} if STATUS.exists() else set()
    assert records.keys() == names | memory
    for name, record in records.items():
        assert record["suite"] == name.removesuffix("-memory")
        assert record["cases"]
        # What a processor lacks cannot be installed.
        absent = [peer for peer in record["absent"] if PEERS[peer].lacks is None]
        assert not (absent and "CI" in os.environ), f"{name}: {record['absent']}"
    check_load(records["load"], done.stdout)
    check_start(records["start"])
    check_scaling(records["scaling"], done.stdout)
    for name in memory:
        assert all(1e8 < case["bytes"][OURS] < 1e10 for case in records[name]["cases"]), name
    assert (tmp_path / "README.md").stat().st_size > 1000
    assert list(tmp_path.glob("*.png"))


def check_load(record: dict[str, Any], printed: str) -> None:
    (case,) = record["cases"]
    assert case["case"].keys() == {"checkpoint bytes"}
    assert 100e3 < case["case"]["checkpoint bytes"] < 200e3
    able = {name for name, peer in PEERS.items() if peer.load is not None}
    assert case["seconds"].keys() == able - record["absent"].keys()
    assert all(len(times) == 2 and min(times) > 0 for times in case["seconds"].values())
    assert all(len(speeds) == 2 for speeds in case["limits"].values())
    if STATUS.exists():
        assert list(case["bytes"]) == [OURS]  # in a quick run
        assert min(case["bytes"].values()) > 10e6
    assert "of the speed of a plain sum" in printed
    assert ("ctranslate2 converts it first" in printed) == ("ctranslate2" in case["seconds"])


def check_start(record: dict[str, Any]) -> None:
    """Every program of the second run comes from the cache."""
    (case,) = record["cases"]
    assert case["case"] == {"new tokens": 1}
    assert all(len(times) == 2 and min(times) > 0 for times in case["seconds"].values())
    assert list(case["seconds"]) == list(case["compilations"]) == [OURS, CACHED]
    cold, warm = case["compilations"].values()
    assert cold["count"] == warm["count"] == warm["from the cache"] > 0
    assert cold["from the cache"] == 0


def check_scaling(record: dict[str, Any], printed: str) -> None:
    """Every size has its times, and every part its exponents."""
    *cases, last = record["cases"]
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
    # The step of a model this small may take no time that shows, see ``scaling._race``.
    assert all(OURS in last["exponents"][what] for what in ("length", "batch"))
    assert "grows as the power" in printed
