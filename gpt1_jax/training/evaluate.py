"""Evaluation: what a trained checkpoint is worth on texts or labelled sets."""

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

from gpt1_jax._conversion import conversion
from gpt1_jax.checks import INTEGER, at_least, check
from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.demo import HubOptions, resolve
from gpt1_jax.model import MODELS, OpenAIGPTForSequenceClassification, OpenAIGPTLMHeadModel
from gpt1_jax.pretrained import Params
from gpt1_jax.pure import not_finite, split
from gpt1_jax.quantization import Mode, quantized_if
from gpt1_jax.text.tokenizer import Tokenizer
from gpt1_jax.training.data.corpus import load_tokens
from gpt1_jax.training.data.labelled import Row, read_rows
from gpt1_jax.training.data.plausibility import drop_unlabelled
from gpt1_jax.training.data.records import Quoting
from gpt1_jax.training.finetune import TASK, read_quoting, read_task, task_measures
from gpt1_jax.training.perplexity import check_stride, text_measures
from gpt1_jax.training.run_settings import check_files, check_modules, check_vocabulary


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
        ``finetune.task_measures``.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file, or the stride, is wrong, or the loss is not finite.
    """
    check("batch_size", batch_size, INTEGER, at_least(1))
    check_files(files)
    folder = resolve(model, **hub)
    tokenizer = Tokenizer.from_pretrained(folder)
    config = OpenAIGPTConfig.from_pretrained(folder)
    check_vocabulary(model, tokenizer, config.vocab_size)
    # All files are read before the first is measured, so that what is wrong with one shows at once.
    if (folder / TASK).is_file():
        check_modules("sklearn", "scipy")
        if stride is not None:
            raise ValueError(f"{model} is a model for labelled sets, which have no stride")
        task, columns = read_task(folder, tokenizer, config.n_positions)
        quoting = quoting or read_quoting(folder)
        sets = [read_rows(file, columns, quoting=quoting) for file in files]
        if task.name == "entailment":
            sets = [_labelled(rows, task.classes or ()) for rows in sets]
        task_model: Any = MODELS[task.architecture].from_pretrained(folder, dtype=dtype)
        task_model = quantized_if(task_model, quantize)
        _, params = split(task_model)
        measures = [task_measures(task_model, task, rows, batch_size=batch_size) for rows in sets]
        for file, measure in zip(files, measures, strict=True):
            yield str(file), _finite(measure(params), params)
        return
    architecture = conversion.named_architecture(conversion.read_config(folder))
    if architecture == OpenAIGPTForSequenceClassification.__name__:
        raise ValueError(f"{model} is a classification without {TASK}, which says of what")
    if stride is None:
        stride = max(1, config.n_positions // 2)
    check_stride(stride, config.n_positions)
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


def _labelled(rows: list[Row], classes: Sequence[str]) -> list[Row]:
    """Return the rows with a gold label, and warn if some have none."""
    rows, warning = drop_unlabelled(rows, classes)
    if warning is not None:
        warnings.warn(warning, stacklevel=2)
    return rows


def _finite(measures: dict[str, float], params: Params) -> dict[str, float]:
    """Return the measures, whose loss must be finite."""
    if not math.isfinite(measures["loss"]):
        raise not_finite("the logits", params)
    return measures
