"""Log-probabilities of many texts of mixed lengths: passages, and short sentences."""

import contextlib
import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from benchmarks.machine import peak
from benchmarks.peers import OURS, PEERS
from benchmarks.quiet import quiet
from benchmarks.suite import DEFAULTS, Options, Suite, open_suite, show_memory, show_seconds
from benchmarks.tasks import data_folder, read_sentiment
from benchmarks.timing import Spread
from gpt1_jax import Tokenizer
from gpt1_jax.demo import FOLDER as DEMO

QUICK = 8  # texts of each set
Set = Literal["passages", "sentences"]


def read_passages(data: Path) -> list[str]:
    """Read LAMBADA's passages.

    Raises:
        OSError: the file cannot be read.
    """
    lines = (data / "lambada" / "lambada_test.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def read_sentences(data: Path) -> list[str]:
    """Read UCI's sentences on products, films and restaurants.

    Raises:
        OSError: a file cannot be read.
    """
    return [row["text"] for row in read_sentiment(data)[0]]


READERS: dict[Set, Callable[[Path], list[str]]] = {
    "passages": read_passages,
    "sentences": read_sentences,
}


def score(
    options: tyro.conf.OmitArgPrefixes[Options] = DEFAULTS,
    sets: tuple[Set, ...] = ("passages", "sentences"),
    count: int = 1000,
    data: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
) -> dict[str, Any]:
    """Race the log-probabilities of LAMBADA's passages and of UCI's short sentences.

    Everyone takes strings, and returns the log-probability of every token but the first. Those of
    all are compared before they are timed: the root mean square of the difference from ours,
    relative to that of ours. transformers is a batched loop: texts sorted by length, the head on
    their own tokens alone and a chunk at a time. minicons runs transformers' model, in the fastest
    of several batch sizes.

    Args:
        options: of every suite; random weights have GPT-1's own tokenizer, ``quick`` the demo.
        sets: which sets.
        count: texts of each set.
        data: the folder of public data; by default $GPT1_DATA, or ../shared/data.

    Returns:
        What is written to the file.

    Raises:
        FileNotFoundError: there is no data.
        ValueError: an option is wrong, or outputs differ; the message says which.
    """
    if count < 1:
        raise ValueError(f"count is {count}, but must be at least 1")
    folder = data_folder(data)
    if options.quick:
        options = dataclasses.replace(options, model=options.model or DEMO)
        count = min(count, QUICK)
    texts = {name: READERS[name](folder)[:count] for name in sets}
    with open_suite("score", options) as suite, with_tokenizer(suite.folder, folder) as checkpoint:
        runs = {}
        if not options.memory:
            runs = {name: _scorer(name)(checkpoint) for name in suite.peers}
        for name, own in texts.items():
            case = {"texts": name, "count": len(own)}
            if options.memory:
                peaks = {peer: peak(_score, peer, checkpoint, own) for peer in suite.peers}
                loaded = {peer: peak(_score, peer, checkpoint, []) for peer in suite.peers}
                above = {peer: peaks[peer] - loaded[peer] for peer in suite.peers}
                show_memory(f"{len(own)} {name}", above, "above what the loaded model takes")
                suite.add(case=case, bytes=peaks, above=above)
            else:
                _race(suite, case, runs, own)
        return suite.record


@contextlib.contextmanager
def with_tokenizer(checkpoint: Path, data: Path) -> Iterator[Path]:
    """Give a checkpoint GPT-1's own tokenizer if it has none."""
    try:
        Tokenizer.from_pretrained(checkpoint)
    except FileNotFoundError:
        with tempfile.TemporaryDirectory() as temporary:
            for file in checkpoint.iterdir():
                (Path(temporary) / file.name).symlink_to(file.absolute())
            Tokenizer.from_pretrained(data / "gpt1_bpe").save_pretrained(temporary)
            yield Path(temporary)
    else:
        yield checkpoint


def _scorer(name: str) -> Any:
    found = PEERS[name].score
    assert found is not None
    return found


def _score(name: str, checkpoint: Path, texts: Sequence[str]) -> None:
    _scorer(name)(checkpoint)(texts)


def _race(suite: Suite, case: dict[str, Any], runs: dict[str, Any], texts: Sequence[str]) -> None:
    with quiet():
        found = {name: np.concatenate(run(texts)) for name, run in runs.items()}
        expected = found[OURS]
        errors = {name: relative_error(own, expected) for name, own in found.items()}
        for name, error in errors.items():
            if not error <= PEERS[name].tolerance:
                raise ValueError(f"the log-probabilities of {name} are {error:.2g} from {OURS}'s")
        bound = {name: functools.partial(run, texts) for name, run in runs.items()}
        seconds, limits = suite.race(bound)
    tokens = len(expected)
    notes = {
        name: f" {tokens / Spread.of(times).median:7.0f} tokens/s"
        for name, times in seconds.items()
    }
    show_seconds(f"{len(texts)} {case['texts']}, {tokens} scored tokens", seconds, notes)
    suite.add(case=case, tokens=tokens, errors=errors, seconds=seconds, limits=limits)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the root mean square of the difference, relative to that of what is expected."""
    if found.shape != expected.shape:
        raise ValueError(f"{len(found)} tokens were scored, but must be {len(expected)}")
    difference = found.astype(np.float64) - expected
    return float(np.sqrt(np.mean(difference**2) / np.mean(expected.astype(np.float64) ** 2)))
