"""Loading, between those who are installed, on a tiny model: its record, not its times."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks import load as suite
from benchmarks.peers import OURS, PEERS, Peer
from benchmarks.suite import Options


@pytest.mark.nightly
def test_load_frees_each_model_before_the_next(
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


def test_load_touches_torch_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.nightly
def test_load_measures_memory_only_on_linux(
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
def test_load_rejects_bad_input(options: Options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suite.load(options)
