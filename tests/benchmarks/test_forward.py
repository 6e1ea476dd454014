"""The race of forwards, between those who are installed, on a tiny model."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from support.small_models import small_config

import gpt1_jax as gpt1
from benchmarks.forward import forward
from benchmarks.peers import OURS, PEERS, Peer
from benchmarks.suite import Options

HERE = (
    OURS,
    "gpt1-jax-bfloat16",
    "gpt1-jax-int8",
    "transformers",
    "transformers-int8",
    "ctranslate2",
    "ctranslate2-int8",
)


@pytest.fixture
def options(tmp_path: Path) -> Options:
    # With weights as they are at first: on a processor with AVX2 alone, ONNX Runtime's and
    # CTranslate2's int8 is off by a fifth with larger ones.
    config = small_config(n_positions=16, n_embd=32)
    gpt1.OpenAIGPTLMHeadModel(config, rngs=nnx.Rngs(0)).save_pretrained(tmp_path / "tiny")
    return Options(model=tmp_path / "tiny", rounds=2, peers=HERE)


@pytest.mark.nightly
def test_forward_records_seconds_and_errors(options: Options) -> None:
    record = forward(options, ((2, 3), (1, 1)))
    here = [name for name in HERE if name not in record["absent"]]
    assert [(*case["case"].values(),) for case in record["cases"]] == [
        (1, 1, True),
        (2, 3, True),
        (1, 1, False),
        (2, 3, False),
    ]
    for case in record["cases"]:
        able = [name for name in here if case["case"]["head"] or PEERS[name].states]
        assert list(case["seconds"]) == list(case["errors"]) == able
        assert {len(seconds) for seconds in case["seconds"].values()} == {2}
        assert set(case["limits"]) == {"bytes", "float32", "bfloat16", "int8"}
        for name, error in case["errors"].items():
            # Measured: 2e-7, and in half precision 4e-3.
            assert error < 1e-6 or PEERS[name].dtype != "float32"
    assert record["cases"][1]["work"] == {
        "tokens": 6,
        # Blocks, table, and scores of two blocks: each query with three keys, twice.
        "flops": 2.0 * 6 * (2 * 12 * 32**2 + 13 * 32 + 2 * 2 * 32 * 3),
        "weights": 2 * 12 * 32**2 + 13 * 32,
    }


def test_forward_rejects_peer_with_other_logits(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = Peer((), 1e-5, forward=lambda folder, head: lambda ids: np.zeros((*ids.shape, 13)))
    monkeypatch.setitem(PEERS, "zeros", zeros)
    options = dataclasses.replace(options, peers=(OURS, "zeros"))
    with pytest.raises(ValueError, match=r"zeros has other logits than gpt1-jax: .* 1.0e\+00"):
        forward(options, ((2, 3),))


@pytest.mark.nightly
def test_forward_leaves_out_slow_peer(
    options: Options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = PEERS[OURS].forward
    assert load is not None
    assert options.model is not None
    fast = load(options.model, True)
    seconds = 0.0

    def slow(ids: np.ndarray) -> np.ndarray:
        nonlocal seconds
        seconds += 0.2 * ids.size
        return fast(ids)

    def clock() -> float:
        nonlocal seconds
        seconds += 1e-3
        return seconds

    monkeypatch.setattr("benchmarks.timing.clock", clock)
    monkeypatch.setitem(PEERS, "slow", Peer((), 1e-5, forward=lambda folder, head: slow))
    options = dataclasses.replace(options, peers=(OURS, "slow"), max_seconds=4)
    record = forward(options, ((1, 1), (2, 16)), head=(True,))
    first, second = record["cases"]
    assert set(first["seconds"]) == {OURS, "slow"}
    assert set(second["seconds"]) == {OURS}
    assert second["left_out"] == {"slow": pytest.approx(0.201 * 32)}
    assert "slow is left out: it would take about" in capsys.readouterr().out


def test_forward_rejects_invalid_case(options: Options) -> None:
    with pytest.raises(ValueError, match=r"the case \(1, 0\) must have"):
        forward(options, ((1, 0),))
