"""The predict suite on the demo: the pipeline of transformers has the same probabilities."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import predict as suite
from benchmarks.peers import OURS, PEERS, Peer, hugging_face, ours
from benchmarks.report import report
from benchmarks.score import relative_error
from benchmarks.suite import Options
from gpt1_jax.demo import FOLDER as DEMO

pytestmark = pytest.mark.nightly

TEXTS = ["The old man smiled.", "No.", "It was a dark night, and the rain fell."]


def test_predict_records_times_and_errors(
    data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "predict.json"
    options = Options(quick=True, rounds=1, peers=(OURS,), out=out)
    record = suite.predict(options, count=3, data=data_folder)
    (case,) = record["cases"]
    assert case["case"] == {"texts": "sentences", "count": 3}
    assert case["errors"] == {OURS: 0.0}
    assert len(case["seconds"][OURS]) == 1
    assert "texts/s" in capsys.readouterr().out
    report(tmp_path)
    assert "| 3 sentences | gpt1-jax |" in (tmp_path / "README.md").read_text()


def test_predict_of_transformers_equals_ours() -> None:
    pytest.importorskip("transformers")
    with suite.classifier(DEMO) as folder:
        expected = ours.predict(folder)(TEXTS)
        found = hugging_face.predict(folder, batch_sizes=(1, 2))(TEXTS)
    assert expected.shape == (3, 2)
    assert expected.sum(axis=1) == pytest.approx(1, abs=1e-6)
    assert relative_error(found, expected) < 1e-6


def test_predict_refuses_other_outputs(monkeypatch: pytest.MonkeyPatch, data_folder: Path) -> None:
    def wrong(folder: Path) -> Any:
        run = ours.predict(folder)
        return lambda texts: np.float32(1.01) * run(texts)

    monkeypatch.setitem(PEERS, "wrong", Peer((), 1e-5, predict=wrong))
    options = Options(quick=True, rounds=1, peers=(OURS, "wrong"))
    with pytest.raises(ValueError, match=r"the labels of wrong are 0\.01 from gpt1-jax's"):
        suite.predict(options, count=2, data=data_folder)
    with pytest.raises(ValueError, match="count is 0, but must be at least 1"):
        suite.predict(options, count=0)
