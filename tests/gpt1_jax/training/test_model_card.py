"""The card of a trained folder says what was done, and its examples run."""

import json
import re
import runpy
from pathlib import Path

import pytest
from support.small_training import finetune, pretrain, write_checkpoint, write_rows, write_text

from gpt1_jax.training.model_card import MARK, make_card

ROWS = [{"text": f"the {animal} ran", "label": animal} for animal in ("cat", "dog") * 8]


def python(card: str, package: str) -> str:
    (code,) = (
        block for block in re.findall(r"```python\n(.*?)```", card, re.S) if package in block
    )
    return code


def test_card_of_a_language_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = write_text(tmp_path / "novel.txt")
    pretrain([text], tmp_path / "out", steps=2)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: text-generation" in card
    assert "trained from random weights with gpt1-jax: 2 steps." in card
    assert "It was not validated" in card
    assert f"- Training: `{text}`: 1 file, " in card
    assert "| batch_size | 8 |" in card
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example.py").write_text(python(card, "gpt1_jax").replace("old", "red"))
    runpy.run_path("example.py")
    assert capsys.readouterr().out.startswith("the red house")


@pytest.mark.nightly
def test_card_of_a_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_checkpoint(tmp_path / "base")
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    out = tmp_path / "out"
    run = {"model": base, "epochs": 1}
    result = finetune("classification", rows, rows, out, **run)
    card = (out / "README.md").read_text()
    assert result.best is not None
    assert f"| accuracy | {result.best['accuracy']:.4g} |" in card
    assert f"On `{rows}`, after step {result.best_step}:" in card
    assert "  - classes: cat (8), dog (8)" in card
    assert f"It was trained from `{base}`" in card
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example.py").write_text(
        python(card, "gpt1_jax").replace("print(", "found = (").replace("A text", "a cat")
    )
    (found,) = runpy.run_path("example.py")["found"]
    assert found["label"] in ("cat", "dog")
    (out / "README.md").write_text("My own.")
    finetune("classification", rows, rows, out, **run)  # which has ended
    assert (out / "README.md").read_text() == "My own."
    (out / "README.md").write_text(f"{MARK}\nold")
    finetune("classification", rows, rows, out, **run)
    assert (out / "README.md").read_text() == card


def test_card_has_the_command_and_the_base() -> None:
    run = {
        "task": "similarity",
        "model": "openai-community/openai-gpt",
        "train": "train.tsv",
        "valid": "dev.tsv",
        "epochs": 3.0,
        "summary": {"train": {"rows": 1200}, "command": "gpt1 finetune --task similarity"},
    }
    card = make_card("mrpc", json.loads(json.dumps(run)), {"f1": 0.8, "loss": 0.5}, 114)
    header, _, rest = card.removeprefix("---\n").partition("---\n")
    assert "base_model: openai-community/openai-gpt\n" in header
    assert "pipeline_tag" not in header
    assert "```bash\ngpt1 finetune --task similarity\n```" in rest
    assert "- Training: `train.tsv`: 1,200 rows" in rest
    assert "| epochs | 3.0 |" in rest
    assert "the few lines of torch" in rest
