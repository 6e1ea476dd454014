"""Greedy generation in float32: this package, transformers and CTranslate2 in turn."""

import importlib.util
import json as json_format
import statistics
import tempfile
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import conversion
from benchmarks.peers import PEERS, random_checkpoint
from benchmarks.timing import interleave, ratio
from gpt1_jax.products import dot_general

OURS = "gpt1-jax"
CONTRACT = (((1,), (0,)), ((), ()))
CASES = ((1, 16, 64), (1, 128, 128), (4, 16, 64), (8, 16, 64), (32, 16, 64))


def generate(
    model: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    peers: tuple[str, ...] = tuple(PEERS),
    cases: tuple[tuple[int, int, int], ...] = CASES,
    rounds: int = 5,
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
) -> None:
    """Race greedy generation; all must write the same ids.

    Decoding reads every weight once a token, so beside the times stands the share of the memory
    bandwidth, as matrix-vector products over as many bytes reach it in the same rounds.

    Args:
        model: a checkpoint; by default one of full size with random weights, which needs torch.
        peers: who takes part.
        cases: batch, prompt tokens and new tokens.
        rounds: how often each runs.
        json: write the seconds of every round to this file.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, but must be at least 1")
    if unknown := set(peers) - set(PEERS):
        raise ValueError(f"{unknown.pop()!r} is no peer; the peers are {', '.join(PEERS)}")
    module = {OURS: "gpt1_jax"}
    taking_part = []
    for name in peers:
        if importlib.util.find_spec(module.get(name, name)) is None:
            print(f"{name} is not installed, and does not take part")
        else:
            taking_part.append(name)
    with tempfile.TemporaryDirectory() as temporary:
        if model is None:
            model = Path(temporary)
            random_checkpoint(model)
        config = conversion.read_config(model)
        results = [_race(model, taking_part, config["vocab_size"], case, rounds) for case in cases]
    if json is not None:
        json.write_text(json_format.dumps(results, indent=1) + "\n")


def _race(
    folder: Path, names: list[str], vocab_size: int, case: tuple[int, int, int], rounds: int
) -> dict[str, Any]:
    """Run one case and print it."""
    batch, prompt, new = case
    ids = np.random.default_rng(0).integers(vocab_size, size=(batch, prompt)).astype(np.int32)
    players = {name: PEERS[name](folder) for name in names}
    written = {name: play(ids, new) for name, play in players.items()}
    first = names[0]
    for name in names[1:]:
        if not np.array_equal(written[name], written[first]):
            raise ValueError(f"{name} does not write the ids that {first} writes")
    read, size = weights_read(folder)
    read()
    runs: dict[str, Any] = {
        name: lambda play=play: play(ids, new) for name, play in players.items()
    }
    seconds = interleave({**runs, "bandwidth": read}, rounds)
    print(f"\nbatch {batch}, {prompt} tokens and {new} new ones; medians of {rounds} rounds")
    bandwidth = seconds.pop("bandwidth")
    for name, times in seconds.items():
        median = statistics.median(times)
        line = f"  {name:13} {batch * new / median:8.1f} tokens/s {1e3 * median / new:8.2f} ms/step"
        if name == OURS:
            share, low, high = ratio([t * new for t in bandwidth], times)
            line += f"   {share:.0%} of the bandwidth ({low:.0%} to {high:.0%})"
        elif OURS in seconds:
            middle, low, high = ratio(times, seconds[OURS])
            line += f"   {OURS} is {middle:.2f} times as fast ({low:.2f} to {high:.2f})"
        print(line, flush=True)
    print(f"  the bandwidth: {size / statistics.median(bandwidth) / 1e9:.1f} GB/s")
    return {"case": case, "seconds": seconds, "bandwidth": bandwidth, "bytes": size}


def weights_read(folder: Path) -> tuple[Any, int]:
    """Return a function that reads as many bytes as a step of decoding does, and their number.

    It is a chain of matrix-vector products over the model's own weights, without all else.
    """
    _, params = conversion.read(folder)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params) if np.ndim(leaf) == 2]
    # Of the positions' vectors a step reads one.
    positions = params["transformer"]["positions_embed"]["embedding"].shape
    leaves = [jax.device_put(leaf) for leaf in leaves if leaf.shape != positions]

    @jax.jit
    def read(leaves: list[jax.Array]) -> jax.Array:
        rows = [jnp.ones((1, len(leaf))) for leaf in leaves]
        products = [dot_general(x, leaf, CONTRACT) for x, leaf in zip(rows, leaves, strict=True)]
        return jnp.stack([product.sum() for product in products])

    return lambda: read(leaves).block_until_ready(), sum(leaf.nbytes for leaf in leaves)
