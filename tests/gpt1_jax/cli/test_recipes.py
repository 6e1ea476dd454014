"""``gpt1 finetune`` and ``gpt1 evaluate`` on published files of the paper's tasks."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.small_training import write_checkpoint

Run = Callable[..., tuple[int, str, str]]
QUICK = ("--batch-size", 4, "--epochs", 1, "--learning-rate", "3e-3", "--warmup", 0)
ROWS = [("the king saw a cat", "a cat ran"), ("a big dog sat", "no"), ("yes", "maybe a house")]
STORIES = "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4"
STORIES += ",RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture
def rte(tmp_path: Path) -> Path:
    folder = tmp_path / "RTE"
    folder.mkdir()
    lines = ["index\tsentence1\tsentence2\tlabel"]
    for i, (first, second) in enumerate(ROWS * 4):
        label = ("entailment", "not_entailment")[i % 2]
        lines.append(f'{i}\t"{first}\t{second}\t{label}')
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.nightly
def test_cli_recipe_trains_and_measures_on_published_files(
    run: Run, base: Path, rte: Path, tmp_path: Path
) -> None:
    flags = ("--model", base, "--out", tmp_path / "out", *QUICK)
    status, out, error = run("finetune", "--recipe", "rte", "--data", rte, *flags)
    assert (status, "to train on: 12 rows, 2 classes: entailment (6)" in error) == (0, True)
    assert out.endswith("The paper reports accuracy 56.0 % on the test set of rte.\n")
    settings = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (settings["train"], settings["metric"]) == (str(rte / "train.tsv"), "accuracy")
    accuracy = out.partition("accuracy ")[2].partition(",")[0]
    evaluate = ("evaluate", "--model", tmp_path / "out", "--recipe", "rte")
    status, out, _ = run(*evaluate, "--data", rte)
    assert status == 0
    assert f"{rte / 'dev.tsv'}: " in out
    assert f"accuracy {accuracy}," in out
    assert run(*evaluate, "--data", rte, "--split", "test")[2] == (
        "gpt1: split is 'test', but must be one of train, valid\n"
    )


@pytest.mark.nightly
def test_cli_recipe_keeps_a_share_to_validate_on(run: Run, base: Path, tmp_path: Path) -> None:
    rows = [f"{i},a cat,sat,ran,saw,the dog ran,a house,{i % 2 + 1}\n" for i in range(10)]
    name = "cloze_test_val__spring2016 - cloze_test_ALL_val.csv"
    (tmp_path / name).write_text(STORIES + "".join(rows))
    flags = ("--model", base, "--out", tmp_path / "out", *QUICK)
    status, _, error = run("finetune", "--recipe", "story-cloze", "--data", tmp_path, *flags)
    assert (status, "to train on: 8 rows, 2 choices" in error) == (0, True)
    task = json.loads((tmp_path / "out" / "task.json").read_text())
    assert (task["name"], task["choices"]) == ("multiple-choice", 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "give --task and --train, or --recipe and --data"),
        (("--data", "x"), "give --task and --train, or --recipe and --data"),
        (("--recipe", "rte"), "--recipe rte needs --data, the folder of its files"),
        (("--recipe", "rte", "--data", "x"), "no valid set: expected x/dev.tsv"),
        (
            ("--recipe", "rte", "--data", "x", "--task", "entailment"),
            "--recipe rte sets --task itself: leave it out",
        ),
    ],
)
def test_cli_recipe_refuses_other_flags(
    run: Run, base: Path, flags: tuple[str, ...], message: str
) -> None:
    given = ("finetune", "--model", base, "--out", "out")
    assert run(*given, *flags)[::2] == (2, f"gpt1: {message}\n")
