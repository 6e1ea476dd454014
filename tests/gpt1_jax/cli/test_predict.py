"""``gpt1 predict`` on fine-tuned models of random weights."""

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.small_training import write_checkpoint, write_rows, write_task_checkpoint

import gpt1_jax as gpt1

Run = Callable[..., tuple[int, str, str]]
TEXTS = ["the king saw a cat", "no", "a big dog ran to the red house"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier") / "model"
    return write_task_checkpoint(folder, "classification", classes=("neg", "pos"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / "model"
    return write_task_checkpoint(folder, "entailment", classes=("no", "yes"))


@pytest.fixture(scope="module")
def expected(classifier: Path) -> list[dict[str, Any]]:
    return gpt1.predict(classifier, TEXTS)


def objects(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def scores(records: list[dict[str, Any]]) -> list[Any]:
    return [pytest.approx(list(record["scores"].values()), abs=1e-6) for record in records]


@pytest.mark.nightly
def test_cli_predict_prints_an_object_a_text(
    run: Run, classifier: Path, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    lines = tmp_path / "texts.txt"
    lines.write_text("\n\n".join(TEXTS[1:]))
    status, out, _ = run("predict", TEXTS[0], lines, "--model", classifier)
    assert status == 0
    found = objects(out)
    assert [list(one) for one in found] == [["text", "label", "score", "scores"]] * 3
    assert [list(one["scores"].values()) for one in found] == scores(expected)
    status, out, _ = run("predict", lines, "--model", classifier, "--text")
    assert (status, [one["text"] for one in objects(out)]) == (0, [str(lines)])


def test_cli_predict_reads_files_of_rows_and_keeps_their_keys(
    run: Run, classifier: Path, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    rows = [{"id": i, "body": text, "label": "pos"} for i, text in enumerate(TEXTS)]
    keys = ["id", "body", "true_label", "label", "score", "scores"]
    for suffix in (".jsonl", ".csv", ".tsv"):
        file = write_rows(tmp_path / f"rows{suffix}", rows)
        out = tmp_path / "found.json"
        status, *_ = run(
            "predict", file, "--model", classifier, "--columns", "text=body", "--out", out
        )
        assert status == 0
        found = json.loads(out.read_text())
        assert [list(one) for one in found] == [keys] * 3
        assert [one["true_label"] for one in found] == ["pos"] * 3
        assert [list(one["scores"].values()) for one in found] == scores(expected)


def test_cli_predict_reads_other_kinds_of_files_as_the_training_did(
    run: Run, classifier: Path, tmp_path: Path
) -> None:
    quoted, json_list = tmp_path / "rows.tsv", tmp_path / "rows.json"
    quoted.write_text('id\ttext\n1\t"a cat\n')
    json_list.write_text('[{"text": "a cat", "id": 2}]')
    status, out, _ = run("predict", quoted, json_list, "--model", classifier)
    assert (status, [one["text"] for one in objects(out)]) == (0, ['"a cat', "a cat"])
    assert (
        "rows.tsv, line 2" in run("predict", quoted, "--model", classifier, "--quoting", "csv")[2]
    )


def test_cli_predict_keeps_the_columns_of_parquet(
    run: Run, classifier: Path, tmp_path: Path
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = tmp_path / "rows.parquet"
    rows = [{"id": 3, "text": "a cat"}]
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), table)
    (found,) = objects(run("predict", table, "--model", classifier)[1])
    assert list(found) == ["id", "text", "label", "score", "scores"]


def test_cli_predict_reads_standard_input(
    run: Run, classifier: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(content: str, model: Path) -> tuple[int, str, str]:
        stdin = SimpleNamespace(buffer=io.BytesIO(content.encode()))
        monkeypatch.setattr(sys, "stdin", stdin)
        return run("predict", "-", "--model", model)

    by_lines = objects(answers("\n".join(TEXTS), classifier)[1])
    by_rows = objects(answers("\n".join(json.dumps({"text": t}) for t in TEXTS), classifier)[1])
    assert by_lines == by_rows
    (found,) = objects(answers('{"premise": "a cat", "hypothesis": "no"}', pairs)[1])
    assert found["label"] in ("no", "yes")
    status, _, err = answers("a cat", pairs)
    message = "standard input, line 1 is a text, but entailment needs an object with premise, hypo"
    assert (status, message in err) == (2, True)
    assert answers("\n", classifier)[2] == "gpt1: standard input holds no rows\n"


def test_cli_predict_writes_tables_and_columns(run: Run, classifier: Path) -> None:
    status, out, _ = run("predict", *TEXTS, "--model", classifier, "--output-format", "table")
    lines = out.splitlines()
    assert (status, lines[0].split(), len(lines)) == (0, ["text", "label", "score"], 4)
    status, out, _ = run("predict", *TEXTS, "--model", classifier, "--output-format", "csv")
    first, *_ = csv.DictReader(io.StringIO(out))
    assert (status, first["text"]) == (0, TEXTS[0])
    assert json.loads(first["scores"])[first["label"]] == float(first["score"])


@pytest.mark.nightly
def test_cli_predict_computes_in_bfloat16_and_int8(
    run: Run, classifier: Path, expected: list[dict[str, Any]]
) -> None:
    for flags in (("--dtype", "bfloat16"), ("--quantize", "int8")):
        status, out, _ = run("predict", *TEXTS, "--model", classifier, *flags)
        found = [list(one["scores"].values()) for one in objects(out)]
        assert status == 0
        assert found != [list(one["scores"].values()) for one in expected]
        for own, one in zip(found, expected, strict=True):
            assert own == pytest.approx(list(one["scores"].values()), abs=0.05)


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ('{"body": "a"}', [], "line 1: there is no column 'text'; the columns are 'body'"),
        ('{"text": " "}', [], "line 1: 'text' is empty"),
        ("[1]", [], "line 1 is no JSON object"),
        ('{"text": "a", "score": 1}', [], "line 1: the output has its own ['score']: rename"),
        ("", [], "rows.jsonl holds no rows"),
        ('{"text": "a"}', ["--columns", "body=a"], "classification has no 'body': it reads text,"),
        ('{"text": "a"}', ["--columns", "body"], "--columns body: must be ROLE=NAME"),
        ('{"text": "a"}', ["--task", "regression"], "was trained for classification"),
        ('{"text": "a"}', ["--batch-size", "0"], "batch_size is 0, but must be at least 1"),
    ],
)
def test_cli_predict_rejects_bad_input(
    run: Run, classifier: Path, tmp_path: Path, content: str, flags: list[str], message: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(content)
    status, out, err = run("predict", file, "--model", classifier, *flags)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_cli_predict_refuses_a_missing_file_and_a_language_model(
    run: Run, classifier: Path, tmp_path: Path
) -> None:
    status, _, err = run("predict", "missing.csv", "--model", classifier)
    assert (status, err) == (2, "gpt1: there is no file missing.csv; --text reads it as a text\n")
    lm = write_checkpoint(tmp_path / "lm")
    status, _, err = run("predict", "a text", "--model", lm)
    assert status == 2
    assert err == (
        f"gpt1: {lm} is a language model (OpenAIGPTLMHeadModel), which predicts no labels: gpt1 "
        "finetune trains it for a task\n"
    )
    assert run("predict", "--model", classifier)[2].startswith("gpt1: give at least one text")


# What ``gpt1 evaluate`` writes of its predictions.


@pytest.mark.nightly
def test_cli_evaluate_writes_predictions_report_and_confusion_matrix(
    run: Run, classifier: Path, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    labels = [expected[0]["label"], "pos", "neg"]
    rows = [{"text": text, "label": name} for text, name in zip(TEXTS, labels, strict=True)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    evaluate = ("evaluate", file, "--model", classifier)
    _, plain, _ = run(*evaluate, "--output-format", "jsonl")
    out, picture = tmp_path / "found.csv", tmp_path / "matrix.png"
    flags = ("--predictions", out, "--report", "--confusion-matrix", picture)
    status, text, _ = run(*evaluate, *flags)
    assert status == 0
    with out.open(newline="") as lines:
        found = list(csv.DictReader(lines))
    assert list(found[0]) == ["text", "true_label", "label", "score", "scores"]
    assert [own["label"] for own in found] == [own["label"] for own in expected]
    right = sum(own["label"] == own["true_label"] for own in found)
    assert json.loads(plain)["accuracy"] == pytest.approx(right / 3)
    heading, *table = text.splitlines()
    assert heading.startswith(f"{file}: loss ")
    assert table[0].split() == ["precision", "recall", "f1-score", "support"]
    assert [line.split()[0] for line in table[2:4]] == ["neg", "pos"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    status, text, _ = run(*evaluate, "--report", "--output-format", "jsonl")
    record = json.loads(text)
    report = record.pop("report")
    assert (status, record) == (0, json.loads(plain))
    assert report["pos"]["support"] == labels.count("pos")
    assert report["accuracy"] == pytest.approx(record["accuracy"])


def test_cli_evaluate_refuses_predictions_of_what_has_none(
    run: Run, classifier: Path, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"text": "a", "label": "pos", "score": 1}])
    out = ("--predictions", tmp_path / "found.jsonl")
    evaluate = ("evaluate", file, "--model", classifier, *out)
    assert "line 1: the output has its own ['score']: rename" in run(*evaluate)[2]
    assert run("evaluate", file, *evaluate[1:])[2] == (
        "gpt1: --predictions needs a single labelled set, not 2 files\n"
    )
    assert "--stride has no effect on labelled sets" in run(*evaluate, "--stride", 4)[2]
    status, _, err = run("evaluate", file, "--model", "demo", *out)
    assert (status, err) == (
        2,
        "gpt1: demo is not fine-tuned for a labelled set: it has no task.json\n",
    )
