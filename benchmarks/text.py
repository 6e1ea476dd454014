"""How fast each pipeline turns text into ids, and the memory that a long text takes."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro

import gpt1_jax as gpt1
from benchmarks.machine import STATUS, environment, peak
from benchmarks.suite import write_json
from benchmarks.timing import Spread, interleave, ratio
from gpt1_jax.training.data.corpus import read_pieces

PIPELINES = ("huggingface", "original")
FIRST_TIME = "original, first time"
THEIRS = "transformers"


def text(  # noqa: PLR0915 (one measurement after another)
    texts: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE...")],
    tokenizer: Annotated[str, tyro.conf.arg(metavar="FOLDER|HUB-ID")] = "demo",
    rounds: int = 5,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
) -> dict[str, Any]:
    """Race both pipelines over text files, with transformers' tokenizer where it is installed.

    The original pipeline remembers the words that it met: the first time it has met none.

    Args:
        texts: UTF-8 files.
        tokenizer: a folder or hub id with GPT-1's vocabulary.
        rounds: how often each runs.
        out: write what was measured to this file.

    Returns:
        What is written to the file: the seconds of every round by name, and for each pipeline the
        most bytes of memory of a process that only imports it, and of one that goes through all
        files in pieces.

    Raises:
        ValueError: no files, or fewer than one round.
    """
    if not texts:
        raise ValueError("give text files")
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, but must be at least 1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    content = ["".join(read_pieces(file)) for file in texts]
    size = sum(len(each.encode()) for each in content)
    if not size:
        raise ValueError(f"{', '.join(map(str, texts))}: there is no text")
    lines = [line for each in content for line in each.split("\n")]

    ours = {name: gpt1.Tokenizer.from_pretrained(tokenizer, pipeline=name) for name in PIPELINES}

    def first_time() -> None:
        fresh = gpt1.Tokenizer.from_pretrained(tokenizer, pipeline="original")
        for each in content:
            fresh.encode(each)

    runs: dict[str, Any] = {
        "huggingface": lambda: ours["huggingface"](lines),
        "original": lambda: [ours["original"].encode(each) for each in content],
        FIRST_TIME: first_time,
    }
    if importlib.util.find_spec("transformers"):
        theirs = _transformers(tokenizer)
        if theirs(lines).input_ids != ours["huggingface"](lines).input_ids:
            raise ValueError("transformers' ids are not those of the pipeline huggingface")
        runs[THEIRS] = lambda: theirs(lines)
    for run in runs.values():
        run()
    seconds = interleave(runs, rounds)

    print(f"{len(texts)} files, {size / 1e6:.2f} MB; medians of {rounds} rounds")
    width = max(map(len, runs))
    for name, times in seconds.items():
        speed = Spread.of([size / 1e6 / second for second in times])
        line = f"  {name:{width}} {speed.median:6.2f} MB/s ({speed.low:.2f} to {speed.high:.2f})"
        if name == THEIRS:
            times_as_fast = ratio(times, seconds["huggingface"])
            line += f"; huggingface is {times_as_fast.median:.2f} times as fast"
        print(line, flush=True)

    memory: dict[str, dict[str, int]] = {}
    if STATUS.exists():
        for name in PIPELINES:
            memory[name] = {
                "imports": peak(_through, tokenizer, name, ()),
                "texts": peak(_through, tokenizer, name, texts),
            }
            least, most = memory[name].values()
            print(f"  {name}, in pieces: {(most - least) / 1e6:.0f} MB beside {least / 1e6:.0f}")
    record = {
        "suite": "text",
        "environment": environment(),
        "bytes": size,
        "seconds": seconds,
        "memory": memory,
    }
    if out is not None:
        write_json(out, record)
    return record


def _transformers(tokenizer: str) -> Any:
    from tokenizers import Tokenizer
    from transformers import OpenAIGPTTokenizer

    backend = Tokenizer.from_str(gpt1.Tokenizer.from_pretrained(tokenizer).to_json())
    return OpenAIGPTTokenizer(tokenizer_object=backend)


def _through(tokenizer: str, pipeline: Any, texts: tuple[Path, ...]) -> None:
    """Go through texts in pieces, and keep nothing."""

    def pieces() -> Iterator[str]:
        for file in texts:
            yield from read_pieces(file)

    loaded = gpt1.Tokenizer.from_pretrained(tokenizer, pipeline=pipeline)
    loaded.encode("the first word")  # imports what the pipeline needs
    for _ in loaded.encode_pieces(pieces()):
        pass
