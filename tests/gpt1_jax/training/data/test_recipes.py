"""Recipes read the files of the paper's tasks as their authors publish them."""

import json
import warnings
from pathlib import Path
from typing import Any, get_args

import pytest

from gpt1_jax.training import metrics
from gpt1_jax.training.data.recipes import RECIPES, Recipe, RecipeName
from gpt1_jax.training.data.tasks import task_columns


def tsv(*rows: tuple[str, ...]) -> str:
    return "".join("\t".join(cells) + "\n" for cells in rows)


def race(answers: str, article: str = "A dog ran home.") -> str:
    return json.dumps(
        {
            "answers": list(answers),
            "options": [["One.", "Two.", "Three.", "Four."]] * len(answers),
            "questions": [f"Which is {answer}?" for answer in answers],
            "article": article,
            "id": "high1.txt",
        }
    )


SNLI = {"sentence1": "A dog runs.", "sentence2": "It moves.", "annotator_labels": ["entailment"]}
STS = ("index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1")
STORY = ["id", "Tom had a dog.", "It ran.", "He ran too.", "Both fell.", "They wept.", "He, alone"]
STORY_HEADER = ["InputStoryid", *(f"InputSentence{k}" for k in (1, 2, 3, 4))]
STORY_HEADER += ["RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2", "AnswerRightEnding"]

# The file's name below the folder, its content, the rows as (texts..., label), what is left out.
PUBLISHED: dict[str, tuple[str, str, list[tuple[str, ...]], dict[str, int]]] = {
    "snli": (
        "snli_1.0_train.jsonl",
        "\n".join(
            json.dumps({**SNLI, "gold_label": label}) for label in ("entailment", "-", "neutral")
        ),
        [("A dog runs.", "It moves.", "entailment"), ("A dog runs.", "It moves.", "neutral")],
        {"no agreed label": 1},
    ),
    "mnli": (
        "train.tsv",
        tsv(("index", "sentence1", "sentence2", "gold_label"), ("0", "A.", "B.", "neutral")),
        [("A.", "B.", "neutral")],
        {},
    ),
    "qnli": (
        "train.tsv",
        tsv(("index", "question", "sentence", "label"), ("0", "Who?", "He.", "entailment")),
        [("Who?", "He.", "entailment")],
        {},
    ),
    "rte": (
        "train.tsv",
        tsv(
            ("index", "sentence1", "sentence2", "label"),
            ("0", '"Yes, he said.', "He said.", "entailment"),
            ("1", "No.", 'Nobody "said".', "not_entailment"),
        ),
        [
            ('"Yes, he said.', "He said.", "entailment"),
            ("No.", 'Nobody "said".', "not_entailment"),
        ],
        {},
    ),
    "scitail": (
        "tsv_format/scitail_1.0_train.tsv",
        tsv(("Ice melts.", "It is warm.", "neutral"), ("Ice melts.", "Ice melts.", "entails")),
        [("Ice melts.", "It is warm.", "neutral"), ("Ice melts.", "Ice melts.", "entails")],
        {},
    ),
    "race": (
        "train/high/1.txt",
        race("BD"),
        [
            ("A dog ran home.", "Which is B?", "One.", "Two.", "Three.", "Four.", "1"),
            ("A dog ran home.", "Which is D?", "One.", "Two.", "Three.", "Four.", "3"),
        ],
        {},
    ),
    "story-cloze": (
        "cloze_test_val__spring2016 - cloze_test_ALL_val.csv",
        ",".join(STORY_HEADER) + "\n" + ",".join([*STORY[:-1], f'"{STORY[-1]}"', "2"]) + "\n",
        [("Tom had a dog. It ran. He ran too. Both fell.", "They wept.", "He, alone", "1")],
        {},
    ),
    "sst-2": (
        "train.tsv",
        tsv(("sentence", "label"), ("a fine film ", "1"), ("a dull one ", "0")),
        [("a fine film ", "1"), ("a dull one ", "0")],
        {},
    ),
    "cola": (
        "train.tsv",
        tsv(("gj04", "1", "", "He ran."), ("gj04", "0", "*", "Ran him he.")),
        [("He ran.", "1"), ("Ran him he.", "0")],
        {},
    ),
    "sts-b": (
        "train.tsv",
        tsv((*STS, "sentence2", "score"), ("0", *["x"] * 6, "A plane.", "An air plane.", "5.000")),
        [("A plane.", "An air plane.", "5.000")],
        {},
    ),
    "qqp": (
        "train.tsv",
        tsv(
            ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
            ("1", "2", "3", "Why?", "How come?", "1"),
            ("4", "5", "6", "Cut in two",),
            ("7", "8", "9", "Why?", "", "0"),
        ),
        [("Why?", "How come?", "1")],
        {"a broken line": 1, "a blank text": 1},
    ),
    "mrpc": (
        "msr_paraphrase_train.txt",
        "\ufeff" + tsv(("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"))
        + tsv(("0", "1", "2", 'He said "no', "He agreed")).replace("\n", "\r\n"),
        [('He said "no', "He agreed", "0")],
        {},
    ),
}  # fmt: skip


def write(folder: Path, name: str, content: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content.encode(errors="surrogateescape"))


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_reads_published_files(tmp_path: Path, name: RecipeName) -> None:
    file, content, expected, left_out = PUBLISHED[name]
    write(tmp_path, file, content)
    recipe = RECIPES[name]
    path = recipe.find(tmp_path, "train")
    with warnings.catch_warnings(record=True, action="always") as warned:
        records = list(recipe.open(tmp_path, "train").read_records())
    assert [tuple(record.values()) for _, record in records] == expected
    assert all(list(record) == list(recipe.columns) for _, record in records)
    assert all(str(path) in place for place, _ in records)
    reasons = [f"{count} with {reason}" for reason, count in left_out.items()]
    said = f"{path}: rows are left out, {', '.join(reasons)}"
    assert [str(each.message) for each in warned] == ([said] if reasons else [])


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_fits_its_task(name: RecipeName) -> None:
    recipe = RECIPES[name]
    roles = {role: role for role in recipe.columns if not role.startswith("choice")}
    expected = task_columns(recipe.task, roles, recipe.choices)
    assert set(expected) == set(recipe.columns)
    assert recipe.metric in metrics.METRICS
    assert "train" in recipe.files
    assert ("valid" in recipe.files) != (recipe.valid_share is not None)


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("rte", "train.tsv", tsv(("a", "b"), ("1", "2")), "no column 'sentence1'; the columns"),
        ("snli", "snli_1.0_train.jsonl", "{", "line 1 is not JSON"),
        ("snli", "snli_1.0_train.jsonl", "[]", "line 1 is not a JSON object"),
        ("snli", "snli_1.0_train.jsonl", '{"sentence1": 1}', "'sentence1' is 1, but must be a st"),
        ("race", "train/high/1.txt", "{}", "has no 'article'"),
        ("sst-2", "train.tsv", "sentence\tlabel\n\udcff\t1\n", "train.tsv, line 2 is not UTF-8"),
    ],
)
def test_recipe_refuses_other_files(
    tmp_path: Path, name: RecipeName, file: str, content: str, message: str
) -> None:
    write(tmp_path, file, content)
    recipe: Recipe = RECIPES[name]
    with pytest.raises(ValueError, match=message):
        list(recipe.open(tmp_path, "train").read_records())


def test_recipe_counts_the_lines_of_a_file(tmp_path: Path) -> None:
    write(tmp_path, "train.tsv", "sentence\tlabel\n\na fine film\t1\n")
    ((place, _),) = RECIPES["sst-2"].open(tmp_path, "train").read_records()
    assert place.endswith("train.tsv, line 3")
    cells = [*STORY[:-1], '"He,\n\nalone"', "1"]
    write(tmp_path, PUBLISHED["story-cloze"][0], ",".join(STORY_HEADER) + "\n" + ",".join(cells))
    ((place, record),) = RECIPES["story-cloze"].open(tmp_path, "train").read_records()
    assert (place.endswith(", line 2"), record["choice1"]) == (True, "He,\n\nalone")


def test_recipes_have_names() -> None:
    assert set(get_args(RecipeName)) == set(RECIPES)


def test_recipe_names_the_files_it_expects(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split is 'test', but must be one of train, valid"):
        RECIPES["rte"].open(tmp_path, "test")
    with pytest.raises(FileNotFoundError) as raised:
        RECIPES["mnli"].find(tmp_path, "valid")
    expected: Any = f"{tmp_path}/multinli_1.0_dev_matched.jsonl or {tmp_path}/dev_matched.tsv"
    assert expected in str(raised.value)
