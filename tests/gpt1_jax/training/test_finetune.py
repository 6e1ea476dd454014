"""Fine-tuning: every task end to end, what is trained and what is not, and what is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.small_models import difference
from support.small_training import (
    Prepared,
    finetune,
    prepare,
    save_unchanged,
    write_checkpoint,
    write_rows,
)

import conversion
import gpt1_jax as gpt1
from gpt1_jax.pretrained import flatten
from gpt1_jax.pure import split
from gpt1_jax.training import loop
from gpt1_jax.training.data.labelled import read_rows, take_out
from gpt1_jax.training.evaluate import evaluate_labelled
from gpt1_jax.training.finetune import FinetuneSettings
from gpt1_jax.training.log import read_log
from gpt1_jax.training.loop import TrainProgress
from gpt1_jax.training.task_file import read_quoting, read_task
from gpt1_jax.training.task_measures import task_measures

Rows = list[dict[str, Any]]
NEW = ("_start_", "_delimiter_", "_classify_")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("deep") / "model", n_layer=2)


def phrase(rng: np.random.Generator, *extra: str) -> str:
    """A few words that say nothing, and the others somewhere among them."""
    picked = [*rng.choice(["the", "cat", "dog", "sat", "on", "hill"], 3), *extra]
    return " ".join(rng.permutation(picked))


def rows_of(task: str, number: int = 48, seed: int = 0) -> Rows:
    """A set whose labels follow from single words."""
    rng = np.random.default_rng(seed)
    rows: Rows = []
    for i in range(number):
        first, second = phrase(rng), phrase(rng)
        match task:
            case "classification":
                name = ("bad", "good")[i % 2]
                rows.append({"text": phrase(rng, name), "label": f"is {name}"})
            case "regression":
                rows.append({"text": phrase(rng, *["big"] * (i % 4)), "label": i % 4 / 2})
            case "entailment":
                name = ("yes", "no", "maybe")[i % 3]
                rows.append({"premise": first, "hypothesis": phrase(rng, name), "label": i % 3})
            case "similarity":
                texts = [phrase(rng, "red") if i % 2 else first, second]
                texts = [texts[k] for k in rng.permutation(2)]
                rows.append({"text1": texts[0], "text2": texts[1], "label": i % 2})
            case _:
                choices = [phrase(rng, "good") if k == i % 3 else first for k in range(3)]
                named = {f"answer {k}": choice for k, choice in enumerate(choices)}
                rows.append({"context": second, **named, "label": i % 3})
    return rows


CHOICES = ("answer 0", "answer 1", "answer 2")


def run(
    base: Path,
    folder: Path,
    task: str,
    suffix: str = ".jsonl",
    validates: bool = True,
    number: int = 48,
    **fields: Any,
) -> tuple[TrainProgress, Path]:
    """Fine-tune on a set of so many rows; returns how it went, and the folder of the result."""
    folder.mkdir(exist_ok=True)
    train = write_rows(folder / f"train{suffix}", rows_of(task, number))
    valid = write_rows(folder / f"valid{suffix}", rows_of(task, 24, seed=1)) if validates else None
    if task == "multiple-choice":
        fields.setdefault("choices", CHOICES)
    return finetune(task, train, valid, folder / "run", base, **fields), folder / "run"


def on_set(folder: Path, file: Path) -> dict[str, float]:
    """The measures of a fine-tuned folder on a set."""
    fields = conversion.read_config(folder)
    model: Any = getattr(gpt1, fields["architectures"][0]).from_pretrained(folder)
    tokenizer = gpt1.Tokenizer.from_pretrained(folder)
    task, columns = read_task(folder, tokenizer, model.config.n_positions)
    return task_measures(model, task, read_rows(file, columns))(split(model)[1])


def params_of(folder: Path) -> dict[str, np.ndarray]:
    return {".".join(path): leaf for path, leaf in flatten(conversion.read(folder)[1]).items()}


# The tasks.


@pytest.mark.parametrize(
    ("task", "suffix", "fields"),
    [
        ("classification", ".tsv", {}),
        ("regression", ".csv", {}),
        ("entailment", ".jsonl", {}),
        ("similarity", ".csv", {}),
        ("multiple-choice", ".tsv", {}),
        pytest.param("similarity", ".jsonl", {"numbers": True}, marks=pytest.mark.nightly),
    ],
)
def test_finetune_learns_every_task(
    base: Path, tmp_path: Path, task: str, suffix: str, fields: dict[str, Any]
) -> None:
    fields |= {"epochs": 15, "learning_rate": 1e-2, "eval_every": 45}
    progress, out = run(base, tmp_path, task, suffix, **fields)
    chosen = "pearson" if task == "regression" or "numbers" in fields else "accuracy"
    found = on_set(out, tmp_path / f"train{suffix}")
    # By chance it would be 1/2, 1/3, or 0 of a correlation. Measured: 0.99 of these, else 1.
    assert found[chosen] > 0.9
    assert progress.best is not None
    records = [r for r in read_log(out / "log.jsonl") if f"valid_{chosen}" in r]
    assert [record["step"] for record in records] == [45, 90]
    assert progress.best[chosen] == max(record[f"valid_{chosen}"] for record in records) > 0.9
    valid = on_set(out, tmp_path / f"valid{suffix}")
    assert valid == pytest.approx(progress.best, rel=1e-5)  # what was saved is the best


@pytest.mark.nightly
def test_finetune_learns_any_number_of_labels(base: Path, tmp_path: Path) -> None:
    """From words, some of which are in a text and some not; also none of them."""
    rng = np.random.default_rng(0)
    words = ("bad", "big", "red")
    held = [[word for k, word in enumerate(words) if i >> k & 1] for i in range(48)]
    texts = [phrase(rng, *words) for words in held]
    rows = [{"text": text, "label": "+".join(own)} for text, own in zip(texts, held, strict=True)]
    train = write_rows(tmp_path / "train.tsv", rows)
    lists = [{**row, "label": own} for row, own in zip(rows, held, strict=True)]
    valid = write_rows(tmp_path / "valid.jsonl", lists)
    fields: dict[str, Any] = {"multi_label": True, "label_separator": "+", "learning_rate": 3e-2}
    fields |= {"epochs": 15, "eval_every": 45, "lm_weight": 0.0}
    out = tmp_path / "run"
    progress = finetune("classification", train, valid, out, base, **fields)
    assert progress.best is not None
    assert progress.best.keys() == {"loss", "micro_f1", "macro_f1", "subset_accuracy"}
    assert progress.best["micro_f1"] > 0.9
    config = json.loads((out / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["id2label"] == {"0": "bad", "1": "big", "2": "red"}
    summary = json.loads((out / "run.json").read_text())["summary"]
    assert summary["train"]["labels"] == {"bad": 24, "big": 24, "red": 24}
    for file in (train, valid):
        (found,) = evaluate_labelled(out, [file], predictions=True)
        assert found.measures == pytest.approx(progress.best, rel=1e-5)
    assert [own["true_label"] for own in found.predictions] == held
    right = [own["labels"] == own["true_label"] for own in found.predictions]
    assert np.mean(right) == found.measures["subset_accuracy"]
    with pytest.raises(ValueError, match="any number of labels for a row, which are no classes"):
        next(evaluate_labelled(out, [valid], by_class=True))


@pytest.mark.smoke
def test_finetune_writes_config_tokenizer_and_task(base: Path, tmp_path: Path) -> None:
    _, out = run(base, tmp_path, "classification", epochs=1)
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "is bad", "1": "is good"}
    assert config["label2id"] == {"is bad": 0, "is good": 1}
    assert config["problem_type"] == "single_label_classification"
    tokenizer = gpt1.Tokenizer.from_pretrained(out)
    assert tokenizer.extra_special_tokens == list(NEW)
    assert config["vocab_size"] == len(tokenizer) == len(gpt1.Tokenizer.from_pretrained(base)) + 3
    assert config["pad_token_id"] == 0
    task = json.loads((out / "task.json").read_text())
    assert task == {
        "name": "classification",
        "classes": ["is bad", "is good"],
        "choices": 0,
        "max_tokens": None,
        "columns": {"text": "text", "label": "label"},
        "quoting": None,
        "multi_label": False,
        "label_separator": "|",
    }
    steps = [record["step"] for record in read_log(out / "log.jsonl") if "valid_f1" in record]
    assert steps == [6]  # once an epoch, of 48 rows in batches of 8


@pytest.mark.parametrize("lora", [False, True])
def test_finetune_tells_what_it_understood(
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    lora: bool,
) -> None:
    monkeypatch.setattr(loop, "train", lambda *_: TrainProgress())
    rows = rows_of("entailment", 30)
    rows[3]["premise"] = "the cat " * 20
    train = write_rows(tmp_path / "train.jsonl", [*rows, {**rows[1], "label": -1}])
    valid = write_rows(tmp_path / "valid.jsonl", [rows[0], {**rows[1], "premise": "a king"}])
    fields: dict[str, Any] = {"epochs": 2, "schedule": "linear", "warmup": 2, "out": tmp_path / "a"}
    fields |= {"lora_rank": 2} if lora else {}
    for _ in range(2):  # a run that is resumed does not compare what it understood
        finetune("entailment", train, valid, model=base, **fields)
    summary = json.loads((tmp_path / "a" / "run.json").read_text())["summary"]
    numbers = {name: summary.pop(name) for name in ("parameters", "trained_parameters")}
    state = summary.pop("state_bytes")
    dropped, shared = summary.pop("warnings")
    assert summary == {
        "train": {"rows": 30, "classes": {"0": 10, "1": 10, "2": 10}},
        "valid": {"rows": 2, "classes": {"0": 1, "1": 1, "2": 0}},
        "cut": {"rows": 1, "tokens": 14, "longest": 40},
        "steps": 8,
        "steps_per_epoch": 4,
        "warmup_steps": 2,
        "first_learning_rate": 0.0,
        "highest_learning_rate": pytest.approx(3e-3 * (1 - 2 / 8)),
        "command": None,
    }
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(base)
    sizes = [leaf.size for leaf in flatten(model.params).values()]
    adapters = 2 * (16 + 48)
    assert numbers == {
        "parameters": sum(sizes) + 3 * 16 + 3 * 16 + (adapters if lora else 0),
        "trained_parameters": 3 * 16 + adapters if lora else sum(sizes) + 3 * 16 + 3 * 16,
    }
    # Weights in float32; gradients, two moments and the step for what is trained.
    assert state == 4 * (numbers["parameters"] + 3 * numbers["trained_parameters"] + 1)
    assert "1 of 31 rows are left out for their label -1" in dropped
    assert "1 of 2 rows have the texts of rows to train on" in shared
    lines = capsys.readouterr().err.splitlines()
    assert "to train on: 30 rows, 3 classes: 0 (10), 1 (10), 2 (10)" in lines
    assert f"warning: {dropped}" in lines


@pytest.mark.nightly
def test_finetune_accepts_custom_column_names(base: Path, tmp_path: Path) -> None:
    rows = [
        {
            "why": row["context"],
            "one": row["answer 0"],
            "two": row["answer 1"],
            "asks": "big ?",
            "gold": row["label"] % 2,
        }
        for row in rows_of("multiple-choice", 16)
    ]
    train = write_rows(tmp_path / "train.csv", rows)
    columns = {"context": "why", "question": "asks", "label": "gold"}
    finetune(
        "multiple-choice", train, None, tmp_path / "run", base,
        columns=columns, choices=("one", "two"), quoting="csv", epochs=1, max_tokens=9,
    )  # fmt: skip
    tokenizer = gpt1.Tokenizer.from_pretrained(tmp_path / "run")
    task, read = read_task(tmp_path / "run", tokenizer, 32)
    assert read == {**columns, "choice0": "one", "choice1": "two"}
    assert (task.choices, task.max_tokens) == (2, 9)
    assert read_quoting(tmp_path / "run") == "csv"
    first, second = task.encode(read_rows(train, read)[0]).sequences
    question, context, choice = (
        tokenizer.encode(text, add_special_tokens=False)
        for text in ("big ?", rows[0]["why"], rows[0]["one"])
    )
    special = task.special
    assert first == [
        special.start, *context[: 9 - len(question)], *question,
        special.delimiter, *choice[:9], special.classify,
    ]  # fmt: skip
    assert second != first


# The head of a checkpoint that was fine-tuned before.


@pytest.fixture(scope="module")
def turned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier whose classes are not in their order, and without training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train", save_unchanged)
        _, folder = run(base, tmp_path_factory.mktemp("turned"), "classification", seed=1)
    for name in ("config.json", "task.json"):
        text = (folder / name).read_text()
        fields = json.loads(text)
        if name == "config.json":
            fields["id2label"] = {"0": "is good", "1": "is bad"}
            fields["label2id"] = {"is good": 0, "is bad": 1}
        else:
            fields["classes"] = ["is good", "is bad"]
        (folder / name).write_text(json.dumps(fields))
    return folder


def fine_tuned_further(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, task: str, **fields: Any
) -> tuple[dict[str, Any], np.ndarray]:
    """The configuration and the head that fine-tuning begins with."""
    monkeypatch.setattr(loop, "train", save_unchanged)
    _, out = run(model, folder, task, validates=False, **fields)
    config, params = conversion.read(out)
    return config, np.asarray(params["score"]["kernel"])


@pytest.mark.parametrize("has_task", [True, False])
def test_finetune_keeps_rows_of_the_same_classes(
    turned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_task: bool, capfd: Any
) -> None:
    model = shutil.copytree(turned, tmp_path / "model")
    if not has_task:  # as transformers saves it
        (model / "task.json").unlink()
    config, kernel = fine_tuned_further(model, tmp_path, monkeypatch, "classification")
    assert config["id2label"] == {"0": "is good", "1": "is bad"}
    assert json.loads((tmp_path / "run" / "task.json").read_text())["classes"] == [
        "is good",
        "is bad",
    ]
    assert kernel.tobytes() == params_of(turned)["score.kernel"].tobytes()
    assert "head" not in capfd.readouterr().err


def test_finetune_replaces_the_head_of_another_task(
    turned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    config, kernel = fine_tuned_further(turned, tmp_path, monkeypatch, "similarity")
    assert config["id2label"] == {"0": "0", "1": "1"}
    before = params_of(turned)["score.kernel"]
    assert kernel.shape == before.shape
    assert not np.isin(kernel, before).any()
    error = capfd.readouterr().err
    line = f"{turned} was trained for classification: similarity gets a new head"
    assert error.splitlines()[0] == line
    tokenizer = gpt1.Tokenizer.from_pretrained(tmp_path / "run")
    assert tokenizer.extra_special_tokens == list(NEW)
    assert tokenizer.num_special_tokens_to_add(pair=True) == 3  # once


def test_finetune_replaces_the_head_when_told_to(
    turned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    given: dict[str, Any] = {"new_head": True}
    config, kernel = fine_tuned_further(turned, tmp_path, monkeypatch, "classification", **given)
    assert config["id2label"] == {"0": "is bad", "1": "is good"}
    assert not np.isin(kernel, params_of(turned)["score.kernel"]).any()
    assert ": classification gets a new head\n" in capfd.readouterr().err
    three = [{"text": "a cat", "label": label} for label in "xyz"]
    train = write_rows(tmp_path / "three.jsonl", three)
    message = (
        r"was trained on the classes \['is good', 'is bad'\], but the training set has the "
        r"classes \['x', 'y', 'z'\]: pass new_head=True \(--new-head\)"
    )
    with pytest.raises(ValueError, match=message):
        finetune("classification", train, None, tmp_path / "out", turned)
    assert not (tmp_path / "out").exists()
    finetune("classification", train, None, tmp_path / "out", turned, new_head=True)
    assert params_of(tmp_path / "out")["score.kernel"].shape == (16, 3)


# What is trained, and what is not.


def trained_names(
    deep: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, **fields: Any
) -> tuple[set[str], dict[str, np.ndarray]]:
    """The names of the parameters that a run changes, and the parameters that it begins with."""
    common: dict[str, Any] = {"validates": False, "epochs": 1, "batch_size": 16, **fields}
    _, end = run(deep, folder / "end", "classification", **common)
    monkeypatch.setattr(loop, "train", save_unchanged)
    _, start = run(deep, folder / "start", "classification", **common)
    before, after = params_of(start), params_of(end)
    assert before.keys() == after.keys()
    for name, leaf in params_of(deep).items():
        assert np.array_equal(before[name][: len(leaf)], leaf), name
    return {name for name in before if before[name].tobytes() != after[name].tobytes()}, before


@pytest.mark.nightly
def test_finetune_leaves_frozen_parameters_unchanged(
    deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen: dict[str, Any] = {"freeze_embeddings": True, "freeze_layers": 1}
    trained, before = trained_names(deep, tmp_path, monkeypatch, **frozen)
    assert trained == {n for n in before if n.startswith("transformer.h.1.")} | {"score.kernel"}


def test_finetune_lora_trains_only_adapters_and_head(
    deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = ("c_attn", "mlp.c_fc")
    trained, _ = trained_names(
        deep, tmp_path, monkeypatch, lora_rank=2, lora_targets=targets, lora_alpha=4.0
    )
    layers = ("attn.c_attn", "mlp.c_fc")
    adapted = {f"transformer.h.{i}.{layer}.kernel" for i in range(2) for layer in layers}
    assert trained == adapted | {"score.kernel"}
    adapter = json.loads((tmp_path / "end" / "run" / "adapter" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"]) == (2, 4.0)
    assert adapter["target_modules"] == list(targets)
    assert adapter["base_model_name_or_path"] == str(deep)
    tokenizer = gpt1.Tokenizer.from_pretrained(tmp_path / "end" / "run" / "adapter")
    assert tokenizer.extra_special_tokens == list(NEW)


@pytest.mark.nightly
def test_finetune_names_a_base_that_peft_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "train", save_unchanged)
    demo: Any = "demo"
    _, out = run(demo, tmp_path, "classification", validates=False, lora_rank=1)
    adapter = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert (Path(adapter["base_model_name_or_path"]) / "config.json").is_file()


# What the settings do.


DEFAULT: dict[str, Any] = {"epochs": 0.5, "dropout": 0.1, "validates": False}


@pytest.fixture(scope="module")
def prepared(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Prepared]:
    """Prepare a run with some settings changed."""

    def prepared_with(**change: Any) -> Prepared:
        folder, fields = tmp_path_factory.mktemp("prepared"), {**DEFAULT, **change}
        return prepare(lambda: run(base, folder, "classification", **fields))

    return prepared_with


@pytest.fixture(scope="module")
def prepared_by_default(prepared: Callable[..., Prepared]) -> Prepared:
    return prepared()


@pytest.mark.parametrize(
    "change",
    [
        {"lm_weight": 0.0},
        {"label_smoothing": 0.1},
        {"class_weights": {"is bad": 3.0, "is good": 1.0}},
        {"dropout": 0.2},
        {"embedding_dropout": "tables"},
        {"max_tokens": 2},
        {"dtype": "bfloat16"},
        {"seed": 1},
        {"batch_size": 16},
    ],
    ids=lambda change: "-".join(map(str, *change.items())),
)
def test_finetune_loss_settings_change_first_loss(
    prepared: Callable[..., Prepared], prepared_by_default: Prepared, change: dict[str, Any]
) -> None:
    changed = prepared(**change)
    assert changed.first_loss != prepared_by_default.first_loss
    assert changed.dtypes == {"float32"}
    assert changed.updates == prepared_by_default.updates


def test_finetune_of_weights_in_bfloat16_trains_float32(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = gpt1.OpenAIGPTLMHeadModel
    half = shutil.copytree(base, tmp_path / "half")
    cls.from_pretrained(base, dtype="bfloat16").save_pretrained(half)
    monkeypatch.setattr(loop, "train", save_unchanged)
    _, out = run(half, tmp_path, "classification", dtype="bfloat16")
    started = params_of(out)
    assert {leaf.dtype.name for leaf in started.values()} == {"float32"}
    for name, leaf in params_of(half).items():
        assert leaf.dtype.name == "bfloat16"
        np.testing.assert_array_equal(started[name][: len(leaf)], leaf.astype(np.float32))


def test_finetune_seed_changes_weights_and_order(
    prepared: Callable[..., Prepared], prepared_by_default: Prepared
) -> None:
    changed = prepared(seed=1)
    assert changed.batch != prepared_by_default.batch
    assert changed.weights != prepared_by_default.weights


def test_finetune_equal_settings_give_equal_runs(
    prepared: Callable[..., Prepared], prepared_by_default: Prepared
) -> None:
    assert prepared() == prepared_by_default


def test_finetune_takes_rows_in_memory(
    base: Path, tmp_path: Path, prepared_by_default: Prepared
) -> None:
    rows: Any = rows_of("classification")

    def start() -> None:
        finetune("classification", rows, rows[:9], tmp_path / "run", base, epochs=0.5, dropout=0.1)

    for _ in range(2):  # begun, and resumed
        assert prepare(start) == prepared_by_default
    rows[-1]["text"] = "the cat was changed"
    with pytest.raises(
        ValueError, match=r"other settings(.|\n)*train_content: \w+ there, \w+ now$"
    ):
        start()


def test_finetune_epochs_set_number_of_steps(
    prepared: Callable[..., Prepared], prepared_by_default: Prepared
) -> None:
    assert prepared_by_default.steps == 3  # of 48 rows in batches of 8
    assert prepared(epochs=1.5).steps == 9
    assert prepared(epochs=1, number=10, batch_size=32).steps == 1
    by_default = FinetuneSettings.epochs
    assert prepared(epochs=by_default, steps=7).steps == 7
    assert prepared(epochs=1, train_rows=10).steps == 2
    assert prepared(epochs=1, valid_share=0.25, train_rows=17).steps == 3


def test_finetune_validates_on_a_share_of_the_rows(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields: dict[str, Any] = {"validates": False, "number": 40, "valid_share": 0.1, "steps": 6}
    fields |= {"train_rows": 30, "eval_every": 3, "metric": "loss", "epochs": 3.0}
    progress, out = run(base, tmp_path, "classification", **fields)
    told = capsys.readouterr().err
    assert "to train on: 30 rows, 2 classes: " in told
    assert "to validate on: 4 rows, 2 classes: is bad (2), is good (2)\n" in told
    assert "the rows to validate on are 0.1 of all" in told
    assert "the rows to train on are drawn from 36 by" in told
    summary = json.loads((out / "run.json").read_text())["summary"]
    assert (summary["valid"]["rows"], summary["steps"]) == (4, 6)
    measured = [r for r in read_log(out / "log.jsonl") if "valid_loss" in r]
    assert [record["step"] for record in measured] == [3, 6]
    assert progress.best is not None
    assert progress.best["loss"] == min(record["valid_loss"] for record in measured)
    # The rows are those that the seed takes out.
    rows = read_rows(tmp_path / "train.jsonl", {"text": "text", "label": "label"})
    _, taken = take_out(rows, 0.1, 0, by_label=True)
    model = gpt1.OpenAIGPTForSequenceClassification.from_pretrained(out)
    task, _ = read_task(out, gpt1.Tokenizer.from_pretrained(out), model.config.n_positions)
    found = task_measures(model, task, taken)(split(model)[1])
    assert found == pytest.approx(progress.best, rel=1e-5)
    assert run(base, tmp_path, "classification", **fields)[0] == progress  # the same when resumed


@pytest.mark.nightly
def test_finetune_trains_on_a_set_below_one_batch(base: Path, tmp_path: Path) -> None:
    """By the paper's schedule, whose first step has the rate 0."""
    fields: dict[str, Any] = {"batch_size": 32, "schedule": "linear", "warmup": 0.002}
    fields |= {"validates": False, "number": 10}
    _, out = run(base, tmp_path, "classification", **fields, epochs=3)
    records = read_log(out / "log.jsonl")
    assert [record["learning_rate"] > 0 for record in records] == [False, True, True]
    before, after = params_of(base), params_of(out)
    name = "transformer.h.0.mlp.c_fc.kernel"
    assert np.abs(after[name] - before[name]).max() > 1e-3
    for record in records:
        parts = record["task_loss"] + 0.5 * record["lm_loss"]
        assert record["loss"] == pytest.approx(parts, rel=1e-6)
    losses = [record["loss"] for record in records]
    assert losses[0] == pytest.approx(losses[1])  # the same rows in another order
    assert losses[2] < losses[1] - 1e-3
    with pytest.raises(ValueError, match="a single step, whose learning rate is 0"):
        run(base, tmp_path / "single", "classification", **fields, epochs=1)


@pytest.mark.nightly
def test_finetune_makes_a_run_that_has_ended_longer(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a schedule that stays as it is, it is the run that was as long from the beginning."""
    fields: dict[str, Any] = {"validates": False, "number": 12, "dropout": 0.1}
    run(base, tmp_path / "two", "classification", epochs=1, **fields)
    capsys.readouterr()
    moved = (tmp_path / "two").rename(tmp_path / "moved")  # with its training set
    _, longer = run(base, moved, "classification", epochs=3, log_every=2, **fields)
    told = capsys.readouterr().err
    assert "a run of 2 steps that has ended is made longer: it goes on from its last" in told
    assert "by the new schedule, whose learning rate is 0.003 there\n6 steps, 2 an epoch" in told
    _, whole = run(base, tmp_path / "whole", "classification", epochs=3, **fields)
    name = "model.safetensors"
    assert (longer / name).read_bytes() == (whole / name).read_bytes()
    summary = json.loads((longer / "run.json").read_text())["summary"]
    assert summary["goes_on_from"] == {"step": 2, "learning_rate": pytest.approx(0.003)}
    run(base, moved, "classification", epochs=3, log_every=2, **fields)
    assert "made longer" not in capsys.readouterr().err


@pytest.mark.nightly
@pytest.mark.parametrize("change", [{"remat": "all"}, {"accumulate": 4}])
def test_finetune_memory_settings_keep_the_result(
    base: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    # The second step has 3 rows, and its last two micro-batches none.
    fields: dict[str, Any] = {"number": 11, "epochs": 1, "validates": False}
    _, plain = run(base, tmp_path / "plain", "entailment", **fields)
    _, changed = run(base, tmp_path / "changed", "entailment", **fields, **change)
    second = params_of(changed)
    for name, leaf in params_of(plain).items():
        assert difference(leaf, second[name]) < 5e-6, name  # measured: 3e-7


def test_finetune_settings_default_to_the_paper() -> None:
    settings = FinetuneSettings()
    assert (settings.epochs, settings.batch_size, settings.lm_weight) == (3, 32, 0.5)
    assert settings.dropout == 0.1


# What is wrong.

ROWS: Rows = [{"text": "a cat", "label": "x"}, {"text": "a dog", "label": "y"}]


@pytest.mark.parametrize(
    ("task", "rows", "valid", "fields", "message"),
    [
        ("classification", None, ROWS, {}, "train.jsonl"),
        ("classification", [], ROWS, {}, "train.jsonl holds no rows"),
        ("classification", ROWS[:1], ROWS, {}, "train.jsonl, line 1: the label 'x' is the only"),
        ("classification", ROWS, None, {}, "valid.jsonl"),
        ("classification", ROWS, [], {}, "valid.jsonl holds no rows"),
        (
            "classification",
            ROWS,
            [*ROWS, {"text": "a", "label": "z"}],
            {},
            "valid.jsonl, line 3: the label 'z' is not one of x, y",
        ),
        ("classification", ROWS, [{"text": "a"}], {}, "valid.jsonl, line 1: there is no column 'l"),
        ("classification", [{"text": "a", "label": ""}], ROWS, {}, "line 1: 'label' is empty"),
        ("classification", ROWS, ROWS, {"columns": {"text": "body"}}, "no column 'body'"),
        ("classification", ROWS, ROWS, {"columns": {"body": "text"}}, "has no 'body': it reads te"),
        ("classification", ROWS, ROWS, {"choices": ("a", "b")}, "classification has no choices"),
        ("multiple-choice", ROWS, ROWS, {}, "needs the columns of at least 2 choices, not 0"),
        ("regression", ROWS, ROWS, {}, "train.jsonl, line 1: the label 'x' must be a number"),
        (
            "classification",
            [{"text": "a cat", "label": i / 4} for i in range(9)],
            ROWS,
            {},
            r"train\.jsonl: the labels are numbers, 9 different .*--task regression",
        ),
        (
            "regression",
            [{"text": "a", "label": 1}],
            [{"text": "a", "label": 1}],
            {"label_smoothing": 0.1},
            "0.1, but needs one class or ch",
        ),
        ("classification", ROWS, ROWS, {"valid_share": 0.5}, "valid_share is 0.5, but valid is gi"),
        ("classification", ROWS, ROWS, {"valid_share": 1}, "must be above 0 and below 1, or None"),
        ("entailment", [], ROWS, {"multi_label": True}, "multi_label is for classification, but"),
        ("classification", ROWS, ROWS, {"label_separator": "+"}, "label_separator has no effect"),
        (
            "classification",
            [{"text": "a", "label": []}],
            ROWS,
            {"multi_label": True},
            "train.jsonl, line 1: neither this row nor another one has a label",
        ),
        (
            "classification",
            ROWS,
            [{"text": "a", "label": ["x", "z"]}],
            {"multi_label": True},
            "valid.jsonl, line 1: the label 'z' is not one of x, y",
        ),
        (
            "classification",
            ROWS,
            ROWS,
            {"multi_label": True, "class_weights": "balanced"},
            "of rows with one class each, but a classification here predicts labels",
        ),
        (
            "classification",
            ROWS,
            ROWS,
            {"multi_label": True, "label_smoothing": 0.1},
            "one class or choice a row, and this classification predicts labels",
        ),
        ("classification", ROWS, ROWS, {"train_rows": 3}, "train_rows is 3, but there are 2 rows"),
        ("classification", ROWS, ROWS, {"epochs": 2, "steps": 9}, "steps is 9 and epochs 2: give"),
        ("classification", ROWS, ROWS, {"label_smoothing": 1}, r"must be in \[0, 1\)"),
        (
            "classification",
            ROWS,
            ROWS,
            {"class_weights": {"x": 1}},
            r"each of \['x', 'y'\], not for",
        ),
        ("classification", ROWS, ROWS, {"class_weights": "even"}, r"not for 'even'"),
        (
            "classification",
            ROWS,
            ROWS,
            {"class_weights": {"x": 1, "y": 0}},
            "weight of 'y' is 0, but must be a number above 0",
        ),
        ("classification", ROWS, ROWS, {"metric": "pearson"}, "measured by accuracy, f1, macro_f1"),
        (
            "classification",
            ROWS,
            ROWS,
            {"numbers": True},
            "numbers is for similarity",
        ),
        ("classification", ROWS, ROWS, {"max_tokens": 99}, r"max_tokens is 99, .* in \[1, 30\]"),
        ("classification", ROWS, ROWS, {"epochs": 0}, "epochs is 0, but must be a number above 0"),
        ("classification", ROWS, ROWS, {"lm_weight": -1}, "lm_weight is -1, but must be a number"),
        ("classification", ROWS, ROWS, {"freeze_layers": 2}, "2 layers cannot be frozen"),
        ("classification", ROWS, ROWS, {"lora_rank": 0}, "lora_rank is 0, but must be at least 1"),
        (
            "classification",
            ROWS,
            ROWS,
            {"lora_rank": 1, "freeze_layers": 1},
            "lora_rank trains adapters alone",
        ),
        ("classification", ROWS, ROWS, {"lora_alpha": 2.0}, "lora_alpha has no effect without"),
        (
            "classification",
            ROWS,
            ROWS,
            {"lora_targets": ("c_fc",)},
            "lora_targets has no effect without",
        ),
        (
            "classification",
            ROWS,
            ROWS,
            {"lora_rank": 1, "lora_targets": ("q",)},
            "target_modules has 'q', but the linear layers are attn.c_attn",
        ),
        ("classification", ROWS, ROWS, {"warmup": 9}, "warmup is 9 steps, but must be at most"),
        ("classification", ROWS, ROWS, {"accumulate": 3}, "a multiple of accumulate = 3"),
        ("classification", ROWS, ROWS, {"model": "./nowhere"}, "no folder './nowhere'"),
        (
            "classification",
            ROWS,
            ROWS,
            {"model": "NARROW"},
            "94 tokens, but the model's vocab_size",
        ),
        ("classification", ROWS, ROWS, {"model": "UNTIED"}, "tie_word_embeddings is False, but"),
    ],
)
def test_finetune_rejects_bad_input_before_training(
    base: Path,
    tmp_path: Path,
    task: str,
    rows: Rows | None,
    valid: Rows | None,
    fields: dict[str, Any],
    message: str,
) -> None:
    train_file, valid_file, out = (tmp_path / n for n in ("train.jsonl", "valid.jsonl", "run"))
    for file, content in ((train_file, rows), (valid_file, valid)):
        if content is not None:
            write_rows(file, content)
    changed = {"NARROW": {"vocab_size": 80}, "UNTIED": {"tie_word_embeddings": False}}
    model: Any = fields.get("model", base)
    if model in changed:
        model = write_checkpoint(tmp_path / "model", **changed[model])
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        finetune(task, train_file, valid_file, out, **{**fields, "model": model})
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_finetune_patience_requires_validation_set(base: Path, tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", ROWS)
    for fields in ({"patience": 2}, {"metric": "f1"}):
        with pytest.raises(ValueError, match=r"is (2|'f1'), but needs a validation set"):
            finetune("classification", train, None, tmp_path / "run", base, **fields)


TASK = (
    '{"name": "classification", "classes": ["0", "1"], "choices": 0, "max_tokens": 32, '
    '"columns": {"text": "x", "label": "y"}}'
)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "content",
    [
        *("[]", "{", "{}", '{"name": "sorting", "columns": {}, "classes": null, "choices": 0}'),
        TASK.replace("32", '"32"'),
        TASK.replace("32", "32.0"),
        TASK.replace('["0", "1"]', '"01"'),
        TASK.replace('["0", "1"]', "[0, 1]"),
        TASK.replace('"label": "y"', '"label": 1'),
        TASK.replace('"label"', '"place"'),
        TASK.replace('"choices": 0', '"choices": false'),
        TASK.replace('"choices": 0', '"choices": 0, "quoting": "excel"'),
    ],
)
def test_read_task_rejects_invalid_file(base: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "task.json").write_text(content)
    with pytest.raises(ValueError, match=r"task\.json describes no task"):
        read_task(tmp_path, gpt1.Tokenizer.from_pretrained(base), 34)


def test_read_task_reads_what_a_run_writes(base: Path, tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text(TASK)
    task, columns = read_task(tmp_path, gpt1.Tokenizer.from_pretrained(base), 34)
    assert (task.name, task.classes, task.max_tokens) == ("classification", ("0", "1"), 32)
    assert columns == {"text": "x", "label": "y"}
    assert read_quoting(tmp_path) is None


def test_finetune_similarity_rejects_scores_as_classes(base: Path, tmp_path: Path) -> None:
    rows = [{**row, "label": 3.8} for row in rows_of("similarity", 4)]
    train = write_rows(tmp_path / "train.csv", [*rows_of("similarity", 4), *rows])
    message = r"train\.csv, line 6: the label '3\.8' is a number, not a class: pass numbers=True"
    with pytest.raises(ValueError, match=message):
        finetune("similarity", train, None, tmp_path / "run", base)
    assert not (tmp_path / "run").exists()


@pytest.mark.nightly
def test_finetune_rejects_changed_base_on_resume(tmp_path: Path) -> None:
    """What is frozen is in no checkpoint, so the base has to be what it was."""
    model = write_checkpoint(tmp_path / "model")
    fields: dict[str, Any] = {"validates": False, "epochs": 1, "lora_rank": 2}
    run(model, tmp_path, "classification", **fields)
    write_checkpoint(tmp_path / "model", n_embd=8)
    with pytest.raises(ValueError, match=r"run with other settings(.|\n)*model_content"):
        run(model, tmp_path, "classification", **fields)
