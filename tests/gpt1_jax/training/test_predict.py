"""Predictions of every task: against the model's own call, row by row, and what is wrong."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from support.compilations import compilations
from support.small_models import numpy_states, small_model, spoil
from support.small_training import (
    WORDS,
    write_checkpoint,
    write_rows,
    write_task_checkpoint,
)

import conversion
import gpt1_jax as gpt1
from gpt1_jax.training import task_forward
from gpt1_jax.training.data.labelled import LABEL
from gpt1_jax.training.data.tasks import collate
from gpt1_jax.training.evaluate import evaluate
from gpt1_jax.training.predict import Predictor
from gpt1_jax.training.task_file import read_task

Rows = list[dict[str, Any]]


TASKS: dict[str, dict[str, Any]] = {
    "classification": {"classes": ("bad", "good", "so so"), "columns": {"text": "body"}},
    "regression": {},
    "entailment": {"classes": ("no", "yes")},
    "similarity": {"classes": ("0", "1")},
    "multiple-choice": {"choices": 3, "columns": {"context": "story", "question": "asked"}},
}
TEXTS: dict[str, tuple[str, ...]] = {
    "classification": ("body",),
    "regression": ("text",),
    "entailment": ("premise", "hypothesis"),
    "similarity": ("text1", "text2"),
    "multiple-choice": ("story", "asked", "choice0", "choice1", "choice2"),
}


def rows_of(task: str, count: int = 7) -> Rows:
    """Rows of unlike lengths, with a key before the texts and one after them."""
    rng = np.random.default_rng(0)
    words = WORDS.split()
    return [
        {"id": i}
        | {name: " ".join(rng.choice(words, 1 + (3 * i) % 5)) for name in TEXTS[task]}
        | {"extra": None}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @functools.cache
    def folder(task: str) -> Path:
        return write_task_checkpoint(tmp_path_factory.mktemp("task") / "model", task, **TASKS[task])

    return folder


def expected_logits(folder: Path, task: str, rows: Rows) -> list[np.ndarray]:
    """Logits of each row alone in float64, from ids that are put together here."""
    _, params = conversion.read(folder)
    tokenizer = gpt1.Tokenizer.from_pretrained(folder)
    start, delimiter, classify = tokenizer.convert_tokens_to_ids(
        ["_start_", "_delimiter_", "_classify_"]
    )

    def state(*parts: list[int]) -> np.ndarray:
        joined = [id_ for part in parts for id_ in (*part, delimiter)][:-1]
        return numpy_states(params, np.array([[start, *joined, classify]]))[0, -1]

    found = []
    for row in rows:
        ids = [tokenizer.encode(row[name]) for name in TEXTS[task]]
        if task == "multiple-choice":
            head = params["multiple_choice_head"]["summary"]
            states = np.stack([state(ids[0] + ids[1], choice) for choice in ids[2:]])
            found.append((states @ head["kernel"] + head["bias"])[:, 0])
            continue
        both = state(*ids) + state(*reversed(ids)) if task == "similarity" else state(*ids)
        found.append(both @ params["score"]["kernel"])
    return found


@pytest.mark.nightly
@pytest.mark.parametrize("task", TASKS)
def test_predict_returns_the_scores_of_every_task(
    folders: Callable[[str], Path], task: str
) -> None:
    rows = rows_of(task)
    found = gpt1.predict(folders(task), rows, batch_size=4)
    assert len(found) == len(rows)
    classes = TASKS[task].get("classes", ())
    for row, own, logits in zip(
        rows, found, expected_logits(folders(task), task, rows), strict=True
    ):
        keys = {"regression": ["score"], "multiple-choice": ["label", "scores"]}
        assert list(own) == [*row, *keys.get(task, ["label", "score", "scores"])]
        assert {name: own[name] for name in row} == row
        if task == "regression":
            assert own["score"] == pytest.approx(float(logits[0]), abs=1e-5)
            continue
        scores = np.asarray(jax.nn.softmax(logits))
        if task == "multiple-choice":
            assert own["scores"] == pytest.approx(scores, abs=1e-5)
            assert own["label"] == logits.argmax()
        else:
            assert list(own["scores"]) == list(classes)
            assert list(own["scores"].values()) == pytest.approx(scores, abs=1e-5)
            assert own["label"] == classes[logits.argmax()]
            assert own["score"] == own["scores"][own["label"]]
    assert len({str({**own, "id": 0} | dict.fromkeys(TEXTS[task])) for own in found}) == len(rows)
    json.dumps(found)


def test_predict_returns_several_labels(tmp_path: Path) -> None:
    folder = write_task_checkpoint(
        tmp_path / "model",
        "classification",
        classes=("a", "b", "c"),
        problem_type="multi_label_classification",
    )
    rows: Rows = [{"text": row["body"]} for row in rows_of("classification")]
    by_softmax = write_task_checkpoint(tmp_path / "one", "classification", classes=("a", "b", "c"))
    shutil.copy(folder / "model.safetensors", by_softmax)
    found = gpt1.predict(folder, rows)
    for own, one in zip(found, gpt1.predict(by_softmax, rows), strict=True):
        assert list(own) == ["text", "labels", "scores"]
        assert own["labels"] == [name for name, score in own["scores"].items() if score > 0.5]
        odds = {name: score / (1 - score) for name, score in own["scores"].items()}
        total = sum(odds.values())
        softmax = {name: each / total for name, each in odds.items()}
        assert softmax == pytest.approx(one["scores"], abs=1e-4)
    assert {len(own["labels"]) for own in found} > {1}
    labelled = write_rows(tmp_path / "rows.jsonl", [{**row, "label": "a"} for row in rows])
    ((_, measures),) = evaluate(folder, [labelled])
    assert measures["subset_accuracy"] == np.mean([own["labels"] == ["a"] for own in found])


def test_predict_reads_numbers_of_a_similarity(tmp_path: Path) -> None:
    folder = write_task_checkpoint(tmp_path / "model", "similarity")
    rows = rows_of("similarity", 3)
    swapped = [{"text1": row["text2"], "text2": row["text1"]} for row in rows]
    found = [own["score"] for own in gpt1.predict(folder, rows)]
    assert found == pytest.approx([own["score"] for own in gpt1.predict(folder, swapped)], abs=1e-5)
    assert len(set(found)) == 3


def test_predict_takes_texts_and_pairs(folders: Callable[[str], Path]) -> None:
    rows = rows_of("classification", 3)
    found = gpt1.predict(folders("classification"), [row["body"] for row in rows])
    assert [own.keys() - {"label", "score", "scores"} for own in found] == [{"body"}] * 3
    given = gpt1.predict(folders("classification"), rows)
    assert [own["scores"] for own in found] == [own["scores"] for own in given]
    pairs = rows_of("entailment", 3)
    found = gpt1.predict(
        folders("entailment"), [(row["premise"], row["hypothesis"]) for row in pairs]
    )
    assert list(found[0])[:2] == ["premise", "hypothesis"]
    given = gpt1.predict(folders("entailment"), pairs)
    assert [own["scores"] for own in found] == [own["scores"] for own in given]
    assert gpt1.predict(folders("entailment"), []) == []


def test_predict_renames_columns_and_true_labels(folders: Callable[[str], Path]) -> None:
    rows = [{"label": None, "t": "a cat", "n": 1}, {"t": "a dog", "label": "good", "n": 2}]
    found = gpt1.predict(folders("classification"), rows, columns={"text": "t"})
    assert [list(own)[:3] for own in found] == [["true_label", "t", "n"], ["t", "true_label", "n"]]
    assert [own["true_label"] for own in found] == [None, "good"]
    assert found[0]["label"] in TASKS["classification"]["classes"]


@pytest.mark.nightly
def test_predict_takes_a_model_with_its_task(folders: Callable[[str], Path]) -> None:
    folder = folders("multiple-choice")
    rows = rows_of("multiple-choice", 3)
    expected = gpt1.predict(folder, rows)
    tokenizer = gpt1.Tokenizer.from_pretrained(folder)
    model: Any = gpt1.from_pretrained(folder)
    task, columns = read_task(folder, tokenizer, 32)
    del columns[LABEL]
    assert gpt1.predict(model, rows, task=task, columns=columns) == expected
    by_name = gpt1.predict(
        model, rows, tokenizer=tokenizer, task="multiple-choice", columns=columns
    )
    assert by_name == expected


def test_predict_reads_texts_as_the_template_of_another_classifier(tmp_path: Path) -> None:
    """What transformers has trained: no task.json, and a tokenizer without our special tokens."""
    folder = write_checkpoint(tmp_path / "model")
    model = gpt1.OpenAIGPTForSequenceClassification.from_pretrained(
        folder, num_labels=3, pad_token_id=0, rngs=nnx.Rngs(0)
    )
    model.save_pretrained(folder)
    text = "the king saw a cat"
    with pytest.raises(ValueError, match=r"has no task\.json, .*: give the task \(--task\), one"):
        gpt1.predict(folder, [text])
    (found,) = gpt1.predict(folder, [text], task="classification")
    ids = gpt1.Tokenizer.from_pretrained(folder).encode(text)
    apply, params = gpt1.functional(model)
    scores = jax.nn.softmax(apply(params, np.array([ids], np.int32)).logits[0])
    assert list(found["scores"]) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert list(found["scores"].values()) == pytest.approx(np.asarray(scores), abs=1e-5)
    (pair,) = gpt1.predict(folder, [(text, "a dog")], task="entailment")
    assert pair["scores"] != found["scores"]
    with pytest.raises(ValueError, match="similarity needs a tokenizer with _start_, _delimiter_"):
        gpt1.predict(folder, [(text, "a dog")], task="similarity")
    with pytest.raises(ValueError, match="regression needs a model with num_labels = 1, not 3"):
        gpt1.predict(folder, [text], task="regression")


def test_predict_batches_rows_of_like_length(folders: Callable[[str], Path]) -> None:
    folder = folders("regression")
    predictor = Predictor.of_folder(folder, "model")
    model: Any = gpt1.from_pretrained(folder)
    texts = ["a " * n for n in (1, 25, 2, 24, 3, 1)]
    rows = predictor.make_rows([(f"row {i}", {"text": text}) for i, text in enumerate(texts)])
    assert [i for i, _ in predictor.run(model, rows, batch_size=2)] == [1, 3, 4, 2, 0, 5]
    with compilations() as compiled:
        gpt1.predict(folder, texts, batch_size=2)
        gpt1.predict(folder, texts[:2], batch_size=2)
    assert not compiled


def test_predict_shortens_batches_that_spare_enough(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []

    def see(*args: Any, **fields: Any) -> dict[str, np.ndarray]:
        batch = collate(*args, **fields)
        seen.append(batch["input_ids"].shape)
        return batch

    monkeypatch.setattr(task_forward, "collate", see)
    texts = ["a " * n for n in (1, 25, 2, 24, 3, 1)]
    expected = gpt1.predict(folders("regression"), texts, batch_size=2)
    assert seen == [(2, 1, 32)] * 3
    monkeypatch.setattr(task_forward, "COMPILATION", 0)
    found = gpt1.predict(folders("regression"), texts, batch_size=2)
    assert seen[3:] == [(2, 1, 32), (2, 1, 8), (2, 1, 8)]
    for own, one in zip(found, expected, strict=True):
        assert own["score"] == pytest.approx(one["score"], abs=1e-5)


@functools.cache
def reader(folder: Path) -> Predictor:
    return Predictor.of_folder(folder, "model")


LABELS = st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3)


@given(logits=st.lists(LABELS, min_size=1, max_size=4), several=st.booleans())
def test_predictor_interprets_logits(
    folders: Callable[[str], Path], logits: list[list[float]], several: bool
) -> None:
    predictor = reader(folders("classification"))
    task = dataclasses.replace(predictor.task, multi_label=several)
    predictor = dataclasses.replace(predictor, task=task)
    names = TASKS["classification"]["classes"]
    for row, own in zip(logits, predictor.interpret(np.array(logits, np.float32)), strict=True):
        scores = list(own["scores"].values())
        assert all(0 <= score <= 1 for score in scores)
        if several:
            assert own["labels"] == [n for n, x in zip(names, row, strict=True) if x > 0]
        else:
            assert sum(scores) == pytest.approx(1, abs=1e-6)
            assert own["score"] == max(scores)
            assert own["label"] == names[int(np.argmax(np.array(row, np.float32)))]


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        ([{"text": "a"}], {}, r"row 0: there is no column 'body'; the columns are 'text'"),
        (["a", {"body": " "}], {}, "row 1: 'body' is empty"),
        ([""], {}, "row 0: 'body' is empty"),
        ([{"body": 3}], {}, "row 0: 'body' is 3, but must be a string"),
        ([{"body": np.int32(3)}], {}, r"row 0: 'body' is .*3.*, but must be a string"),
        ([3], {}, "row 0 is a int, but must be an object with body"),
        ([("a", "b")], {}, "row 0 is 2 texts, but classification needs an object with body"),
        (["a"], {"columns": {"premise": "a"}}, "classification has no 'premise': it reads text, l"),
        ([{"body": "a", "score": 1}], {}, r"row 0: the output has its own \['score'\]"),
        (["a"], {"task": "entailment"}, "is 'entailment', but .* was trained for classification"),
        (["a"], {"batch_size": 0}, "batch_size is 0, but must be at least 1"),
        (["\u200b"], {}, "row 0: text has no tokens"),
    ],
)
def test_predict_rejects_wrong_rows(
    folders: Callable[[str], Path], rows: list[Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        gpt1.predict(folders("classification"), rows, **fields)
    assert "\n" not in str(caught.value)


def test_predict_rejects_wrong_models(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = folders("classification")
    model: Any = gpt1.from_pretrained(folder)
    lm: Any = small_model(gpt1.OpenAIGPTLMHeadModel)
    tokenizer = gpt1.Tokenizer.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"demo is a language model \(OpenAIGPTLMHeadModel\)"):
        gpt1.predict("demo", ["a"])
    with pytest.raises(TypeError, match="model is a OpenAIGPTLMHeadModel, but must be a fine-tun"):
        gpt1.predict(lm, ["a"])
    with pytest.raises(TypeError, match="a model needs tokenizer= and task="):
        gpt1.predict(model, ["a"], tokenizer=tokenizer)
    with pytest.raises(TypeError, match="tokenizer= has no effect: a folder brings its own"):
        gpt1.predict(folder, ["a"], tokenizer=tokenizer)
    with pytest.raises(TypeError, match="rows is a single row"):
        gpt1.predict(folder, "a")
    frame: Any = SimpleNamespace(iterrows=None)
    with pytest.raises(
        TypeError, match=r'a DataFrame, but must be a list: pass rows\.to_dict\("rec'
    ):
        gpt1.predict(folder, frame)
    unknown: Any = "sentiment"
    with pytest.raises(ValueError, match="the task is 'sentiment', but must be one of"):
        gpt1.predict(model, ["a"], tokenizer=tokenizer, task=unknown)
    with pytest.raises(ValueError, match="multiple-choice needs the columns of the choices"):
        gpt1.predict(model, ["a"], tokenizer=tokenizer, task="multiple-choice")
    spoil(model, "transformer.h.0.ln_1.bias")
    with pytest.raises(ValueError, match=r"not finite, .* transformer\.h\.0\.ln_1\.bias holds"):
        gpt1.predict(model, [{"text": "a"}], tokenizer=tokenizer, task="classification")
