"""The race of training steps, between those who are installed, on a tiny model."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from small_models import small_model

import gpt1_jax as gpt1
from benchmarks import train as suite
from benchmarks.peers import OURS

# torch.compile has no place here: it takes a minute, whatever the size of the model.
HERE = (OURS, "transformers")
CASE = (2, 8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_model(gpt1.OpenAIGPTLMHeadModel, n_positions=16).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def standard_promotion() -> Iterator[None]:
    """optax's AdamW raises a float to the power of an integer."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("standard_promotion")
def test_a_race(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "result.json"
    suite.train(folder, peers=HERE, cases=(CASE,), rounds=2, json=file)
    out = capsys.readouterr().out
    (result,) = json.loads(file.read_text())
    assert result["case"] == list(CASE)
    losses = result["losses"].pop(OURS)
    assert losses == sorted(losses, reverse=True)  # it learns the batch
    if importlib.util.find_spec("torch") is None:
        assert "transformers is not installed, and does not take part" in out
        return
    # Measured: 1e-7.
    np.testing.assert_allclose(result["losses"]["transformers"], losses, rtol=1e-6)
    assert {name: len(seconds) for name, seconds in result["seconds"].items()} == dict.fromkeys(
        HERE, 2
    )
    assert f"{OURS} is " in out


@pytest.mark.usefixtures("standard_promotion")
def test_other_losses_are_no_race(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setitem(suite.PEERS, "transformers", lambda *_: lambda ids: 2.5)
    with pytest.raises(ValueError, match="transformers has the losses"):
        suite.train(folder, peers=HERE, cases=(CASE,), rounds=1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_memory(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    suite.train(folder, peers=(OURS,), cases=(CASE,), memory=True, json=file)
    (result,) = json.loads(file.read_text())
    assert 1e8 < result["bytes"][OURS] < 1e10


def test_wrong_settings(folder: Path) -> None:
    with pytest.raises(ValueError, match="rounds is 0, but must be at least 1"):
        suite.train(folder, rounds=0)
    with pytest.raises(ValueError, match="'jaxx' is no peer; the peers are gpt1-jax, transformers"):
        suite.train(folder, peers=("jaxx",))
    with pytest.raises(ValueError, match=r"the case \(2, 1\) must have a batch, and two tokens"):
        suite.train(folder, cases=((2, 1),))
