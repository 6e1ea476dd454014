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
    """Train a language model on text files. The defaults are the paper's recipe.

    Run the same command again, and a run that was interrupted goes on where it was. A file given
    with --config holds flags as a JSON object, {"batch_size": 32}; flags of the command line win.

    Args:
        texts: UTF-8 text files, read one after another; or .jsonl and other files of records, of
            which the column "text" is read; folders of such files, and patterns in quotes.
        out: the folder of the result, in Hugging Face's layout, and of log, picture, checkpoints.
        valid: text files to validate on; the result is then the best model, else the last.
        model: a checkpoint to go on from, with its tokenizer; a new model by default.
        tokenizer: the tokenizer of a new model; learned from the texts by default.
        new: sizes of a new model.
        settings: how long to train, on how much.
        optimizer: how gradients become updates.
        loop: when to log, validate and save.
        devices: what devices to train on.
        report_to: trackers that follow the run: tensorboard, wandb.
        compilation_cache: where compiled programs are kept for the next run; none to keep none.
            By default $GPT1_CACHE or ~/.cache/gpt1-jax, up to 1 GB.
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
    """Train a model for a task on a labelled set. The defaults are the paper's recipe.

    Give either --task and --train, or --recipe and --data: one of the paper's twelve tasks, and the
    folder of its published files.

    The columns of each task: text, label (classification, regression); premise, hypothesis, label
    (entailment); text1, text2, label (similarity); context, question if there is one, label counted
    from 0, and those of the choices (multiple-choice).

    Run the same command again, and a run that was interrupted goes on where it was. A file given
    with --config holds flags as a JSON object, {"batch_size": 8}; flags of the command line win.

    Args:
        task: whose input transformation and head to use.
        train: a labelled set: .jsonl, .json, .csv or .tsv with a header, .parquet or .arrow, or one
            of these gzipped as .gz.
        out: the folder of the result, in Hugging Face's layout, and of log, picture, checkpoints.
        model: a pre-trained checkpoint with its tokenizer.
        valid: another labelled set; the result is then the best model on it, else the last. See
            --valid-share, too.
        recipe: a task of the paper, whose published files are read as they are.
        data: the folder of these files.
        columns: names of columns that differ from their roles, such as text=sentence.
        choices: the columns of the choices of a multiple choice, in order.
        quoting: csv reads cells in quotes, with a quote inside doubled; none takes quotes for a
            part of the text. By default csv for .csv files and none for .tsv files.
        class_weights: how much the examples of each class count in the loss that is trained on;
            balanced makes all classes together count alike. By default every example counts 1.
        settings: what to train, for how long.
        optimizer: how gradients become updates.
        loop: when to log, validate and save.
        devices: what devices to train on.
        report_to: trackers that follow the run: tensorboard, wandb.
        compilation_cache: where compiled programs are kept for the next run; none to keep none.
            By default $GPT1_CACHE or ~/.cache/gpt1-jax, up to 1 GB.
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
    """Measure a language model on texts, or a fine-tuned model on labelled sets.

    Args:
        files: text files (of .jsonl and other files of records the column "text"), or labelled sets
            with the columns the model was trained on.
        model: a checkpoint with its tokenizer.
        adapter: a LoRA adapter to merge into the model, of gpt1 pretrain, gpt1 finetune or peft;
            without --model, into the base that it names.
        recipe: the task of the paper that the model was trained for, to measure it on a published
            set in place of files.
        data: the folder of that set.
        split: which set of the recipe: valid, or test where it has labels.
        stride: of a text, how many tokens a window predicts with all before them as context; by
            default half the model's positions.
        batch_size: windows or examples to compute at once.
        quantize: quantize the model to int8 before it is measured.
        quoting: of labelled sets in .csv and .tsv files: csv reads cells in quotes, none takes
            quotes for a part of the text. By default as the model was trained.
        output_format: text, or jsonl to print one JSON object a file.
        predictions: a file for what gpt1 predict prints of the rows of a labelled set, with their
            true labels; .jsonl, .json, .csv or .tsv.
        report: print precision, recall, F1 and the number of rows of every class, too.
        confusion_matrix: a PNG file for the picture of how often each class was predicted for each
            true class.
        dtype: of the weights in memory and of the computation; the checkpoint's by default.
        revision: branch, tag or commit on the hub.
        local_files_only: do without the network.
        compilation_cache: where compiled programs are kept for the next run; none to keep none.
            By default $GPT1_CACHE or ~/.cache/gpt1-jax, up to 1 GB.
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
            raise ValueError(f"--{name} is of one labelled set, but {len(files)} files are given")
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
        raise ValueError("--stride is of texts; predictions and reports are of labelled sets")
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
