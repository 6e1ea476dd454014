"""The growth of times: the fit on known data, and the record of a tiny model."""

import numpy as np
import pytest

from benchmarks import scaling as suite
from benchmarks.peers import PEERS, Peer
from benchmarks.suite import Options


@pytest.mark.nightly
def test_scaling_leaves_out_slow_peer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr("benchmarks.timing.clock", lambda: clock[0])
    monkeypatch.setattr("benchmarks.suite.machine.limits", dict)

    def slow(ids: np.ndarray) -> None:
        clock[0] += ids.size**2

    monkeypatch.setitem(PEERS, "slow", Peer((), 0.0, forward=lambda folder, head: slow))
    options = Options(quick=True, rounds=1, peers=("slow",), max_seconds=100)
    cases = [case for case in suite.scaling(options)["cases"] if case["case"]["what"] != "decode"]
    short, long, few, many, last = cases
    assert [short["left_out"], long["left_out"]] == [{}, {}]
    # 4 rows of 8 tokens took 1024 s: by their pace 8 rows would take twice that.
    assert [few["left_out"], many["left_out"]] == [{}, {"slow": 2048.0}]
    found = {what: powers.get("slow") for what, powers in last["exponents"].items()}
    assert found == {"decode": None, "length": pytest.approx(2), "batch": None}
    assert "slow is left out: it would take about 2048 s" in capsys.readouterr().out


def test_scaling_decode_time_excludes_prefill(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr("benchmarks.timing.clock", lambda: clock[0])
    monkeypatch.setattr("benchmarks.suite.machine.limits", dict)

    def write(prompt: np.ndarray, new: int) -> np.ndarray:
        clock[0] += prompt.size**3 + new * prompt.size**0.5
        return prompt

    monkeypatch.setitem(PEERS, "known", Peer((), 0.0, generate=lambda folder: write))
    options = Options(quick=True, rounds=2, peers=("known",), max_seconds=1e6)
    *cases, last = suite.scaling(options)["cases"]
    decodes = [case for case in cases if case["case"]["what"] == "decode"]
    for case, context in zip(decodes, suite.QUICK, strict=True):
        np.testing.assert_allclose(case["seconds"]["known"], context**0.5)
    assert last["exponents"]["decode"]["known"] == pytest.approx(0.5)


def test_exponent_recovers_known_powers() -> None:
    sizes = [16, 32, 64, 480]
    for power in (0.0, 1.0, 1.5):
        assert suite.exponent(sizes, [3 * n**power for n in sizes]) == pytest.approx(power)
    # A point above the line and one below cancel out where the line is not tilted by them.
    assert suite.exponent([1, 2, 4], [2, 2, 8]) == pytest.approx(1)
    with pytest.raises(ValueError, match="no power fits"):
        suite.exponent([16], [1.0])
    with pytest.raises(ValueError, match="no power fits"):
        suite.exponent([16, 32], [1.0, 0.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(quick=True, rounds=0), "rounds is 0, but must be at least 1"),
        (
            Options(peers=("gpt9",)),
            "'gpt9' is no peer in scaling; the peers are gpt1-jax, gpt1-jax",
        ),
        (Options(memory=True), "scaling measures no memory"),
    ],
)
def test_scaling_rejects_bad_input(options: Options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suite.scaling(options)
