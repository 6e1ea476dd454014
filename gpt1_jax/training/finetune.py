"""Fine-tuning: from a language model and a labelled set to a model for the task."""

import dataclasses
import functools
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gpt1_jax._conversion import extras, layout
from gpt1_jax.checks import (
    INTEGER,
    Count,
    MaybeCount,
    NotNegative,
    Positive,
    Rule,
    Switch,
    at_least,
    is_number,
)
from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.demo import resolve
from gpt1_jax.model import MODELS
from gpt1_jax.pretrained import Params
from gpt1_jax.pure import merge, split
from gpt1_jax.sharding.mesh import check_heads, process_local_rows
from gpt1_jax.sharding.processes import is_main_process
from gpt1_jax.text.tokenizer import Tokenizer
from gpt1_jax.training import lora, metrics, run_folder
from gpt1_jax.training.callbacks import Callback
from gpt1_jax.training.class_weights import ClassWeights, weigh_classes
from gpt1_jax.training.data.batches import BatchIterator, count_steps, shuffled_batches
from gpt1_jax.training.data.labelled import (
    RecordSource,
    Row,
    Source,
    content_of_rows,
    draw_rows,
    read_rows,
    take_out,
)
from gpt1_jax.training.data.plausibility import (
    check_no_regression,
    drop_unlabelled,
    find_alike_classes,
    find_shared_rows,
)
from gpt1_jax.training.data.records import Quoting
from gpt1_jax.training.data.tasks import (
    SEPARATOR,
    Example,
    Task,
    TaskName,
    check_no_numbers,
    collate,
    find_classes,
    prepare_tokenizer,
    task_columns,
)
from gpt1_jax.training.embedding_dropout import configure_dropout
from gpt1_jax.training.freezing import split_frozen
from gpt1_jax.training.heads import TrainedHead, draw_head
from gpt1_jax.training.loop import LoopSettings, TrainProgress, TrainSpec, train_into
from gpt1_jax.training.metrics import MetricFunction
from gpt1_jax.training.optimizer import (
    AnyOptimizer,
    OptimizerSettings,
    check_rate,
    describe_optimizer,
    known_rate,
    make_optimizer,
)
from gpt1_jax.training.run_settings import (
    RunSettings,
    check_vocabulary,
    fields_of,
)
from gpt1_jax.training.step import Batch, Sums
from gpt1_jax.training.summary import (
    show_summary,
    summarize_cuts,
    summarize_longer,
    summarize_rows,
    summarize_training,
)
from gpt1_jax.training.task_file import write_task
from gpt1_jax.training.task_measures import task_measures, task_metrics
from gpt1_jax.training.task_objective import ExampleLoss, TaskModel, task_loss

OPTIMIZER = OptimizerSettings(
    optimizer="openai", learning_rate=6.25e-5, schedule="linear", warmup=0.002
)
Identity = tuple[str | None, str | None]  # the name of a set and what tells its content


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneSettings(RunSettings):
    """The settings of fine-tuning; the defaults are those of the GPT-1 paper.

    Attributes:
        epochs: number of passes over the training set; a fraction is rounded up to whole steps.
        steps: number of steps to train, in place of epochs.
        batch_size: number of examples in a step; a larger number takes more memory.
        lm_weight: weight of the auxiliary language-modelling loss; 0 leaves it out.
        max_tokens: largest number of tokens of an example, above which its texts are cut; by
            default n_positions.
        valid_share: share of the training set, between 0 and 1, that is drawn by the seed from each
            class alike to validate on, and not trained on; by default none.
        train_rows: number of rows to train on, drawn by the seed from those that are not validated
            on; a larger number includes the rows of a smaller one. By default all.
        numbers: read the labels of a similarity as numbers, not as classes.
        multi_label: give each row of a classification any number of labels: a list of them, or a
            string with a separator between them.
        label_separator: separator between the labels of a row, where they are one string.
        label_smoothing: share of the target, in [0, 1), that is spread evenly over all classes or
            choices in the training loss; the validation loss has none.
        metric: measure by which validation chooses the best model: one of the task's measures, or
            loss; among equal values the lower loss wins. By default accuracy, or Pearson's
            correlation for numbers.
        new_head: train a new head even if the checkpoint has one. By default a head for the same
            task and the same classes is trained further; other classes of that task need this flag,
            and another task always gets a new head.
        freeze_embeddings: keep the token and position embeddings as they are.
        freeze_layers: number of blocks, from the lowest on, to keep as they are.
    """

    epochs: Positive = 3.0
    steps: MaybeCount = None
    batch_size: Count = 32
    lm_weight: NotNegative = 0.5
    max_tokens: MaybeCount = None
    valid_share: Annotated[
        float | None, Rule("above 0 and below 1", lambda x: is_number(x) and 0 < x < 1)
    ] = None
    train_rows: MaybeCount = None
    numbers: Switch = False
    multi_label: Switch = False
    label_separator: Annotated[str, SEPARATOR] = "|"
    label_smoothing: Annotated[float, Rule("in [0, 1)", lambda x: is_number(x) and 0 <= x < 1)] = (
        0.0
    )
    metric: str | None = None
    new_head: Switch = False
    freeze_embeddings: Switch = False
    freeze_layers: Annotated[int, INTEGER, at_least(0)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and self.epochs != FinetuneSettings.epochs:
            raise ValueError(f"steps is {self.steps} and epochs {self.epochs}: give one of them")
        if self.lora is not None and (self.freeze_embeddings or self.freeze_layers):
            raise ValueError(
                "lora_rank trains adapters alone: leave out freeze_embeddings and freeze_layers"
            )
        if not self.multi_label and self.label_separator != FinetuneSettings.label_separator:
            raise ValueError("label_separator has no effect without multi_label")


def finetune(
    task: TaskName,
    train: Source,
    valid: Source | None,
    out: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str],
    columns: Mapping[str, str] | None = None,
    choices: Sequence[str] = (),
    quoting: Quoting | None = None,
    class_weights: ClassWeights | None = None,
    loss: ExampleLoss | None = None,
    metrics: Mapping[str, MetricFunction] | None = None,
    settings: FinetuneSettings = FinetuneSettings(),
    optimizer: AnyOptimizer = OPTIMIZER,
    loop: LoopSettings = LoopSettings(),
    mesh: Mesh | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainProgress:
    """Train a model for a task; run again, a killed run goes on, bit by bit the same.

    Run again with more epochs or steps, a run that has ended goes on from its last state, its
    optimizer's included: the learning rate follows the schedule of the longer run from the step
    that was reached. So the result is not that of a run that was as long from the beginning.

    Args:
        task: one of ``TASKS``; their inputs are the paper's.
        train: a labelled set: a file, see ``records.read_records``, or a list of dicts or a
            dataset of the package ``datasets``.
        valid: another, which says what is best; None for no validation.
        out: the folder of the result: a checkpoint in Hugging Face's layout with its tokenizer and
            ``task.json``, which ``evaluate`` reads; ``log.jsonl``, ``loss.png``, ``checkpoints/``.
        model: a pre-trained checkpoint with its tokenizer: a folder, or a hub id.
        columns: the columns' names by their roles, where they differ.
        choices: the columns of the choices of a multiple choice, in order.
        quoting: of the cells of .csv and .tsv files, see ``records.read_records``.
        class_weights: how much the examples of each class count in the loss that is trained on, a
            number for each name; or "balanced", by which all classes together count alike.
        loss: of each example, in place of the task's own loss in training: a function of logits
            (B, C) and labels (B,), which JAX traces, to (B,). Validation has the task's own loss.
        metrics: more measures of the validation set by their names, which ``settings.metric`` may
            choose by: functions of predictions and labels, see ``metrics.MetricFunction``. What
            is higher is better.
        settings: what to train, for how long.
        optimizer: how gradients become updates: settings, or any transformation of optax, which
            has its own learning rate.
        loop: when to log, validate and save.
        mesh: the devices to train on, see ``pretrain``.
        callbacks: see ``pretrain``.

    Returns:
        How the validations went.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: a setting or a row is wrong, or ``out`` holds another run.
        BlockingIOError: another process is training into ``out``.
        KeyboardInterrupt: after SIGINT or SIGTERM, with a checkpoint.
    """
    job = _Finetuning(
        task_name=task,
        train=train,
        valid=valid,
        model=model,
        columns=columns,
        choices=choices,
        quoting=quoting,
        class_weights=class_weights,
        example_loss=loss,
        metrics={} if metrics is None else metrics,
        settings=settings,
        optimizer=optimizer,
        loop=loop,
        mesh=mesh,
    )
    return train_into(out, job.prepare, callbacks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Finetuning:
    """The arguments of ``finetune``, and the steps that lead from them to the first batch."""

    task_name: TaskName
    train: Source
    valid: Source | None
    model: str | os.PathLike[str]
    columns: Mapping[str, str] | None
    choices: Sequence[str]
    quoting: Quoting | None
    class_weights: ClassWeights | None
    example_loss: ExampleLoss | None
    metrics: Mapping[str, MetricFunction]
    settings: FinetuneSettings
    optimizer: AnyOptimizer
    loop: LoopSettings
    mesh: Mesh | None

    def prepare(self, out: Path) -> tuple[TrainSpec, LoopSettings]:
        """Return what is trained, and when to do what; claim the output folder."""
        own_rows = self.check()
        columns = task_columns(self.task_name, self.columns, self.choices)
        rows, valid_rows, sets = self.read_sets(columns)
        rows, warnings = self.labelled(rows)
        if self.task_name == "classification" and not self.settings.multi_label:
            check_no_regression(rows)
        folder = resolve(self.model)
        config = OpenAIGPTConfig.from_pretrained(folder)
        layout.check_not_quantized(config.to_dict(), "training", folder)
        tokenizer = Tokenizer.from_pretrained(folder)
        check_vocabulary(folder, tokenizer, config.vocab_size)
        if self.mesh is not None:
            check_heads(self.mesh, config)
        head = TrainedHead.read(folder, config)
        task = self.make_task(tokenizer, config, rows, head)
        replaced = head is not None and (self.settings.new_head or not head.fits(task))
        rows, valid_rows, drawn = self.divide(task, rows, valid_rows)
        weights = weigh_classes(self.class_weights, task, rows)
        examples = [task.encode(row) for row in rows]
        if valid_rows is not None:
            valid_rows, more = self.labelled(valid_rows, task.classes or ())
            warnings += more + find_shared_rows(rows, valid_rows)
        if task.classes is not None:
            warnings += find_alike_classes(rows)
        run = self.describe(folder, columns, *sets)
        run_folder.claim(out, run, self.mesh)
        if head is not None and replaced and is_main_process():
            trained = f"{self.model} was trained for {head.describe()}"
            print(f"{trained}: {task.name} gets a new head", file=sys.stderr)
        model = _model(folder, task, config, self.settings, self.mesh, replaces_head=replaced)
        spec = self.specify(model, task, examples, valid_rows, weights, own_rows, out)
        epoch = count_steps(1, len(examples), self.settings.batch_size)
        summary = {
            "train": summarize_rows(task, rows),
            "valid": None if valid_rows is None else summarize_rows(task, valid_rows),
            **drawn,
            "cut": summarize_cuts(task, examples),
            **({} if weights is None else {"class_weights": _by_name(task, weights)}),
            **summarize_training(spec, self.optimizer, epoch),
            **summarize_longer(spec, run_folder.shorter_run(out, run, spec.steps)),
            "warnings": warnings,
        }
        if is_main_process():
            self.begin(out, task, columns)
            run_folder.begin(out, run, summary)
        show_summary(summary)
        return spec, dataclasses.replace(self.loop, eval_every=self.loop.eval_every or epoch)

    def check(self) -> np.ndarray:
        """Check what needs no reading, and return the rows of a batch that this process reads."""
        modules = ("grain", "matplotlib", "sklearn", "scipy")
        extras.require("fine-tuning", *modules, extra="train")
        share = self.settings.valid_share
        if share is not None and self.valid is not None:
            raise ValueError(f"valid_share is {share:g}, but valid is given: leave one of them out")
        validates = self.valid is not None or share is not None
        self.loop.check_for(self.settings.batch_size, validates=validates)
        rows = process_local_rows(self.mesh, self.settings.batch_size, self.loop.accumulate)
        if self.example_loss is not None and (
            self.class_weights is not None or self.settings.label_smoothing
        ):
            raise ValueError("loss is given: leave out class_weights and label_smoothing")
        if self.metrics and not validates:
            raise ValueError("metrics are given, but need a validation set")
        if self.settings.metric is not None and not validates:
            raise ValueError(f"metric is {self.settings.metric!r}, but needs a validation set")
        if self.settings.numbers and self.task_name != "similarity":
            raise ValueError(f"numbers is for similarity, but the task is {self.task_name}")
        if self.settings.multi_label and self.task_name != "classification":
            raise ValueError(f"multi_label is for classification, but the task is {self.task_name}")
        return rows

    def read_sets(
        self, columns: Mapping[str, str]
    ) -> tuple[list[Row], list[Row] | None, tuple[Identity, Identity]]:
        """Return the rows of both sets, and what run.json holds of each."""
        separator = self.settings.label_separator if self.settings.multi_label else None
        read = functools.partial(
            read_rows, columns=columns, quoting=self.quoting, separator=separator
        )
        rows = read(self.train, name="train")
        valid_rows = None if self.valid is None else read(self.valid, name="valid")
        return rows, valid_rows, (_identity(self.train, rows), _identity(self.valid, valid_rows))

    def labelled(
        self, rows: list[Row], classes: Collection[str] = ()
    ) -> tuple[list[Row], list[str]]:
        """Return the rows with a gold label, and a warning if some have none."""
        if self.task_name != "entailment":
            return rows, []
        rows, warning = drop_unlabelled(rows, classes)
        return rows, [] if warning is None else [warning]

    def divide(
        self, task: Task, rows: list[Row], valid_rows: list[Row] | None
    ) -> tuple[list[Row], list[Row] | None, dict[str, object]]:
        """Return the rows to train and to validate on, and what the summary says of the draw."""
        settings = self.settings
        drawn: dict[str, object] = {}
        if settings.valid_share is not None:
            rows, valid_rows = take_out(
                rows, settings.valid_share, settings.seed, by_label=task.predicts == "classes"
            )
            drawn["valid_share"] = settings.valid_share
        if settings.train_rows is not None:
            drawn["drawn_from"] = len(rows)
            rows = draw_rows(rows, settings.train_rows, settings.seed)
        return rows, valid_rows, drawn

    def make_task(
        self,
        tokenizer: Tokenizer,
        config: OpenAIGPTConfig,
        rows: Sequence[Row],
        head: TrainedHead | None,
    ) -> Task:
        """Return the task with the classes of the training set; the tokenizer is set up for it."""
        scored = self.task_name == "similarity" and not self.settings.numbers
        by_class = scored or self.task_name in ("classification", "entailment")
        classes = find_classes(rows) if by_class else None
        if head is not None and classes is not None and not self.settings.new_head:
            classes = head.order(self.task_name, classes)
        task = Task(
            name=self.task_name,
            tokenizer=tokenizer,
            special=prepare_tokenizer(tokenizer),
            n_positions=config.n_positions,
            classes=classes,
            choices=len(self.choices),
            max_tokens=self.settings.max_tokens,
            multi_label=self.settings.multi_label,
            label_separator=self.settings.label_separator,
        )
        if scored:
            check_no_numbers(rows)
        if head is not None and not head.fits(task) and not self.settings.new_head:
            head.check_replaceable(task, self.model)
        if self.settings.label_smoothing and task.predicts not in ("classes", "choices"):
            raise ValueError(
                f"label_smoothing is {self.settings.label_smoothing}, but needs one class or "
                f"choice a row, and this {task.name} predicts {task.predicts}"
            )
        known = task_metrics(task)
        if taken := [name for name in self.metrics if name in (*known, "loss")]:
            raise ValueError(f"metrics has {taken[0]!r}, which {task.name} reports already")
        if self.settings.metric is not None:
            metrics.check_metric(self.settings.metric, (*known, *self.metrics), task.name)
        task.configure_tokenizer()
        return task

    def begin(self, out: Path, task: Task, columns: Mapping[str, str]) -> None:
        """Write what the result needs beside its weights."""
        task.tokenizer.save_pretrained(out)
        if self.settings.lora is not None:
            # By its number of tokens, peft resizes the embeddings of the base.
            task.tokenizer.save_pretrained(out / lora.ADAPTER)
            write_task(out / lora.ADAPTER, task, columns, self.quoting)
        write_task(out, task, columns, self.quoting)

    def describe(
        self, folder: Path, columns: Mapping[str, str], train: Identity, valid: Identity
    ) -> dict[str, object]:
        """Return all that the result depends on, as run.json holds it."""
        return {
            "task": self.task_name,
            "train": train[0],
            "train_content": train[1],
            "valid": valid[0],
            "valid_content": valid[1],
            "model": str(self.model),
            "model_content": run_folder.checkpoint_content(folder),
            "columns": columns,
            "quoting": self.quoting,
            "class_weights": self.class_weights,
            **fields_of(self.settings, self.loop),
            **describe_optimizer(self.optimizer),
        }

    def specify(
        self,
        model: TaskModel,
        task: Task,
        examples: Sequence[Example],
        valid_rows: Sequence[Row] | None,
        weights: np.ndarray | None,
        own_rows: np.ndarray,
        out: Path,
    ) -> TrainSpec:
        """Return what is trained, and on what."""
        settings, batch_size = self.settings, self.settings.batch_size
        dropped = configure_dropout(model, settings.embedding_dropout, settings.dropout)
        parts = _parts(model, settings)
        steps = settings.steps or count_steps(settings.epochs, len(examples), batch_size)
        check_rate(self.optimizer, steps)
        chosen = settings.metric or task_metrics(task)[0]

        def objective(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Sums]:
            return task_loss(
                merge(parts.structure, params),
                batch,
                key,
                lm_weight=settings.lm_weight,
                classifier_dropout=settings.dropout,
                label_smoothing=settings.label_smoothing,
                class_weights=weights,
                example_loss=self.example_loss,
            )

        def tokens(batch: Batch) -> int:
            # As if other processes had rows as long as those of this one.
            own = float(batch["weight"] @ (batch["classify_at"] + 1).sum(axis=1))
            return round(own * (batch_size / len(batch["classify_at"])))

        return TrainSpec(
            params=parts.trained,
            frozen=parts.frozen,
            combine=parts.combine,
            combine_to_train=parts.combine_to_train,
            objective=dropped(parts.wrap(objective)),
            optimizer=make_optimizer(self.optimizer, steps),
            learning_rate=known_rate(self.optimizer, steps),
            batches=batches(examples, task, batch_size, settings.seed, own_rows),
            tokens=tokens,
            steps=steps,
            seed=settings.seed,
            save=functools.partial(self.save, model, task, out),
            evaluate=(
                None
                if valid_rows is None
                else task_measures(model, task, valid_rows, own_metrics=self.metrics)
            ),
            chosen=chosen,
            better="low" if chosen == "loss" else "high",
            mesh=self.mesh,
            batch_size=batch_size,
        )

    def save(
        self, model: TaskModel, task: Task, out: Path, trained: Params, params: Params
    ) -> None:
        """Write the model, and its adapters apart."""
        if self.settings.lora is not None:
            lora.save_adapters(
                out / lora.ADAPTER,
                self.settings.lora,
                trained["adapters"],
                architecture=task.architecture,
                base=lora.base_name(self.model),
                # The embeddings of the special tokens are new, and the base lacks them.
                saved_modules={
                    **trained["heads"],
                    "transformer": {"tokens_embed": params["transformer"]["tokens_embed"]},
                },
            )
        model.save_pretrained(out, params=params)


def _by_name(task: Task, weights: np.ndarray) -> dict[str, float]:
    return dict(zip(task.classes or (), weights.tolist(), strict=True))


def _identity(source: Source | None, rows: Sequence[Row] | None) -> Identity:
    """Return how run.json names a set that was read, and what tells its content from any other."""
    if source is None or rows is None:
        return None, None
    if isinstance(source, (str, os.PathLike)):
        return str(source), run_folder.content(source)
    name = str(source) if isinstance(source, RecordSource) else "rows in memory"
    return name, content_of_rows(rows)


def batches(
    examples: Sequence[Example],
    task: Task,
    batch_size: int,
    seed: int,
    rows: np.ndarray | slice = slice(None),
) -> BatchIterator:
    """Return grain's iterator over shuffled batches, without end: each epoch in another order.

    The last batch of an epoch is filled up with rows of weight 0. Of each batch only ``rows`` are
    returned, as long as the longest of the whole.
    """

    def make(batch: Sequence[Example]) -> dict[str, np.ndarray]:
        whole = collate(batch, n_positions=task.n_positions, rows=batch_size)
        return {name: array[rows] for name, array in whole.items()}

    return shuffled_batches(examples, batch_size, seed, make)


def _model(
    folder: Path,
    task: Task,
    config: OpenAIGPTConfig,
    settings: FinetuneSettings,
    mesh: Mesh | None,
    *,
    replaces_head: bool,
) -> TaskModel:
    """Return the model of the task with the checkpoint's weights, and new ones for what is new."""
    rates = ("embd_pdrop", "attn_pdrop", "resid_pdrop", "summary_first_dropout")
    config = task.configure(dataclasses.replace(config, **dict.fromkeys(rates, settings.dropout)))
    # What the class names are is no part of the weights.
    fields = {
        name: getattr(config, name)
        for name in (*rates, "num_labels", "pad_token_id", "problem_type")
    }
    rngs = nnx.Rngs(settings.seed)
    model: Any = MODELS[task.architecture].from_pretrained(
        folder,
        rngs=rngs,
        dtype=settings.dtype,
        param_dtype="float32",
        remat=settings.remat,
        mesh=mesh,
        ignore_mismatched_sizes=replaces_head,
        **fields,
    )
    if replaces_head:
        draw_head(model, rngs)
    model.config = model.transformer.config = config
    model.resize_token_embeddings(len(task.tokenizer), rngs=rngs)
    return model


def _parts(model: TaskModel, settings: FinetuneSettings) -> lora.TrainedParts:
    """Return what is trained, what is not, and how both make the model's parameters."""
    if settings.lora is not None:
        return lora.split_adapted(model, settings.lora, settings.seed, train_heads=True)
    structure, params = split(model)
    trained, frozen = split_frozen(
        params, embeddings=settings.freeze_embeddings, layers=settings.freeze_layers
    )
    return lora.TrainedParts(structure, trained, frozen)
