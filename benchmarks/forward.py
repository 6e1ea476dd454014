"""A forward of many tokens: batches and lengths, with and without the LM head."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.machine import peak
from benchmarks.peers import OURS, PEERS
from benchmarks.quiet import quiet
from benchmarks.roofline import Roofline
from benchmarks.suite import (
    DEFAULTS,
    Options,
    Suite,
    TimeBudget,
    open_suite,
    show,
    show_memory,
)

CASES = tuple((batch, tokens) for batch in (1, 8) for tokens in (1, 16, 128, 512))
QUICK = ((1, 1), (2, 8))


def forward(
    options: tyro.conf.OmitArgPrefixes[Options] = DEFAULTS,
    cases: tuple[tuple[int, int], ...] = (),
    head: tuple[bool, ...] = (True, False),
) -> dict[str, Any]:
    """Race the forward; all must have the same logits, or states.

    Args:
        options: of every suite.
        cases: sizes of the inputs, each a batch size and a number of tokens; by default batches of
            1 and 8 rows of 1, 16, 128 and 512 tokens.
        head: compute logits (True) or the last hidden states (False), or both in turn.

    Returns:
        What is written to the file.
    """
    cases = cases or (QUICK if options.quick else CASES)
    for case in cases:
        if min(case) < 1:
            raise ValueError(f"the case {case} must have a batch and a token at least")
    with open_suite("forward", options) as suite:
        for with_head in head:
            play = _memory if options.memory else _race
            play(suite, sorted(cases, key=lambda case: case[0] * case[1]), with_head)
        return suite.record


def _race(suite: Suite, cases: list[tuple[int, int]], head: bool) -> None:
    loaded = {}
    for name, peer in suite.peers.items():
        if peer.forward is not None and (head or peer.states):
            with quiet():
                loaded[name] = peer.forward(suite.folder, head)
    load = PEERS[OURS].forward
    assert load is not None
    judge = loaded.get(OURS) or load(suite.folder, head)
    budget = TimeBudget(suite.options.max_seconds)
    for batch, tokens in cases:
        ids = suite.ids(batch, tokens)
        runs: dict[str, Callable[[], object]] = {}
        errors, left_out = {}, {}
        reference = _array(judge(ids))
        for name, run in loaded.items():
            if expected := budget.too_long(name, ids.size):
                left_out[name] = expected
                continue
            with quiet():
                out = reference if run is judge else _array(run(ids))
            errors[name] = _error(out, reference)
            if not errors[name] <= suite.peers[name].tolerance:
                raise ValueError(
                    f"{name} has other {'logits' if head else 'states'} than {OURS}: "
                    f"the relative error is {errors[name]:.1e}"
                )
            runs[name] = functools.partial(run, ids)
            budget.measure(name, ids.size, runs[name])
        if not runs:
            continue
        with quiet():
            for name in runs:
                if suite.peers[name].compiles:
                    runs[name]()
        seconds, limits = suite.race(runs)
        work = Roofline.forward(suite.config, batch, tokens, tokens, head)
        title = f"{batch} rows of {tokens} tokens, {'logits' if head else 'states'}"
        show(f"{title}; medians of {suite.rounds} rounds", seconds, work, limits)
        suite.add(
            case={"batch": batch, "tokens": tokens, "head": head},
            work=vars(work),
            errors=errors,
            left_out=left_out,
            seconds=seconds,
            limits=limits,
        )


def _memory(suite: Suite, cases: list[tuple[int, int]], head: bool) -> None:
    for batch, tokens in cases:
        peaks = {
            name: peak(_run, name, suite.folder, head, suite.ids(batch, tokens))
            for name, peer in suite.peers.items()
            if head or peer.states
        }
        show_memory(f"{batch} rows of {tokens} tokens", peaks)
        suite.add(case={"batch": batch, "tokens": tokens, "head": head}, bytes=peaks)


def _run(name: str, folder: Path, head: bool, ids: np.ndarray) -> None:
    load = PEERS[name].forward
    assert load is not None
    run = load(folder, head)
    for _ in range(2):
        run(ids)


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the error relative to what is expected, both as root mean squares."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _array(out: Any) -> np.ndarray:
    """Return an output of any library as float32 numpy."""
    if hasattr(out, "detach"):  # torch; CTranslate2 returns logits on the CPU
        out = out.detach().float().cpu().numpy()
    return np.asarray(out, np.float32)
