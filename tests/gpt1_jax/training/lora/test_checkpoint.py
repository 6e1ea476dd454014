"""A base and an adapter, merged into the checkpoint that the training itself has written."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.small_models import leaves_equal
from support.small_training import (
    finetune,
    pretrain,
    save_random_adapters,
    write_checkpoint,
    write_rows,
    write_text,
)

import conversion
import gpt1_jax as gpt1
from gpt1_jax.training import loop
from gpt1_jax.training.lora.checkpoint import merge_checkpoint

TEXTS = ["the king saw a cat", "no", "a big dog ran to the red house"]
ROWS = [{"text": text, "label": label} for text, label in zip(TEXTS, "xyz", strict=True)]
SETTINGS: dict[str, Any] = {"lora_rank": 2, "lora_targets": ("c_attn", "mlp.c_proj")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of a base, and of a language model and a classifier adapted from it."""
    folder = tmp_path_factory.mktemp("runs")
    write_checkpoint(folder / "base", n_positions=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train", save_random_adapters)
        given: Any = {"model": folder / "base", **SETTINGS}
        pretrain([write_text(folder / "text.txt")], folder / "text", steps=2, **given)
        rows = write_rows(folder / "rows.jsonl", ROWS)
        finetune("classification", rows, None, folder / "labels", **given)
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    fields = json.loads((folder / "config.json").read_text())
    # The training's own rates.
    return {
        name: value for name, value in fields.items() if not name.endswith(("pdrop", "dropout"))
    }


@pytest.mark.parametrize("name", ["text", "labels"])
def test_merge_checkpoint_writes_what_the_training_wrote(
    runs: Path, name: str, tmp_path: Path
) -> None:
    merge_checkpoint(runs / name / "adapter", tmp_path / "merged")
    (_, merged), (_, expected) = (
        conversion.read(folder) for folder in (tmp_path / "merged", runs / name)
    )
    assert leaves_equal(merged, expected)
    assert config_of(tmp_path / "merged") == config_of(runs / name)
    for file in ("tokenizer.json", "tokenizer_config.json", "task.json"):
        assert (tmp_path / "merged" / file).is_file() == (runs / name / file).is_file()
        if (runs / name / file).is_file():
            assert (tmp_path / "merged" / file).read_bytes() == (runs / name / file).read_bytes()


def test_merge_checkpoint_takes_classifier_without_task(runs: Path, tmp_path: Path) -> None:
    """As peft alone writes it."""
    shutil.copytree(runs / "labels" / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / "task.json").unlink()
    merge_checkpoint(tmp_path / "adapter", tmp_path / "merged")
    model = gpt1.OpenAIGPTForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert leaves_equal(model.params, conversion.read(runs / "labels")[1])
    assert model.config.num_labels == 3


def reconfigure(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_merge_checkpoint_reports_what_is_wrong(runs: Path, tmp_path: Path) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    shutil.copytree(runs / "text" / "adapter", adapter)
    with pytest.raises(
        ValueError, match=r"(?s)of another model than this OpenAIGPTLMHead.*has shape \(16, 48\)"
    ):
        merge_checkpoint(adapter, out, model=write_checkpoint(tmp_path / "wide", n_embd=32))
    whole = gpt1.OpenAIGPTLMHeadModel.from_pretrained(runs / "base")
    gpt1.quantize(whole).save_pretrained(tmp_path / "int8")
    with pytest.raises(ValueError, match="is int8, and an adapter cannot be merged into it: merge"):
        merge_checkpoint(adapter, out, model=tmp_path / "int8")
    reconfigure(adapter, base_model_name_or_path="./nowhere")
    with pytest.raises(
        FileNotFoundError, match=r"is an adapter of './nowhere', which is not found"
    ):
        merge_checkpoint(adapter, out)
    reconfigure(adapter, base_model_name_or_path=None)
    with pytest.raises(ValueError, match="does not name its base model: it must be given"):
        merge_checkpoint(adapter, out)
    reconfigure(adapter, auto_mapping=None, task_type="TOKEN_CLS")
    with pytest.raises(ValueError, match="task_type is 'TOKEN_CLS', but must be one of FEATURE_EX"):
        merge_checkpoint(adapter, out, model=runs / "base")
    assert not out.exists()
