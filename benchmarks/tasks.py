"""Real labelled sets: a fine-tuned model against the majority and a linear model on TF-IDF."""

import dataclasses
import itertools
import json as json_format
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any
from xml.etree import ElementTree

import numpy as np
import tyro
from flax import nnx

import gpt1_jax as gpt1
from gpt1_jax.training.data.labelled import read_rows
from gpt1_jax.training.evaluate import evaluate

Row = dict[str, Any]
Rows = list[Row]

SPLIT_SEED = 0
TEST_SHARE = 0.2
# What leads from a premise to its cause, and to its effect.
CONNECTIVES = {"cause": "because", "effect": "so"}
# Who is fine-tuned, whether from random weights, and by which flags: the paper's ablations.
FINETUNED: dict[str, tuple[bool, tuple[str, ...]]] = {
    "from scratch": (True, ()),
    "no auxiliary loss": (False, ("--lm-weight", "0")),
    "pre-trained": (False, ()),
}


def read_sentiment(data: Path) -> tuple[Rows, Rows]:
    """Read UCI's sentences on products, films and restaurants, labelled 1 where they praise.

    Each file is a permutation of its lines, the same every time, whose last fifth is for testing.

    Returns:
        The rows to train on and the rows to test on, with the keys text and label.

    Raises:
        OSError: a file cannot be read.
        ValueError: a line is wrong; names the file and the line.
    """
    train, test = [], []
    for name in ("amazon_cells", "imdb", "yelp"):
        file = data / "classification" / "uci_sentiment" / f"{name}_labelled.txt"
        rows = []
        # Bytes, for some sentences hold NEL, at which str.splitlines would break them.
        for number, line in enumerate(file.read_bytes().splitlines(), start=1):
            text, _, label = line.rpartition(b"\t")
            if not text.strip() or label not in (b"0", b"1"):
                raise ValueError(f"{file}, line {number} is not a sentence, a tab, and 0 or 1")
            try:
                rows.append({"text": text.decode().strip(), "label": int(label)})
            except UnicodeDecodeError:
                raise ValueError(f"{file}, line {number} is not UTF-8") from None
        shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(rows))
        cut = len(rows) - round(TEST_SHARE * len(rows))
        train += [rows[i] for i in shuffled[:cut]]
        test += [rows[i] for i in shuffled[cut:]]
    return train, test


def read_snli(data: Path) -> tuple[Rows, Rows]:
    """Read SNLI's pairs: label 0 is entailment, 1 neutral, 2 contradiction.

    Returns:
        The validation part, to train on, and the test part, with the keys premise, hypothesis and
        label.

    Raises:
        OSError: a file cannot be read.
        ValueError: a row is wrong; names the file and the line.
    """
    folder = data / "entailment" / "snli"
    return _read_pairs(folder / "validation.tsv"), _read_pairs(folder / "test.tsv")


def _read_pairs(file: Path) -> Rows:
    rows = []
    columns = {name: name for name in ("premise", "hypothesis", "label")}
    for row in read_rows(file, columns, quoting="csv"):
        if row.label not in ("0", "1", "2"):
            raise ValueError(f"{row.place}: the label is {row.label!r}, but must be 0, 1 or 2")
        rows.append({**row.texts, "label": int(row.label)})
    return rows


def read_copa(data: Path) -> tuple[Rows, Rows]:
    """Read COPA: which of two sentences is the more plausible cause, or effect, of a premise?

    Returns:
        The development part, to train on, and the test part, with the keys context (the premise,
        and "because" or "so"), choice0, choice1 and label, the number of the right choice.

    Raises:
        OSError: a file cannot be read.
        ValueError: an item is wrong; names the file and the item.
    """
    folder = data / "multiple_choice" / "copa"
    return _read_items(folder / "copa-dev.xml"), _read_items(folder / "copa-test.xml")


def _read_items(file: Path) -> Rows:
    try:
        items = ElementTree.fromstring(file.read_bytes()).iter("item")
    except ElementTree.ParseError as error:
        raise ValueError(f"{file} is not XML ({error})") from None
    rows = []
    for item in items:
        premise, *choices = ((item.findtext(tag) or "").strip() for tag in ("p", "a1", "a2"))
        connective = CONNECTIVES.get(item.get("asks-for", ""))
        label = item.get("most-plausible-alternative")
        if not (premise and all(choices) and connective and label in ("1", "2")):
            raise ValueError(f"{file}, item {item.get('id')}: a sentence or an attribute is wrong")
        context = f"{premise.rstrip('.')} {connective}"
        first, second = choices
        row = {"context": context, "choice0": first, "choice1": second, "label": int(label) - 1}
        rows.append(row)
    if not rows:
        raise ValueError(f"{file} holds no items")
    return rows


def write_rows(file: Path, rows: Rows) -> None:
    """Write rows as JSON lines, as ``gpt1 finetune`` reads them."""
    file.write_text("".join(json_format.dumps(row) + "\n" for row in rows))


def majority(train: Rows, test: Rows) -> float:
    """Return the accuracy of always answering what is most frequent in training."""
    ((label, _),) = Counter(row["label"] for row in train).most_common(1)
    return statistics.fmean(row["label"] == label for row in test)


def tfidf(train: Rows, test: Rows, columns: Sequence[str]) -> float:
    """Return the accuracy of a logistic regression on words and pairs of neighbouring words.

    Args:
        train: rows to fit the weights of the words and the regression to.
        test: rows to count right answers in.
        columns: the texts of a row; each has its own vocabulary, for its own coefficients.
    """
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    parts = []
    for column in columns:
        vectorizer = TfidfVectorizer(ngram_range=(1, 2))
        fitted = vectorizer.fit_transform([row[column] for row in train])
        parts.append((fitted, vectorizer.transform([row[column] for row in test])))
    features, unseen = (sparse.hstack(part, format="csr") for part in zip(*parts, strict=True))
    regression = LogisticRegression(max_iter=1000).fit(features, [row["label"] for row in train])
    return float(regression.score(unseen, [row["label"] for row in test]))


def tfidf_of_choices(train: Rows, test: Rows) -> float:
    """Return the accuracy of a logistic regression on how the features of two choices differ.

    The features of a choice are its words, its pairs of neighbouring words, and each of its words
    with each word of the context, the connective included. There is no intercept: a choice is not
    better for coming second.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    def features(pair: tuple[str, str]) -> list[str]:
        context, choice = (re.findall(r"\w+", text.lower()) for text in pair)
        neighbours = map(" ".join, itertools.pairwise(choice))
        return [*choice, *neighbours, *(f"{c} > {w}" for c in context for w in choice)]

    def pairs(rows: Rows, choice: str) -> list[tuple[str, str]]:
        return [(row["context"], row[choice]) for row in rows]

    words: Any = features  # the library's types know the names of its own analyzers alone
    vectorizer: Any = TfidfVectorizer(analyzer=words)
    vectorizer.fit(pairs(train, "choice0") + pairs(train, "choice1"))

    def difference(rows: Rows) -> Any:
        first, second = (vectorizer.transform(pairs(rows, f"choice{i}")) for i in (0, 1))
        return second - first

    regression = LogisticRegression(fit_intercept=False, max_iter=1000)
    regression.fit(difference(train), [row["label"] for row in train])
    return float(regression.score(difference(test), [row["label"] for row in test]))


@dataclasses.dataclass(frozen=True)
class LabelledSet:
    """A set of rows with labels.

    Attributes:
        task: which of ``gpt1 finetune``'s tasks it is.
        read: gives the rows to train on and to test on, from the data folder.
        tfidf: gives the accuracy of the linear model, from these rows.
        flags: of ``gpt1 finetune``, besides the task.
    """

    task: str
    read: Callable[[Path], tuple[Rows, Rows]]
    tfidf: Callable[[Rows, Rows], float]
    flags: tuple[str, ...] = ()


SETS = {
    "snli": LabelledSet(
        "entailment",
        read_snli,
        lambda train, test: tfidf(train, test, ("premise", "hypothesis")),
    ),
    "uci-sentiment": LabelledSet(
        "classification", read_sentiment, lambda train, test: tfidf(train, test, ("text",))
    ),
    "copa": LabelledSet(
        "multiple-choice", read_copa, tfidf_of_choices, ("--choices", "choice0", "choice1")
    ),
}


def tasks(
    sets: tuple[str, ...] = tuple(SETS),
    data: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    model: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    seeds: tuple[int, ...] = (0, 1, 2),
    epochs: float = 3.0,
    learning_rate: float = 5e-4,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
) -> dict[str, dict[str, list[float]]]:
    """Print accuracies on real labelled sets: baselines, and fine-tuned models if one is given.

    Of several seeds the mean is printed, with its standard error, and each.

    Args:
        sets: which sets.
        data: the folder of public data; by default $GPT1_DATA, or ../shared/data.
        model: a pre-trained checkpoint to fine-tune, with and without the auxiliary loss, as well
            as one of its architecture with random weights; without it there are only the baselines.
        seeds: each model is fine-tuned once with each.
        epochs: of the fine-tuning.
        learning_rate: its peak; the paper's 6.25e-5 is for a model 40 times as large as the demo.
        out: write the accuracies to this file, after each set.

    Returns:
        The accuracies of each set, by what has them; several where there are several seeds.
    """
    if unknown := set(sets) - set(SETS):
        raise ValueError(f"{unknown.pop()!r} is no set; the sets are {', '.join(SETS)}")
    folder = data_folder(data)
    recipe = ("--epochs", str(epochs), "--learning-rate", str(learning_rate))
    results = {}
    for name in sets:
        train, test = SETS[name].read(folder)
        print(f"\n{name}: {len(train)} rows to train on, {len(test)} to test on", flush=True)
        results[name] = {}
        for player, accuracies in _play(SETS[name], train, test, model, seeds, recipe):
            results[name][player] = accuracies
            line = f"  {player:27} {statistics.fmean(accuracies):6.1%}"
            if len(accuracies) > 1:
                error = statistics.stdev(accuracies) / len(accuracies) ** 0.5
                listed = ", ".join(f"{accuracy:.1%}" for accuracy in accuracies)
                line += f" ± {error:.1%}   ({listed})"
            print(line, flush=True)
        if out is not None:
            out.write_text(json_format.dumps(results, indent=1) + "\n")
    return results


def _play(
    chosen: LabelledSet,
    train: Rows,
    test: Rows,
    model: Path | None,
    seeds: Sequence[int],
    recipe: tuple[str, ...],
) -> Iterator[tuple[str, list[float]]]:
    """Yield who plays and the accuracies reached, each as soon as it is known."""
    yield "majority", [majority(train, test)]
    yield "TF-IDF, logistic regression", [chosen.tfidf(train, test)]
    if model is None:
        return
    with tempfile.TemporaryDirectory() as temporary:
        files = Path(temporary) / "train.jsonl", Path(temporary) / "test.jsonl"
        write_rows(files[0], train)
        write_rows(files[1], test)
        flags = ("--task", chosen.task, *chosen.flags, *recipe)
        for player, (scratch, more) in FINETUNED.items():
            own = (*flags, *more)
            yield player, [finetuned(*files, model, seed, scratch, own) for seed in seeds]


def finetuned(
    train_file: Path,
    test_file: Path,
    model: Path,
    seed: int,
    scratch: bool,
    flags: tuple[str, ...],
) -> float:
    """Return the accuracy of a model after the last step of ``gpt1 finetune``.

    The test rows choose nothing: neither a checkpoint nor when to stop.

    Args:
        train_file: rows to train on, as ``write_rows`` writes them.
        test_file: rows to test on.
        model: the checkpoint.
        seed: of the order of the rows, of dropout and of new weights.
        scratch: start from random weights in place of the checkpoint's.
        flags: of the command: the task and the recipe.

    Raises:
        ValueError: the command failed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        start, out = model, Path(temporary) / "out"
        if scratch:
            start = Path(temporary) / "start"
            write_untrained(model, start, seed)
        command = [sys.executable, "-m", "gpt1_jax.cli", "finetune", *flags]
        command += ["--model", str(start), "--train", str(train_file), "--out", str(out)]
        command += ["--seed", str(seed)]
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
            raise ValueError(f"the command failed: {' '.join(command)}")
        _, measures = next(evaluate(out, [test_file], batch_size=32))
        return measures["accuracy"]


def write_untrained(model: Path, folder: Path, seed: int) -> None:
    """Save a checkpoint's architecture with random weights, and its tokenizer."""
    config = gpt1.OpenAIGPTConfig.from_pretrained(model)
    gpt1.OpenAIGPTLMHeadModel(config, rngs=nnx.Rngs(seed)).save_pretrained(folder)
    gpt1.Tokenizer.from_pretrained(model).save_pretrained(folder)


def data_folder(given: Path | None) -> Path:
    """Return the folder of public data.

    Raises:
        FileNotFoundError: there is none.
    """
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = given or Path(os.environ.get("GPT1_DATA") or beside)
    if not folder.is_dir():
        raise FileNotFoundError(f"no data: {folder} is no folder; give --data, or set GPT1_DATA")
    return folder
