"""Many prompts of mixed lengths, against the best fixed batch, and what is lost where."""

import dataclasses
import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import gpt1_jax as gpt1
from benchmarks.peers import OURS
from benchmarks.quiet import quiet
from benchmarks.start import COMMAND, command_variables, with_tokenizer
from benchmarks.suite import DEFAULTS, Options, Suite, open_suite, warn_unsteady
from benchmarks.timing import Seconds, Spread, clock, interleave
from gpt1_jax.demo import FOLDER as DEMO
from gpt1_jax.generation.api import STEPS_PER_CALL
from gpt1_jax.generation.batches import default_batch_size, generate_batches

MIXED = "mixed lengths"
COMMANDS = ("the command, first run", "the command, second run")
BATCHES = (8, 16, 32, 64)
QUICK = (2, 4)
# Fixed batches continue one prompt in so many, but two batches at least: their rate is the same.
SHARE = 4

# Continues prompts; returns how many tokens it wrote.
Run = Callable[[], int]


def prompts(
    options: tyro.conf.OmitArgPrefixes[Options] = DEFAULTS,
    full_size: bool = False,
    count: int = 1000,
    new_tokens: int = 32,
    batch_sizes: tuple[int, ...] = (),
) -> dict[str, Any]:
    """Continue many prompts of mixed lengths, and compare with prompts of equal lengths.

    The lengths lie between one token and half of what the model reads, evenly on a logarithmic
    scale; equal ones are their mean. Measured are fixed batches of equal lengths, each a call of
    ``generate``; the same in the default batch as the command has it, in calls of a few tokens;
    then all prompts of mixed lengths; and `gpt1 generate --prompts` from its start to its end, with
    no compiled programs kept and with those of a run before. A share is that of the best batch.

    Args:
        options: of every suite; the model is the demo unless one is given.
        full_size: random weights of full size in place of the demo: give it --count 64.
        count: number of prompts.
        new_tokens: tokens to write after each, fewer where the model ends a text.
        batch_sizes: of the fixed batches; by default 8, 16, 32 and 64.

    Returns:
        What is written to the file.

    Raises:
        ValueError: an option is wrong; the message says which.
    """
    sizes = batch_sizes or (QUICK if options.quick else BATCHES)
    for name, value in (("count", count), ("new_tokens", new_tokens), ("batch_sizes", min(sizes))):
        if value < 1:
            raise ValueError(f"{name} is {value}, but must be at least 1")
    for name in ("peers", "memory", "older"):
        if getattr(options, name):
            raise ValueError(f"prompts measures the speed of {OURS} alone: leave out --{name}")
    if full_size and options.model is not None:
        raise ValueError("give either --model or --full-size, not both")
    if options.model is None and not full_size and not options.quick:
        options = dataclasses.replace(options, model=DEMO)
    count = min(count, 8) if options.quick else count
    alone = dataclasses.replace(options, peers=(OURS,))
    with open_suite("generate", alone, name="prompts") as suite:
        if new_tokens > suite.config.n_positions // 2:
            raise ValueError(
                f"new_tokens is {new_tokens}, but must be at most {suite.config.n_positions // 2}, "
                "half of what the model reads"
            )
        _race(suite, mixed_prompts(suite.config, count), new_tokens, sizes)
        return suite.record


def mixed_prompts(config: gpt1.OpenAIGPTConfig, count: int) -> list[np.ndarray]:
    """Return prompts of 1 to n_positions / 2 tokens, always the same."""
    rng = np.random.default_rng(0)
    longest = config.n_positions // 2
    lengths = np.exp(rng.uniform(0, np.log(longest + 1), count)).astype(int).clip(1, longest)
    return [rng.integers(config.vocab_size, size=n).astype(np.int32) for n in lengths]


def _race(suite: Suite, mixed: list[np.ndarray], new: int, sizes: Sequence[int]) -> None:
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(suite.folder)
    settings = gpt1.GenerationConfig(max_new_tokens=new)
    default = default_batch_size(model, settings, list(map(len, mixed)))
    mean = round(np.mean([len(prompt) for prompt in mixed]))

    def equal(size: int) -> np.ndarray:
        """Return batches (number, size, mean) of equal lengths."""
        number = max(2, len(mixed) // SHARE // size)
        return suite.ids(number * size, mean).reshape(number, size, mean)

    def fixed(size: int) -> int:
        written = [gpt1.generate(model, ids, None, settings) for ids in equal(size)]
        return sum(ids[:, mean:].size for ids in written)

    def many(rows: Any) -> int:
        texts = generate_batches(model, rows, settings, batch_size=default)
        return sum(len(text.sequences[0]) - len(rows[i]) for i, text in texts)

    in_calls = f"the default, {default}, in calls of {STEPS_PER_CALL} tokens"
    runs: dict[str, Run] = {f"batch {size}": lambda size=size: fixed(size) for size in sizes}
    runs[in_calls] = lambda: many(list(equal(default).reshape(-1, mean)))
    runs[MIXED] = lambda: many(mixed)
    with quiet():
        tokens = {name: run() for name, run in runs.items()}
    seconds: dict[str, Seconds] = interleave(runs, suite.rounds)
    # A TPU belongs to one process, and this is it.
    names = COMMANDS if jax.default_backend() != "tpu" else ()
    with tempfile.TemporaryDirectory() as cache, with_tokenizer(suite.folder) as folder:
        command = {name: _command(suite, folder, mixed, new, cache) for name in names}
    case = {"prompts": len(mixed), "mean": mean, "new": new, "batch": default}
    title = f"{len(mixed)} prompts of {mean} tokens on average, {new} new ones each"
    print(f"\n{title}; medians of {suite.rounds} rounds")
    _show(seconds, tokens, command)
    suite.add(
        case=case,
        seconds=seconds,
        tokens=tokens,
        command=command,
    )


def _command(suite: Suite, folder: Path, mixed: list[np.ndarray], new: int, cache: str) -> float:
    """Return the seconds of `gpt1 generate --prompts`.

    Raises:
        ValueError: it fails, or does not print a line for each prompt.
    """
    lines = "".join(json.dumps({"ids": ids.tolist()}) + "\n" for ids in mixed)
    flags = ["generate", "--model", str(folder), "--prompts", "-", "--print-ids"]
    begin = clock()
    done = subprocess.run(
        [*COMMAND, *flags, "--max-new-tokens", str(new)],
        input=lines,
        capture_output=True,
        text=True,
        env=command_variables(suite.options.platform, cache),
    )
    taken = clock() - begin
    if done.returncode or len(done.stdout.splitlines()) != len(mixed):
        raise ValueError(f"gpt1 generate fails: {done.stderr.strip().splitlines()[-1:]}")
    return taken


def rates(
    seconds: Mapping[str, Seconds], tokens: Mapping[str, int], command: Mapping[str, float]
) -> dict[str, Spread]:
    """Return new tokens a second of each way; the command writes what mixed lengths do."""
    found = {
        name: Spread.of([tokens[name] / taken for taken in times])
        for name, times in seconds.items()
    }
    written = tokens[MIXED]
    return found | {name: Spread.of([written / taken]) for name, taken in command.items()}


def best_batch(found: Mapping[str, Spread]) -> float:
    """Return the rate of the best fixed batch."""
    return max(rate.median for name, rate in found.items() if name.startswith("batch"))


def _show(
    seconds: Mapping[str, Seconds], tokens: Mapping[str, int], command: Mapping[str, float]
) -> None:
    found = rates(seconds, tokens, command)
    best, width = best_batch(found), max(map(len, found))
    for name, rate in found.items():
        line = f"  {name:{width}} {rate.median:9.1f} tokens/s"
        print(f"{line}, {rate.median / best:4.0%} of the best", flush=True)
    warn_unsteady(seconds)
