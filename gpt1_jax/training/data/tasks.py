"""The input transformations of the GPT-1 paper (Radford et al. 2018, section 3.3 and figure 1).

A labelled row becomes one sequence or several, each between ``_start_`` and ``_classify_``:

    classification, regression   start text classify
    entailment                   start premise delimiter hypothesis classify
    similarity                   start text1 delimiter text2 classify, and the same of text2, text1
    multiple-choice              start context (question) delimiter choice_k classify, for every k

The state at ``_classify_`` goes to the head: a linear layer over the classes, of the sum of both
states for a similarity, or a score for each choice.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from gpt1_jax.checks import BOOL, INTEGER, Rule, check
from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.text.tokenizer import Tokenizer
from gpt1_jax.training.data.labelled import LABEL, Row

TaskName = Literal["classification", "regression", "entailment", "similarity", "multiple-choice"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)

START, DELIMITER, CLASSIFY = "_start_", "_delimiter_", "_classify_"
# OpenAI's code pads with id 0, <unk>. No sequence ends in it, so that the last token that is not a
# pad is always _classify_, which is where Hugging Face's classification model looks.
PAD = 0

TEXTS: dict[TaskName, tuple[str, ...]] = {
    "classification": ("text",),
    "regression": ("text",),
    "entailment": ("premise", "hypothesis"),
    "similarity": ("text1", "text2"),
    "multiple-choice": ("context",),
}
MULTI_LABEL = "multi_label_classification"  # a ``problem_type`` of config.json
SEPARATOR = Rule("a string that is not empty", lambda x: isinstance(x, str) and x != "")
QUESTION = "question"  # of a multiple choice, which may do without


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """The ids of the tokens between which texts are put."""

    start: int
    delimiter: int
    classify: int


def prepare_tokenizer(tokenizer: Tokenizer) -> SpecialTokens:
    """Append the special tokens to the vocabulary, unless it has them; return their ids.

    Extra special tokens that the tokenizer has are kept. A vocabulary that grew needs
    ``model.resize_token_embeddings(len(tokenizer), rngs=...)``.
    """
    tokens = [START, DELIMITER, CLASSIFY]
    extra = tokenizer.extra_special_tokens
    new = [token for token in tokens if token not in extra]
    if new:
        tokenizer.add_special_tokens({"extra_special_tokens": [*extra, *new]})
    return SpecialTokens(*tokenizer.convert_tokens_to_ids(tokens))


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode a text in which ``_start_`` and the like are words and not special tokens.

    The ids are those of the tokenizer before ``prepare_tokenizer``, without what a template of its
    own would add: the task adds its special tokens.
    """
    for token in (START, DELIMITER, CLASSIFY):
        # The pipeline parts words at underscores. Done before, it hides the token and no more.
        text = text.replace(token, token.replace("_", " _ "))
    return tokenizer.encode(text, add_special_tokens=False)


def task_columns(
    name: TaskName, columns: Mapping[str, str] | None = None, choices: Sequence[str] = ()
) -> dict[str, str]:
    """Return the columns to read for a task: what ``read_rows`` takes.

    Args:
        name: the task.
        columns: the columns' names by their roles, where they are not the same. A multiple choice
            has a question only if it is named here.
        choices: the columns of the choices of a multiple choice, in order.

    Raises:
        ValueError: a role that the task does not have, or choices that it does not, or has not.
    """
    roles = [*TEXTS[name], LABEL]
    if name == "multiple-choice":
        if len(choices) < 2:
            raise ValueError(f"{name} needs the columns of at least 2 choices, not {len(choices)}")
        roles.insert(1, QUESTION)
    elif choices:
        raise ValueError(f"{name} has no choices, only {', '.join(roles)}")
    columns = {} if columns is None else columns
    for role in columns:
        if role not in roles:
            raise ValueError(f"{name} has no {role!r}: it reads {', '.join(roles)}")
    named = {role: columns.get(role, role) for role in roles if role != QUESTION or role in columns}
    return named | {_choice(k): column for k, column in enumerate(choices)}


def _choice(k: int) -> str:
    return f"choice{k}"


def find_classes(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the classes of a training set: its labels, sorted, integers by their value.

    Raises:
        ValueError: all rows have the same label.
    """
    names = {name for row in rows for name in row.names}
    if not names:
        raise ValueError(f"{rows[0].place}: neither this row nor another one has a label")
    if len(names) < 2:
        raise ValueError(
            f"{rows[0].place}: the label {names.pop()!r} is the only one in the file, "
            "but a classification needs at least 2 classes"
        )
    if all(name.removeprefix("-").isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def check_no_numbers(rows: Sequence[Row]) -> None:
    """Check that no label of a similarity by classes is a number such as 3.8.

    Raises:
        ValueError: one is; each would be a class of its own.
    """
    for row in rows:
        if re.fullmatch(r"[+-]?\d*\.\d+", row.label) and not row.label.endswith(".0"):
            raise ValueError(
                f"{row.place}: the label {row.label!r} is a number, not a class: pass numbers=True "
                "(--numbers)"
            )


@dataclasses.dataclass(frozen=True)
class Example:
    """A row as the model reads it.

    Attributes:
        sequences: of ids: one, both orders of a similarity, or one for every choice.
        label: a class, a choice, or (float) a number; 0 of a row without a label. Where a row may
            have any number of classes, for each 1.0 or 0.0.
        cut_from: tokens of the longest text that was cut, a context with its question; 0 if none.
    """

    sequences: list[list[int]]
    label: int | float | tuple[float, ...]
    cut_from: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """How the rows of a task become examples, and which model it needs.

    Attributes:
        name: the task.
        tokenizer: with the special tokens.
        special: their ids, as ``prepare_tokenizer`` returns them.
        n_positions: the longest sequence that the model takes.
        classes: the names of the classes in the order of their ids; None where the label is a
            number, of a regression or of a similarity, or a choice.
        choices: the number of choices; 0 unless it is a multiple choice.
        max_tokens: the budget: the most tokens of a text, whose end is cut off. A question and its
            context share one; the context gives way. By default n_positions - 2 for one text, and
            OpenAI's n_positions // 2 - 2 for each of two.
        multi_label: whether a row may have any number of the classes.
        label_separator: what is between the labels of such a row, where they are a string.

    Raises:
        ValueError: what does not fit together; the message says what.
    """

    name: TaskName
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    special: SpecialTokens
    n_positions: int
    classes: tuple[str, ...] | None = None
    choices: int = 0
    max_tokens: int | None = None
    multi_label: bool = False
    label_separator: str = "|"

    def __post_init__(self) -> None:
        if self.name not in TASKS:
            raise ValueError(f"the task is {self.name!r}, but must be one of {', '.join(TASKS)}")
        if self.name in ("classification", "entailment") and self.classes is None:
            raise ValueError(f"{self.name} needs classes")
        if self.name in ("regression", "multiple-choice") and self.classes is not None:
            raise ValueError(f"{self.name} has no classes")
        if self.classes is not None and (
            len(self.classes) < 2 or not all(isinstance(one, str) for one in self.classes)
        ):
            raise ValueError(f"classes are {self.classes}, but must be at least 2 names")
        if self.multi_label and self.classes is None:
            raise ValueError(f"multi_label is of classes, but this {self.name} has none")
        check("multi_label", self.multi_label, BOOL)
        check("label_separator", self.label_separator, SEPARATOR)
        for name in ("choices", "max_tokens"):
            number = getattr(self, name)
            if number is not None or name == "choices":
                check(name, number, INTEGER)
        if self.name == "multiple-choice" and self.choices < 2:
            raise ValueError(f"choices is {self.choices}, but for {self.name} must be at least 2")
        if self.name != "multiple-choice" and self.choices:
            raise ValueError(f"choices is {self.choices}, but for {self.name} must be 0")
        if not 1 <= self.budget <= self._largest_budget:
            raise ValueError(
                f"max_tokens is {self.budget}, but for {self.name} with n_positions = "
                f"{self.n_positions} must be in [1, {self._largest_budget}]"
            )

    @property
    def budget(self) -> int:
        """The most tokens of a text: ``max_tokens`` or its default."""
        if self.max_tokens is not None:
            return self.max_tokens
        return self.n_positions - 2 if self._single else self.n_positions // 2 - 2

    @property
    def _largest_budget(self) -> int:
        return self.n_positions - 2 if self._single else (self.n_positions - 3) // 2

    @property
    def _single(self) -> bool:
        return self.name in ("classification", "regression")

    @property
    def predicts(self) -> Literal["classes", "numbers", "choices", "labels"]:
        """What the labels and the predictions are; "labels" are any number of the classes."""
        if self.name == "multiple-choice":
            return "choices"
        if self.multi_label:
            return "labels"
        return "numbers" if self.classes is None else "classes"

    @property
    def separator(self) -> str | None:
        """What ``make_row`` reads the label with."""
        return self.label_separator if self.multi_label else None

    @property
    def architecture(self) -> str:
        """The name of the model for this task."""
        if self.predicts == "choices":
            return "OpenAIGPTDoubleHeadsModel"
        return "OpenAIGPTForSequenceClassification"

    def configure(self, config: OpenAIGPTConfig) -> OpenAIGPTConfig:
        """Return the configuration of the model for this task, the names of its classes included.

        Raises:
            ValueError: a field of ``config`` has a value that no fine-tuning here heeds.
        """
        # The auxiliary loss reads the table.
        needed: dict[str, object] = {"tie_word_embeddings": True}
        if self.predicts == "choices":
            needed |= {
                "summary_type": "cls_index",
                "summary_use_proj": True,
                "summary_proj_to_labels": True,
                "summary_last_dropout": 0.0,
            }
        for field, value in needed.items():
            if getattr(config, field) != value:
                raise ValueError(
                    f"{field} is {getattr(config, field)!r}, but {self.name} needs {value!r}"
                )
        if self.predicts == "choices":
            return dataclasses.replace(config, num_labels=1, pad_token_id=PAD)
        if self.classes is None:
            return dataclasses.replace(
                config, num_labels=1, pad_token_id=PAD, problem_type="regression"
            )
        labels = {
            "id2label": {str(i): name for i, name in enumerate(self.classes)},
            "label2id": {name: i for i, name in enumerate(self.classes)},
        }
        return dataclasses.replace(
            config,
            num_labels=len(self.classes),
            pad_token_id=PAD,
            problem_type=MULTI_LABEL if self.multi_label else "single_label_classification",
            extra={**config.extra, **labels},
        )

    def configure_tokenizer(self) -> None:
        """Make a call of the tokenizer, here and in transformers, do what ``encode`` does.

        It puts the special tokens around a text or a pair of texts, pads with ``PAD`` on the right,
        and with ``truncation=True`` cuts to the length of texts that fill their budgets. A pair of
        which one text alone exceeds its budget is cut less than by ``encode``: the ``tokenizers``
        library has one limit for both.
        """
        tokenizer = self.tokenizer
        tokenizer.set_template(
            f"{START} $A {CLASSIFY}", f"{START} $A {DELIMITER} $B:1 {CLASSIFY}:1"
        )
        tokenizer.model_max_length = self.budget + 2 if self._single else 2 * self.budget + 3
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        # An attention mask does not depend on the ids, so unknown tokens are still attended to. A
        # vocabulary whose first token is a word has no pad token: it would become a special one.
        pad = tokenizer.convert_ids_to_tokens(PAD)
        tokenizer.pad_token = pad if pad in tokenizer.all_special_tokens else None

    def encode(self, row: Row) -> Example:
        """Return the sequences and the label of a row.

        Raises:
            ValueError: a text without tokens, or a label that is none; names the file and the line.
        """
        whole = {role: self._encode_text(row, role) for role in row.texts}
        texts = {role: ids[: self.budget] for role, ids in whole.items()}
        start, delimiter, classify = dataclasses.astuple(self.special)

        def pair(first: list[int], second: list[int]) -> list[int]:
            return [start, *first, delimiter, *second, classify]

        if self.name == "multiple-choice":
            question = texts.get(QUESTION, [])
            context = texts["context"][: self.budget - len(question)] + question
            sequences = [pair(context, texts[_choice(k)]) for k in range(self.choices)]
        elif self._single:
            sequences = [[start, *texts["text"], classify]]
        else:
            first, second = (texts[role] for role in TEXTS[self.name])
            sequences = [pair(first, second)]
            if self.name == "similarity":
                sequences.append(pair(second, first))
        lengths = {role: len(ids) for role, ids in whole.items()}
        if QUESTION in lengths:
            lengths["context"] += lengths[QUESTION]
        longest = max(lengths.values())
        return Example(sequences, self._label(row), longest if longest > self.budget else 0)

    def _encode_text(self, row: Row, role: str) -> list[int]:
        try:
            ids = encode_text(self.tokenizer, row.texts[role])
        except ValueError as error:
            raise ValueError(f"{row.place}: {role}: {error}") from None
        if not ids:
            raise ValueError(f"{row.place}: {role} has no tokens")
        return ids

    def _label(self, row: Row) -> int | float | tuple[float, ...]:
        if self.multi_label and self.classes is not None:
            if unknown := [name for name in row.labels or () if name not in self.classes]:
                names = ", ".join(self.classes)
                raise ValueError(f"{row.place}: the label {unknown[0]!r} is not one of {names}")
            return tuple(float(name in (row.labels or ())) for name in self.classes)
        if not row.label:
            return 0.0 if self.predicts == "numbers" else 0
        found = f"{row.place}: the label {row.label!r}"
        if self.predicts == "choices":
            if not row.label.isdecimal() or int(row.label) >= self.choices:
                last = self.choices - 1
                raise ValueError(f"{found} must be a choice, which are counted 0 to {last}")
            return int(row.label)
        if self.classes is not None:
            if row.label not in self.classes:
                raise ValueError(f"{found} is not one of {', '.join(self.classes)}")
            return self.classes.index(row.label)
        try:
            number = float(row.label)
        except ValueError:
            raise ValueError(f"{found} must be a number") from None
        if not abs(number) <= float(np.finfo(np.float32).max):
            raise ValueError(f"{found} must be a finite float32 number")
        return number


def padded_length(tokens: int, n_positions: int) -> int:
    """Return the length that a batch is padded to: few different ones, so few compilations.

    Multiples of 16 up to 128, of 64 beyond, and at most ``n_positions``.
    """
    step = 16 if tokens <= 128 else 64
    return min(math.ceil(tokens / step) * step, n_positions)


def collate(
    examples: Sequence[Example],
    *,
    n_positions: int,
    rows: int | None = None,
    length: int | None = None,
) -> dict[str, np.ndarray]:
    """Make a batch of examples of one task.

    Args:
        examples: at least one.
        n_positions: the longest sequence that the model takes.
        rows: the number B of rows; those after the examples are padding that weighs nothing. By
            default as many as there are examples.
        length: T, by default the ``padded_length`` of the longest sequence.

    Returns:
        ``input_ids`` (B, S, T) int32, S sequences an example, padded on the right with 0;
        ``classify_at`` (B, S) int32, the place of ``_classify_``, the last token;
        ``label`` (B,) int32, or float32 for numbers; (B, C) float32 of 0 and 1 for any number of C
        classes;
        ``weight`` (B,) float32, 1 for an example and 0 for a row that fills up.

    Raises:
        ValueError: no example, more than ``rows``, or a sequence longer than ``n_positions``.
    """
    B = len(examples) if rows is None else rows
    if not 1 <= len(examples) <= B:
        raise ValueError(f"{len(examples)} examples, but a batch of {B} rows takes 1 to {B}")
    S = len(examples[0].sequences)
    longest = max(len(ids) for example in examples for ids in example.sequences)
    if longest > n_positions:
        raise ValueError(f"a sequence of {longest} tokens is longer than {n_positions} positions")
    T = padded_length(longest, n_positions) if length is None else length
    label = np.asarray(examples[0].label)
    batch = {
        "input_ids": np.full((B, S, T), PAD, np.int32),
        "classify_at": np.zeros((B, S), np.int32),
        "label": np.zeros((B, *label.shape), np.float32 if label.dtype.kind == "f" else np.int32),
        "weight": np.zeros(B, np.float32),
    }
    for b, example in enumerate(examples):
        for s, ids in enumerate(example.sequences):
            batch["input_ids"][b, s, : len(ids)] = ids
            batch["classify_at"][b, s] = len(ids) - 1
        batch["label"][b] = example.label
        batch["weight"][b] = 1
    return batch
