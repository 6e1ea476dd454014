"""The race, between those who are installed, on a tiny model: its checks, not its times."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from support.small_models import small_model

import gpt1_jax as gpt1
from benchmarks.generate import generate
from benchmarks.peers import OURS, PEERS, Peer
from benchmarks.suite import Options

CASE = (2, 3, 4)


@pytest.fixture
def options(tmp_path: Path) -> Options:
    small_model(gpt1.OpenAIGPTLMHeadModel, n_positions=16).save_pretrained(tmp_path / "tiny")
    return Options(model=tmp_path / "tiny", rounds=2)


@pytest.mark.nightly
def test_generate_records_seconds_and_logit_gap(
    options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    able = [OURS, "gpt1-jax-bfloat16", "gpt1-jax-int8", "ctranslate2"]
    options = dataclasses.replace(options, out=file, peers=tuple(able))
    record = generate(options, (CASE,))
    assert json.loads(file.read_text()) == json.loads(json.dumps(record))
    out = capsys.readouterr().out
    for name in record["absent"]:
        assert f"{name} does not take part: ctranslate2 is not installed" in out
    (result,) = record["cases"]
    assert result["case"] == {"batch": 2, "prompt": 3, "new": 4}
    # Two blocks and the table; keys and values of the four tokens before, of two rows.
    assert result["work"]["weights"] == 2 * 12 * 8 * 8 + 13 * 8 + 2 * 2 * 8 * 4 * 2
    assert list(result["seconds"]) == [name for name in able if name not in record["absent"]]
    for seconds in (*result["seconds"].values(), *result["first"].values()):
        assert len(seconds) == 2
    assert result["logit_gaps"][OURS] == 0
    assert "of the limit" in out


@pytest.mark.nightly
def test_generate_rejects_peer_with_other_ids(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    def last(prompts: np.ndarray, new: int) -> np.ndarray:
        return np.pad(prompts, ((0, 0), (0, new)), constant_values=12)

    exact = Peer(modules=(), tolerance=0.0, generate=lambda folder: last)
    monkeypatch.setitem(PEERS, "wrong", exact)
    options = dataclasses.replace(options, peers=(OURS, "wrong"))
    with pytest.raises(ValueError, match="wrong does not write the ids that gpt1-jax writes"):
        generate(options, (CASE,))
    monkeypatch.setitem(PEERS, "wrong", dataclasses.replace(exact, dtype="int8"))
    with pytest.raises(ValueError, match="wrong writes unlikely tokens: the logit of one lies"):
        generate(options, (CASE,))


@pytest.mark.parametrize(
    ("options", "cases", "message"),
    [
        (Options(rounds=0), (), "rounds is 0, but must be at least 1"),
        (Options(max_seconds=0), (), "max_seconds is 0, but must be above 0"),
        (Options(peers=("gpt9",)), (), "'gpt9' is no peer in generate; the peers are gpt1-jax, "),
        (Options(peers=("onnxruntime",)), (), "'onnxruntime' is no peer in generate"),
        (Options(), ((1, 3, 1),), r"the case \(1, 3, 1\) must have"),
        (Options(), ((0, 3, 4),), r"the case \(0, 3, 4\) must have"),
    ],
)
def test_generate_rejects_bad_input(options: Options, cases: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(options, cases)


@pytest.mark.nightly
def test_generate_leaves_out_slow_peer(
    options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    options = dataclasses.replace(options, peers=(OURS,), max_seconds=1e-9)
    record = generate(options, (CASE, (2, 4, 4)))
    assert [case["case"]["prompt"] for case in record["cases"]] == [3]
    assert f"{OURS} is left out: it would take about 0 s" in capsys.readouterr().out
