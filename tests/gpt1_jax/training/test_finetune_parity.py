"""A fine-tuned folder, and a base with its adapter, give the same logits in torch."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import transformers  # noqa: E402
from support.small_training import finetune, write_checkpoint, write_rows  # noqa: E402
from support.torch_reference import largest_difference, to_torch  # noqa: E402

import conversion  # noqa: E402
import gpt1_jax as gpt1  # noqa: E402
from gpt1_jax.training.data.labelled import Row, read_rows  # noqa: E402
from gpt1_jax.training.data.tasks import Task, collate  # noqa: E402
from gpt1_jax.training.task_file import read_task  # noqa: E402
from gpt1_jax.training.task_objective import task_outputs  # noqa: E402

TOLERANCE = 1e-5  # measured: 2.4e-7
ROWS: dict[Any, list[dict[str, Any]]] = {
    "classification": [
        {"text": "the king saw a cat", "label": "no"},
        {"text": "a big dog", "label": "yes"},
        {"text": "the queen _start_ ran to the house", "label": "maybe"},
    ],
    "similarity": [
        {"text1": "the king saw a cat", "text2": "a cat", "label": 0},
        {"text1": "a big dog ran", "text2": "the dog was big", "label": 1},
    ],
    "multiple-choice": [
        {"context": "the king saw a cat", "a": "it ran", "b": "on the hill it sat", "label": 1},
        {"context": "a dog", "a": "the house is big", "b": "no", "label": 0},
    ],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base") / "model", n_layer=2)


def run(base: Path, folder: Path, task: Any, **fields: Any) -> Path:
    """Fine-tune for a few steps, so that logits are far from those of the start."""
    train = write_rows(folder / "train.jsonl", ROWS[task])
    if task == "multiple-choice":
        fields["choices"] = ("a", "b")
    common: dict[str, Any] = {"batch_size": 2, "epochs": 6, "learning_rate": 1e-2}
    finetune(task, train, None, folder / "run", base, **common, **fields)
    return folder / "run"


def ours(folder: Path) -> tuple[np.ndarray, dict[str, np.ndarray], Task, list[Row]]:
    """The outputs of a folder for its training set; the batch, the task, and the rows."""
    architecture = conversion.read_config(folder)["architectures"][0]
    model = getattr(gpt1, architecture).from_pretrained(folder)
    tokenizer = gpt1.Tokenizer.from_pretrained(folder)
    task, columns = read_task(folder, tokenizer, model.config.n_positions)
    rows = read_rows(folder.parent / "train.jsonl", columns)
    batch = collate([task.encode(row) for row in rows], n_positions=task.n_positions)
    outputs = np.asarray(jax.jit(lambda: task_outputs(model, batch))())
    assert np.ptp(outputs, axis=0).max() > 0.1  # the rows are told apart
    return outputs, batch, task, rows


def classified(model: Any, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(to_torch(ids)).logits.numpy()


@pytest.mark.nightly
def test_finetune_classification_matches_transformers(base: Path, tmp_path: Path) -> None:
    folder = run(base, tmp_path, "classification")
    outputs, batch, task, rows = ours(folder)
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert reference.config.id2label == dict(enumerate(("maybe", "no", "yes")))
    assert largest_difference(outputs, classified(reference, batch["input_ids"][:, 0])) <= TOLERANCE
    # One by one, without padding, and from text by transformers' own tokenizer.
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for row, expected in list(zip(rows, outputs, strict=True))[:2]:
        ids = np.asarray(tokenizer(row.texts["text"], return_tensors="np")["input_ids"], np.int32)
        assert largest_difference(expected, classified(reference, ids)[0]) <= TOLERANCE
    assert task.classes == tuple(reference.config.id2label.values())


@pytest.mark.nightly
def test_finetune_similarity_sums_both_text_orders(base: Path, tmp_path: Path) -> None:
    folder = run(base, tmp_path, "similarity")
    outputs, batch, _, _ = ours(folder)
    reference = transformers.OpenAIGPTForSequenceClassification.from_pretrained(folder)
    # The head is linear and has no bias, so the logits add up as the states do.
    both = classified(reference, batch["input_ids"].reshape(-1, batch["input_ids"].shape[-1]))
    expected = both.reshape(*batch["input_ids"].shape[:2], -1).sum(axis=1)
    assert largest_difference(outputs, expected) <= TOLERANCE


@pytest.mark.nightly
def test_finetune_multiple_choice_matches_transformers(base: Path, tmp_path: Path) -> None:
    folder = run(base, tmp_path, "multiple-choice")
    outputs, batch, _, _ = ours(folder)
    reference = transformers.OpenAIGPTDoubleHeadsModel.from_pretrained(folder)
    with torch.no_grad():
        theirs = reference.eval()(
            to_torch(batch["input_ids"]), mc_token_ids=to_torch(batch["classify_at"])
        )
    assert largest_difference(outputs, theirs.mc_logits) <= TOLERANCE
    # The other head is tied to the embedding that was trained beside it.
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(folder)
    apply, params = gpt1.functional(model)
    logits = apply(params, batch["input_ids"][:, 0]).logits
    assert largest_difference(logits, theirs.logits[:, 0]) <= TOLERANCE


# transformers warns of a name that peft uses, and of the mean that new rows are drawn around.
@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True but the target:UserWarning")
@pytest.mark.parametrize("task", ["classification", "multiple-choice"])
def test_finetune_adapter_in_peft_matches_merged_model(
    base: Path, tmp_path: Path, task: str
) -> None:
    peft = pytest.importorskip("peft")
    folder = run(base, tmp_path, task, lora_rank=2, lora_targets=("c_attn", "mlp.c_proj"))
    outputs, batch, described, _ = ours(folder)
    tokens = len(gpt1.Tokenizer.from_pretrained(folder))

    labels = {} if described.classes is None else {"num_labels": len(described.classes)}
    cls = getattr(transformers, described.architecture)

    def loaded() -> Any:
        start = cls.from_pretrained(base, pad_token_id=0, **labels)
        start.resize_token_embeddings(tokens, mean_resizing=False)
        return peft.PeftModel.from_pretrained(start, folder / "adapter")

    auto = "AutoPeftModelForSequenceClassification" if labels else "AutoPeftModel"
    for name, model in (
        ("adapted", loaded()),
        ("merged", loaded().merge_and_unload()),
        # By the tokenizer beside the adapter, it resizes the embeddings itself.
        ("auto", getattr(peft, auto).from_pretrained(folder / "adapter", pad_token_id=0, **labels)),
    ):
        if task == "classification":
            theirs = classified(model, batch["input_ids"][:, 0])
        else:
            with torch.no_grad():
                theirs = model.eval()(
                    input_ids=to_torch(batch["input_ids"]),
                    mc_token_ids=to_torch(batch["classify_at"]),
                ).mc_logits
        assert largest_difference(outputs, theirs) <= TOLERANCE, name
