"""The race, between those who are installed, on a tiny model: its checks, not its times."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from small_models import small_model

import gpt1_jax as gpt1
from benchmarks import generate as suite
from benchmarks.peers import OURS, PEERS
from benchmarks.timing import interleave, ratio

CASE = (2, 3, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = small_model(gpt1.OpenAIGPTLMHeadModel, n_positions=16)
    model.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_race(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "result.json"
    suite.generate(folder, cases=(CASE,), rounds=2, json=file)
    out = capsys.readouterr().out
    (result,) = json.loads(file.read_text())
    assert result["case"] == list(CASE)
    # All parameters but the positions: 13 tokens of 8, two blocks, four bytes each.
    assert result["bytes"] == 4 * (13 * 8 + 2 * (12 * 8 * 8 + 13 * 8))
    for name in PEERS:
        if importlib.util.find_spec(name.replace("gpt1-jax", "gpt1_jax")) is None:
            assert f"{name} is not installed, and does not take part" in out
            assert name not in result["seconds"]
        else:
            assert f"  {name} " in out
            assert len(result["seconds"][name]) == 2
    assert "of the memory bandwidth" in out


def test_peers_that_write_other_ids_are_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def zeros(prompts: np.ndarray, new: int) -> np.ndarray:
        return np.pad(prompts, ((0, 0), (0, new)))

    monkeypatch.setitem(PEERS, "json", lambda _: zeros)  # a module that is installed
    with pytest.raises(ValueError, match="json does not write the ids that gpt1-jax writes"):
        suite.generate(folder, peers=(OURS, "json"), cases=(CASE,), rounds=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": 0}, "rounds is 0, but must be at least 1"),
        ({"peers": ("gpt9",)}, "'gpt9' is no peer; the peers are gpt1-jax, transformers"),
        ({"cases": ((1, 3, 1),)}, r"the case \(1, 3, 1\) must have"),
        ({"cases": ((0, 3, 4),)}, r"the case \(0, 3, 4\) must have"),
    ],
)
def test_wrong_input(folder: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suite.generate(folder, **arguments)


def test_rounds_are_interleaved_and_compared_one_by_one() -> None:
    order: list[str] = []
    seconds = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 3
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    assert ratio([2.0, 9.0, 8.0], [1.0, 3.0, 2.0]) == (3.0, 2.0, 4.0)
