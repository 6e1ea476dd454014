"""The harness's own model against ours on the demo: all answers equal, and what is recorded."""

import json
from pathlib import Path

import pytest

from benchmarks import lm_eval as suite
from gpt1_jax.demo import FOLDER as DEMO


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_lm_eval_records_equal_answers_to_three_tasks(
    data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("lm_eval", "torch", "transformers", "accelerate"):
        pytest.importorskip(module)
    file = tmp_path / "record.json"
    record = suite.lm_eval(data_folder, DEMO, count=8, rounds=2, out=file)
    assert record == json.loads(file.read_text())
    cases = record["cases"]
    assert [case["case"] for case in cases] == [
        {"task": "local_lambada", "requests": 8},
        {"task": "local_copa", "requests": 16},
        {"task": "local_sentences", "requests": 8},
    ]
    assert all(case["difference"] <= 1e-4 for case in cases)
    for case in cases:
        assert list(case["seconds"]) == ["gpt1-jax", "hf, batch 1", "hf, batch 8"]
    assert "gpt1-jax is" in capsys.readouterr().out


def test_difference_is_of_log_likelihoods_alone() -> None:
    assert suite.difference([(-1.0, True), "a"], [(-1.5, True), "a"]) == 0.5
    for ours, theirs in (("a", "b"), ((0.0, True), (0.0, False))):
        with pytest.raises(ValueError, match="the answers to request 0 differ"):
            suite.difference([ours], [theirs])


def test_lm_eval_rejects_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rounds is 0"):
        suite.lm_eval(tmp_path, rounds=0)
