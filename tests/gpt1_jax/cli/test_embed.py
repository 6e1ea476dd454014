"""``gpt1 embed``: texts and files in, vectors in every format out."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.small_models import difference, small_model
from support.small_tokenizer import SIZE, write_small

import gpt1_jax as gpt1

Run = Callable[..., tuple[int, str, str]]
TEXTS = ["The press, pressing", "a"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    small_model(gpt1.OpenAIGPTLMHeadModel, vocab_size=SIZE, n_positions=16).save_pretrained(folder)
    return write_small(folder)


@pytest.fixture(scope="module")
def vectors(folder: Path) -> dict[str, list[np.ndarray]]:
    """What ``embed`` returns for the texts."""
    model, tokenizer = gpt1.from_pretrained(folder), gpt1.Tokenizer.from_pretrained(folder)
    return {
        pooling: list(gpt1.embed(model, TEXTS, layer=1, pooling=pooling, tokenizer=tokenizer))
        for pooling in ("mean", "last", "none", "word")
    }


@pytest.mark.parametrize("pooling", ["mean", "last", "none", "word"])
def test_cli_embed_writes_json_lines(
    run: Run, folder: Path, vectors: dict[str, list[np.ndarray]], tmp_path: Path, pooling: str
) -> None:
    file = tmp_path / "texts.jsonl"
    lines = [{"text": text, "name": i} for i, text in enumerate(TEXTS)]
    file.write_text("\n".join(map(json.dumps, lines)))
    status, out, _ = run("embed", file, "--model", folder, "--layer", 1, "--pooling", pooling)
    assert status == 0
    found = [json.loads(line) for line in out.splitlines()]
    assert [(each["text"], each["name"]) for each in found] == list(zip(TEXTS, (0, 1), strict=True))
    key = "embedding" if pooling in ("mean", "last") else "embeddings"
    for each, expected in zip(found, vectors[pooling], strict=True):
        assert difference(each[key], expected) < 1e-6
    if pooling == "word":
        assert found[0]["words"] == ["The", "press", ",", "pressing"]
    if pooling == "none":
        assert found[0]["tokens"] == gpt1.Tokenizer.from_pretrained(folder).tokenize(TEXTS[0])


def test_cli_embed_writes_files(
    run: Run, folder: Path, vectors: dict[str, list[np.ndarray]], tmp_path: Path
) -> None:
    flags = [*TEXTS, "--model", folder, "--layer", 1, "--out"]
    assert run("embed", *flags, tmp_path / "a.npy")[:2] == (0, "")
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.stack(vectors["mean"]))
    for pooling in ("last", "word"):
        assert run("embed", *flags, tmp_path / "a.npz", "--pooling", pooling)[0] == 0
        found = np.load(tmp_path / "a.npz")
        if pooling == "last":
            np.testing.assert_array_equal(found["embeddings"], np.stack(vectors["last"]))
        else:
            parts = np.split(found["embeddings"], found["lengths"].cumsum()[:-1])
            for part, expected in zip(parts, vectors["word"], strict=True):
                np.testing.assert_array_equal(part, expected)
    assert run("embed", *flags, tmp_path / "a.csv", "--pooling", "word")[0] == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert [row["word"] for row in rows] == ["The", "press", ",", "pressing", "a"]
    assert [row["text_index"] for row in rows] == list("00001")
    numbers = [[float(row[str(i)]) for i in range(8)] for row in rows]
    assert difference(numbers, np.concatenate(vectors["word"])) < 1e-6


def test_cli_embed_of_ids_needs_no_tokenizer(
    run: Run, folder: Path, vectors: dict[str, list[np.ndarray]], tmp_path: Path
) -> None:
    tokenizer = gpt1.Tokenizer.from_pretrained(folder)
    gpt1.from_pretrained(folder).save_pretrained(tmp_path / "ids")
    file = tmp_path / "ids.jsonl"
    file.write_text("\n".join(json.dumps({"ids": tokenizer.encode(text)}) for text in TEXTS))
    status, out, _ = run("embed", file, "--model", tmp_path / "ids", "--layer", 1)
    assert status == 0
    found = [json.loads(line)["embedding"] for line in out.splitlines()]
    assert difference(found, np.stack(vectors["mean"])) < 1e-6
    status, _, err = run("embed", "a", "--model", tmp_path / "ids")
    assert status == 2
    assert err.endswith("without one, give token ids in place of texts\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--output-format", "npy"], "--output-format npy needs --out FILE"),
        (
            ["a", "--out", "x.npy", "--pooling", "none"],
            "none gives several vectors a text",
        ),
        (["a", "--layer", 3], "layer is 3, but must be an integer in [-3, 2], n_layer being 2"),
        (["a", " "], "the text ' ': text 1 has no tokens, but must have 1 to n_positions = 16"),
        (["a " * 17], "text 0 has 17 tokens, but must have 1 to n_positions = 16"),
    ],
)
def test_cli_embed_refuses(run: Run, folder: Path, arguments: list[object], message: str) -> None:
    status, out, err = run("embed", *arguments, "--model", folder)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
