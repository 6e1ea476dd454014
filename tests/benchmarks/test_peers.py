"""Who takes part: this package always, in the dtypes of those it is compared with."""

import sys
from pathlib import Path

import numpy as np
import pytest
from support.small_models import small_model

import gpt1_jax as gpt1
from benchmarks.peers import (
    OURS,
    PEERS,
    Peer,
    available_peers,
    hugging_face,
    older_peers,
    opponent,
    ours,
)
from benchmarks.peers.other_jax import OtherJax


def test_available_peers_keeps_ours_in_the_dtypes_of_the_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(PEERS, "other", Peer((), 0.0, "int8", generate=lambda folder: None))  # type: ignore[arg-type]
    present, absent = available_peers(["other"], "generate")
    assert list(present) == [OURS, "gpt1-jax-int8", "other"]
    assert absent == {}
    assert list(available_peers([OURS], "generate")[0]) == [OURS]
    # No training in int8.
    monkeypatch.setitem(PEERS, "other", Peer((), 0.0, "int8", train=lambda *_: None))
    assert list(available_peers(["other"], "train")[0]) == [OURS, "other"]


def test_available_peers_says_what_a_peer_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer((), 0.0, load=lambda folder: None, lacks=lambda: "no such instructions")
    monkeypatch.setitem(PEERS, "other", peer)
    assert available_peers(["other"], "load")[1] == {"other": "no such instructions"}
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert hugging_face.no_compiler() == (
        "torch.compile needs a C++ compiler, and there is no no-such-compiler"
    )


def test_opponent_is_ours_of_the_same_dtype() -> None:
    every = dict.fromkeys(PEERS)
    assert opponent("ctranslate2-int8", every) == "gpt1-jax-int8"
    assert opponent("ctranslate2-int8", {OURS: 0}) == OURS
    assert opponent("gpt1-jax-int8 older", every) == "gpt1-jax-int8"
    assert opponent("gpt2", every) == OURS
    assert opponent("gpt1-jax-bfloat16", every) is None
    assert opponent("transformers", {}) is None


@pytest.mark.nightly
def test_other_jax_computes_the_same(tmp_path: Path) -> None:
    """In another process of this very Python."""
    small_model(gpt1.OpenAIGPTLMHeadModel, n_positions=16).save_pretrained(tmp_path / "tiny")
    with OtherJax.start(Path(sys.executable)) as other:
        check_other_jax(other, tmp_path)


def check_other_jax(other: OtherJax, tmp_path: Path) -> None:
    assert other.jax == __import__("jax").__version__
    peers = older_peers(other, "forward", [OURS, "transformers"])
    assert list(peers) == [f"{OURS} older"]
    forward, generate = peers[f"{OURS} older"].forward, peers[f"{OURS} older"].generate
    assert forward is not None
    assert generate is not None
    ids = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
    expected = ours.forward(tmp_path / "tiny", True)(ids)
    np.testing.assert_allclose(forward(tmp_path / "tiny", True)(ids), expected, atol=1e-5)
    written = generate(tmp_path / "tiny")(ids, 4)
    np.testing.assert_array_equal(written, ours.generate(tmp_path / "tiny")(ids, 4))
    with pytest.raises(RuntimeError, match="no-such-folder"):
        forward(tmp_path / "no-such-folder", True)
    with pytest.raises(ValueError, match="forward, generate and train"):
        older_peers(other, "load", [OURS])
