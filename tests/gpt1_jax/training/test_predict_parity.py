"""Predictions of every task equal what torch computes from the same ids, batched and alone."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import transformers  # noqa: E402
from support.small_training import words, write_checkpoint, write_task_checkpoint  # noqa: E402
from support.torch_reference import to_torch  # noqa: E402

import conversion  # noqa: E402
import gpt1_jax as gpt1  # noqa: E402
from gpt1_jax.training.data.tasks import collate  # noqa: E402
from gpt1_jax.training.predict import Predictor  # noqa: E402

pytestmark = pytest.mark.nightly

TOLERANCE = 1e-5
TASKS: dict[str, dict[str, Any]] = {
    "classification": {"classes": ("a", "b", "c")},
    "regression": {},
    "entailment": {"classes": ("no", "yes")},
    "similarity": {"classes": ("0", "1")},
    "multiple-choice": {"choices": 3},
}


@functools.cache
def torch_model(folder: Path) -> Any:
    (architecture,) = conversion.read_config(folder)["architectures"]
    return getattr(transformers, architecture).from_pretrained(folder).eval()


def torch_logits(folder: Path, batch: dict[str, np.ndarray]) -> np.ndarray:
    model = torch_model(folder)
    ids, places = to_torch(batch["input_ids"]), to_torch(batch["classify_at"])
    B, S, T = ids.shape
    with torch.no_grad():
        if isinstance(model, transformers.OpenAIGPTDoubleHeadsModel):
            return model(ids, mc_token_ids=places).mc_logits.numpy()
        logits = model(ids.reshape(B * S, T)).logits  # of the last token that is no padding
    return logits.reshape(B, S, -1).sum(dim=1).numpy()


@pytest.mark.parametrize("name", TASKS)
def test_predict_equals_torch(name: str, tmp_path: Path) -> None:
    folder = write_task_checkpoint(tmp_path / "model", name, **TASKS[name])
    predictor = Predictor.of_folder(folder, "model")
    rng = np.random.default_rng(0)
    rows = [
        {column: " ".join(words(rng, 1 + 2 * i)) for column in predictor.text_columns}
        for i in range(6)
    ]
    read = predictor.make_rows([(f"row {i}", row) for i, row in enumerate(rows)])
    examples = [predictor.task.encode(row) for row in read]
    alone = [torch_logits(folder, collate([one], n_positions=32)) for one in examples]
    whole = torch_logits(folder, collate(examples, n_positions=32))
    assert np.abs(np.concatenate(alone) - whole).max() < TOLERANCE
    found = gpt1.predict(folder, rows, batch_size=4)
    (single,) = gpt1.predict(folder, rows[:1])
    for own, logits in zip([*found, single], [*whole, whole[0]], strict=True):
        expected = torch.tensor(logits).softmax(-1).numpy()
        if name == "regression":
            assert own["score"] == pytest.approx(logits[0], abs=TOLERANCE)
        elif name == "multiple-choice":
            assert own["scores"] == pytest.approx(expected, abs=TOLERANCE)
            assert own["label"] == expected.argmax()
        else:
            assert list(own["scores"].values()) == pytest.approx(expected, abs=TOLERANCE)
            assert own["label"] == TASKS[name]["classes"][expected.argmax()]


@pytest.mark.parametrize("several", [False, True])
def test_predict_equals_the_pipeline_for_its_own_classifier(several: bool, tmp_path: Path) -> None:
    """A folder that transformers has made: no task.json, and a tokenizer without a template."""
    folder = write_checkpoint(tmp_path / "model")
    kind = "multi_label_classification" if several else "single_label_classification"
    config = transformers.OpenAIGPTConfig.from_pretrained(
        folder, num_labels=3, pad_token_id=0, problem_type=kind, initializer_range=0.5
    )
    torch.manual_seed(0)
    transformers.OpenAIGPTForSequenceClassification(config).save_pretrained(folder)
    rng = np.random.default_rng(0)
    texts = [" ".join(words(rng, 1 + 2 * i)) for i in range(6)]
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.unk_token
    pipeline: Any = transformers.pipeline(
        "text-classification", model=str(folder), tokenizer=tokenizer, top_k=None
    )
    expected = [{each["label"]: each["score"] for each in row} for row in pipeline(texts)]
    found = gpt1.predict(folder, texts, task="classification", batch_size=4)
    for own, scores in zip(found, expected, strict=True):
        assert own["scores"] == pytest.approx(scores, abs=TOLERANCE)
        if several:
            assert set(own["labels"]) == {name for name, score in scores.items() if score > 0.5}
        else:
            assert own["label"] == max(scores, key=lambda name: scores[name])
