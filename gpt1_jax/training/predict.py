"""Prediction: what a fine-tuned model says of rows without labels."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np

from gpt1_jax._conversion import conversion
from gpt1_jax.checks import INTEGER, at_least, check
from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.demo import resolve
from gpt1_jax.model import MODELS
from gpt1_jax.pure import not_finite, split
from gpt1_jax.quantization import Mode, quantized_if
from gpt1_jax.text.tokenizer import Tokenizer
from gpt1_jax.training.data.labelled import LABEL, Row, make_row
from gpt1_jax.training.data.records import check_columns
from gpt1_jax.training.data.tasks import (
    CLASSIFY,
    DELIMITER,
    MULTI_LABEL,
    QUESTION,
    START,
    TASKS,
    TEXTS,
    Example,
    SpecialTokens,
    Task,
    TaskName,
    prepare_tokenizer,
    task_columns,
)
from gpt1_jax.training.run_settings import check_vocabulary
from gpt1_jax.training.task_file import TASK, read_task
from gpt1_jax.training.task_forward import forward_batches
from gpt1_jax.training.task_objective import TaskModel

Record = Mapping[str, Any]
Prediction = dict[str, Any]
TRUE_LABEL = "true_label"  # what the label that a row came with is called beside the prediction


def predict(
    model: str | os.PathLike[str] | TaskModel,
    rows: Iterable[Record | str | Sequence[str]],
    *,
    tokenizer: Tokenizer | None = None,
    task: Task | TaskName | None = None,
    columns: Mapping[str, str] | None = None,
    batch_size: int = 32,
) -> list[dict[str, Any]]:
    """Return what a fine-tuned model says of rows, in their order.

    In float32 the numbers do not depend on the other rows, but for rounding.

    Args:
        model: a folder that ``finetune`` wrote, or its hub id; or a model, on one device or on a
            mesh, in half precision or int8 too.
        rows: mappings with the columns of the task, whatever else they have; or strings where the
            task has one text, pairs of strings where it has two.
        tokenizer: of a model. A folder brings its own.
        task: of a model: as ``read_task`` returns it, or a name. A folder brings its own, unless
            it is a classifier of transformers' without task.json. Of a task that is only named,
            the classes are those of the model's config; its texts are read as ``finetune`` does
            where the tokenizer has the special tokens of that, else as the tokenizer's own
            template has them, and cut at the model's positions.
        columns: the columns' names by their roles, where they are not those of the training.
        batch_size: rows that are computed at once, at most.

    Returns:
        A dict for each row: its own keys, in their order, and then

        - of classes ``label``, its probability ``score``, and ``scores``, those of all labels;
        - of a regression, or a similarity by numbers, ``score``;
        - of several labels at once ``labels``, those above 0.5, and ``scores``;
        - of a multiple choice ``label``, the number of the choice, and ``scores``, a list.

        A label that a row came with is called ``true_label``, and is not read.

    Raises:
        OSError: a file of the folder is missing or cannot be read.
        TypeError: ``rows`` is a single one, or an argument is missing, or of no use.
        ValueError: a row or an argument is wrong, or the model computes NaN; the message says
            which, and what would be right.
    """
    check("batch_size", batch_size, INTEGER, at_least(1))
    if isinstance(rows, str | Mapping):
        raise TypeError("rows is a single row, but must be a list of them")
    if hasattr(rows, "iterrows"):  # whose iterator would yield the names of the columns
        raise TypeError('rows is a DataFrame, but must be a list: pass rows.to_dict("records")')
    if isinstance(model, str | os.PathLike):
        if tokenizer is not None:
            raise TypeError("tokenizer= has no effect: a folder brings its own")
        folder = resolve(model)
        predictor = Predictor.of_folder(folder, str(model), task, columns)
    else:
        folder = None
        predictor = Predictor.of_model(model, tokenizer, task, columns)
    records = [(f"row {i}", row) for i, row in enumerate(rows)]
    records = [(place, predictor.as_record(place, row)) for place, row in records]
    read = predictor.make_rows(records)
    loaded: Any = model if folder is None else load_task_model(folder, predictor.task)
    found = dict(predictor.run(loaded, read, batch_size=batch_size))
    return [predictor.join(record, found[i]) for i, (_, record) in enumerate(records)]


@dataclasses.dataclass(frozen=True)
class Predictor:
    """How rows are read for a model, and what its logits say of them.

    Attributes:
        task: that the model was trained for.
        columns: the name of the column for each role, that of the label included.
    """

    task: Task
    columns: Mapping[str, str]

    @classmethod
    def of_folder(
        cls,
        folder: Path,
        name: str,
        task: Task | TaskName | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> Self:
        """Read what a checkpoint says of its task.

        Args:
            folder: of the checkpoint.
            name: what the user calls it.
            task: see ``predict``, as ``columns``.
            columns: likewise.

        Raises:
            FileNotFoundError: the folder has no tokenizer.
            ValueError: it is a language model, does not say its task, or has another one; or a
                role that the task does not have.
        """
        tokenizer = Tokenizer.from_pretrained(folder)
        config = OpenAIGPTConfig.from_pretrained(folder)
        saved = None
        if (folder / TASK).is_file() and not isinstance(task, Task):
            found, saved = read_task(folder, tokenizer, config.n_positions)
            if task not in (None, found.name):
                raise ValueError(f"the task is {task!r}, but {name} was trained for {found.name}")
        else:
            _check_fine_tuned(folder, name)
            if task is None:
                raise ValueError(
                    f"{name} has no {TASK}, which says what its texts are: give the task "
                    f"(--task), one of {', '.join(TASKS)}"
                )
            found = _as_task(task, tokenizer, config, columns)
        check_vocabulary(name, tokenizer, config.vocab_size)
        _check_outputs(found, config)
        return cls(_as_configured(found, config), _columns(found, saved, columns))

    @classmethod
    def of_model(
        cls,
        model: TaskModel,
        tokenizer: Tokenizer | None,
        task: Task | TaskName | None,
        columns: Mapping[str, str] | None = None,
    ) -> Self:
        """Check what a model is given; see ``predict`` for the arguments.

        Raises:
            TypeError: it is no fine-tuned model, or an argument is missing.
            ValueError: an argument does not fit the model.
        """
        if not isinstance(model, get_args(TaskModel)):
            raise TypeError(
                f"model is a {type(model).__name__}, but must be a fine-tuned model or its folder"
            )
        if task is None or (tokenizer is None and isinstance(task, str)):
            raise TypeError(
                "a model needs tokenizer= and task=, which a folder brings; the task is one of "
                f"{', '.join(TASKS)}"
            )
        found = _as_task(task, tokenizer, model.config, columns)
        if type(model).__name__ != found.architecture:
            raise ValueError(
                f"{found.name} needs a {found.architecture}, not a {type(model).__name__}"
            )
        _check_outputs(found, model.config)
        return cls(_as_configured(found, model.config), _columns(found, None, columns))

    @property
    def text_columns(self) -> list[str]:
        """The names of the columns that are read."""
        return [column for role, column in self.columns.items() if role != LABEL]

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of a prediction."""
        if self.task.predicts == "numbers":
            return ("score",)
        if self.task.predicts == "choices":
            return ("label", "scores")
        return ("labels", "scores") if self.task.multi_label else ("label", "score", "scores")

    def as_record(self, place: str, row: Any) -> Record:
        """Return a row as a mapping, also one that consists of its texts alone.

        Raises:
            ValueError: it is something else; names the place.
        """
        if isinstance(row, Mapping):
            return row
        name, columns = self.task.name, self.text_columns
        texts = [row] if isinstance(row, str) else row
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"{place} is a {type(row).__name__}, but must be an object with "
                f"{', '.join(columns)}"
            )
        if len(texts) != len(columns):
            found = "a text" if len(texts) == 1 else f"{len(texts)} texts"
            raise ValueError(
                f"{place} is {found}, but {name} needs an object with {', '.join(columns)}"
            )
        return dict(zip(columns, texts, strict=True))

    def make_rows(self, records: Iterable[tuple[str, Record]]) -> list[Row]:
        """Return the rows of records, which come with their places, without their labels.

        Raises:
            ValueError: a column is missing, a text is empty, or a key is one of the output's;
                names the place.
        """
        texts = {role: column for role, column in self.columns.items() if role != LABEL}
        records = list(records)
        for place, record in records:
            check_columns(place, record, texts.values())
        self.check_keys(records)
        return [make_row(place, record, texts) for place, record in records]

    def check_keys(self, records: Iterable[tuple[str, Record]]) -> None:
        """Check that no record, but for its label, has a key of the output.

        Raises:
            ValueError: one has; names the place and the keys.
        """
        for place, record in records:
            own = record.keys() - {self.columns[LABEL]}
            if taken := sorted(own & {TRUE_LABEL, *self.keys}):
                raise ValueError(f"{place}: the output has its own {taken}: rename the input's")

    def run(
        self, model: TaskModel, rows: Sequence[Row], *, batch_size: int = 32
    ) -> Iterator[tuple[int, Prediction]]:
        """Return an iterator over the number and the prediction of each row, as batches are done.

        Raises:
            ValueError: a row has no tokens, at the call; or the model computes NaN.
        """
        check("batch_size", batch_size, INTEGER, at_least(1))
        examples = [self.task.encode(row) for row in rows]

        def predictions() -> Iterator[tuple[int, Prediction]]:
            structure, params = split(model)
            for batch in forward_batches(
                structure,
                params,
                examples,
                batch_size=batch_size,
            ):
                if not np.isfinite(batch.logits).all():
                    raise not_finite("the logits", params)
                yield from zip(batch.numbers.tolist(), self.interpret(batch.logits), strict=True)

        return predictions()

    def interpret(self, logits: np.ndarray) -> Iterator[Prediction]:
        """Yield the prediction of each row.

        Args:
            logits: (N, C) of the classes or choices, or the numbers (N, 1).
        """
        if self.task.predicts == "numbers":
            yield from ({"score": _short(number)} for number in logits[:, 0])
            return
        x = logits.astype(np.float64)
        if self.task.multi_label:
            probabilities = np.exp(-np.logaddexp(0, -x))
        else:
            probabilities = np.exp(x - x.max(axis=-1, keepdims=True))
            probabilities /= probabilities.sum(axis=-1, keepdims=True)
        names = self.task.classes
        for row, probability in zip(logits, probabilities, strict=True):
            best, scores = int(row.argmax()), [_short(number) for number in probability]
            if names is None:
                yield {"label": best, "scores": scores}
            elif self.task.multi_label:
                labels = [name for name, logit in zip(names, row, strict=True) if logit > 0]
                yield {"labels": labels, "scores": dict(zip(names, scores, strict=True))}
            else:
                named = dict(zip(names, scores, strict=True))
                yield {"label": names[best], "score": scores[best], "scores": named}

    def join(self, record: Record, prediction: Prediction) -> dict[str, Any]:
        """Return a row with its prediction; the label that it came with is its ``true_label``."""
        label = self.columns[LABEL]
        own = {TRUE_LABEL if key == label else key: value for key, value in record.items()}
        return {**own, **prediction}


def _as_configured(task: Task, config: OpenAIGPTConfig) -> Task:
    """Return a task, of several labels where the model says so."""
    return dataclasses.replace(task, multi_label=config.problem_type == MULTI_LABEL)


def load_task_model(
    folder: Path, task: Task, *, dtype: str | None = None, quantize: Mode | None = None
) -> TaskModel:
    """Load the model of a task; in int8 it is quantized here."""
    model: Any = MODELS[task.architecture].from_pretrained(folder, dtype=dtype)
    return quantized_if(model, quantize)


def _check_fine_tuned(folder: Path, name: str) -> None:
    """Check that a checkpoint is not known to be of another kind."""
    architecture = conversion.named_architecture(conversion.read_config(folder))
    if architecture is not None and not issubclass(MODELS[architecture], get_args(TaskModel)):
        raise ValueError(
            f"{name} is a language model ({architecture}), which predicts no labels: "
            "gpt1 finetune trains it for a task"
        )


def _check_outputs(task: Task, config: OpenAIGPTConfig) -> None:
    """Check that a classifier has an output for each class, and one for a number."""
    outputs = 1 if task.classes is None else len(task.classes)
    if task.predicts != "choices" and config.num_labels != outputs:
        raise ValueError(
            f"{task.name} needs a model with num_labels = {outputs}, not {config.num_labels}"
        )


def _as_task(
    task: Task | TaskName,
    tokenizer: Tokenizer | None,
    config: OpenAIGPTConfig,
    columns: Mapping[str, str] | None,
) -> Task:
    if isinstance(task, Task):
        return task
    assert tokenizer is not None
    return _task_of_name(task, tokenizer, config, columns)


def _task_of_name(
    name: TaskName,
    tokenizer: Tokenizer,
    config: OpenAIGPTConfig,
    columns: Mapping[str, str] | None,
) -> Task:
    """Return the task of a model that does not come with its own."""
    if name not in TASKS:
        raise ValueError(f"the task is {name!r}, but must be one of {', '.join(TASKS)}")
    choices = sum(role.startswith("choice") for role in columns or ())
    if name == "multiple-choice" and choices < 2:
        raise ValueError(f"{name} needs the columns of the choices, as choice0=NAME, choice1=NAME")
    by_class = name in ("classification", "entailment") or (
        name == "similarity" and config.num_labels > 1
    )
    names = config.id2label
    fields: dict[str, Any] = {
        "name": name,
        "tokenizer": tokenizer,
        "n_positions": config.n_positions,
        "classes": tuple(names[i] for i in sorted(names)) if by_class else None,
        "choices": choices if name == "multiple-choice" else 0,
    }
    if {START, DELIMITER, CLASSIFY} <= set(tokenizer.extra_special_tokens):
        return Task(**fields, special=prepare_tokenizer(tokenizer))
    if name in ("similarity", "multiple-choice"):
        raise ValueError(f"{name} needs a tokenizer with {START}, {DELIMITER} and {CLASSIFY}")
    return _TemplateTask(**fields, special=SpecialTokens(-1, -1, -1))  # which are not used


class _TemplateTask(Task):
    """A task of a model that was trained elsewhere, on texts as its tokenizer encodes them."""

    def encode(self, row: Row) -> Example:
        texts = [[row.texts[role]] for role in TEXTS[self.name]]
        (ids,) = self.tokenizer(*texts, truncation=True, max_length=self.n_positions)["input_ids"]
        if not ids:
            raise ValueError(f"{row.place}: the text has no tokens")
        return Example([ids], self._label(row))


def _columns(
    task: Task, saved: Mapping[str, str] | None, given: Mapping[str, str] | None
) -> dict[str, str]:
    """Return the columns of a task by their roles, those that are given in place of others."""
    given = {} if given is None else given
    if saved is None:
        question = {role: name for role, name in given.items() if role == QUESTION}
        question = question if task.name == "multiple-choice" else {}
        saved = task_columns(task.name, question, [f"choice{k}" for k in range(task.choices)])
    for role in given:
        if role not in saved:
            raise ValueError(f"{task.name} has no {role!r}: it reads {', '.join(saved)}")
    return {**saved, **given}


def _short(number: Any) -> float:
    """Return a number with the few digits of a float32, not a float64's."""
    return float(str(np.float32(number)))
