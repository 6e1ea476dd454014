"""``gpt1 score`` on the model that comes along."""

import csv
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpt1_jax.cli.score import MEASURES
from gpt1_jax.demo import FOLDER

Run = Callable[..., tuple[int, str, str]]
TEXT = "The old man, smiled."


def test_cli_score_prints_an_object_a_text(run: Run) -> None:
    status, out, _ = run("score", TEXT, "No.")
    assert status == 0
    first, second = map(json.loads, out.splitlines())
    assert (first["text"], second["text"]) == (TEXT, "No.")
    assert first["tokens"] == ["the</w>", "old</w>", "man</w>", ",</w>", "smiled</w>", ".</w>"]
    assert first["spans"][-1] == [19, 20]
    assert first["log_probs"][0] is None
    assert first["sum"] == pytest.approx(sum(first["log_probs"][1:]))
    assert first["mean"] == pytest.approx(first["sum"] / 5)
    keys = ["text", "tokens", "ids", "spans", "log_probs", "is_greedy"]
    assert list(second) == [*keys, "sum", "mean", "perplexity", "bits_per_character"]


def test_cli_score_reads_json_lines_and_keeps_other_keys(run: Run, tmp_path: Path) -> None:
    file, result = tmp_path / "texts.jsonl", tmp_path / "scores.json"
    rows = [{"key": 1, "text": " old man.", "context": "The"}, {"text": "The old man.", "key": 2}]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    status, out, _ = run("score", file, "--by", "word", "--join-punctuation", "--out", result)
    assert (status, out) == (0, "")
    first, second = json.loads(result.read_text())
    assert (first["key"], first["context"], second["key"]) == (1, "The", 2)
    assert [word["text"] for word in first["words"]] == ["old", "man."]
    assert [word["text"] for word in second["words"]] == ["The", "old", "man."]
    assert first["sum"] == pytest.approx(second["sum"])
    assert second["words"][0] == {"text": "The", "span": [0, 3], "log_prob": None}


def test_cli_score_prints_a_line_a_unit(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "texts.csv"
    file.write_text('text,label\n"The old man, smiled.",a\nNo.,b\n')
    status, out, _ = run("score", file, "--by", "text", "--output-format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (status, [(row["text_index"], row["label"]) for row in rows]) == (
        0,
        [("0", "a"), ("1", "b")],
    )
    status, out, _ = run("score", file, "--output-format", "tsv")
    rows = list(csv.DictReader(io.StringIO(out), delimiter="\t"))
    assert [row["text_index"] for row in rows] == ["0"] * 6 + ["1"] * 2
    assert (rows[0]["token"], rows[0]["start"], rows[0]["log_prob"]) == ("the</w>", "0", "")
    assert float(rows[1]["surprisal"]) == pytest.approx(float(rows[1]["log_prob"]) / -0.6931472)
    status, out, _ = run("score", file, "--output-format", "table", "--by", "word")
    assert [line.split()[1] for line in out.splitlines()] == [
        *("word", "The", "old", "man", ",", "smiled", ".", "No", ".")
    ]


@pytest.mark.nightly
def test_cli_score_reads_ids_and_lines(run: Run, tmp_path: Path) -> None:
    ids, lines = tmp_path / "ids.jsonl", tmp_path / "texts.txt"
    ids.write_text('{"ids": [116, 515, 274]}\n{"ids": [274], "context": [116, 515]}\n')
    lines.write_text("The old man\n\nNo.\n")
    by_ids = [json.loads(line) for line in run("score", ids)[1].splitlines()]
    by_lines = [json.loads(line) for line in run("score", lines)[1].splitlines()]
    assert by_ids[0]["log_probs"] == pytest.approx(by_lines[0]["log_probs"])
    assert by_ids[1]["log_probs"][:2] == [None, None]
    assert by_ids[1]["log_probs"][2] == pytest.approx(by_ids[0]["log_probs"][2])
    assert len(by_lines) == 2
    status, out, _ = run("score", lines, "--text")
    assert (status, json.loads(out)["text"]) == (0, str(lines))


def test_cli_score_reads_standard_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (b"The old man\n\nNo.\r\n", b'{"text": "The old man"}\n{"text": "No."}'):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        status, out, _ = run("score", "-", "--by", "text")
        assert status == 0
        assert [json.loads(line)["text"] for line in out.splitlines()] == ["The old man", "No."]


@pytest.mark.nightly
def test_cli_score_quantizes_and_needs_no_tokenizer_for_ids(run: Run, tmp_path: Path) -> None:
    folder, ids = tmp_path / "model", tmp_path / "ids.jsonl"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(FOLDER / name, folder)
    ids.write_text('{"ids": [116, 515, 274]}\n')
    (plain,), (small,) = (
        [json.loads(line) for line in run("score", ids, "--model", folder, *flags)[1].splitlines()]
        for flags in ([], ["--quantize", "int8"])
    )
    assert list(plain) == ["ids", "log_probs", "is_greedy", *MEASURES]
    assert small["sum"] == pytest.approx(plain["sum"], rel=0.02)  # measured: 0.004
    status, _, err = run("score", ids, "--model", folder, "--pipeline", "original")
    assert (status, "--pipeline has no effect" in err) == (2, True)
    assert small["sum"] != plain["sum"]
    status, _, err = run("score", "a text", "--model", folder)
    assert status == 2
    assert "tokenizer" in err


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ("", [], "texts.jsonl holds no text"),
        ('{"text": 1}', [], 'texts.jsonl, line 1: "text" must be a string'),
        ('\n{"a": 1}', [], 'line 2 must be an object with "text" or "ids", and not both'),
        ("{", [], "texts.jsonl, line 1 is not JSON"),
        ('{"text": "a"}\n{"ids": [1]}', [], "line 2: texts and ids cannot be mixed"),
        ('{"ids": [1]}\n{"ids": [99999]}', [], r"line 2: text 1[0] is 99999, but must be in"),
        ('{"text": "a", "sum": 1}', [], "line 1: the output has its own ['sum']"),
        ('{"text": "a", "context": [1]}', [], '"context" must be a string, or a number of tokens'),
        ('{"ids": [1, 2]}', ["--by", "word"], "--by word needs texts, and not ids"),
        ('{"text": "a"}', ["--join-punctuation"], "has no effect without --by word"),
        ('{"text": "a"}', ["--stride", "0"], "stride is 0, but must be an integer in"),
    ],
)
def test_cli_score_rejects_bad_input(
    run: Run, tmp_path: Path, content: str, flags: list[str], message: str
) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text(content)
    status, out, err = run("score", file, *flags)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_cli_score_refuses_a_missing_file(run: Run, tmp_path: Path) -> None:
    file = str(tmp_path / "missing.jsonl")
    status, _, err = run("score", file)
    assert status == 2
    assert f"there is no file {file}; --text reads it as a text" in err
    assert run("score", "missing.jsonl", "--text", "--by", "text")[0] == 0
