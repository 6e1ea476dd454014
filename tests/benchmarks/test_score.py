"""The score suite on the demo: outputs are compared, and the fastest batch size is found."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpt1_jax as gpt1
from benchmarks import score as suite
from benchmarks.peers import OURS, PEERS, Peer, hugging_face, minicons_scorer
from benchmarks.report import report
from benchmarks.suite import Options
from gpt1_jax.demo import FOLDER as DEMO

TEXTS = ["The old man smiled.", "No.", "It was a dark night, and the rain fell."]


@pytest.mark.nightly
def test_score_records_times_and_errors(
    data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "score.json"
    options = Options(quick=True, rounds=1, peers=(OURS,), out=out)
    record = suite.score(options, count=2, data=data_folder)
    assert [case["case"]["texts"] for case in record["cases"]] == [*("passages", "sentences")]
    for case in record["cases"]:
        assert case["case"]["count"] == 2
        assert case["errors"] == {OURS: 0.0}
        assert len(case["seconds"][OURS]) == 1
    assert "tokens/s" in capsys.readouterr().out
    report(tmp_path)
    assert "| 2 passages | gpt1-jax |" in (tmp_path / "README.md").read_text()


@pytest.mark.nightly
def test_score_of_transformers_equals_ours() -> None:
    pytest.importorskip("transformers")
    expected = suite._scorer(OURS)(DEMO)(TEXTS)
    found = hugging_face.score(DEMO, batch_tokens=9, chunk=4)(TEXTS)
    assert list(map(len, found)) == list(map(len, expected)) == [4, 1, 10]
    assert suite.relative_error(np.concatenate(found), np.concatenate(expected)) < 1e-5


@pytest.mark.nightly
def test_score_of_minicons_equals_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minicons")
    sizes: list[int] = []
    times = {1: 3.0, 4: 1.0, 16: 2.0}

    def seconds(batches: Any, texts: Any, size: int) -> float:
        sizes.append(size)
        return times[size]

    monkeypatch.setattr(minicons_scorer, "_seconds", seconds)
    found = minicons_scorer.score(DEMO)(TEXTS)
    expected = suite._scorer(OURS)(DEMO)(TEXTS)
    assert suite.relative_error(np.concatenate(found), np.concatenate(expected)) < 1e-5
    assert sizes == list(minicons_scorer.BATCH_SIZES)


def test_score_refuses_other_outputs(monkeypatch: pytest.MonkeyPatch, data_folder: Path) -> None:
    def wrong(folder: Path) -> Any:
        run = suite._scorer(OURS)(folder)
        return lambda texts: [1.01 * each for each in run(texts)]

    monkeypatch.setitem(PEERS, "wrong", Peer((), 1e-5, score=wrong))
    options = Options(quick=True, rounds=1, peers=(OURS, "wrong"))
    with pytest.raises(ValueError, match=r"log-probabilities of wrong are 0\.01 from gpt1-jax's"):
        suite.score(options, count=2, data=data_folder)
    with pytest.raises(ValueError, match="count is 0, but must be at least 1"):
        suite.score(options, count=0)


def test_score_gives_random_weights_the_tokenizer_of_gpt1(
    data_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    with suite.with_tokenizer(tmp_path, data_folder) as folder:
        assert (folder / "config.json").read_text() == "{}"
        assert len(gpt1.Tokenizer.from_pretrained(folder)) == 40478
