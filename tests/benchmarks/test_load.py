"""Loading, between those who are installed, on a tiny model: its record, not its times."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks import load as suite
from benchmarks.peers import OURS, PEERS, Peer
from benchmarks.suite import Options


@pytest.mark.slow
def test_seconds_and_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "record.json"
    peers = (OURS, "ctranslate2")
    record = suite.load(Options(quick=True, rounds=2, peers=peers, json=file))
    assert record == json.loads(file.read_text())
    assert record["suite"] == "load"
    converts = importlib.util.find_spec("ctranslate2") is not None
    present = {*peers} if converts else {OURS}
    assert record["absent"].keys() == {*peers} - present

    (case,) = record["cases"]
    assert case["case"].keys() == {"checkpoint bytes"}
    assert 100e3 < case["case"]["checkpoint bytes"] < 200e3
    assert case["seconds"].keys() == present
    assert list(case["bytes"]) == [OURS]  # in a quick run
    assert all(len(times) == 2 and min(times) > 0 for times in case["seconds"].values())
    assert all(len(speeds) == 2 for speeds in case["limits"].values())
    assert min(case["bytes"].values()) > 10e6

    out = capsys.readouterr().out
    assert "of the speed of a plain sum" in out
    assert ("ctranslate2 converts it first" in out) == converts


def test_a_model_is_dropped_before_the_next_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("benchmarks.load.STATUS", tmp_path / "missing")
    alive: list[int] = []
    read = PEERS[OURS].load
    assert read is not None

    def watched(folder: Path) -> object:
        alive.append(len(jax.live_arrays()))
        return read(folder)

    monkeypatch.setitem(PEERS, "watched", Peer((), 0.0, load=watched))
    suite.load(Options(quick=True, rounds=2, peers=(OURS, "watched")))
    assert len(alive) == 3
    # The second time the limits have come to hold arrays; from then on nothing is added.
    assert alive[1] == alive[2]


def test_parameters_of_torch_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[int] = []

    class Parameter(np.ndarray):
        def sum(self, *arguments: Any, **settings: Any) -> Any:
            touched.append(self.size)
            return super().sum(*arguments, **settings)

    class Module:
        def parameters(self) -> list[np.ndarray]:
            return [np.ones((3, 1024)).view(Parameter), np.ones(5).view(Parameter)]

    monkeypatch.setitem(PEERS, "module", Peer((), 0.0, load=lambda folder: Module()))
    suite._load("module", Path())
    assert touched == [3, 1]


def test_memory_needs_linux(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.load.STATUS", tmp_path / "missing")
    (case,) = suite.load(Options(quick=True, rounds=1, peers=(OURS,)))["cases"]
    assert "bytes" not in case
    assert len(case["seconds"][OURS]) == 1
    assert "Memory is measured on Linux alone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(quick=True, rounds=0), "rounds is 0, but must be at least 1"),
        (Options(quick=True, peers=("gpt2",)), "'gpt2' is no peer in load; the peers are gpt1-jax"),
    ],
)
def test_wrong_input(options: Options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suite.load(options)
