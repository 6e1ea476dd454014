"""Readers of labelled sets and their baselines, on made-up files in the sets' formats."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from support.small_models import small_model
from support.small_tokenizer import SIZE, write_small

import gpt1_jax as gpt1
from benchmarks import tasks as suite
from gpt1_jax.training.data.labelled import read_rows

SENTIMENT = ("amazon_cells", "imdb", "yelp")
ITEM = """
  <item id="{id}" asks-for="{asks}" most-plausible-alternative="{best}">
    <p>{premise}</p>
    <a1>{first}</a1>
    <a2>{second}</a2>
  </item>"""


def copa(*items: Mapping[str, object]) -> str:
    listed = "".join(ITEM.format(id=i, **item) for i, item in enumerate(items, start=1))
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE copa-corpus SYSTEM "copa.dtd">\n'
    return f'{head}<copa-corpus version="1.0">{listed}\n</copa-corpus>\n'


def cups(best: int) -> Mapping[str, object]:
    """An item whose right choice is the one that breaks."""
    first, second = ("It broke.", "It sang.") if best == 1 else ("It sang.", "It broke.")
    fixed = {"asks": "effect", "premise": "The cup fell."}
    return {**fixed, "best": best, "first": first, "second": second}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of all three sets, each so easy that a linear model makes no mistake."""
    sentiment = tmp_path / "classification" / "uci_sentiment"
    snli = tmp_path / "entailment" / "snli"
    items = tmp_path / "multiple_choice" / "copa"
    for folder in (sentiment, snli, items):
        folder.mkdir(parents=True)
    for name in SENTIMENT:
        lines = [
            f"{name} {i} is good \t1\n" if i % 3 else f"{name} {i} is bad \t0\n" for i in range(30)
        ]
        (sentiment / f"{name}_labelled.txt").write_text("".join(lines))
    for name, count in (("validation", 20), ("test", 4)):
        rows = ["premise\thypothesis\tlabel\n"]
        for i in range(count):
            rows.append(f'A dog {i} runs.\t"It is ""still"" a dog."\t0\n')
            rows.append(f"A dog {i} runs.\tA brown one.\t1\n")
            rows.append(f"A dog {i} runs.\tNobody moves.\t2\n")
        (snli / f"{name}.tsv").write_text("".join(rows))
    (items / "copa-dev.xml").write_text(copa(*(cups(1 + i % 2) for i in range(10))))
    (items / "copa-test.xml").write_text(copa(cups(1), cups(2), cups(1)))
    return tmp_path


def test_read_sentiment_split_is_deterministic(data: Path) -> None:
    train, test = suite.read_sentiment(data)
    assert (len(train), len(test)) == (72, 18)
    texts = [row["text"] for row in train + test]
    assert sorted(texts) == sorted(
        f"{name} {i} is {'good' if i % 3 else 'bad'}" for name in SENTIMENT for i in range(30)
    )
    assert all(row["label"] == row["text"].endswith("good") for row in train + test)
    assert [sum(row["text"].startswith(name) for row in test) for name in SENTIMENT] == [6, 6, 6]
    last = np.random.default_rng(0).permutation(30)[-6:]
    assert [row["text"].split()[1] for row in test[:6]] == [str(i) for i in last]
    assert suite.read_sentiment(data) == (train, test)


def test_read_sentiment_keeps_unicode_line_breaks(data: Path) -> None:
    file = data / "classification" / "uci_sentiment" / "imdb_labelled.txt"
    file.write_text("one\x85two\u2028three\t1\n")
    train, test = suite.read_sentiment(data)
    assert {"text": "one\x85two\u2028three", "label": 1} in train + test


def test_read_snli_parses_rows(data: Path) -> None:
    train, test = suite.read_snli(data)
    assert (len(train), len(test)) == (60, 12)
    assert train[0] == {
        "premise": "A dog 0 runs.",
        "hypothesis": 'It is "still" a dog.',
        "label": 0,
    }


def test_read_copa_parses_causes_and_effects(data: Path) -> None:
    choices = {"first": "We ate.", "second": "We worked.", "best": 2}
    cause = {"asks": "cause", "premise": "Sam &amp; I slept.", **choices}
    (data / "multiple_choice" / "copa" / "copa-test.xml").write_text(copa(cause))
    train, test = suite.read_copa(data)
    assert len(train) == 10
    effect = {"context": "The cup fell so", "choice0": "It broke.", "choice1": "It sang."}
    assert train[0] == {**effect, "label": 0}
    assert test == [
        {
            "context": "Sam & I slept because",
            "choice0": "We ate.",
            "choice1": "We worked.",
            "label": 1,
        }
    ]


def test_write_rows_output_loads_in_fine_tuning(tmp_path: Path) -> None:
    rows = [{"text": 'a "b"\x85\u2028\tc', "label": 1}, {"text": "ö", "label": 0}]
    suite.write_rows(tmp_path / "rows.jsonl", rows)
    read = read_rows(tmp_path / "rows.jsonl", {"text": "text", "label": "label"})
    assert [{**row.texts, "label": int(row.label)} for row in read] == rows


WRONG = [
    (
        "classification/uci_sentiment/yelp_labelled.txt",
        b"good\t1\nbad\n",
        "line 2 is not a sentence",
    ),
    ("classification/uci_sentiment/yelp_labelled.txt", b"good\t2\n", "line 1 is not a sentence"),
    ("classification/uci_sentiment/yelp_labelled.txt", b" \t1\n", "line 1 is not a sentence"),
    ("classification/uci_sentiment/yelp_labelled.txt", b"\xff\t1\n", "line 1 is not UTF-8"),
    ("entailment/snli/test.tsv", b"premise\thypothesis\n", "no column 'label'"),
    (
        "entailment/snli/test.tsv",
        b"premise\thypothesis\tlabel\na\tb\t-\n",
        "line 2: the label is '-'",
    ),
    ("multiple_choice/copa/copa-dev.xml", b"<copa-corpus>", "copa-dev.xml is not XML"),
    ("multiple_choice/copa/copa-dev.xml", b"<copa-corpus/>", "copa-dev.xml holds no items"),
    (
        "multiple_choice/copa/copa-dev.xml",
        copa(cups(1), {**cups(2), "best": 3}).encode(),
        "copa-dev.xml, item 2: a sentence or an attribute is wrong",
    ),
    (
        "multiple_choice/copa/copa-dev.xml",
        copa({**cups(1), "second": ""}).encode(),
        "copa-dev.xml, item 1: a sentence",
    ),
]


@pytest.mark.parametrize(("file", "content", "message"), WRONG)
def test_set_readers_report_malformed_files(
    data: Path, file: str, content: bytes, message: str
) -> None:
    (data / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        _ = [chosen.read(data) for chosen in suite.SETS.values()]


def test_majority_uses_training_labels() -> None:
    train = [{"label": label} for label in (2, 0, 2)]
    assert suite.majority(train, [{"label": label} for label in (0, 0, 2, 0)]) == 0.25


def test_tasks_measures_baselines(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    results = suite.tasks(data=data, out=file)
    assert list(results) == ["snli", "uci-sentiment", "copa"]
    for found in results.values():
        assert list(found) == ["majority", "TF-IDF, logistic regression"]
        assert found["TF-IDF, logistic regression"] == [1.0]
    _, test = suite.read_sentiment(data)
    assert results["snli"]["majority"] == [1 / 3]
    assert results["uci-sentiment"]["majority"] == [sum(row["label"] for row in test) / 18]
    assert json.loads(file.read_text()) == results
    out = capsys.readouterr().out
    assert "snli: 60 rows to train on, 12 to test on\n  majority                     33.3%" in out


def test_tfidf_of_choices_ignores_choice_order(data: Path) -> None:
    """What is learned from right choices that all come first holds where they come second."""
    train = suite.read_copa(data)[0]
    flipped = {"choice0": "choice1", "choice1": "choice0"}
    for i in (0, 1):
        same = [row for row in train if row["label"] == i]
        other = [{**row, **{a: row[b] for a, b in flipped.items()}, "label": 1 - i} for row in same]
        # A regression needs both labels, so one row is turned.
        assert suite.tfidf_of_choices([*same, other[0]], other) == 1.0


def test_tasks_measures_fine_tuning_with_every_seed(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def finetuned(
        train: Path, test: Path, model: Path, seed: int, scratch: bool, flags: tuple[str, ...]
    ) -> float:
        calls.append((flags, model, seed, scratch))
        columns = {name: name for name in ("context", "choice0", "choice1", "label")}
        assert len(read_rows(train, columns)) == 10
        assert len(read_rows(test, columns)) == 3
        return 0.5 if scratch else 0.75 + seed / 100

    monkeypatch.setattr(suite, "finetuned", finetuned)
    results = suite.tasks(("copa",), data, model=data, seeds=(1, 3), epochs=2)
    flags = ("--task", "multiple-choice", "--choices", "choice0", "choice1")
    flags += ("--epochs", "2", "--learning-rate", "0.0005")
    without = (*flags, "--lm-weight", "0")
    players = ((flags, True), (without, False), (flags, False))
    assert calls == [(each, data, seed, scratch) for each, scratch in players for seed in (1, 3)]
    assert results["copa"]["from scratch"] == [0.5, 0.5]
    assert results["copa"]["pre-trained"] == [0.76, 0.78]
    assert "pre-trained                  77.0% ± 1.0%   (76.0%, 78.0%)" in capsys.readouterr().out


@pytest.mark.nightly
def test_finetuned_evaluates_on_test_rows(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = small_model(gpt1.OpenAIGPTLMHeadModel, vocab_size=SIZE, n_positions=16)
    model.save_pretrained(folder)
    gpt1.Tokenizer.from_pretrained(write_small(tmp_path / "vocab")).save_pretrained(folder)
    rows = [{"text": "the", "label": 0}, {"text": "is", "label": 1}]
    suite.write_rows(tmp_path / "train.jsonl", rows * 8)
    suite.write_rows(tmp_path / "test.jsonl", rows)
    flags = ("--task", "classification", "--epochs", "50", "--learning-rate", "0.01")
    files = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    assert suite.finetuned(*files, folder, 0, False, flags) == 1.0


def test_write_untrained_keeps_config_and_tokenizer(tmp_path: Path) -> None:
    model = small_model(gpt1.OpenAIGPTLMHeadModel, vocab_size=SIZE)
    model.save_pretrained(tmp_path / "model")
    gpt1.Tokenizer.from_pretrained(write_small(tmp_path / "vocab")).save_pretrained(
        tmp_path / "model"
    )
    weights = []
    for seed in (0, 1):
        new_folder = tmp_path / f"new{seed}"
        suite.write_untrained(tmp_path / "model", new_folder, seed)
        new = gpt1.OpenAIGPTLMHeadModel.from_pretrained(new_folder)
        assert new.config == model.config
        assert len(gpt1.Tokenizer.from_pretrained(new_folder)) == SIZE
        weights.append(np.asarray(new.params["transformer"]["h"]["1"]["mlp"]["c_fc"]["kernel"]))
    assert not np.array_equal(*weights)
    # Of 256 weights, four standard errors.
    assert np.std(weights) == pytest.approx(model.config.initializer_range, abs=0.0025)


def test_tasks_reports_unknown_set_and_missing_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="'glue' is no set; the sets are snli, uci-sentiment"):
        suite.tasks(("glue",), tmp_path)
    monkeypatch.setenv("GPT1_DATA", str(tmp_path / "none"))
    with pytest.raises(
        FileNotFoundError, match=r"none is no folder; give --data, or set GPT1_DATA"
    ):
        suite.tasks()
    monkeypatch.setenv("GPT1_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"validation\.tsv"):
        suite.tasks()


def test_set_readers_match_published_counts(data_folder: Path) -> None:
    """The numbers of rows and of labels that the sets' authors give."""
    train, test = suite.read_snli(data_folder)
    assert np.bincount([row["label"] for row in train]).tolist() == [3329, 3235, 3278]
    assert np.bincount([row["label"] for row in test]).tolist() == [3368, 3219, 3237]
    train, test = suite.read_sentiment(data_folder)
    assert (len(train), len(test)) == (2400, 600)
    assert np.bincount([row["label"] for row in train + test]).tolist() == [1500, 1500]
    for part in suite.read_copa(data_folder):
        assert np.bincount([row["label"] for row in part]).tolist() == [250, 250]
        assert sum(row["context"].endswith(" because") for row in part) == 250
