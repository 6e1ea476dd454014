"""Evaluation: what a trained checkpoint is worth on texts or labelled sets."""

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Unpack

from gpt1_jax._conversion import conversion, extras
from gpt1_jax.checks import INTEGER, at_least, check
from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.demo import HubOptions, resolve
from gpt1_jax.model import OpenAIGPTForSequenceClassification, OpenAIGPTLMHeadModel
from gpt1_jax.pretrained import Params
from gpt1_jax.pure import not_finite, split
from gpt1_jax.quantization import Mode, quantized_if
from gpt1_jax.text.tokenizer import Tokenizer
from gpt1_jax.training.data.corpus import load_tokens
from gpt1_jax.training.data.labelled import (
    LABEL,
    RecordSource,
    make_row,
    records_by_column,
)
from gpt1_jax.training.data.plausibility import drop_unlabelled
from gpt1_jax.training.data.records import Quoting, Record, read_records
from gpt1_jax.training.data.tasks import Example, Task
from gpt1_jax.training.perplexity import check_stride, text_measures
from gpt1_jax.training.predict import Predictor, load_task_model
from gpt1_jax.training.run_settings import check_files, check_vocabulary
from gpt1_jax.training.task_file import TASK, read_quoting
from gpt1_jax.training.task_forward import forward
from gpt1_jax.training.task_measures import compare


def evaluate(
    model: str | os.PathLike[str],
    files: Sequence[str | os.PathLike[str]],
    *,
    stride: int | None = None,
    batch_size: int = 8,
    dtype: str | None = None,
    quantize: Mode | None = None,
    quoting: Quoting | None = None,
    **hub: Unpack[HubOptions],
) -> Iterator[tuple[str, dict[str, float]]]:
    """Measure a checkpoint on each of several files.

    Args:
        model: a folder or hub id. One that ``finetune`` wrote is measured on labelled sets, as
            its task is; any other one is a language model, and measured on texts.
        files: UTF-8 texts, or labelled sets with the columns that the model was trained on.
        stride: of a text, tokens that each window predicts after more context; by default half the
            model's positions. All of them is fastest, and gives the tokens less context.
        batch_size: windows or examples that are computed at once.
        dtype: of the weights in memory and of the computation; the checkpoint's by default.
        quantize: "int8" quantizes the model before it is measured.
        quoting: of labelled sets in .csv and .tsv files, see ``records.read_records``; by default
            that of the files that the model was trained on.
        **hub: ``revision``, ``local_files_only`` and the like.

    Yields:
        Each file's name with its measures: ``perplexity.text_measures`` or
        ``task_measures.task_measures``.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file, or the stride, is wrong, or the loss is not finite.
    """
    check("batch_size", batch_size, INTEGER, at_least(1))
    check_files(files)
    folder = resolve(model, **hub)
    if (folder / TASK).is_file():
        if stride is not None:
            raise ValueError(f"{model} is a model for labelled sets, which have no stride")
        for found in evaluate_labelled(
            model,
            files,
            batch_size=batch_size,
            dtype=dtype,
            quantize=quantize,
            quoting=quoting,
            **hub,
        ):
            yield found.file, found.measures
        return
    tokenizer = Tokenizer.from_pretrained(folder)
    config = OpenAIGPTConfig.from_pretrained(folder)
    check_vocabulary(model, tokenizer, config.vocab_size)
    architecture = conversion.named_architecture(conversion.read_config(folder))
    if architecture == OpenAIGPTForSequenceClassification.__name__:
        raise ValueError(f"{model} is a classification without {TASK}, which says of what")
    if stride is None:
        stride = max(1, config.n_positions // 2)
    check_stride(stride, config.n_positions)
    # All files are read before the first is measured, so that what is wrong with one shows at once.
    with TemporaryDirectory() as cache:
        texts = [load_tokens([file], tokenizer, Path(cache)) for file in files]
        language_model = OpenAIGPTLMHeadModel.from_pretrained(folder, dtype=dtype)
        language_model = quantized_if(language_model, quantize)
        _, params = split(language_model)
        measures = [
            text_measures(language_model, text, stride=stride, batch_size=batch_size)
            for text in texts
        ]
        for file, measure in zip(files, measures, strict=True):
            yield str(file), _finite(measure(params), params)


class LabelledEvaluation(NamedTuple):
    """What a fine-tuned model is worth on a labelled set.

    Attributes:
        file: its name.
        measures: see ``task_measures.task_measures``.
        predictions: what ``predict`` returns for its rows, whose labels are ``true_label``.
        names: of the classes or choices; None where numbers are predicted.
    """

    file: str
    measures: dict[str, float]
    predictions: list[dict[str, Any]]
    names: list[str] | None


def evaluate_labelled(
    model: str | os.PathLike[str],
    files: Sequence[str | os.PathLike[str] | RecordSource],
    *,
    batch_size: int = 8,
    dtype: str | None = None,
    quantize: Mode | None = None,
    quoting: Quoting | None = None,
    predictions: bool = False,
    by_class: bool = False,
    **hub: Unpack[HubOptions],
) -> Iterator[LabelledEvaluation]:
    """Measure a fine-tuned checkpoint on labelled sets; metrics and predictions are of one forward.

    Args:
        model: see ``evaluate``, as the others.
        files: likewise, or published sets of a recipe.
        batch_size: likewise.
        dtype: likewise.
        quantize: likewise.
        quoting: likewise.
        predictions: whether to return them; otherwise they are empty.
        by_class: whether what is asked for is one class or choice of each row.
        **hub: see ``evaluate``.

    Yields:
        The evaluation of each file.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file or the model is wrong, or the loss is not finite.
    """
    check("batch_size", batch_size, INTEGER, at_least(1))
    extras.require("an evaluation", "sklearn", "scipy", extra="train")
    check_files(file for file in files if not isinstance(file, RecordSource))
    folder = resolve(model, **hub)
    if not (folder / TASK).is_file():
        raise ValueError(f"{model} is not fine-tuned for a labelled set: it has no {TASK}")
    predictor = Predictor.of_folder(folder, str(model))
    task, columns = predictor.task, predictor.columns
    if by_class and task.predicts in ("numbers", "labels"):
        shown = {"numbers": "numbers", "labels": "any number of labels for a row"}[task.predicts]
        raise ValueError(f"{model} predicts {shown}, which are no classes")
    # All files are read before the first is measured, so that what is wrong with one shows at once.
    quoting = quoting or read_quoting(folder)
    sets = [_read_set(file, predictor, quoting, check_keys=predictions) for file in files]
    structure, params = split(load_task_model(folder, task, dtype=dtype, quantize=quantize))
    names = _names(task)
    for file, (records, examples) in zip(files, sets, strict=True):
        logits, loss = forward(structure, params, examples, batch_size=batch_size)
        measures = _finite(compare(task, examples, logits, loss), params)
        found: list[dict[str, Any]] = []
        if predictions:
            for (_, record), example, own in zip(
                records, examples, predictor.interpret(logits), strict=True
            ):
                label = _true_label(task, example)
                found.append(predictor.join({**record, columns[LABEL]: label}, own))
        yield LabelledEvaluation(str(file), measures, found, names)


def _read_set(
    file: str | os.PathLike[str] | RecordSource,
    predictor: Predictor,
    quoting: Quoting | None,
    *,
    check_keys: bool,
) -> tuple[list[tuple[str, Record]], list[Example]]:
    """Return the records of a labelled set with their places, and their examples.

    Records have all their columns if they are checked to have none of the output's keys.
    """
    task, columns = predictor.task, predictor.columns
    if isinstance(file, RecordSource):
        records = list(records_by_column(file, columns))
    else:
        records = list(read_records(Path(file), columns.values(), quoting, keep_others=check_keys))
    if not records:
        raise ValueError(f"{file} holds no rows")
    if check_keys:
        predictor.check_keys(records)
    rows = [make_row(place, record, columns, task.separator) for place, record in records]
    if task.name == "entailment":
        rows, warning = drop_unlabelled(rows, task.classes or ())
        if warning is not None:
            warnings.warn(warning, stacklevel=2)
            kept = {row.place for row in rows}
            records = [each for each in records if each[0] in kept]
    return records, [task.encode(row) for row in rows]


def _true_label(task: Task, example: Example) -> object:
    """Return the label of an example as predictions spell it."""
    if isinstance(example.label, tuple):
        named = zip(task.classes or (), example.label, strict=True)
        return [name for name, holds in named if holds]
    return task.classes[int(example.label)] if task.classes else example.label


def _names(task: Task) -> list[str] | None:
    if task.predicts == "numbers":
        return None
    return list(task.classes or map(str, range(task.choices)))


def _finite(measures: dict[str, float], params: Params) -> dict[str, float]:
    """Return the measures, whose loss must be finite."""
    if not math.isfinite(measures["loss"]):
        raise not_finite("the logits", params)
    return measures
