"""The race of training steps, between those who are installed, on a tiny model."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from support.small_models import small_model

import gpt1_jax as gpt1
from benchmarks.peers import OURS, PEERS, Peer
from benchmarks.suite import Options
from benchmarks.train import train

# torch.compile has no place here: it takes a minute, whatever the size of the model.
HERE = (OURS, "transformers")
CASE = (2, 8)


@pytest.fixture
def options(tmp_path: Path) -> Options:
    small_model(gpt1.OpenAIGPTLMHeadModel, n_positions=16).save_pretrained(tmp_path / "tiny")
    return Options(model=tmp_path / "tiny", rounds=2, peers=HERE)


@pytest.fixture
def standard_promotion() -> Iterator[None]:
    """optax's AdamW raises a float to the power of an integer."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.nightly
@pytest.mark.usefixtures("standard_promotion")
def test_train_records_seconds_and_losses(
    options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    record = train(options, (CASE,))
    out = capsys.readouterr().out
    (result,) = record["cases"]
    assert result["case"] == {"batch": 2, "tokens": 8, "remat": "none", "dropout": False}
    losses = result["losses"].pop(OURS)
    assert losses == sorted(losses, reverse=True)  # it learns the batch
    if "transformers" in record["absent"]:
        assert "transformers does not take part: torch, transformers is not installed" in out
        return
    # Measured: 1e-7.
    np.testing.assert_allclose(result["losses"]["transformers"], losses, rtol=1e-6)
    assert {name: len(seconds) for name, seconds in result["seconds"].items()} == dict.fromkeys(
        HERE, 2
    )
    assert f"{OURS} is " in out


@pytest.mark.nightly
@pytest.mark.usefixtures("standard_promotion")
def test_train_rejects_peer_with_other_losses(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PEERS, "wrong", Peer((), 0, train=lambda *_: lambda ids: 2.5))
    with pytest.raises(ValueError, match="wrong has the losses"):
        train(dataclasses.replace(options, peers=(OURS, "wrong"), rounds=1), (CASE,))


def test_train_rejects_bad_input(options: Options) -> None:
    with pytest.raises(ValueError, match="'jaxx' is no peer in train; the peers are gpt1-jax, tra"):
        train(dataclasses.replace(options, peers=("jaxx",)))
    with pytest.raises(ValueError, match=r"the case \(2, 1\) must have a batch, and two tokens"):
        train(options, ((2, 1),))
