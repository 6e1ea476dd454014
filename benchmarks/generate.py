"""Greedy generation in float32: this package, transformers and CTranslate2 in turn."""

import importlib.util
import json as json_format
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

import conversion
from benchmarks.peers import OURS, PEERS, random_checkpoint
from benchmarks.timing import Seconds, cores, interleave, ratio

CASES = ((1, 16, 64), (1, 128, 128), (2, 16, 64), (4, 16, 64), (8, 16, 64), (32, 16, 64))
FIRST = " to the first token"


def generate(
    model: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    peers: tuple[str, ...] = tuple(PEERS),
    cases: tuple[tuple[int, int, int], ...] = CASES,
    rounds: int = 5,
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
) -> None:
    """Race greedy generation; all must write the same ids.

    Decoding reads every weight once a token, so beside the times of this package stands how fast it
    reads them, as a share of what a plain sum of as many bytes reaches in the same rounds.

    Args:
        model: a checkpoint; by default one of full size with random weights, which needs torch.
        peers: who takes part.
        cases: batch, prompt tokens and new tokens, at least two.
        rounds: how often each runs.
        json: write the seconds of every round to this file.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, but must be at least 1")
    if unknown := set(peers) - set(PEERS):
        raise ValueError(f"{unknown.pop()!r} is no peer; the peers are {', '.join(PEERS)}")
    for case in cases:
        if min(case) < 1 or case[2] < 2:
            raise ValueError(f"the case {case} must have a batch, a prompt and two new tokens")
    module = {OURS: "gpt1_jax"}
    taking_part = []
    for name in peers:
        if importlib.util.find_spec(module.get(name, name)) is None:
            print(f"{name} is not installed, and does not take part")
        else:
            taking_part.append(name)
    with tempfile.TemporaryDirectory() as temporary:
        if model is None:
            if importlib.util.find_spec("torch") is None:
                raise ValueError("random weights need torch: give --model, or install .[bench]")
            model = Path(temporary)
            random_checkpoint(model)
        results = [_race(model, taking_part, case, rounds) for case in cases]
    if json is not None:
        json.write_text(json_format.dumps(results, indent=1) + "\n")


def _race(
    folder: Path, names: list[str], case: tuple[int, int, int], rounds: int
) -> dict[str, Any]:
    """Run one case and print it."""
    batch, prompt, new = case
    config, params = conversion.read(folder)
    V = config["vocab_size"]
    ids = np.random.default_rng(0).integers(V, size=(batch, prompt)).astype(np.int32)
    players = {name: PEERS[name](folder) for name in names}
    written = {name: play(ids, new) for name, play in players.items()}
    for name in names[1:]:
        if not np.array_equal(written[name], written[names[0]]):
            raise ValueError(f"{name} does not write the ids that {names[0]} writes")
    # Of the positions' vectors a step reads one.
    positions = params["transformer"]["positions_embed"]["embedding"]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) - positions.nbytes
    runs: dict[str, Callable[[], object]] = {"sum": summing(size)}
    for name, play in players.items():
        runs[name] = lambda play=play: play(ids, new)
        runs[name + FIRST] = lambda play=play: play(ids, 1)
    for run in runs.values():
        run()
    seconds = interleave(runs, rounds)

    print(f"\nbatch {batch}, {prompt} tokens and {new} new ones; medians of {rounds} rounds")
    for name in names:
        first = statistics.median(seconds[name + FIRST])
        step = _steps(seconds, name, new)
        line = f"  {name:13} {batch * new / statistics.median(seconds[name]):7.1f} tokens/s, "
        line += f"first after {1e3 * first:6.0f} ms, then {1e3 * statistics.median(step):6.1f} ms"
        if name == OURS:
            middle, low, high = ratio(seconds["sum"], step)
            line += f"   {middle:.0%} of the memory bandwidth ({low:.0%} to {high:.0%})"
        elif OURS in names:
            middle, low, high = ratio(seconds[name], seconds[OURS])
            line += f"   {OURS} is {middle:.2f} times as fast ({low:.2f} to {high:.2f})"
        print(line, flush=True)
    print(f"  the memory bandwidth: {size / statistics.median(seconds['sum']) / 1e9:.1f} GB/s")
    return {"case": case, "seconds": seconds, "bytes": size}


def _steps(seconds: dict[str, Seconds], name: str, new: int) -> Seconds:
    """Return the seconds of a token after the first, round by round."""
    pairs = zip(seconds[name], seconds[name + FIRST], strict=True)
    return [(whole - first) / (new - 1) for whole, first in pairs]


def summing(size: int) -> Callable[[], object]:
    """Return a function that reads ``size`` bytes as fast as can be: a sum on every core."""
    parts = np.array_split(np.ones(size // 4, np.float32), cores())
    pool = ThreadPoolExecutor(len(parts))
    return lambda: list(pool.map(np.sum, parts))  # numpy lets go of the interpreter meanwhile
