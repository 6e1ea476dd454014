"""What a checkpoint is said to be worth is what its outputs say, counted by hand."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from support.small_models import spoil
from support.small_training import (
    finetune,
    save_unchanged,
    words,
    write_checkpoint,
    write_rows,
    write_task_checkpoint,
    write_text,
)

import gpt1_jax as gpt1
from gpt1_jax.training import loop
from gpt1_jax.training.data.corpus import load_tokens
from gpt1_jax.training.evaluate import evaluate, evaluate_labelled
from gpt1_jax.training.perplexity import text_measures

ROWS: list[dict[str, Any]] = [
    {"body": "the king saw a cat", "class": "b"},
    {"body": "a big dog", "class": "a"},
    {"body": "the queen ran to the red house on the hill", "class": "b"},
    {"body": "no", "class": "c"},
    {"body": "a cat sat", "class": "a"},
]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def classifier(language_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What fine-tuning would begin with, as it would be saved."""
    folder = tmp_path_factory.mktemp("classifier")
    train = write_rows(folder / "train.csv", ROWS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train", save_unchanged)
        finetune(
            "classification",
            train,
            None,
            folder / "run",
            language_model,
            columns={"text": "body", "label": "class"},
        )
    return folder / "run"


@pytest.mark.nightly
def test_evaluate_measures_text_in_overlapping_windows(
    language_model: Path, tmp_path: Path
) -> None:
    texts = [write_text(tmp_path / f"{i}.txt", lines=8, seed=i) for i in range(2)]
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(language_model)
    tokenizer = gpt1.Tokenizer.from_pretrained(language_model)
    given: list[tuple[dict[str, Any], int]] = [({}, 16), ({"stride": 32, "batch_size": 3}, 32)]
    for fields, stride in given:
        found = list(evaluate(language_model, texts, **fields))
        assert [name for name, _ in found] == list(map(str, texts))
        for text, (_, measures) in zip(texts, found, strict=True):
            tokens = load_tokens([text], tokenizer, tmp_path / "cache")
            expected = text_measures(model, tokens, stride=stride)(model.params)
            assert measures == pytest.approx(expected, rel=1e-6)  # batches of another size
            assert measures["perplexity"] == pytest.approx(math.exp(measures["loss"]))


def test_evaluate_measures_the_texts_of_json_lines(language_model: Path, tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt", lines=8)
    lines = text.read_text().splitlines()
    rows = write_rows(tmp_path / "text.jsonl", [{"id": i, "text": x} for i, x in enumerate(lines)])
    (_, one), (_, other) = evaluate(language_model, [text, rows])
    assert one == other


def test_evaluate_measures_the_model_in_the_dtype_asked_for(
    language_model: Path, tmp_path: Path
) -> None:
    text = write_text(tmp_path / "text.txt", lines=8)
    tokens = load_tokens([text], gpt1.Tokenizer.from_pretrained(language_model), tmp_path)
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(language_model, dtype="bfloat16")
    expected = text_measures(model, tokens, stride=16)(model.params)
    found = dict(evaluate(language_model, [text], dtype="bfloat16"))[str(text)]
    assert found == expected
    assert found["loss"] != dict(evaluate(language_model, [text]))[str(text)]["loss"]


@pytest.mark.nightly
def test_evaluate_measures_labelled_sets(classifier: Path, tmp_path: Path) -> None:
    model = gpt1.OpenAIGPTForSequenceClassification.from_pretrained(classifier)
    tokenizer = gpt1.Tokenizer.from_pretrained(classifier)
    apply, params = gpt1.functional(model)
    names, files, expected = ("a", "b", "c"), [], []
    for i, rows in enumerate((ROWS, ROWS[2:4])):
        files.append(write_rows(tmp_path / f"{i}.jsonl", rows))
        right, loss = [], []
        for row in rows:
            ids = tokenizer.encode(row["body"])  # which has the tokens of the task
            logits = np.asarray(apply(params, np.array([ids], np.int32)).logits)
            right.append(names[logits[0].argmax()] == row["class"])
            loss.append(-jax.nn.log_softmax(logits[0])[names.index(row["class"])])
        expected.append((np.mean(right), np.mean(loss)))
    for batch_size in (2, 32):
        found = list(evaluate(classifier, files, batch_size=batch_size))
        assert [name for name, _ in found] == list(map(str, files))
        for (_, measures), (accuracy, loss) in zip(found, expected, strict=True):
            assert measures["accuracy"] == pytest.approx(accuracy)
            assert measures["loss"] == pytest.approx(loss, rel=1e-5)
            assert measures.keys() == {"loss", "accuracy", "macro_f1", "matthews"}
    assert 0 < expected[0][0] < 1


@pytest.mark.parametrize(
    "name",
    ["entailment", "regression", pytest.param("multiple-choice", marks=pytest.mark.nightly)],
)
def test_evaluate_labelled_metrics_are_those_of_its_predictions(name: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"entailment": {"classes": ("0", "1", "2")}}.get(name, {})
    fields = {"choices": 2} if name == "multiple-choice" else fields
    folder = write_task_checkpoint(tmp_path / "model", name, **fields)
    texts = {"regression": ("text",), "entailment": ("premise", "hypothesis")}
    columns = texts.get(name, ("context", "choice0", "choice1"))
    rng = np.random.default_rng(0)
    rows = [
        {"label": i % 2} | {column: " ".join(words(rng, 1 + i % 3)) for column in columns}
        for i in range(9)
    ]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    ((_, expected),) = evaluate(folder, [file])
    (found,) = evaluate_labelled(folder, [file], predictions=True)
    assert found.measures == expected
    labels = np.array([own["true_label"] for own in found.predictions], np.float32)
    if name == "regression":
        scores = np.array([own["score"] for own in found.predictions], np.float32)
        assert expected["loss"] == pytest.approx(np.mean((scores - labels) ** 2), rel=1e-5)
        assert expected["pearson"] == pytest.approx(np.corrcoef(scores, labels)[0, 1], rel=1e-5)
        assert found.names is None
    else:
        given = [own["true_label"] for own in found.predictions]
        assert given == [str(i % 2) if name == "entailment" else i % 2 for i in range(9)]
        right = [own["label"] == own["true_label"] for own in found.predictions]
        assert expected["accuracy"] == pytest.approx(np.mean(right))
        assert found.names == (["0", "1", "2"] if name == "entailment" else ["0", "1"])
        scores = [own["scores"][own["true_label"]] for own in found.predictions]
        assert expected["loss"] == pytest.approx(-np.mean(np.log(scores)), rel=1e-4)
    unlabelled = [{key: row[key] for key in columns} for row in rows]
    for own, one in zip(found.predictions, gpt1.predict(folder, unlabelled), strict=True):
        assert next(iter(own)) == "true_label"
        if name == "regression":
            assert own["score"] == pytest.approx(one["score"], abs=1e-5)
        else:
            assert own["label"] == one["label"]
    if name == "regression":
        with pytest.raises(ValueError, match="predicts numbers, which are no classes"):
            next(evaluate_labelled(folder, [file], by_class=True))


@pytest.mark.filterwarnings("ignore:.* begin and end with a quote")
def test_evaluate_quotes_as_the_training_did(classifier: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.tsv"
    file.write_text('body\tclass\n"a cat sat"\ta\n')
    folder = shutil.copytree(classifier, tmp_path / "model")
    given: list[Any] = ["none", "csv"]
    bare, unquoted = (dict(evaluate(folder, [file], quoting=each)) for each in given)
    assert bare != unquoted
    assert dict(evaluate(folder, [file])) == bare
    task = folder / "task.json"
    task.write_text(task.read_text().replace('"quoting": null', '"quoting": "csv"'))
    assert dict(evaluate(folder, [file])) == unquoted


def test_evaluate_leaves_out_rows_without_gold_label(classifier: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(classifier, tmp_path / "model")
    columns = {"premise": "p", "hypothesis": "h", "label": "l"}
    task = {"name": "entailment", "classes": ["0", "1", "2"], "choices": 0, "columns": columns}
    (folder / "task.json").write_text(json.dumps(task))
    rows = [{"p": "a cat", "h": "a dog", "l": label} for label in [-1, *[0, 1] * 10]]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.warns(UserWarning, match="1 of 21 rows are left out for their label -1"):
        (found,) = evaluate_labelled(folder, [file], predictions=True)
    assert [own["true_label"] for own in found.predictions] == ["0", "1"] * 10


@pytest.mark.nightly
def test_evaluate_names_a_parameter_that_is_not_finite(
    language_model: Path, classifier: Path, tmp_path: Path
) -> None:
    text, rows = write_text(tmp_path / "text.txt"), write_rows(tmp_path / "rows.jsonl", ROWS)
    kinds = gpt1.OpenAIGPTLMHeadModel, gpt1.OpenAIGPTForSequenceClassification
    for folder, file, cls in zip((language_model, classifier), (text, rows), kinds, strict=True):
        spoiled = tmp_path / cls.__name__
        shutil.copytree(folder, spoiled)
        model = cls.from_pretrained(folder)
        spoil(model, "transformer.h.0.ln_1.bias")
        model.save_pretrained(spoiled)
        with pytest.raises(ValueError, match=r"not finite, .* transformer\.h\.0\.ln_1\.bias holds"):
            list(evaluate(spoiled, [file]))


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("model", "files", "fields", "message"),
    [
        ("lm", ["text.txt", "nowhere.txt"], {}, "no file nowhere.txt"),
        ("lm", ["text.txt", "empty.txt"], {}, "empty.txt is empty"),
        ("lm", ["text.txt", "letter.txt"], {}, "letter.txt: one token is no text to predict"),
        ("lm", ["text.txt"], {"stride": 0}, r"stride is 0, but must be in \[1, 32\]"),
        ("lm", ["text.txt"], {"stride": 33}, r"stride is 33, but must be in \[1, 32\]"),
        ("lm", ["text.txt"], {"batch_size": 0}, "batch_size is 0, but must be at least 1"),
        ("classifier", ["rows.jsonl"], {"stride": 4}, "labelled sets, which have no stride"),
        ("classifier", ["rows.jsonl", "nowhere.jsonl"], {}, "no file nowhere.jsonl"),
        ("classifier", ["rows.jsonl", "other.jsonl"], {}, "other.jsonl, line 1: there is no colu"),
        ("classifier", ["rows.jsonl", "class.jsonl"], {}, "class.jsonl, line 1: the label 'd' is"),
        ("classifier", ["text.txt"], {}, "text.txt must be a file of one of the kinds .jsonl"),
        ("no task", ["rows.jsonl"], {}, "a classification without task.json"),
        ("narrow", ["text.txt"], {}, "has 94 tokens, but the model's vocab_size is 80"),
        ("./nowhere", ["text.txt"], {}, "no folder './nowhere'"),
    ],
)
def test_evaluate_rejects_bad_input_before_measuring(
    language_model: Path,
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    files: list[str],
    fields: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(Path("text.txt"))
    Path("empty.txt").write_text("")
    Path("letter.txt").write_text("a")
    write_rows(Path("rows.jsonl"), ROWS)
    write_rows(Path("class.jsonl"), [{**ROWS[0], "class": "d"}])
    write_rows(Path("other.jsonl"), [{"text": "a", "label": "a"}])
    folder: Any = {"lm": language_model, "classifier": classifier}.get(model, model)
    if model == "narrow":
        folder = write_checkpoint(tmp_path / "narrow", vocab_size=80)
    if model == "no task":
        folder = write_checkpoint(tmp_path / "plain")
        config = gpt1.OpenAIGPTConfig.from_pretrained(folder)
        gpt1.OpenAIGPTForSequenceClassification(config, rngs=nnx.Rngs(0)).save_pretrained(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        next(evaluate(folder, files, **fields))
    assert "\n" not in str(caught.value)
