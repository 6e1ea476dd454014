"""The commands as a user types them: flags, files of flags, results, and every fault in a line."""

import importlib.util
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.small_training import QUICK, SIZES, write_checkpoint, write_rows, write_text

import gpt1_jax as gpt1
from gpt1_jax.cli import training as commands
from gpt1_jax.training import checkpoints
from gpt1_jax.training.log import read_log
from gpt1_jax.training.loop import TrainProgress
from gpt1_jax.training.optimizer import OptimizerSettings

Run = Callable[..., tuple[int, str, str]]

ROWS: list[dict[str, Any]] = [
    {"text": "the king saw a cat", "label": "yes"},
    {"text": "a big dog", "label": "no"},
    {"text": "the queen ran to the house", "label": "yes"},
]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the commands ask for, in place of doing it."""
    made: list[dict[str, Any]] = []

    def pretrain(texts: Any, out: Path, **fields: Any) -> TrainProgress:
        made.append({"texts": texts, "out": out, **fields})
        return TrainProgress()

    def finetune(task: str, train: Path, valid: Any, out: Path, **fields: Any) -> TrainProgress:
        made.append({"task": task, "train": train, "valid": valid, "out": out, **fields})
        return TrainProgress()

    def evaluate(model: str, files: Any, **fields: Any) -> Iterator[Any]:
        made.append({"model": model, "files": files, **fields})
        yield str(files[0]), {"pearson": math.nan, "loss": 0.123456}

    monkeypatch.setattr(commands.pretraining, "pretrain", pretrain)
    monkeypatch.setattr(commands.finetuning, "finetune", finetune)
    monkeypatch.setattr(commands, "measures_of", evaluate)
    return made


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def flags(**fields: Any) -> list[str]:
    return [
        word
        for name, value in fields.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


# From text to a model to a task, and what both are worth.


def test_cli_training_commands_work_in_sequence(run: Run, here: Path) -> None:
    write_text(here / "train.txt")
    write_text(here / "valid.txt", lines=8, seed=1)
    write_rows(here / "rows.csv", ROWS)
    quick = flags(**QUICK, steps=4)
    status, out, err = run("pretrain", "train.txt", "--valid", "valid.txt", "--out", "lm", *quick)
    assert status == 0
    assert out.startswith("lm: the best model, of step 4: loss ")
    assert "bits per character" in out
    assert [line for line in err.splitlines() if "step 4: loss" in line and "(best)" in line]
    assert run("generate", "the cat", "--model", "lm", "--max-new-tokens", 3)[1].startswith("the ")

    status, out, _ = run(
        "evaluate", "valid.txt", "--model", "lm", "--stride", 16, "--output-format", "jsonl"
    )
    assert status == 0
    record = json.loads(out)
    assert record.pop("file") == "valid.txt"
    valid = [line for line in read_log(here / "lm" / "log.jsonl") if "valid_loss" in line]
    assert record == pytest.approx(
        {k.removeprefix("valid_"): v for k, v in valid[-1].items() if k != "step"}
    )

    arguments = flags(task="classification", train="rows.csv", model="lm", out="task")
    quick = flags(**{k: v for k, v in QUICK.items() if k not in SIZES}, epochs=3)
    status, out, _ = run("finetune", *arguments, *quick)
    assert (status, out) == (0, "task: the last model\n")
    status, out, _ = run("evaluate", "rows.csv", "--model", "task")
    assert status == 0
    assert out.startswith("rows.csv: loss ")
    assert "accuracy" in out
    # A copy has the task too.
    assert run("convert", "task", "copy")[0] == 0
    assert run("evaluate", "rows.csv", "--model", "copy")[1] == out
    assert run("export", "task", "programs", "--platforms", "cpu")[0] == 0
    assert (here / "programs" / "task.json").read_bytes() == (here / "task/task.json").read_bytes()


# What flags come to.


def test_cli_pretrain_passes_its_flags(run: Run, calls: list[dict[str, Any]]) -> None:
    assert run("pretrain", "a.txt", "b.txt", "--out", "x")[:2] == (0, "x: the last model\n")
    call = calls.pop()
    assert call["texts"] == (Path("a.txt"), Path("b.txt"))
    assert (call["valid"], call["model"], call["tokenizer"]) == ((), None, None)
    assert call["new"] == commands.NewModel()
    assert call["settings"] == commands.PretrainSettings()
    assert call["optimizer"] == OptimizerSettings(
        optimizer="openai", learning_rate=2.5e-4, schedule="cosine", warmup=2000
    )
    assert call["loop"] == commands.LoopSettings()
    given = flags(n_layer=2, steps=9, dtype="bfloat16", optimizer="adamw", patience=3, model="m")
    run("pretrain", "a.txt", "--out", "x", "--valid", "c", "d", *given, "--max-grad-norm", "None")
    call = calls.pop()
    assert call["valid"] == (Path("c"), Path("d"))
    assert (call["new"].n_layer, call["settings"].steps, call["settings"].dtype) == (
        2,
        9,
        "bfloat16",
    )
    assert (call["optimizer"].optimizer, call["optimizer"].max_grad_norm) == ("adamw", None)
    assert (call["loop"].patience, call["model"]) == (3, "m")


def test_cli_finetune_passes_its_flags(run: Run, calls: list[dict[str, Any]]) -> None:
    needed = flags(task="multiple-choice", train="a.csv", model="m", out="x")
    assert run("finetune", *needed)[0] == 0
    call = calls.pop()
    assert (call["task"], call["train"], call["valid"]) == ("multiple-choice", Path("a.csv"), None)
    assert (call["columns"], call["choices"], call["quoting"]) == ({}, (), None)
    assert call["settings"] == commands.FinetuneSettings()
    assert call["optimizer"] == OptimizerSettings(
        optimizer="openai", learning_rate=6.25e-5, schedule="linear", warmup=0.002
    )
    columns = ["--columns", "context=a", "label=b=c", "--choices", "one", "two"]
    lora = ["--lora-rank", "2", "--lora-targets", "c_attn", "c_fc", "--freeze-layers", "0"]
    run("finetune", *needed, *columns, *lora, "--valid", "v.csv", "--numbers", "--quoting", "csv")
    call = calls.pop()
    assert (call["quoting"], call["class_weights"]) == ("csv", None)
    assert (call["columns"], call["choices"]) == ({"context": "a", "label": "b=c"}, ("one", "two"))
    assert call["settings"].lora_targets == ("c_attn", "c_fc")
    assert (call["settings"].numbers, call["valid"]) == (True, Path("v.csv"))
    run("finetune", *needed, "--class-weights", "no=1", "a=b=2.5", "--metric", "macro_f1")
    assert calls[-1]["class_weights"] == {"no": 1.0, "a=b": 2.5}
    assert calls.pop()["settings"].metric == "macro_f1"
    run("finetune", *needed, "--class-weights", "balanced", "--label-smoothing", "0.1")
    assert calls[-1]["class_weights"] == "balanced"
    assert calls.pop()["settings"].label_smoothing == 0.1


def test_cli_evaluate_writes_nan_as_null_in_json(run: Run, calls: list[dict[str, Any]]) -> None:
    status, out, _ = run("evaluate", "a.csv", "--model", "m")
    assert (status, out) == (0, "a.csv: pearson nan, loss 0.1235\n")
    _, out, _ = run("evaluate", "a.csv", "--model", "m", "--output-format", "jsonl", "--stride", 3)
    assert calls[-1]["dtype"] is None
    assert json.loads(out) == {"file": "a.csv", "pearson": None, "loss": 0.123456}
    assert out.count("null") == 1
    assert calls[-1]["stride"] == 3
    run("evaluate", "a.csv", "--model", "m", "--dtype", "bfloat16", "--quoting", "none")
    assert (calls[-1]["dtype"], calls[-1]["quoting"]) == ("bfloat16", "none")


# Files of flags.


def test_cli_pretrain_flags_override_config_file(
    run: Run, calls: list[dict[str, Any]], here: Path
) -> None:
    fields = {
        "texts": ["a.txt", "b.txt"],
        "valid": ["v.txt", "w.txt"],
        "out": "x",
        "n_layer": 3,
        "steps": 7,
        "learning_rate": 1e-3,
        "max_grad_norm": None,
        "tokenizer": None,
        "n_head": None,
    }
    (here / "c.json").write_text(json.dumps(fields))
    assert run("pretrain", "--config", "c.json")[0] == 0
    call = calls.pop()
    assert call["texts"] == (Path("a.txt"), Path("b.txt"))
    assert call["valid"] == (Path("v.txt"), Path("w.txt"))
    assert (call["new"].n_layer, call["settings"].steps) == (3, 7)
    assert (call["optimizer"].learning_rate, call["optimizer"].max_grad_norm) == (1e-3, None)
    assert (call["tokenizer"], call["new"].n_head) == (None, 12)  # null is None, or the default

    more = ["--n-layer", "5", "--valid", "u.txt", "--config=c.json", "--out", "y"]
    assert run("pretrain", "c.txt", *more)[0] == 0
    call = calls.pop()
    assert (call["texts"], call["valid"]) == ((Path("c.txt"),), (Path("u.txt"),))
    assert (call["new"].n_layer, call["settings"].steps, call["out"]) == (5, 7, Path("y"))
    run("pretrain", "--config", "c.json", "--valid", "u.txt")  # which takes no text for its own
    assert calls.pop()["texts"] == (Path("a.txt"), Path("b.txt"))


def test_cli_finetune_and_evaluate_read_config_file(
    run: Run, calls: list[dict[str, Any]], here: Path
) -> None:
    fields = {
        "task": "multiple-choice",
        "train": "a.csv",
        "valid": None,
        "model": "m",
        "out": "x",
        "columns": {"label": "gold"},
        "choices": ["one", "two"],
        "numbers": False,
        "seed": None,
        "freeze_embeddings": True,
    }
    (here / "c.json").write_text(json.dumps(fields))
    assert run("finetune", "--config", "c.json")[0] == 0
    call = calls.pop()
    assert (call["columns"], call["choices"]) == ({"label": "gold"}, ("one", "two"))
    assert (call["valid"], call["settings"].numbers) == (None, False)
    assert call["settings"].freeze_embeddings
    (here / "c.json").write_text(
        '{"files": "a.csv", "model": "m", "output_format": "jsonl", "stride": null}'
    )
    assert run("evaluate", "--config", "c.json")[1].startswith('{"file": "a.csv"')
    assert (calls[-1]["files"], calls[-1]["stride"]) == ((Path("a.csv"),), None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "--config c.json: the file does not exist"),
        ("", "c.json is not JSON"),
        ("{'steps': 1}", "c.json is not JSON"),
        ("\xff", "c.json is not JSON"),
        ("[1]", "c.json must hold a JSON object of flags"),
        (
            '{"step": 1}',
            "c.json: gpt1 pretrain has no 'step'; it has accumulate, b1, b2, batch_size",
        ),
        ('{"settings": {}}', "c.json: gpt1 pretrain has no 'settings'"),
        ('{"steps": "many"}', "many"),
        ('{"steps": [1, 2]}', "c.json: steps is [1, 2], but must be a single value"),
        ('{"out": {"a": 1}}', 'c.json: out is {"a": 1}, but must be a single value'),
        ('{"n_layer": true}', "c.json: n_layer is true, but the flag needs a value"),
        ('{"learning_rate": -1}', "learning_rate is -1.0, but must be a number above 0"),
    ],
)
def test_cli_pretrain_rejects_bad_config_file(
    run: Run, calls: list[dict[str, Any]], here: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (here / "c.json").write_text(content, encoding="latin-1")
    status, out, err = run("pretrain", "a.txt", "--out", "x", "--config", "c.json")
    assert (status, out, calls) == (2, "", [])
    assert message in err
    assert "Traceback" not in err


def test_cli_pretrain_config_requires_a_file(run: Run, calls: list[dict[str, Any]]) -> None:
    status, _, err = run("pretrain", "a.txt", "--out", "x", "--config")
    assert (status, calls) == (2, [])
    assert "--config: expected one argument" in err


# What is wrong: one message, status 2, and nothing done.

PRETRAIN = ["pretrain", "text.txt", "--out", "run", *flags(**{**QUICK, "steps": 4})]
FINETUNE = ["finetune", *flags(task="classification", train="rows.csv", model="base", out="run")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "--out", "run"], "give at least one text file"),
        (["pretrain", "text.txt"], "--out"),
        ([*PRETRAIN, "--valid", "nowhere.txt"], "no file nowhere.txt"),
        ([*PRETRAIN, "--valid", "empty.txt"], "empty.txt is empty"),
        (["pretrain", "empty.txt", *PRETRAIN[2:]], "empty.txt is empty"),
        (["pretrain", "short.txt", *PRETRAIN[2:]], "short.txt: 3 tokens are too few, since one"),
        ([*PRETRAIN, "--warmup", "5"], "warmup is 5 steps, but must be at most total_steps = 4"),
        ([*PRETRAIN, "--accumulate", "3"], "batch_size is 8, but must be a multiple of accumulate"),
        ([*PRETRAIN, "--checkpoint-every", "0"], "checkpoint_every is 0, but must be at least 1"),
        ([*PRETRAIN, "--eval-every", "2"], "eval_every is 2, but needs a validation set"),
        ([*PRETRAIN, "--n-head", "3"], "n_head is 3, but must be a divisor of n_embd = 16"),
        ([*PRETRAIN, "--dtype", "int8"], "int8"),
        ([*PRETRAIN, "--out", "base"], "base holds a checkpoint that no run has begun here"),
        ([*PRETRAIN, "--out", "other"], "other holds a run with other settings; give another"),
        ([*PRETRAIN, "--out", "text.txt"], "text.txt"),
        (["pretrain", "text.txt", "--out", "run", "--model", "./nowhere"], "no folder './nowhere'"),
        (["finetune", *FINETUNE[3:]], "--task"),
        ([*FINETUNE, "--task", "sorting"], "'sorting'"),
        ([*FINETUNE, "--task", "multiple-choice"], "multiple-choice needs the columns of at least"),
        ([*FINETUNE, "--task", "regression"], "rows.csv, line 2: the label 'yes' must be a number"),
        ([*FINETUNE, "--train", "nowhere.csv"], "nowhere.csv"),
        ([*FINETUNE, "--train", "empty.csv"], "empty.csv holds no rows"),
        ([*FINETUNE, "--train", "rows.txt"], "rows.txt must be a file of one of the kinds"),
        ([*FINETUNE, "--train", "unlabelled.csv"], "unlabelled.csv, line 3: 'label' is empty: the"),
        ([*FINETUNE, "--valid", "nowhere.csv"], "nowhere.csv"),
        ([*FINETUNE, "--valid", "class.csv"], "class.csv, line 2: the label 'perhaps' is not one"),
        (
            [*FINETUNE, "--task", "multiple-choice", "--columns", "context=text", "--choices", "a",
             "b", "--train", "range.csv"],
            "range.csv, line 3: the label '2' must be a choice, which are counted 0 to 1",
        ),
        ([*FINETUNE, "--columns", "text=body"], "rows.csv, line 1: there is no column 'body'; the"),
        ([*FINETUNE, "--class-weights", "a=b"], "--class-weights a=b: must be balanced, or NAME="),
        ([*FINETUNE, "--columns", "text"], "--columns text: must be ROLE=NAME, such as text=sent"),
        ([*FINETUNE, "--model", "./nowhere"], "no folder './nowhere'"),
        ([*FINETUNE, "--warmup", "100"], "warmup is 100 steps, but must be at most total_steps"),
        ([*FINETUNE, "--accumulate", "5"], "batch_size is 32, but must be a multiple of acc"),
        ([*FINETUNE, "--lora-alpha", "3"], "lora_alpha has no effect without lora_rank"),
        ([*FINETUNE, "--out", "base"], "base holds a checkpoint that no run has begun here"),
        (["evaluate", "--model", "base"], "give at least one file"),
        (["evaluate", "text.txt", "nowhere.txt", "--model", "base"], "no file nowhere.txt"),
        (["evaluate", "text.txt", "--model", "base", "--stride", "0"], "stride is 0, but must be"),
        (["evaluate", "text.txt", "--model", "./nowhere"], "no folder './nowhere'"),
    ],
    ids=lambda value: "" if isinstance(value, list) else value[:30],
)  # fmt: skip
def test_cli_training_reports_bad_input_with_status_2(
    run: Run, here: Path, arguments: list[str], message: str
) -> None:
    write_text(here / "text.txt")
    for name in ("empty.txt", "empty.csv", "rows.txt"):
        (here / name).write_text("")
    (here / "short.txt").write_text("a a a")
    write_rows(here / "rows.csv", ROWS)
    write_rows(here / "unlabelled.csv", [ROWS[0], {**ROWS[1], "label": ""}])
    write_rows(here / "class.csv", [{**ROWS[1], "label": "perhaps"}])
    choices = {"text": "the cat", "a": "sat", "b": "ran"}
    write_rows(here / "range.csv", [{**choices, "label": label} for label in (0, 2)])
    write_checkpoint(here / "base")
    (here / "other").mkdir()
    (here / "other" / "run.json").write_text('{"seed": 3}')
    before = sorted(here.iterdir())
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    if err.startswith("gpt1: "):  # and not tyro's own
        assert err.count("gpt1: ") == 1
        assert err.count("\n") == 1 or "other settings" in err
    assert {path.name for path in (here / "run").glob("*")} <= {"tokens"}
    shutil.rmtree(here / "run", ignore_errors=True)
    assert sorted(here.iterdir()) == before


@pytest.mark.nightly
def test_cli_pretrain_reuses_folder_after_an_error(run: Run, here: Path) -> None:
    write_text(here / "text.txt")
    assert run(*PRETRAIN, "--warmup", 5)[0] == 2
    assert run(*PRETRAIN, "--warmup", 4)[0] == 0
    status, _, err = run(*PRETRAIN, "--warmup", 3)
    assert status == 2
    assert err.splitlines()[1:] == ["  warmup: 4.0 there, 3.0 now"]


@pytest.mark.nightly
def test_cli_pretrain_resumes_after_full_disk(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint that does not fit is named, and the one before is there to go on from."""
    write_text(here / "text.txt")
    arguments = [*PRETRAIN, "--steps", 6, "--checkpoint-every", 2]
    assert run(*arguments, "--out", "whole")[0] == 0
    whole = (here / "whole" / "model.safetensors").read_bytes()

    usage, asked = shutil.disk_usage, []

    def filling(path: Any) -> Any:
        asked.append(path)
        return usage(path)._replace(free=0 if len(asked) > 2 else 2**40)

    monkeypatch.setattr(checkpoints.shutil, "disk_usage", filling)
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("gpt1: cannot write the checkpoint of step 4 to run/checkpoi")
    assert "Traceback" not in err
    assert [path.name for path in (here / "run" / "checkpoints").iterdir()] == ["2"]
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", usage)
    assert run(*arguments)[0] == 0
    assert (here / "run" / "model.safetensors").read_bytes() == whole


def test_cli_pretrain_reports_full_disk_on_final_save(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(here / "text.txt")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.numpy.save_file", full)
        status, out, err = run(*PRETRAIN)
    assert (status, out) == (2, "")
    assert err.endswith("\ngpt1: cannot write to run: No space left on device\n")
    assert not (here / "run" / "config.json").exists()
    assert not list((here / "run").glob(".*"))
    assert [path.name for path in (here / "run" / "checkpoints").iterdir()] == ["4"]
    # Run again, there is nothing left to do but to save.
    assert run(*PRETRAIN)[:2] == (0, "run: the last model\n")
    gpt1.OpenAIGPTLMHeadModel.from_pretrained(here / "run")


@pytest.mark.nightly
def test_cli_pretrain_rejects_changed_initial_model(run: Run, here: Path) -> None:
    """The settings are the same, but the model to go on from is not what it was."""
    write_text(here / "text.txt")
    quick = flags(**{k: v for k, v in QUICK.items() if k not in SIZES}, steps=2)
    arguments = ["pretrain", "text.txt", "--out", "run", "--model", "base", *quick]
    write_checkpoint(here / "base", n_embd=16)
    assert run(*arguments)[0] == 0
    shutil.rmtree(here / "base")
    write_checkpoint(here / "base", n_embd=8)
    status, _, err = run(*arguments)
    assert status == 2
    assert err.startswith("gpt1: run holds a run with other settings")
    assert "  model_content: " in err


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_cli_training_checks_dependencies_first(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    write_text(here / "text.txt")
    write_checkpoint(here / "base")
    write_rows(here / "rows.csv", ROWS)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    status, _, err = run(*(PRETRAIN if command == "pretrain" else FINETUNE))
    assert status == 2
    need = 'needs matplotlib, which is not installed: pip install "gpt1-jax[train]"'
    assert err == f"gpt1: {'pre-training' if command == 'pretrain' else 'fine-tuning'} {need}\n"
    assert not (here / "run").exists()
