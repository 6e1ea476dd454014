"""The pages under docs: their links, and their blocks, which run on the demo and on small files."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.pages import ROOT, dead_links, read_blocks, run_page
from support.small_training import write_checkpoint, write_rows, write_task_checkpoint, write_text

PAGES = sorted((ROOT / "docs").glob("*.md"))
# Pages whose scripts have tests of their own.
TESTED_ELSEWHERE = ("coming-from-transformers", "export", "fine-tuned-models-in-torch")
PAIRS = [
    {"premise": f"the {who} sat", "hypothesis": f"the {who} ran", "label": label}
    for who in ("king", "queen", "cat")
    for label in ("no", "yes", "maybe")
]
REVIEWS = [
    {"text": text, "label": label}
    for text, label in (("a good book", "pos"), ("a bad book", "neg"), ("big good cat", "pos"))
]


def small(arguments: Sequence[str]) -> Sequence[str]:
    """What makes a training of the pages small."""
    steps = ("--steps", "2", "--batch-size", "2", "--warmup", "0")
    sizes = ("--merges", "40", "--n-layer", "1", "--n-embd", "16", "--n-head", "2")
    if arguments[0] == "pretrain":
        return steps if "--model" in arguments else (*steps, *sizes, "--n-positions", "32")
    return steps if arguments[0] == "finetune" else ()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_docs_links_lead_somewhere(page: Path) -> None:
    assert dead_links(page) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files and models that the pages name."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "train").mkdir()
    for name in ("train/one.txt", "train/two.txt", "valid.txt", "test.txt", "letters.txt"):
        write_text(folder / name)
    for name in ("snli.tsv", "dev.tsv", "test.tsv"):
        write_rows(folder / name, PAIRS)
    write_rows(folder / "pairs.csv", [{k: row[k] for k in row if k != "label"} for row in PAIRS])
    for name in ("train.jsonl", "valid.jsonl"):
        write_rows(folder / name, REVIEWS)
    write_rows(folder / "rows.csv", [{"text": row["text"]} for row in REVIEWS])
    for name in ("reviews.txt", "texts.txt", "FILE"):
        (folder / name).write_text("the king sat\nthe queen ran\n")
    (folder / "texts.jsonl").write_text(json.dumps({"text": " sat down", "context": "the king"}))
    for name in ("model", "FOLDER"):
        write_checkpoint(folder / name)
    write_task_checkpoint(folder / "sentiment", "classification", classes=("neg", "pos"))
    write_task_checkpoint(folder / "snli", "entailment", classes=("no", "yes", "maybe"))
    (folder / "novels").symlink_to("letters")  # two adapters, of one training
    return folder


@pytest.mark.nightly
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.stem not in TESTED_ELSEWHERE and read_blocks(page)],
    ids=lambda page: page.stem,
)
def test_docs_blocks_run(
    page: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made_here = shutil.ignore_patterns("model", "snli") if page.stem == "training" else None
    here = shutil.copytree(folder, tmp_path / "here", symlinks=True, ignore=made_here)
    run_page(page, here, monkeypatch, lambda: capsys.readouterr().out, small)
