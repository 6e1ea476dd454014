"""The commands ``gpt1 pretrain``, ``finetune`` and ``evaluate``."""

import argparse
import dataclasses
import itertools
import json as json_format
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro

from gpt1_jax.cli.compilation_cache import enable_compilation_cache
from gpt1_jax.sharding import processes
from gpt1_jax.sharding.processes import DeviceSettings, is_main_process
from gpt1_jax.training import finetune as finetuning
from gpt1_jax.training import pretrain as pretraining
from gpt1_jax.training.data.tasks import TaskName
from gpt1_jax.training.evaluate import evaluate as measures_of
from gpt1_jax.training.finetune import FinetuneSettings
from gpt1_jax.training.loop import LoopSettings, TrainProgress
from gpt1_jax.training.optimizer import OptimizerSettings
from gpt1_jax.training.pretrain import NewModel, PretrainSettings

Value = TypeVar("Value")
# A dataclass whose fields are flags without a prefix. With a prefix that is only left out, tyro
# would answer for the ValueErrors of the class, naming it by a name of its own.
Group = Annotated[Value, tyro.conf.arg(name="")]

File = Annotated[Path, tyro.conf.arg(metavar="FILE")]
Files = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE...", help_behavior_hint="")]
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME...", help_behavior_hint="")]
Folder = Annotated[Path, tyro.conf.arg(metavar="DIR")]
Cache = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
Model = Annotated[str, tyro.conf.arg(metavar="FOLDER|HUB-ID")]
MaybeModel = Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB-ID", help_behavior_hint="")]

POSITIONAL = ("texts", "files")


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
    compilation_cache: Cache = None,
) -> None:
    """Train a language model on text files. The defaults are the paper's recipe.

    Run the same command again, and a run that was interrupted goes on where it was. A file given
    with --config holds flags as a JSON object, {"batch_size": 32}; flags of the command line win.

    Args:
        texts: UTF-8 text files, read one after another.
        out: the folder of the result, in Hugging Face's layout, and of log, picture, checkpoints.
        valid: text files to validate on; the result is then the best model, else the last.
        model: a checkpoint to go on from, with its tokenizer; a new model by default.
        tokenizer: the tokenizer of a new model; learned from the texts by default.
        new: sizes of a new model.
        settings: how long to train, on how much.
        optimizer: how gradients become updates.
        loop: when to log, validate and save.
        devices: what devices to train on.
        compilation_cache: keep compiled programs in this folder, for the next run.
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
        )
    if is_main_process():
        _report(out, progress)


def finetune(
    task: TaskName,
    train: File,
    out: Folder,
    model: Model,
    valid: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None,
    columns: Annotated[Names, tyro.conf.arg(metavar="ROLE=NAME...")] = (),
    choices: Names = (),
    settings: Group[FinetuneSettings] = FinetuneSettings(),
    optimizer: Group[OptimizerSettings] = finetuning.OPTIMIZER,
    loop: Group[LoopSettings] = LoopSettings(),
    devices: Group[DeviceSettings] = DeviceSettings(),
    compilation_cache: Cache = None,
) -> None:
    """Train a model for a task on a labelled set. The defaults are the paper's recipe.

    The columns of each task: text, label (classification, regression); premise, hypothesis, label
    (entailment); text1, text2, label (similarity); context, question if there is one, label counted
    from 0, and those of the choices (multiple-choice).

    Run the same command again, and a run that was interrupted goes on where it was. A file given
    with --config holds flags as a JSON object, {"batch_size": 8}; flags of the command line win.

    Args:
        task: whose input transformation and head to use.
        train: a labelled set: .jsonl, or .csv or .tsv with a header.
        out: the folder of the result, in Hugging Face's layout, and of log, picture, checkpoints.
        model: a pre-trained checkpoint with its tokenizer.
        valid: another labelled set; the result is then the best model on it, else the last.
        columns: names of columns that differ from their roles, such as text=sentence.
        choices: the columns of the choices of a multiple choice, in order.
        settings: what to train, for how long.
        optimizer: how gradients become updates.
        loop: when to log, validate and save.
        devices: what devices to train on.
        compilation_cache: keep compiled programs in this folder, for the next run.
    """
    enable_compilation_cache(compilation_cache)
    named = {}
    for pair in columns:
        role, _, name = pair.partition("=")
        if not role or not name:
            raise ValueError(f"--columns {pair}: must be ROLE=NAME, such as text=sentence")
        named[role] = name
    with processes.devices(devices) as mesh:
        progress = finetuning.finetune(
            task,
            train,
            valid,
            out,
            model=model,
            columns=named,
            choices=choices,
            settings=settings,
            optimizer=optimizer,
            loop=loop,
            mesh=mesh,
        )
    if is_main_process():
        _report(out, progress)


def evaluate(
    files: Annotated[Files, tyro.conf.Positional],
    model: Model,
    stride: int | None = None,
    batch_size: int = 8,
    json: bool = False,
    revision: str | None = None,
    local_files_only: bool = False,
    compilation_cache: Cache = None,
) -> None:
    """Measure a language model on texts, or a fine-tuned model on labelled sets.

    Args:
        files: text files, or labelled sets with the columns the model was trained on.
        model: a checkpoint with its tokenizer.
        stride: of a text, how many tokens a window predicts with all before them as context; by
            default half the model's positions.
        batch_size: windows or examples to compute at once.
        json: print a JSON object a file.
        revision: branch, tag or commit on the hub.
        local_files_only: do without the network.
        compilation_cache: keep compiled programs in this folder, for the next run.
    """
    if not files:
        raise ValueError("give at least one file")
    enable_compilation_cache(compilation_cache)
    found = measures_of(
        model,
        files,
        stride=stride,
        batch_size=batch_size,
        revision=revision,
        local_files_only=local_files_only,
    )
    for file, measures in found:
        if json:
            # JSON has no NaN, which a correlation may be.
            known = {name: None if math.isnan(x) else x for name, x in measures.items()}
            print(json_format.dumps({"file": file, **known}), flush=True)
        else:
            print(f"{file}: {_shown(measures)}", flush=True)


def _report(out: Path, progress: TrainProgress) -> None:
    if progress.best is None:
        print(f"{out}: the last model")
    else:
        print(f"{out}: the best model, of step {progress.best_step}: {_shown(progress.best)}")


def _shown(measures: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in measures.items())


COMMANDS: dict[str, Callable[..., None]] = {
    "pretrain": pretrain,
    "finetune": finetune,
    "evaluate": evaluate,
}


def with_config(arguments: Sequence[str]) -> list[str]:
    """Return a command line with the flags of its --config file in place of that flag.

    They come first, so that flags of the command line win.

    Args:
        arguments: command and flags, as a user types them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON object, has a key that is no flag of the command, or a value that
            the flag does not take.
    """
    command, *words = arguments or [""]
    if command not in COMMANDS:
        return list(arguments)
    parser = argparse.ArgumentParser(prog=f"gpt1 {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path, metavar="FILE")
    found, given = parser.parse_known_args(words)
    path = found.config
    if path is None:
        return list(arguments)
    if not path.is_file():
        raise FileNotFoundError(f"--config {path}: there is no such file")
    try:
        fields = json_format.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold a JSON object of flags")
    flags = _flags(COMMANDS[command])
    if unknown := sorted(fields.keys() - flags.keys()):
        right = ", ".join(sorted(flags))
        raise ValueError(f"{path}: gpt1 {command} has no {unknown[0]!r}; it has {right}")
    read_files, read_flags = [], []
    for name, value in fields.items():
        try:
            spelled = _words(value, flags[name])
        except ValueError as error:
            raise ValueError(f"{path}: {name} is {json_format.dumps(value)}, {error}") from None
        if name in POSITIONAL:
            read_files += spelled or []
        elif isinstance(value, bool):
            read_flags.append(_flag(name if value else f"no_{name}"))
        elif spelled is not None:
            read_flags += [_flag(name), *spelled]
    files = list(itertools.takewhile(lambda word: not word.startswith("-"), given))
    return [command, *(files or read_files), *read_flags, *given[len(files) :]]


def _flags(command: Callable[..., None]) -> dict[str, Any]:
    """Return the types of a command's arguments, by their names."""
    types = {}
    for name, kind in get_type_hints(command).items():
        types |= get_type_hints(kind) if dataclasses.is_dataclass(kind) else {name: kind}
    del types["return"]
    return types


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _words(value: Any, kind: Any) -> list[str] | None:
    """Return a value of a --config file as on the command line; None to leave the flag out.

    Args:
        value: as JSON has it.
        kind: the type of the flag.

    Raises:
        ValueError: another kind of value than the flag takes.
    """
    if value is None:
        return ["None"] if type(None) in get_args(kind) else None
    if isinstance(value, bool) != (kind is bool):
        raise ValueError("but must be true or false" if kind is bool else "but is no switch")
    if isinstance(value, Mapping | list) and get_origin(kind) is not tuple:
        raise ValueError("but must be a single value")
    if isinstance(value, Mapping):
        return [f"{key}={item}" for key, item in value.items()]
    return list(map(str, value if isinstance(value, list) else [value]))
