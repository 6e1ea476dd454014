"""The commands ``gpt1 pretrain``, ``finetune`` and ``evaluate``."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from gpt1_jax.cli.adapters import takes_adapter
from gpt1_jax.cli.arguments import (
    Adapter,
    Columns,
    DType,
    MaybeModel,
    MaybeQuoting,
    Model,
    Names,
    Quantize,
    Weights,
    columns_by_role,
    weights_by_class,
)
from gpt1_jax.cli.compilation_cache import Cache, enable_compilation_cache
from gpt1_jax.cli.table_output import OutputFile, chosen_format, output, write_records
from gpt1_jax.demo import HubOptions
from gpt1_jax.sharding import processes
from gpt1_jax.sharding.processes import DeviceSettings, is_main_process
from gpt1_jax.training import finetune as finetuning
from gpt1_jax.training import pretrain as pretraining
from gpt1_jax.training.class_report import (
    class_report,
    class_report_text,
    draw_confusion_matrix,
)
from gpt1_jax.training.data.labelled import Source
from gpt1_jax.training.data.recipes import RECIPES, PublishedSet, RecipeName
from gpt1_jax.training.data.tasks import TaskName
from gpt1_jax.training.evaluate import evaluate as measures_of
from gpt1_jax.training.evaluate import evaluate_labelled
from gpt1_jax.training.finetune import FinetuneSettings
from gpt1_jax.training.loop import LoopSettings, TrainProgress
from gpt1_jax.training.optimizer import OptimizerSettings
from gpt1_jax.training.predict import TRUE_LABEL
from gpt1_jax.training.pretrain import NewModel, PretrainSettings
from gpt1_jax.training.trackers import TrackerName, trackers

Value = TypeVar("Value")
# A dataclass whose fields are flags without a prefix. With a prefix that is only left out, tyro
# would answer for the ValueErrors of the class, naming it by a name of its own.
Group = Annotated[Value, tyro.conf.arg(name="")]

MaybeFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
MaybeTask = Annotated[TaskName | None, tyro.conf.arg(help_behavior_hint="")]
MaybeRecipe = Annotated[RecipeName | None, tyro.conf.arg(help_behavior_hint="")]
MaybeFolder = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
Files = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE...", help_behavior_hint="")]
ReportTo = Annotated[
    tuple[TrackerName, ...], tyro.conf.arg(metavar="TRACKER...", help_behavior_hint="")
]
Folder = Annotated[Path, tyro.conf.arg(metavar="DIR")]


def pretrain(
    texts: Annotated[Files, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT...")],
    out: Folder,
    valid: Files = (),
    model: MaybeModel = None,
    tokenizer: MaybeModel = None,
    new: Group[NewModel] = NewModel(),
    settings: Group[PretrainSettings] = PretrainSettings(),
    optimizer: Group[OptimizerSettings] = pretraining.OPTIMIZER,
    loop: Group[LoopSettings] = LoopSettings(),
    devices: Group[DeviceSettings] = DeviceSettings(),
    report_to: ReportTo = (),
    compilation_cache: Cache = None,
) -> None:
    """Train a language model on text files.

    The defaults are those of the GPT-1 paper. Run the same command again to resume a run that was
    interrupted. A file given with --config holds flags as a JSON object, such as {"batch_size": 8};
    flags of the command line win.

    Args:
        texts: UTF-8 text files, or files of records (.jsonl, .csv, .parquet, ...) with the column
            "text"; folders of such files; and patterns in quotes, such as "books/*.txt". They are
            read one after another.
        out: folder of the result in Hugging Face's layout, with the log, the picture of the loss
            and the checkpoints.
        valid: text files to validate on; the result is then the model with the lowest validation
            loss, and otherwise the last one.
        model: checkpoint to continue from, with its tokenizer; by default a new model is trained.
        tokenizer: checkpoint whose tokenizer a new model gets; by default one is learned from the
            texts.
        new: sizes of a new model; the defaults are GPT-1's.
        settings: length of the training and what is trained.
        optimizer: optimizer and its learning-rate schedule.
        loop: intervals of log, validation and checkpoints, in steps.
        devices: devices and processes to train on.
        report_to: trackers to report the run to: tensorboard, wandb or both; by default none.
        compilation_cache: folder that keeps compiled programs for the next run, up to 1 GB, or none
            to keep none; by default $GPT1_CACHE or else ~/.cache/gpt1-jax.
    """
    enable_compilation_cache(compilation_cache)
    with processes.devices(devices) as mesh:
        progress = pretraining.pretrain(
            texts,
            out,
            valid=valid,
            model=model,
            tokenizer=tokenizer,
            new=new,
            settings=settings,
            optimizer=optimizer,
            loop=loop,
            mesh=mesh,
            callbacks=trackers(report_to),
        )
    if is_main_process():
        _report(out, progress)


def finetune(
    out: Folder,
    model: Model,
    task: MaybeTask = None,
    train: MaybeFile = None,
    valid: MaybeFile = None,
    recipe: MaybeRecipe = None,
    data: MaybeFolder = None,
    columns: Columns = (),
    choices: Names = (),
    quoting: MaybeQuoting = None,
    class_weights: Weights = (),
    settings: Group[FinetuneSettings] = FinetuneSettings(),
    optimizer: Group[OptimizerSettings] = finetuning.OPTIMIZER,
    loop: Group[LoopSettings] = LoopSettings(),
    devices: Group[DeviceSettings] = DeviceSettings(),
    report_to: ReportTo = (),
    compilation_cache: Cache = None,
) -> None:
    """Fine-tune a model for a task on a labelled set.

    The defaults are those of the GPT-1 paper. Give either --task and --train, or --recipe and
    --data: one of the paper's twelve tasks and the folder of its published files.

    The columns of each task are: text, label (classification, regression); premise, hypothesis,
    label (entailment); text1, text2, label (similarity); context, question if there is one, the
    choices, and label, counted from 0 (multiple-choice).

    Run the same command again to resume a run that was interrupted. A file given with --config
    holds flags as a JSON object, such as {"batch_size": 8}; flags of the command line win.

    Args:
        task: task to train for, which sets the input transformation and the head.
        train: labelled set to train on: .jsonl, .json, .csv or .tsv with a header, .parquet or
            .arrow, or any of these gzipped (.gz).
        out: folder of the result in Hugging Face's layout, with the log, the picture of the loss
            and the checkpoints.
        model: pre-trained checkpoint with its tokenizer: a folder, a Hugging Face Hub id, or demo.
        valid: labelled set to validate on; the result is then the best model by --metric, and
            otherwise the last one. --valid-share takes it from the training set instead.
        recipe: task of the paper, whose published files are read as they are.
        data: folder of the recipe's published files.
        columns: names of columns that differ from the task's, such as text=sentence.
        choices: columns of the choices of a multiple choice, in order.
        quoting: quoting in .csv and .tsv files: csv reads quoted cells, with a quote inside
            doubled; none takes quotes for a part of the text. By default csv for .csv files and
            none for .tsv files.
        class_weights: weight of each class's examples in the training loss, such as yes=2 no=1, or
            balanced to give all classes the same total weight; by default every example has weight
            1.
        settings: length of the training and what is trained.
        optimizer: optimizer and its learning-rate schedule.
        loop: intervals of log, validation and checkpoints, in steps.
        devices: devices and processes to train on.
        report_to: trackers to report the run to: tensorboard, wandb or both; by default none.
        compilation_cache: folder that keeps compiled programs for the next run, up to 1 GB, or none
            to keep none; by default $GPT1_CACHE or else ~/.cache/gpt1-jax.
    """
    enable_compilation_cache(compilation_cache)
    named, weights = columns_by_role(columns), weights_by_class(class_weights)
    sets: tuple[Source, Source | None]
    if recipe is not None:
        given = {"task": task, "train": train, "valid": valid, "choices": choices, "columns": named}
        task, sets, named, choices, settings = _follow(recipe, data, given, settings)
    elif task is None or train is None or data is not None:
        raise ValueError("give --task and --train, or --recipe and --data")
    else:
        sets = train, valid
    with processes.devices(devices) as mesh:
        progress = finetuning.finetune(
            task,
            *sets,
            out,
            model=model,
            columns=named,
            choices=choices,
            quoting=quoting,
            class_weights=weights,
            settings=settings,
            optimizer=optimizer,
            loop=loop,
            mesh=mesh,
            callbacks=trackers(report_to),
        )
    if is_main_process():
        _report(out, progress)
        if recipe is not None:
            _report_paper(recipe)


def _follow(
    name: RecipeName, data: Path | None, given: Mapping[str, Any], settings: FinetuneSettings
) -> tuple[
    TaskName, tuple[Source, Source | None], dict[str, str], tuple[str, ...], FinetuneSettings
]:
    """Return the task of a recipe, its sets, columns and choices, and the settings it needs.

    Raises:
        ValueError: there is no ``data``, or a flag is given that the recipe sets.
    """
    if data is None:
        raise ValueError(f"--recipe {name} needs --data, the folder of its files")
    if taken := [f"--{flag}" for flag, value in given.items() if value]:
        raise ValueError(f"--recipe {name} sets {', '.join(taken)} itself: leave it out")
    recipe = RECIPES[name]
    valid = recipe.open(data, "valid") if "valid" in recipe.files else None
    changes: dict[str, Any] = {"numbers": True} if recipe.numbers else {}
    if settings.metric is None:
        changes["metric"] = recipe.metric
    if valid is None and settings.valid_share is None:
        changes["valid_share"] = recipe.valid_share
    columns = {role: role for role in recipe.columns if role not in recipe.choices}
    sets = recipe.open(data, "train"), valid
    settings = dataclasses.replace(settings, **changes)
    return recipe.task, sets, columns, recipe.choices, settings


def _report_paper(name: RecipeName) -> None:
    recipe = RECIPES[name]
    metric = recipe.metric.replace("_", " ")
    print(f"The paper reports {metric} {recipe.published} % on the test set of {name}.")


@takes_adapter()
def evaluate(
    files: Annotated[Files, tyro.conf.Positional],
    model: MaybeModel = None,
    adapter: Adapter = None,
    recipe: MaybeRecipe = None,
    data: MaybeFolder = None,
    split: str = "valid",
    stride: int | None = None,
    batch_size: int = 8,
    quantize: Quantize = None,
    quoting: MaybeQuoting = None,
    output_format: Literal["text", "jsonl"] = "text",
    predictions: OutputFile = None,
    report: bool = False,
    confusion_matrix: OutputFile = None,
    dtype: DType | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    compilation_cache: Cache = None,
) -> None:
    """Measure a language model on texts, or a fine-tuned model on rows.

    A language model gets its loss and perplexity, and a fine-tuned model the measures of its task.
    Files of texts are text files, or files of records (.jsonl, .csv, .parquet, ...) with the column
    "text". Labelled sets have the columns that the model was trained on.

    Args:
        files: text files, or labelled sets.
        model: checkpoint with its tokenizer: a folder or a Hugging Face Hub id.
        adapter: folder of a LoRA adapter, written by gpt1 pretrain, gpt1 finetune or peft, to merge
            into the model; without --model, it is merged into the base model that the adapter
            names.
        recipe: task of the paper that the model was trained for; it is measured on a published set
            in place of files.
        data: folder of the recipe's published files.
        split: published set to measure on: valid, or test if its labels are published.
        stride: number of tokens that each window of a text predicts, with all tokens before them as
            context; a smaller number gives more context and takes longer. By default half of
            n_positions.
        batch_size: number of windows or examples to compute at once; a larger number is faster on
            an accelerator and takes more memory.
        quantize: quantize the weights to int8, which takes a quarter of float32's memory and
            decodes faster; by default they are not quantized.
        quoting: quoting in .csv and .tsv files of labelled sets: csv reads quoted cells, none takes
            quotes for a part of the text; by default as the model was trained.
        output_format: format of the output: text, or jsonl for one JSON object a file.
        predictions: file for the predictions of a labelled set with its true labels, as gpt1
            predict prints them: .jsonl, .json, .csv or .tsv.
        report: also print precision, recall, F1 and the number of rows of each class.
        confusion_matrix: PNG file for a picture of how often each class was predicted for each true
            class.
        dtype: dtype of the weights in memory and of the computation; by default the checkpoint's.
        revision: branch, tag or commit of the checkpoint on the Hugging Face Hub; by default its
            main branch.
        local_files_only: read checkpoints of the Hub from the local cache alone, without the
            network.
        compilation_cache: folder that keeps compiled programs for the next run, up to 1 GB, or none
            to keep none; by default $GPT1_CACHE or else ~/.cache/gpt1-jax.
    """
    assert model is not None  # see ``takes_adapter``
    sets: Sequence[Path | PublishedSet] = files
    if recipe is not None:
        if files or data is None:
            raise ValueError(f"--recipe {recipe} needs --data, and no files")
        sets = [RECIPES[recipe].open(data, split)]
    elif not files or data is not None:
        raise ValueError("give at least one file, or --recipe and --data")
    enable_compilation_cache(compilation_cache)
    hub: HubOptions = {"revision": revision, "local_files_only": local_files_only}
    for name, path in (("predictions", predictions), ("confusion-matrix", confusion_matrix)):
        if path is not None and len(files) > 1:
            raise ValueError(f"--{name} needs a single labelled set, not {len(files)} files")
    by_class = report or confusion_matrix is not None
    if predictions is None and not by_class and recipe is None:
        for file, measures in measures_of(
            model,
            files,
            stride=stride,
            batch_size=batch_size,
            quantize=quantize,
            quoting=quoting,
            dtype=dtype,
            **hub,
        ):
            _print_measures(file, measures, output_format)
        return
    if stride is not None:
        raise ValueError("--stride has no effect on labelled sets: it is for texts")
    for found in evaluate_labelled(
        model,
        sets,
        batch_size=batch_size,
        quantize=quantize,
        quoting=quoting,
        dtype=dtype,
        predictions=True,
        by_class=by_class,
        **hub,
    ):
        own: dict[str, object] = {}
        labels, predicted = [], []
        if by_class:
            labels = [str(row[TRUE_LABEL]) for row in found.predictions]
            predicted = [str(row["label"]) for row in found.predictions]
        names = found.names or ()
        if report and output_format == "jsonl":
            own["report"] = class_report(labels, predicted, names)
        _print_measures(found.file, found.measures, output_format, **own)
        if report and output_format == "text":
            print(class_report_text(labels, predicted, names), flush=True)
        if predictions is not None:
            with output(predictions) as written:
                write_records(found.predictions, chosen_format(None, predictions), written)
        if confusion_matrix is not None:
            draw_confusion_matrix(labels, predicted, names, confusion_matrix)
    if recipe is not None and output_format == "text":
        _report_paper(recipe)


def _print_measures(
    file: str, measures: Mapping[str, float], output_format: str, **other: object
) -> None:
    if output_format == "jsonl":
        # JSON has no NaN, which a correlation may be.
        known = {name: None if math.isnan(x) else x for name, x in measures.items()}
        print(json.dumps({"file": file, **known, **other}), flush=True)
    else:
        print(f"{file}: {_shown(measures)}", flush=True)


def _report(out: Path, progress: TrainProgress) -> None:
    if progress.best is None:
        print(f"{out}: the last model")
    else:
        print(f"{out}: the best model, of step {progress.best_step}: {_shown(progress.best)}")


def _shown(measures: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in measures.items())
