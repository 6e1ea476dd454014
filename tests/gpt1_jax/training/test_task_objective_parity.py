"""The outputs of a batch of examples are those of Hugging Face's models in torch."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import optax  # noqa: E402
import transformers  # noqa: E402
from flax import nnx  # noqa: E402
from support.small_models import small_config  # noqa: E402
from support.small_tokenizer import SIZE, write_small  # noqa: E402
from support.torch_reference import flax_model, largest_difference, to_torch, torch_model  # noqa: E402

import gpt1_jax as gpt1  # noqa: E402
from gpt1_jax.pure import merge, split  # noqa: E402
from gpt1_jax.training.data.labelled import Row  # noqa: E402
from gpt1_jax.training.data.tasks import Example, Task, collate, prepare_tokenizer  # noqa: E402
from gpt1_jax.training.step import Sums, TrainState, make_step, micro_batches  # noqa: E402
from gpt1_jax.training.task_objective import task_loss, task_outputs  # noqa: E402

# float32, as in the ladder of parity. Measured: 5e-7.
TOLERANCE = 5e-6
POSITIONS, CLASSIFY = 20, 12
SIZES: dict[str, Any] = {
    "vocab_size": CLASSIFY + 1,
    "n_positions": POSITIONS,
    "n_embd": 8,
    "n_layer": 2,
    "n_head": 2,
    "pad_token_id": 0,
}


def batch_of(sequences: int, seed: int, rows: int | None = None) -> dict[str, np.ndarray]:
    """Ragged: some sequences hold id 0, <unk>, which is the padding too."""
    rng = np.random.default_rng(seed)
    examples = [
        Example(
            [
                [*rng.integers(CLASSIFY, size=rng.integers(2, POSITIONS)).tolist(), CLASSIFY]
                for _ in range(sequences)
            ],
            int(rng.integers(3)),
        )
        for _ in range(5)
    ]
    return collate(examples, n_positions=POSITIONS, rows=rows)


def compiled(model: Any, batch: dict[str, np.ndarray], lm_weight: float) -> Any:
    structure, params = split(model)

    @jax.jit
    def run(params: Any) -> Any:
        merged = merge(structure, params)
        return task_outputs(merged, batch), task_loss(merged, batch, lm_weight=lm_weight)

    return run(params)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(3))
def test_task_objective_classification_matches_transformers(seed: int) -> None:
    reference = torch_model("OpenAIGPTForSequenceClassification", seed, num_labels=3, **SIZES)
    model, batch = flax_model(reference), batch_of(1, seed)
    with torch.no_grad():
        theirs = reference(to_torch(batch["input_ids"][:, 0]), labels=to_torch(batch["label"]))
    outputs, (loss, sums) = compiled(model, batch, 0.0)
    assert largest_difference(outputs, theirs.logits) <= TOLERANCE
    assert largest_difference(loss / sums["weight"], theirs.loss) <= TOLERANCE


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("smoothing", "weights"), [(0.1, None), (0.0, (0.5, 2.0, 1.0)), (0.2, (0.5, 2.0, 1.0))]
)
def test_task_loss_smoothed_and_weighted_matches_torch(
    smoothing: float, weights: tuple[float, ...] | None
) -> None:
    """In micro-batches of two rows, the last of which have none: the mean is the whole batch's."""
    reference = torch_model("OpenAIGPTForSequenceClassification", 0, num_labels=3, **SIZES)
    structure, params = split(flax_model(reference))
    batch, own = batch_of(1, 0, rows=8), None if weights is None else np.array(weights, np.float32)

    def objective(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Sums]:
        options: Any = {"label_smoothing": smoothing, "class_weights": own}
        return task_loss(merge(structure, params), batch, lm_weight=0.0, **options)

    start = TrainState.create(params, optax.sgd(1.0), 0)
    before = np.array(params["score"]["kernel"])
    step = make_step(objective, optax.sgd(1.0))
    state, measures = step(start, {}, micro_batches(batch, 4))
    criterion = torch.nn.CrossEntropyLoss(
        weight=None if own is None else torch.tensor(own), label_smoothing=smoothing
    )
    ids, labels = to_torch(batch["input_ids"][:5, 0]), to_torch(batch["label"][:5])
    theirs = criterion(reference(ids).logits, labels)
    theirs.backward()
    assert largest_difference(measures["loss"], theirs.detach()) <= TOLERANCE
    gradient = before - np.asarray(state.params["score"]["kernel"])
    assert largest_difference(gradient, reference.score.weight.grad.T) <= TOLERANCE


@pytest.mark.nightly
def test_task_loss_of_any_number_of_labels_matches_transformers() -> None:
    """With its gradients; in micro-batches, the last of which have no rows."""
    kind = {"num_labels": 3, "problem_type": "multi_label_classification"}
    reference = torch_model("OpenAIGPTForSequenceClassification", 0, **kind, **SIZES)
    structure, params = split(flax_model(reference))
    batch = batch_of(1, 1, rows=8)
    batch["label"] = np.random.default_rng(0).integers(2, size=(8, 3)).astype(np.float32)

    def objective(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Sums]:
        return task_loss(merge(structure, params), batch, lm_weight=0.0)

    before = {name: np.array(params["score"][name]) for name in params["score"]}
    table = np.array(params["transformer"]["tokens_embed"]["embedding"])
    start, step = TrainState.create(params, optax.sgd(1.0), 0), make_step(objective, optax.sgd(1.0))
    state, measures = step(start, {}, micro_batches(batch, 4))
    ids, labels = to_torch(batch["input_ids"][:5, 0]), torch.tensor(batch["label"][:5])
    theirs = reference(ids, labels=labels).loss
    theirs.backward()
    assert largest_difference(measures["loss"], theirs.detach()) <= TOLERANCE
    gradient = before["kernel"] - np.asarray(state.params["score"]["kernel"])
    assert largest_difference(gradient, reference.score.weight.grad.T) <= TOLERANCE
    gradient = table - np.asarray(state.params["transformer"]["tokens_embed"]["embedding"])
    expected = reference.transformer.tokens_embed.weight.grad
    assert largest_difference(gradient, expected) <= TOLERANCE


@pytest.mark.parametrize("activation", [None, "tanh"])
def test_task_objective_choices_and_lm_loss_match_transformers(activation: str | None) -> None:
    reference = torch_model("OpenAIGPTDoubleHeadsModel", summary_activation=activation, **SIZES)
    model, batch = flax_model(reference), batch_of(3, 0)
    with torch.no_grad():
        theirs = reference(
            to_torch(batch["input_ids"]),
            mc_token_ids=to_torch(batch["classify_at"]),
            mc_labels=to_torch(batch["label"]),
        )
        # The mean over the tokens of a sequence, then over sequences.
        lm = []
        for ids, logits, last in zip(
            batch["input_ids"].reshape(-1, POSITIONS),
            theirs.logits.reshape(-1, POSITIONS, CLASSIFY + 1),
            batch["classify_at"].reshape(-1),
            strict=True,
        ):
            targets = to_torch(ids[1 : last + 1])
            lm.append(torch.nn.functional.cross_entropy(logits[:last], targets))
    outputs, (loss, sums) = compiled(model, batch, 0.5)
    assert largest_difference(outputs, theirs.mc_logits) <= TOLERANCE
    wanted = theirs.mc_loss + 0.5 * torch.stack(lm).mean()
    assert largest_difference(loss / sums["weight"], wanted) <= TOLERANCE


def test_save_pretrained_classifier_loads_in_transformers(tmp_path: Path) -> None:
    tokenizer = gpt1.Tokenizer.from_pretrained(write_small(tmp_path / "vocabulary"))
    task = Task(
        name="entailment",
        tokenizer=tokenizer,
        special=prepare_tokenizer(tokenizer),
        n_positions=POSITIONS,
        classes=("contradiction", "entailment", "neutral"),
    )
    config = task.configure(small_config(n_positions=POSITIONS, vocab_size=SIZE + 3))
    model = gpt1.OpenAIGPTForSequenceClassification(config, rngs=nnx.Rngs(0))
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")

    texts = [("the thing", "is"), ("is _start_ in the press", "a")]
    rows = [Row("", {"premise": a, "hypothesis": b}, "neutral") for a, b in texts]
    batch = collate([task.encode(row) for row in rows], n_positions=POSITIONS)
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert reference.config.id2label == dict(enumerate(task.classes or ()))
    with torch.no_grad():
        theirs = reference(to_torch(batch["input_ids"][:, 0]))
    outputs, _ = compiled(model, batch, 0.0)
    assert largest_difference(outputs, theirs.logits) <= TOLERANCE

    spelled = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    first = spelled("_start_ the thing _delimiter_ is _classify_")["input_ids"]
    assert first == task.encode(rows[0]).sequences[0]
