"""How seconds grow with the context of a token, with a text's length, and with the batch."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tyro

from benchmarks.peers import ALL_OURS, OURS, PEERS, Kind, available_peers, with_ours
from benchmarks.quiet import quiet
from benchmarks.suite import (
    DEFAULTS,
    Options,
    Suite,
    TimeBudget,
    open_suite,
    warn_unsteady,
)
from benchmarks.timing import Spread, steps

DECODERS = (*ALL_OURS.values(), "transformers", "ctranslate2", "ctranslate2-int8", "gpt2")
FORWARDS = (*ALL_OURS.values(), "transformers", "transformers-int8")
NEW = 9  # tokens, of which the first is not counted: it comes with the reading of the context

CONTEXTS = (16, 32, 64, 128, 256, 480)
LENGTHS = (16, 32, 64, 128, 256, 512)
BATCHES = (1, 2, 4, 8, 16)
ROW = 64  # tokens of a row, in a batch
QUICK = (4, 8)

# What is timed; where there are two, the second is taken off the first.
Runs = Sequence[Callable[[], object]]


@dataclasses.dataclass(frozen=True)
class Part:
    """What grows.

    Attributes:
        what: its name in the record.
        size: the name of what it grows with.
        sizes: of the cases, the smallest first.
        steps: by which a time is divided.
        runs: of a peer that is loaded, at a size.
    """

    what: str
    size: str
    sizes: Sequence[int]
    steps: int
    runs: Callable[[Callable[..., Any], int], Runs]


def scaling(options: tyro.conf.OmitArgPrefixes[Options] = DEFAULTS) -> dict[str, Any]:
    """Measure how seconds grow: of a new token, and of the forward.

    A new token's time is that of writing 9 tokens less that of writing one, over 8. Each exponent
    is that of the power that fits the medians best; what does not grow, such as the start of a
    program, pulls it down where sizes are small.

    By default gpt1-jax in every dtype, transformers, ctranslate2 in float32 and int8, and gpt2
    write; gpt1-jax and transformers, in float32 and int8, run forwards.

    Args:
        options: of every suite.

    Returns:
        What is written to the file.

    Raises:
        ValueError: an option is wrong; the message says which.
    """
    if options.memory:
        raise ValueError("scaling measures no memory; forward and generate do")
    decoders = _able("generate", with_ours(options.peers or DECODERS, "generate"))
    forwards = _able("forward", with_ours(options.peers or FORWARDS, "forward"))
    for name in options.peers:
        if name not in (*decoders, *forwards):
            able = _able("generate", PEERS) + _able("forward", PEERS)
            raise ValueError(
                f"{name!r} is no peer in scaling; the peers are {', '.join(dict.fromkeys(able))}"
            )
    # Two kinds of peers take part: they are looked for below.
    alone = dataclasses.replace(options, peers=(OURS,))
    with open_suite("forward", alone, name="scaling") as suite:
        exponents = _decode(suite, _present(suite, "generate", decoders))
        exponents |= _forward(suite, _present(suite, "forward", forwards))
        suite.add(case={"what": "exponents"}, exponents=exponents)
        return suite.record


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the P of the power a * size**P that fits best, by least squares of logarithms.

    Raises:
        ValueError: there are fewer than two sizes, or one of the numbers is not above 0.
    """
    if len(set(sizes)) < 2 or min(*sizes, *seconds) <= 0:
        raise ValueError(f"no power fits the seconds {seconds} of the sizes {sizes}")
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def _able(kind: Kind, names: Sequence[str] | Mapping[str, Any]) -> list[str]:
    return [name for name in names if name in PEERS and getattr(PEERS[name], kind) is not None]


def _present(suite: Suite, kind: Kind, names: list[str]) -> list[str]:
    """Return who can run here, and tell once who cannot."""
    if not names:
        return []
    present, absent = available_peers(names, kind)
    for name in absent.keys() - suite.record["absent"].keys():
        print(f"{name} does not take part: {absent[name]}", flush=True)
    suite.record["absent"].update(absent)
    return list(present)


def _decode(suite: Suite, names: list[str]) -> dict[str, dict[str, float]]:
    with quiet():
        loaded = {name: load(suite.folder) for name in names if (load := PEERS[name].generate)}

    def runs(write: Callable[..., Any], context: int) -> Runs:
        prompt = suite.ids(1, context)
        return (lambda: write(prompt, NEW)), (lambda: write(prompt, 1))

    sizes = QUICK if suite.options.quick else CONTEXTS
    sizes = [size for size in sizes if size + NEW <= suite.config.n_positions]
    part = Part("decode", "context", sizes, NEW - 1, runs)
    return {part.what: _race(suite, part, loaded)}


def _forward(suite: Suite, names: list[str]) -> dict[str, dict[str, float]]:
    with quiet():
        loaded = {name: load(suite.folder, True) for name in names if (load := PEERS[name].forward)}
    row = 8 if suite.options.quick else min(ROW, suite.config.n_positions)

    def long(run: Callable[..., Any], tokens: int) -> Runs:
        ids = suite.ids(1, tokens)
        return ((lambda: run(ids)),)

    def wide(run: Callable[..., Any], batch: int) -> Runs:
        ids = suite.ids(batch, row)
        return ((lambda: run(ids)),)

    sizes = QUICK if suite.options.quick else LENGTHS
    sizes = [size for size in sizes if size <= suite.config.n_positions]
    length = Part("length", "tokens", sizes, 1, long)
    batch = Part("batch", "batch", QUICK if suite.options.quick else BATCHES, 1, wide)
    return {part.what: _race(suite, part, loaded) for part in (length, batch)}


def _race(suite: Suite, part: Part, loaded: Mapping[str, Callable[..., Any]]) -> dict[str, float]:
    """Race every case of a part, and return the exponent of each peer."""
    if not loaded:
        return {}
    medians: dict[str, dict[int, float]] = {name: {} for name in loaded}
    unit = "a new token" if part.what == "decode" else "the forward"
    print(f"\n{part.what}: ms of {unit} by {part.size}; medians of {suite.rounds} rounds")
    _show(part.size, {name: name for name in loaded})
    budget = TimeBudget(suite.options.max_seconds)
    for size in part.sizes:
        runs: dict[str, Callable[[], object]] = {}
        left_out = {}
        for name, peer in loaded.items():
            if expected := budget.too_long(name, size):
                left_out[name] = expected
                continue
            timed = part.runs(peer, size)
            with quiet():
                for run in timed:
                    run()
            budget.measure(name, size, timed[0])
            runs |= {_label(name, i): run for i, run in enumerate(timed)}
        raced, limits = suite.race(runs)
        seconds = {
            name: steps(raced[name], raced.get(_label(name, 1), [0.0]), part.steps)
            for name in loaded
            if name in raced
        }
        row = dict.fromkeys(loaded, "-")
        for name, times in seconds.items():
            medians[name][size] = Spread.of(times).median
            row[name] = f"{1e3 * medians[name][size]:.2f}"
        _show(size, row)
        warn_unsteady(seconds)
        case = {"what": part.what, part.size: size}
        suite.add(case=case, seconds=seconds, left_out=left_out, limits=limits)
    exponents = {}
    for name, found in medians.items():
        # On a noisy machine a difference of two times may fall below 0.
        above = {size: median for size, median in found.items() if median > 0}
        if len(above) > 1:
            exponents[name] = exponent(list(above), list(above.values()))
    for name, power in exponents.items():
        print(f"  {name} grows as the power {power:.2f}", flush=True)
    return exponents


def _label(name: str, run: int) -> str:
    return name if run == 0 else f"{name} less"


def _show(size: int | str, row: Mapping[str, str]) -> None:
    """Print a row of a table with a column for each peer."""
    columns = (f"{value:>{max(10, len(name))}}" for name, value in row.items())
    print(f"  {size:>8}", *columns, flush=True)
