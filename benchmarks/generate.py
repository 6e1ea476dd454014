"""Greedy generation: reading a prompt, and writing token after token."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.machine import peak
from benchmarks.peers import PEERS, dtype_of, opponent
from benchmarks.quiet import quiet
from benchmarks.roofline import Roofline
from benchmarks.suite import (
    DEFAULTS,
    Options,
    Suite,
    TimeBudget,
    compare,
    open_suite,
    share,
    show_memory,
    warn_unsteady,
)
from benchmarks.timing import Seconds, Spread, ratio, steps
from gpt1_jax import OpenAIGPTLMHeadModel, functional

CASES = (
    (1, 16, 64),
    (1, 128, 128),
    (1, 448, 64),
    (2, 16, 64),
    (4, 16, 64),
    (8, 16, 64),
    (32, 16, 64),
)
QUICK = ((1, 3, 4), (2, 5, 4))
# Between the logit of the token that float32 finds likeliest and that of the one chosen, in
# standard deviations of the logits.
MAX_LOGIT_GAP = 0.5


def generate(
    options: tyro.conf.OmitArgPrefixes[Options] = DEFAULTS,
    cases: tuple[tuple[int, int, int], ...] = (),
) -> dict[str, Any]:
    """Race greedy generation; all in float32 must write the same ids.

    Others must choose tokens that float32 finds almost as likely as its own. GPT-2, which is
    another model, is checked against itself without a cache.

    Args:
        options: of every suite.
        cases: batch, prompt tokens and new tokens, at least two.

    Returns:
        What is written to the file.
    """
    cases = cases or (QUICK if options.quick else CASES)
    for case in cases:
        if min(case) < 1 or case[2] < 2:
            raise ValueError(f"the case {case} must have a batch, a prompt and two new tokens")
    with open_suite("generate", options) as suite:
        play = _memory if options.memory else _race
        play(suite, sorted(cases, key=lambda case: case[0] * case[1] * case[2]))
        return suite.record


def _race(suite: Suite, cases: list[tuple[int, int, int]]) -> None:
    loaded = {}
    for name, peer in suite.peers.items():
        if peer.generate is not None:
            with quiet():
                loaded[name] = peer.generate(suite.folder)
    judge = functional(OpenAIGPTLMHeadModel.from_pretrained(suite.folder))
    budget = TimeBudget(suite.options.max_seconds)
    for batch, prompt, new in cases:
        prompts = suite.ids(batch, prompt)
        runs: dict[str, Callable[[], object]] = {}
        logit_gaps, left_out = {}, {}
        reference, expected_ids = "", prompts
        # Who has no cache reads the whole text for every token.
        read = batch * new * (prompt + new)
        for name, run in loaded.items():
            if expected := budget.too_long(name, read):
                left_out[name] = expected
                continue
            with quiet():
                written = run(prompts, new)
            if name != "gpt2":
                exact = suite.peers[name].dtype == "float32"
                if exact and not reference:
                    reference, expected_ids = name, written
                if exact and not np.array_equal(written, expected_ids):
                    raise ValueError(f"{name} does not write the ids that {reference} writes")
                logit_gaps[name] = _logit_gap(judge, written, prompt)
                if not logit_gaps[name] <= MAX_LOGIT_GAP:
                    raise ValueError(
                        f"{name} writes unlikely tokens: the logit of one lies "
                        f"{logit_gaps[name]:.2f} standard deviations below the greatest"
                    )
            runs[name] = functools.partial(run, prompts, new)
            runs[f"{name} first"] = functools.partial(run, prompts, 1)
            runs[f"{name} first"]()
            budget.measure(name, read, runs[name])
        if not runs:
            continue
        seconds, limits = suite.race(runs)
        first = {name: seconds.pop(f"{name} first") for name in list(seconds)[::2]}
        # A step reads, besides the weights, the keys and values so far: half of the new ones.
        keys = prompt + new // 2
        work = Roofline.forward(suite.config, batch, 1, keys, head=True)
        _show((batch, prompt, new), suite.rounds, seconds, first, work, limits)
        suite.add(
            case={"batch": batch, "prompt": prompt, "new": new},
            work=vars(work),
            logit_gaps=logit_gaps,
            left_out=left_out,
            seconds=seconds,
            first=first,
            limits=limits,
        )


def _show(
    case: tuple[int, int, int],
    rounds: int,
    seconds: dict[str, Seconds],
    first: dict[str, Seconds],
    work: Roofline,
    limits: dict[str, Seconds],
) -> None:
    batch, prompt, new = case
    print(f"\nbatch {batch}, {prompt} tokens and {new} new ones; medians of {rounds} rounds")
    width = max(map(len, seconds))
    for name, times in seconds.items():
        step = steps(times, first[name], new - 1)
        line = f"  {name:{width}} {batch * new / Spread.of(times).median:7.1f} tokens/s, "
        line += f"first after {1e3 * Spread.of(first[name]).median:6.0f} ms, "
        line += f"then {1e3 * Spread.of(step).median:6.1f} ms"
        # GPT-2 has other weights to read.
        if name != "gpt2" and dtype_of(name) in limits:
            line += f", {share(work, dtype_of(name), step, limits).median:4.0%} of the limit"
        if ours := opponent(name, seconds):
            decode = ratio(step, steps(seconds[ours], first[ours], new - 1))
            line += f"{compare(name, seconds)}, decoding {decode.median:.2f} times"
        print(line, flush=True)
    warn_unsteady(seconds)


def _logit_gap(judge: tuple[Any, Any], ids: np.ndarray, prompt: int) -> float:
    """Return how far below the greatest the chosen tokens' logits lie; see ``MAX_LOGIT_GAP``."""
    apply, params = judge
    logits = np.asarray(apply(params, ids[:, :-1].astype(np.int32)).logits)[:, prompt - 1 :]
    chosen = np.take_along_axis(logits, ids[:, prompt:, None], axis=-1)[..., 0]
    return float(((logits.max(axis=-1) - chosen) / logits.std(axis=-1)).max())


def _memory(suite: Suite, cases: list[tuple[int, int, int]]) -> None:
    for batch, prompt, new in cases:
        peaks = {
            name: peak(_run, name, suite.folder, suite.ids(batch, prompt), new)
            for name in suite.peers
        }
        show_memory(f"batch {batch}, {prompt} tokens and {new} new ones", peaks)
        suite.add(case={"batch": batch, "prompt": prompt, "new": new}, bytes=peaks)


def _run(name: str, folder: Path, prompts: np.ndarray, new: int) -> None:
    load = PEERS[name].generate
    assert load is not None
    load(folder)(prompts, new)
