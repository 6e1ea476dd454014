"""A training step in float32: gradients, clipping and AdamW."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.machine import peak
from benchmarks.peers import Peer
from benchmarks.peers.ours import NO_DROPOUT, OPTIMIZER
from benchmarks.quiet import quiet
from benchmarks.roofline import Roofline
from benchmarks.suite import DEFAULTS, Options, Suite, open_suite, show, show_memory
from gpt1_jax.nn.remat import Remat

CASES = ((8, 64), (4, 256), (8, 512))
QUICK = ((2, 8),)
# Steps whose losses are compared, and relative difference of the losses.
# Measured: 2.4e-6.
CHECKED, TOLERANCE = 3, 5e-5


def train(
    options: tyro.conf.OmitArgPrefixes[Options] = DEFAULTS,
    cases: tuple[tuple[int, int], ...] = (),
    dropout: bool = False,
    remat: Remat = "none",
) -> dict[str, Any]:
    """Race training steps; all must see the same losses.

    Args:
        options: of every suite.
        cases: batch and tokens, at least two.
        dropout: train with dropout, whose masks differ, so the losses are not compared.
        remat: what this package computes again.

    Returns:
        What is written to the file.
    """
    cases = cases or (QUICK if options.quick else CASES)
    for case in cases:
        if case[0] < 1 or case[1] < 2:
            raise ValueError(f"the case {case} must have a batch, and two tokens at least")
    with open_suite("train", options) as suite:
        for case in cases:
            (_memory if options.memory else _race)(suite, case, dropout, remat)
        return suite.record


def _race(suite: Suite, case: tuple[int, int], dropout: bool, remat: Remat) -> None:
    ids = suite.ids(*case)
    with quiet():
        takes = {
            name: _load(peer, suite.folder, dropout, remat) for name, peer in suite.peers.items()
        }
        losses = {name: [take(ids) for _ in range(CHECKED)] for name, take in takes.items()}
    reference = next(iter(losses))
    for name, found in losses.items():
        close = np.allclose(found, losses[reference], rtol=TOLERANCE, atol=0)
        if not dropout and not close:
            raise ValueError(
                f"{name} has the losses {found}, but {reference} has {losses[reference]}"
            )
    seconds, limits = suite.race(
        {name: functools.partial(take, ids) for name, take in takes.items()}
    )
    batch, tokens = case
    forward = Roofline.forward(suite.config, batch, tokens, tokens, head=True)
    # The backward pass has two products for each of the forward's.
    work = Roofline(forward.tokens, 3 * forward.flops, forward.weights)
    title = f"{batch} rows of {tokens} tokens; medians of {suite.rounds} rounds"
    show(title, seconds, work, limits)
    suite.add(
        case={"batch": batch, "tokens": tokens, "remat": remat, "dropout": dropout},
        work=vars(work),
        losses=losses,
        seconds=seconds,
        limits=limits,
    )


def _memory(suite: Suite, case: tuple[int, int], dropout: bool, remat: Remat) -> None:
    peaks = {
        name: peak(_run, suite.peers[name], suite.folder, suite.ids(*case), dropout, remat)
        for name in suite.peers
    }
    show_memory(f"{case[0]} rows of {case[1]} tokens", peaks)
    suite.add(
        case={"batch": case[0], "tokens": case[1], "remat": remat, "dropout": dropout}, bytes=peaks
    )


def _load(peer: Peer, folder: Path, dropout: bool, remat: Remat) -> Callable[[np.ndarray], float]:
    assert peer.train is not None
    return peer.train(folder, OPTIMIZER, {} if dropout else NO_DROPOUT, remat)


def _run(peer: Peer, folder: Path, ids: np.ndarray, dropout: bool, remat: Remat) -> None:
    take = _load(peer, folder, dropout, remat)
    for _ in range(CHECKED):
        take(ids)
