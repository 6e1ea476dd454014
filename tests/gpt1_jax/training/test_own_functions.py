"""An optimizer, a loss and metrics of one's own, in place of those that settings name."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from support.small_training import finetune, pretrain, write_checkpoint, write_rows, write_text

from gpt1_jax.training import finetune as finetuning
from gpt1_jax.training import pretrain as pretraining
from gpt1_jax.training.log import read_log
from gpt1_jax.training.optimizer import OptimizerSettings, make_optimizer

ROWS = [{"text": f"the {animal} ran", "label": animal} for animal in ("cat", "dog", "king") * 4]
SETTINGS = finetuning.FinetuneSettings(batch_size=4, epochs=1, dropout=0.0, remat="none")
ADAM = OptimizerSettings(optimizer="openai", learning_rate=3e-3, schedule="linear", warmup=0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", ROWS)


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def run(rows: Path, out: Path, base: Path, valid: Path | None = None, **fields: Any) -> Any:
    given: dict[str, Any] = {"settings": SETTINGS, "optimizer": ADAM, **fields}
    return finetuning.finetune("classification", rows, valid, out, model=base, **given)


@pytest.mark.nightly
def test_finetune_takes_an_optax_transformation(
    rows: Path, base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(rows, tmp_path / "a", base)
    run(rows, tmp_path / "b", base, optimizer=make_optimizer(ADAM, 3))
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert "the learning rate is that of an optimizer of your own" in capfd.readouterr().err
    run(rows, tmp_path / "c", base, optimizer=optax.sgd(0.1))
    assert weights(tmp_path / "c") != weights(tmp_path / "a")
    assert "learning_rate" not in read_log(tmp_path / "c" / "log.jsonl")[0]
    held = json.loads((tmp_path / "c" / "run.json").read_text())
    assert held["optimizer"] == "an optax transformation"
    with pytest.raises(ValueError, match="optimizer is 'sgd', but must be OptimizerSettings or"):
        run(rows, tmp_path / "d", base, optimizer="sgd")


@pytest.mark.nightly
def test_pretrain_takes_an_optax_transformation(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt")
    pretrain([text], tmp_path / "a", steps=2)
    settings = pretraining.PretrainSettings(steps=2, batch_size=8, dropout=0.0, remat="none")
    new = pretraining.NewModel(merges=40, n_layer=1, n_embd=16, n_head=2, n_positions=16)
    adam = OptimizerSettings(optimizer="openai", learning_rate=3e-3, schedule="constant", warmup=0)
    own = make_optimizer(adam, 2)
    pretraining.pretrain([text], tmp_path / "b", new=new, settings=settings, optimizer=own)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


@pytest.mark.nightly
def test_finetune_takes_a_loss(rows: Path, base: Path, tmp_path: Path) -> None:
    def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    def focal(logits: jax.Array, labels: jax.Array) -> jax.Array:
        losses = cross_entropy(logits, labels)
        return (1 - jax.numpy.exp(-losses)) ** 2 * losses

    eight = finetuning.FinetuneSettings(batch_size=8, epochs=1, dropout=0.0, lm_weight=0)
    first = []
    for name, loss in (("plain", None), ("same", cross_entropy), ("focal", focal)):
        run(rows, tmp_path / name, base, settings=eight, loss=loss)
        first.append(read_log(tmp_path / name / "log.jsonl")[-1]["loss"])
    assert first[0] == pytest.approx(first[1], rel=1e-6)  # a row that fills up has no part in it
    assert first[2] < 0.9 * first[0]
    with pytest.raises(ValueError, match=r"of shape \(\), but must return .* 8 examples, of shape"):
        run(rows, tmp_path / "x", base, settings=eight, loss=lambda logits, labels: logits.mean())
    with pytest.raises(ValueError, match="loss is given: leave out class_weights and label_smooth"):
        run(rows, tmp_path / "x", base, loss=focal, class_weights="balanced")


@pytest.mark.nightly
def test_finetune_takes_metrics(rows: Path, base: Path, tmp_path: Path) -> None:
    def errors(predictions: np.ndarray, labels: np.ndarray) -> float:
        return float((predictions != labels).mean())

    result = finetune(
        "classification", rows, rows, tmp_path / "out", base, epochs=2, eval_every=1,
        metric="errors", metrics={"errors": errors},
    )  # fmt: skip
    valid = [line for line in read_log(tmp_path / "out" / "log.jsonl") if "valid_loss" in line]
    for line in valid:
        assert line["valid_errors"] == pytest.approx(1 - line["valid_accuracy"])
    assert result.best is not None
    assert result.best["errors"] == max(line["valid_errors"] for line in valid)
    for given, message in (
        (
            {"metrics": {"f1": errors}, "valid": None},
            "metrics are given, but need a validation set",
        ),
        ({"metrics": {"accuracy": errors}, "valid": rows}, "metrics has 'accuracy', which classif"),
    ):
        with pytest.raises(ValueError, match=message):
            run(rows, tmp_path / "x", base, **given)
