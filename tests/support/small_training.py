"""Texts and labelled sets that are made up, and trainings small enough for tests."""

import csv
import dataclasses
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import small_models

import gpt1_jax as gpt1
from gpt1_jax.model import MODELS
from gpt1_jax.text.bpe_training import train_tokenizer
from gpt1_jax.training import finetune as finetuning
from gpt1_jax.training import loop
from gpt1_jax.training import pretrain as pretraining
from gpt1_jax.training.data.tasks import Task, prepare_tokenizer, task_columns
from gpt1_jax.training.finetune import FinetuneSettings
from gpt1_jax.training.loop import LoopSettings, TrainProgress, TrainSpec
from gpt1_jax.training.optimizer import OptimizerSettings
from gpt1_jax.training.pretrain import NewModel, PretrainSettings
from gpt1_jax.training.task_file import write_task

WORDS = "the a cat dog king queen sat ran saw went to on in hill mat house red blue big small"
ROW_WORDS = f"{WORDS} good bad yes no maybe"

# The settings of every run below, unless it says otherwise.
QUICK: dict[str, Any] = {
    "merges": 40,
    "n_layer": 1,
    "n_embd": 16,
    "n_head": 2,
    "n_positions": 16,
    "batch_size": 8,
    "dropout": 0.0,
    "remat": "none",
    "optimizer": "openai",
    "learning_rate": 3e-3,
    "schedule": "constant",
    "warmup": 0,
    "log_every": 1,
}


SIZES = ("merges", "n_layer", "n_embd", "n_head", "n_positions")


def words(rng: np.random.Generator, number: int) -> list[str]:
    return rng.choice(WORDS.split(), number).tolist()


def write_text(path: Path, lines: int = 60, seed: int = 0) -> Path:
    """Lines of ten words each, every other one of which is the word before it, told again."""
    rng = np.random.default_rng(seed)
    rows = (" ".join(word for word in words(rng, 5) for _ in range(2)) for _ in range(lines))
    path.write_text("\n".join(rows) + "\n")
    return path


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A labelled set, of the kind that the suffix says."""
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            delimiter = {".csv": ",", ".tsv": "\t"}[path.suffix]
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    return path


def write_checkpoint(folder: Path, **fields: Any) -> Path:
    """A language model of random weights, with a tokenizer that knows the words above."""
    tokenizer = train_tokenizer([ROW_WORDS] * 4, 60)
    sizes: dict[str, Any] = {"n_positions": 32, "n_layer": 1, "n_embd": 16, "n_head": 2}
    sizes["initializer_range"] = 0.1  # with less, so small a model tells tokens apart but slowly
    config = gpt1.OpenAIGPTConfig(**{"vocab_size": len(tokenizer), **sizes, **fields})
    gpt1.OpenAIGPTLMHeadModel(config, rngs=nnx.Rngs(0)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_task_checkpoint(
    folder: Path,
    name: Any,
    *,
    classes: Sequence[str] | None = None,
    choices: int = 0,
    columns: Mapping[str, str] | None = None,
    **fields: Any,
) -> Path:
    """A fine-tuned model of random weights, in which every row has another prediction."""
    tokenizer = train_tokenizer([ROW_WORDS] * 4, 60)
    task = Task(
        name=name,
        tokenizer=tokenizer,
        special=prepare_tokenizer(tokenizer),
        n_positions=32,
        classes=None if classes is None else tuple(classes),
        choices=choices,
    )
    sizes: dict[str, Any] = {"n_positions": 32, "n_layer": 1, "n_embd": 16, "n_head": 2}
    config = task.configure(gpt1.OpenAIGPTConfig(vocab_size=len(tokenizer), **sizes))
    config = dataclasses.replace(config, **fields)
    model: Any = small_models.small_model(MODELS[task.architecture], **vars(config))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    named = [f"choice{k}" for k in range(choices)]
    write_task(folder, task, task_columns(name, columns, named), None)
    return folder


def pretrain(texts: Sequence[Path], out: Path, **fields: Any) -> TrainProgress:
    """Train a tiny language model; the fields are settings of any kind, or other arguments."""
    quick = dict(QUICK)
    # A given model has its own sizes, a given tokenizer its own merges.
    for name in SIZES if "model" in fields else SIZES[:1] if "tokenizer" in fields else ():
        del quick[name]
    given = quick | fields
    return pretraining.pretrain(
        texts,
        out,
        new=NewModel(**_of(NewModel, given)),
        settings=PretrainSettings(**_of(PretrainSettings, given)),
        optimizer=OptimizerSettings(**_of(OptimizerSettings, given)),
        loop=LoopSettings(**_of(LoopSettings, given)),
        **given,
    )


def finetune(
    task: Any, train: Path, valid: Path | None, out: Path, model: Path, **fields: Any
) -> TrainProgress:
    """Train a tiny model for a task; the fields are settings of any kind, or other arguments."""
    given = {name: value for name, value in QUICK.items() if name not in SIZES} | fields
    return finetuning.finetune(
        task,
        train,
        valid,
        out,
        model=model,
        settings=FinetuneSettings(**_of(FinetuneSettings, given)),
        optimizer=OptimizerSettings(**_of(OptimizerSettings, given)),
        loop=LoopSettings(**_of(LoopSettings, given)),
        **given,
    )


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a run has prepared when it takes its first step.

    Attributes:
        steps: the number of steps it would take.
        batch: a checksum of the first batch.
        weights: a checksum of the initial trained parameters.
        dtypes: the dtypes of the trained parameters.
        first_loss: the loss of the first batch, with dropout by the run's seed.
        updates: the optimizer's updates for three gradients, one after the other.
    """

    steps: int
    batch: int
    weights: int
    dtypes: frozenset[str]
    first_loss: float
    updates: tuple[float, ...]

    @classmethod
    def of(cls, training: TrainSpec) -> Self:
        """Summarise a training."""
        model = training.combine(training.params, training.frozen)
        batch, key = next(training.batches), jax.random.key(training.seed)
        loss, sums = jax.jit(training.objective)(model, batch, key)
        # A matrix and a vector, since weight decay tells them apart.
        params = {"kernel": jnp.full((2, 2), 0.5), "bias": jnp.full(2, 0.5)}
        state, updates = training.optimizer.init(params), []
        with jax.numpy_dtype_promotion("standard"):  # optax's AdamW is not strict about it
            for size in (1.0, 2.0, 4.0):
                gradients = jax.tree.map(lambda p, size=size: size * p, params)
                update, state = training.optimizer.update(gradients, state, params)
                updates += [float(leaf.ravel()[0]) for leaf in jax.tree.leaves(update)]
        return cls(
            steps=training.steps,
            batch=checksum(batch),
            weights=checksum(training.params),
            dtypes=frozenset(str(leaf.dtype) for leaf in jax.tree.leaves(training.params)),
            first_loss=float(loss / sums["weight"]),
            updates=tuple(updates),
        )


def checksum(tree: Any) -> int:
    """Return a number that differs where any bit of any array does."""
    return zlib.crc32(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)))


def save_unchanged(training: TrainSpec, *_: Any) -> None:
    """In place of ``train``: save what it would begin with."""
    training.save(training.params, training.combine(training.params, training.frozen))


def save_random_adapters(training: TrainSpec, *_: Any) -> None:
    """In place of ``train``: save what it would begin with, but for adapters that change it."""
    rng = np.random.default_rng(0)
    adapters = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype),
        training.params["adapters"],
    )
    trained = {**training.params, "adapters": adapters}
    training.save(trained, training.combine(trained, training.frozen))


def prepare(run: Callable[[], object]) -> Prepared:
    """Run pre-training or fine-tuning up to the first step."""
    handed_over: list[TrainSpec] = []

    def record(training: TrainSpec, *_: Any) -> TrainProgress:
        handed_over.append(training)
        return TrainProgress()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train", record)
        run()
    return Prepared.of(handed_over[0])


def _of(settings: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Take the fields of the settings out of those that are given."""
    names = {field.name for field in dataclasses.fields(settings)}
    return {name: given.pop(name) for name in names & given.keys()}
