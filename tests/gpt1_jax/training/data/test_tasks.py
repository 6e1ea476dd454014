"""The input transformations: sequences, budgets, labels, batches, and the models they need."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.small_models import small_config
from support.small_tokenizer import SIZE, write_small

import gpt1_jax as gpt1
from gpt1_jax.training.data.labelled import Row
from gpt1_jax.training.data.tasks import (
    TASKS,
    Example,
    SpecialTokens,
    Task,
    collate,
    encode_text,
    find_classes,
    padded_length,
    prepare_tokenizer,
    task_columns,
)

START, DELIMITER, CLASSIFY = SIZE, SIZE + 1, SIZE + 2
PLACE = "rows.csv, line 2"
CLASSES = ("bad", "good")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> gpt1.Tokenizer:
    return gpt1.Tokenizer.from_pretrained(write_small(tmp_path_factory.mktemp("plain")))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> gpt1.Tokenizer:
    prepared = gpt1.Tokenizer.from_pretrained(write_small(tmp_path_factory.mktemp("prepared")))
    prepare_tokenizer(prepared)
    return prepared


def task(tokenizer: gpt1.Tokenizer, name: Any, **fields: Any) -> Task:
    """With classes or choices where the task needs them."""
    if name in ("classification", "entailment"):
        fields.setdefault("classes", CLASSES)
    if name == "multiple-choice":
        fields.setdefault("choices", 2)
    special = SpecialTokens(START, DELIMITER, CLASSIFY)
    return Task(**{"n_positions": 32, **fields}, name=name, tokenizer=tokenizer, special=special)


def row(texts: Mapping[str, str], label: str = "good") -> Row:
    return Row(PLACE, texts, label)


@pytest.fixture(scope="module")
def with_template(tmp_path_factory: pytest.TempPathFactory) -> gpt1.Tokenizer:
    """Puts its own tokens around a text, where it is not told otherwise."""
    folder = write_small(tmp_path_factory.mktemp("template"))
    fields = {"bos_token": "<s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return gpt1.Tokenizer.from_pretrained(folder)


def test_encode_text_adds_nothing_to_a_text(
    plain: gpt1.Tokenizer, with_template: gpt1.Tokenizer
) -> None:
    ids = plain.encode("the thing")
    assert with_template.encode("the thing") != ids
    assert encode_text(with_template, "the thing") == ids


def test_prepare_tokenizer_adds_special_tokens_once(tmp_path: Path) -> None:
    tokenizer = gpt1.Tokenizer.from_pretrained(write_small(tmp_path / "small"))
    tokenizer.add_special_tokens({"extra_special_tokens": ["[x]"]})
    special = prepare_tokenizer(tokenizer)
    assert dataclasses.astuple(special) == (SIZE + 1, SIZE + 2, SIZE + 3)
    assert prepare_tokenizer(tokenizer) == special
    assert len(tokenizer) == SIZE + 4
    assert tokenizer.extra_special_tokens == ["[x]", "_start_", "_delimiter_", "_classify_"]
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = gpt1.Tokenizer.from_pretrained(tmp_path / "saved")
    assert prepare_tokenizer(loaded) == special
    assert len(loaded) == SIZE + 4


pieces = st.sampled_from(
    ["_start_", "_delimiter_", "_classify_", "_START_", "start", "_", "<unk>", " ", "\n", "\u0301"]
)


@given(st.lists(pieces | st.text(st.characters(codec="utf-8"), max_size=3)).map("".join))
def test_encode_text_never_yields_special_tokens(
    plain: gpt1.Tokenizer, tokenizer: gpt1.Tokenizer, text: str
) -> None:
    assert encode_text(tokenizer, text) == plain.encode(text)


def test_tokenizer_encode_parses_special_tokens(tokenizer: gpt1.Tokenizer) -> None:
    assert tokenizer.encode("a _start_") == [*tokenizer.encode("a"), START]


def test_task_encode_builds_sequences_of_every_task(tokenizer: gpt1.Tokenizer) -> None:
    a, b, c, q = (tokenizer.encode(text) for text in ("the thing", "is", "in a press", "which?"))

    def sequences(name: str, texts: dict[str, str], label: str = "good", **fields: Any) -> Any:
        return task(tokenizer, name, **fields).encode(row(texts, label)).sequences

    text = {"text": "the thing"}
    assert sequences("classification", text) == [[START, *a, CLASSIFY]]
    assert sequences("regression", text, "2.5") == [[START, *a, CLASSIFY]]
    pair = [START, *a, DELIMITER, *b, CLASSIFY]
    assert sequences("entailment", {"hypothesis": "is", "premise": "the thing"}) == [pair]
    both = [pair, [START, *b, DELIMITER, *a, CLASSIFY]]
    similar = {"text1": "the thing", "text2": "is"}
    assert sequences("similarity", similar, classes=CLASSES) == both
    assert sequences("similarity", similar, "0.5") == both
    choices = {"context": "the thing", "choice1": "in a press", "choice0": "is"}
    assert sequences("multiple-choice", choices, "1") == [
        pair,
        [START, *a, DELIMITER, *c, CLASSIFY],
    ]
    choices["question"] = "which?"
    assert sequences("multiple-choice", choices, "1") == [
        [START, *a, *q, DELIMITER, *b, CLASSIFY],
        [START, *a, *q, DELIMITER, *c, CLASSIFY],
    ]


def test_task_encode_truncates_texts_to_budget(tokenizer: gpt1.Tokenizer) -> None:
    long, letters = "a b c d e f g h i j k l m n o p q r s t", "tokens of one letter"
    ids = tokenizer.encode(long)
    assert len(ids) == len(letters)

    def sequence(name: str, texts: dict[str, str], label: str = "good", **fields: Any) -> Any:
        return task(tokenizer, name, n_positions=16, **fields).encode(row(texts, label)).sequences

    # By default one text fills the positions, and OpenAI's n_ctx // 2 - 2 leaves one free.
    assert sequence("classification", {"text": long}) == [[START, *ids[:14], CLASSIFY]]
    pair = {"premise": long, "hypothesis": long}
    assert sequence("entailment", pair) == [[START, *ids[:6], DELIMITER, *ids[:6], CLASSIFY]]
    short = sequence("entailment", pair, max_tokens=2)
    assert short == [[START, *ids[:2], DELIMITER, *ids[:2], CLASSIFY]]
    # The question is kept before the context, whose end is cut off.
    question = tokenizer.encode("in press")
    choices = {"context": long, "question": "in press", "choice0": "a", "choice1": long}
    first, second = sequence("multiple-choice", choices, "0")
    context = [*ids[: 6 - len(question)], *question]
    assert first == [START, *context, DELIMITER, *ids[:1], CLASSIFY]
    assert second == [START, *context, DELIMITER, *ids[:6], CLASSIFY]
    first, _ = sequence("multiple-choice", {**choices, "question": long}, "0")
    assert first == [START, *ids[:6], DELIMITER, *ids[:1], CLASSIFY]


@given(
    name=st.sampled_from(TASKS),
    n_positions=st.integers(5, 40),
    max_tokens=st.none() | st.integers(1, 20),
    words=st.lists(st.integers(1, 50), min_size=4, max_size=4),
)
def test_task_encode_fits_n_positions(
    tokenizer: gpt1.Tokenizer,
    name: Any,
    n_positions: int,
    max_tokens: int | None,
    words: list[int],
) -> None:
    roles = task_columns(
        name,
        {"question": "q"} if name == "multiple-choice" else {},
        ["x", "y"][: 2 * (name == "multiple-choice")],
    )
    texts = [role for role in roles if role != "label"]
    try:
        made = task(tokenizer, name, n_positions=n_positions, max_tokens=max_tokens)
    except ValueError as error:
        assert "max_tokens is" in str(error)  # noqa: PT017 (either outcome is right)
        return
    label = {"classes": "bad", "numbers": "0.5", "choices": "0"}[made.predicts]
    example = made.encode(row({r: "a " * n for r, n in zip(texts, words, strict=False)}, label))
    assert max(map(len, example.sequences)) <= n_positions
    assert all(ids[0] == START and ids[-1] == CLASSIFY for ids in example.sequences)
    lengths = dict(zip(texts, words, strict=False))
    if name == "multiple-choice":
        lengths["context"] += lengths["question"]
    longest = max(lengths.values())
    assert example.cut_from == (longest if longest > made.budget else 0)


@pytest.mark.parametrize("budget", [None, 4])
def test_task_configure_tokenizer_makes_a_call_what_encode_is(
    tmp_path: Path, budget: int | None
) -> None:
    tokenizer = gpt1.Tokenizer.from_pretrained(write_small(tmp_path))
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    prepare_tokenizer(tokenizer)
    short, long = "the \u2603 thing", "the thing is in a press " * 9
    for name in ("classification", "regression"):
        single = task(tokenizer, name, max_tokens=budget)
        single.configure_tokenizer()
        for text in (short, long):
            (ids,) = single.encode(row({"text": text}, "good" if single.classes else "1")).sequences
            assert tokenizer(text, truncation=True).input_ids == ids
    pair = task(tokenizer, "entailment", max_tokens=budget)
    pair.configure_tokenizer()
    for premise, hypothesis in [("the", "is"), (long, long)]:
        (ids,) = pair.encode(row({"premise": premise, "hypothesis": hypothesis})).sequences
        assert tokenizer(premise, hypothesis, truncation=True).input_ids == ids
    # One limit for both: the longer text gets what the shorter one leaves.
    cut = tokenizer("the", long, truncation=True).input_ids
    assert len(cut) == (2 * budget + 3 if budget else 31)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<unk>", 0)
    padded = tokenizer([short, "is"], padding=True)
    assert padded.attention_mask[0][1:3] == [1, 1]  # an unknown token is no pad
    assert padded.input_ids[1][-1] == 0
    assert padded.attention_mask[1][-1] == 0


def test_task_configure_tokenizer_makes_no_word_a_pad(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(["the", "<unk>", "cat"]))
    tokenizer = gpt1.Tokenizer.from_pretrained(tmp_path)
    prepare_tokenizer(tokenizer)
    task(tokenizer, "classification").configure_tokenizer()
    assert tokenizer.pad_token is None


def test_task_encode_parses_labels(tokenizer: gpt1.Tokenizer) -> None:
    def label(made: Task, text: str) -> Any:
        texts = {"text": "a", "text1": "a", "text2": "b", "context": "a"}
        return made.encode(row({**texts, "choice0": "a", "choice1": "b"}, text)).label

    classification = task(tokenizer, "classification")
    assert [label(classification, name) for name in CLASSES] == [0, 1]
    with pytest.raises(ValueError, match=f"{PLACE}: the label 'fine' is not one of bad, good"):
        label(classification, "fine")

    for numbers in (task(tokenizer, "regression"), task(tokenizer, "similarity")):
        assert numbers.predicts == "numbers"
        assert label(numbers, "-2.5e1") == -25.0
        assert isinstance(label(numbers, "3"), float)
        with pytest.raises(ValueError, match=f"{PLACE}: the label 'x' must be a number"):
            label(numbers, "x")
        for wrong in ("inf", "nan", "-1e39"):
            with pytest.raises(ValueError, match=f"{PLACE}: the label '{wrong}' must be a finite"):
                label(numbers, wrong)

    choice = task(tokenizer, "multiple-choice")
    assert [label(choice, text) for text in ("0", "1")] == [0, 1]
    for wrong in ("2", "-1", "1.0", "right"):
        with pytest.raises(ValueError, match=f"{PLACE}: the label '{wrong}' .* counted 0 to 1"):
            label(choice, wrong)


def test_task_encode_rejects_empty_and_malformed_texts(tokenizer: gpt1.Tokenizer) -> None:
    classification = task(tokenizer, "classification")
    with pytest.raises(ValueError, match=f"{PLACE}: text has no tokens"):
        classification.encode(row({"text": "\u200b\x00"}))
    with pytest.raises(ValueError, match=f"{PLACE}: text: the text holds a lone surrogate"):
        classification.encode(row({"text": "a\ud800"}))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["neutral", "Yes", "no", "no"], ("Yes", "neutral", "no")),
        (["10", "9", "0", "-1", "9"], ("-1", "0", "9", "10")),
        (["2", "0", "1"], ("0", "1", "2")),
        (["2", "10", "x"], ("10", "2", "x")),
        (["01", "1"], ("01", "1")),
    ],
)
def test_find_classes_sorts_labels(labels: list[str], classes: tuple[str, ...]) -> None:
    assert find_classes([row({}, label) for label in labels]) == classes


def test_find_classes_rejects_single_class() -> None:
    with pytest.raises(ValueError, match="'x' is the only one in the file, but a classification"):
        find_classes([row({}, "x")] * 2)


def test_task_columns_applies_column_names() -> None:
    assert task_columns("classification") == {"text": "text", "label": "label"}
    assert task_columns("entailment", {"premise": "s1", "label": "y"}) == {
        "premise": "s1",
        "hypothesis": "hypothesis",
        "label": "y",
    }
    assert task_columns("multiple-choice", choices=["a", "b"]) == {
        "context": "context",
        "label": "label",
        "choice0": "a",
        "choice1": "b",
    }
    assert "question" in task_columns("multiple-choice", {"question": "q"}, ["a", "b"])
    with pytest.raises(ValueError, match="classification has no 'premise': it reads text, label"):
        task_columns("classification", {"premise": "s1"})
    with pytest.raises(ValueError, match="at least 2 choices, not 1"):
        task_columns("multiple-choice", choices=["a"])
    with pytest.raises(ValueError, match="similarity has no choices, only text1, text2, label"):
        task_columns("similarity", choices=["a", "b"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "translation"}, "the task is 'translation', but must be one of classification"),
        ({"name": "classification", "classes": None}, "classification needs classes"),
        (
            {"name": "entailment", "classes": ("a",)},
            r"classes are \('a',\), but must be at least 2",
        ),
        ({"name": "regression", "classes": CLASSES}, "regression has no classes"),
        ({"name": "multiple-choice", "classes": CLASSES}, "multiple-choice has no classes"),
        ({"name": "multiple-choice", "choices": 1}, "choices is 1, but for multi.* at least 2"),
        ({"name": "similarity", "choices": 1}, "choices is 1, but for similarity must be 0"),
        ({"name": "similarity", "max_tokens": 0}, r"max_tokens is 0, .* must be in \[1, 14\]"),
        ({"name": "similarity", "max_tokens": 15}, r"max_tokens is 15, .* must be in \[1, 14\]"),
        ({"name": "regression", "max_tokens": 31}, r"n_positions = 32 must be in \[1, 30\]"),
    ],
)
def test_task_rejects_invalid_settings(
    tokenizer: gpt1.Tokenizer, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        task(tokenizer, **fields)


def test_task_configure_sets_model_config(tokenizer: gpt1.Tokenizer) -> None:
    config = small_config(extra={"kept": 1})
    classification = task(tokenizer, "classification", classes=("a", "b", "c"))
    assert classification.architecture == "OpenAIGPTForSequenceClassification"
    configured = classification.configure(config)
    assert (configured.num_labels, configured.pad_token_id) == (3, 0)
    written = configured.to_dict()
    assert written["id2label"] == {"0": "a", "1": "b", "2": "c"}
    assert written["label2id"] == {"a": 0, "b": 1, "c": 2}
    assert written["problem_type"] == "single_label_classification"
    assert written["kept"] == 1

    configured = task(tokenizer, "regression").configure(config)
    assert (configured.num_labels, configured.problem_type) == (1, "regression")

    choice = task(tokenizer, "multiple-choice")
    assert choice.architecture == "OpenAIGPTDoubleHeadsModel"
    assert choice.configure(dataclasses.replace(config, summary_activation="tanh"))
    for wrong in (
        {"summary_type": "last"},
        {"summary_use_proj": False},
        {"summary_proj_to_labels": False},
        {"summary_last_dropout": 0.1},
        {"tie_word_embeddings": False},
    ):
        (field,) = wrong
        with pytest.raises(ValueError, match=f"{field} is .*, but multiple-choice needs"):
            choice.configure(dataclasses.replace(config, **wrong))


examples = st.lists(
    st.lists(st.lists(st.integers(1, SIZE), min_size=3, max_size=40), min_size=2, max_size=2),
    min_size=1,
    max_size=5,
)


@given(sequences=examples, more=st.integers(0, 3), numbers=st.booleans())
def test_collate_pads_examples(sequences: list[list[list[int]]], more: int, numbers: bool) -> None:
    made = [
        Example(pair, float(label) if numbers else label) for label, pair in enumerate(sequences)
    ]
    B = len(made) + more
    batch = collate(made, n_positions=40, rows=B if more else None)
    T = padded_length(max(len(ids) for pair in sequences for ids in pair), 40)
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "input_ids": ((B, 2, T), "int32"),
        "classify_at": ((B, 2), "int32"),
        "label": ((B,), "float32" if numbers else "int32"),
        "weight": ((B,), "float32"),
    }
    for b, pair in enumerate(sequences):
        for s, ids in enumerate(pair):
            last = batch["classify_at"][b, s]
            assert batch["input_ids"][b, s, : last + 1].tolist() == ids
            assert not batch["input_ids"][b, s, last + 1 :].any()
    assert batch["label"].tolist() == [*range(len(made)), *[0] * more]
    assert batch["weight"].tolist() == [1] * len(made) + [0] * more


def test_collate_rejects_invalid_batches() -> None:
    example = Example([[1, 2, 3]], 0)
    with pytest.raises(ValueError, match="0 examples, but a batch of 4 rows takes 1 to 4"):
        collate([], n_positions=8, rows=4)
    with pytest.raises(ValueError, match="3 examples, but a batch of 2 rows takes 1 to 2"):
        collate([example] * 3, n_positions=8, rows=2)
    with pytest.raises(ValueError, match="a sequence of 3 tokens is longer than 2 positions"):
        collate([example], n_positions=2)


def test_padded_length_takes_few_values() -> None:
    lengths = [padded_length(tokens, 512) for tokens in range(1, 513)]
    assert sorted(set(lengths)) == [*range(16, 129, 16), *range(192, 513, 64)]
    assert all(padded >= tokens for tokens, padded in enumerate(lengths, start=1))
    assert max(padded_length(tokens, 500) for tokens in range(1, 501)) == 500
