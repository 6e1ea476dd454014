"""What all suites share: their options, the checkpoint, the race of a case, and its record."""

import contextlib
import dataclasses
import json as json_format
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from flax import nnx

import gpt1_jax as gpt1
from benchmarks import machine, timing
from benchmarks.peers import (
    OURS,
    Kind,
    Peer,
    available_peers,
    dtype_of,
    older_peers,
    opponent,
)
from benchmarks.peers.other_jax import OtherJax
from benchmarks.roofline import BYTES, TINY, Roofline
from benchmarks.timing import Seconds, Spread, interleave, ratio, unsteady
from conversion.files import atomic_file


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of every suite.

    Attributes:
        model: checkpoint to race with; by default one of GPT-1's size with random weights.
        peers: names of the peers that take part; by default all that can.
        rounds: number of times that each runs; the medians are compared.
        memory: measure the peak memory of each, in a process of its own, in place of the time.
        max_seconds: number of seconds of one run above which forward, generate and scaling leave a
            peer out of a case, judged by its speed in the case before.
        quick: run a tiny model and few small cases, to see that everything works.
        platform: platform to run on; by default the one that JAX chooses.
        older: Python of an environment with another JAX, with which forward, generate and train run
            this package too.
        out: JSON file to write the results to, rewritten after every case.
    """

    model: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    peers: tuple[str, ...] = ()
    rounds: int = 5
    memory: bool = False
    max_seconds: float = 60.0
    quick: bool = False
    platform: machine.Platform | None = None
    older: Annotated[Path | None, tyro.conf.arg(metavar="PYTHON")] = None
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None


DEFAULTS = Options()


class TimeBudget:
    """How fast each was in the case before, by which who would take too long is left out."""

    def __init__(self, max_seconds: float):
        self._max_seconds = max_seconds
        self._seconds: dict[str, float] = {}  # over the size

    def too_long(self, name: str, size: float) -> float | None:
        """Return the seconds that a run of this size would take, and print them, if too many."""
        expected = self._seconds.get(name, 0.0) * size
        if expected <= self._max_seconds:
            return None
        print(f"\n{name} is left out: it would take about {expected:.0f} s", flush=True)
        return expected

    def measure(self, name: str, size: float, run: Callable[[], object]) -> None:
        """Run a function that is warm, and remember its pace."""
        start = timing.clock()
        run()
        self._seconds[name] = (timing.clock() - start) / size


@dataclasses.dataclass(frozen=True)
class Suite:
    """A suite that runs.

    Attributes:
        options: as they were given.
        folder: the checkpoint.
        config: of the checkpoint.
        rounds: how often each runs.
        peers: who takes part.
        record: what is written: the suite, its environment, who is absent and why, and cases.
    """

    options: Options
    folder: Path
    config: gpt1.OpenAIGPTConfig
    rounds: int
    peers: Mapping[str, Peer]
    record: dict[str, Any]

    def ids(self, batch: int, tokens: int) -> np.ndarray:
        """Return random ids (batch, tokens), always the same."""
        shape = batch, tokens
        ids = np.random.default_rng(0).integers(self.config.vocab_size, size=shape)
        return ids.astype(np.int32)

    def race(
        self, runs: Mapping[str, Callable[[], object]]
    ) -> tuple[dict[str, Seconds], dict[str, Seconds]]:
        """Run functions that are warm in turn with the machine's limits.

        Returns:
            The seconds of every round by name, and the limits (bytes or operations a second).
        """
        limits = machine.limits()
        before = {f"before {name}": run for name, (_, run) in limits.items()}
        after = {f"after {name}": run for name, (_, run) in limits.items()}
        for run in before.values():
            run()
        seconds = interleave({**before, **runs, **after}, self.rounds)
        work = {name: amount for name, (amount, _) in limits.items()}
        measured = {
            name: list(map(min, seconds.pop(f"before {name}"), seconds.pop(f"after {name}")))
            for name in limits
        }
        return seconds, machine.speeds(work, measured)

    def add(self, **case: Any) -> None:
        """Add a case to the record, and write it."""
        self.record["cases"].append(case)
        if self.options.out is not None:
            write_json(self.options.out, self.record)


def share(work: Roofline, dtype: str, seconds: Seconds, limits: Mapping[str, Seconds]) -> Spread:
    """Return how near a run comes to the machine's limit, round by round.

    The limit is the longer of two times: that of reading every weight once, and that of its
    products, each at the best speed that was measured in any round of the case: what else a shared
    machine does can only hide what it can do.
    """
    least = work.weights * BYTES[dtype] / max(limits["bytes"])
    if dtype in limits:
        least = max(least, work.flops / max(limits[dtype]))
    return Spread.of([least / second for second in seconds])


def show(
    title: str,
    seconds: Mapping[str, Seconds],
    work: Roofline,
    limits: Mapping[str, Seconds],
) -> None:
    """Print a case: each one's time and speed, how it compares, and what is unsteady."""
    print(f"\n{title}")
    width = max(map(len, seconds))
    for name, times in seconds.items():
        middle = Spread.of(times)
        line = f"  {name:{width}} {1e3 * middle.median:9.1f} ms"
        line += f" ({1e3 * middle.low:.1f} to {1e3 * middle.high:.1f})"
        line += f" {work.tokens / middle.median:9.1f} tokens/s"
        if dtype_of(name) in limits:
            line += f", {share(work, dtype_of(name), times, limits).median:4.0%} of the limit"
        print(line + compare(name, seconds), flush=True)
    warn_unsteady(seconds)


def compare(name: str, seconds: Mapping[str, Seconds]) -> str:
    """Return how many times as fast as a peer this package is, in the dtype of the peer."""
    ours = opponent(name, seconds)
    if ours is None:
        return ""
    found = ratio(seconds[name], seconds[ours])
    return f"; {ours} is {found.median:.2f} times as fast ({found.low:.2f} to {found.high:.2f})"


def warn_unsteady(seconds: Mapping[str, Seconds]) -> None:
    """Print whose medians should not be relied on."""
    for name, times in seconds.items():
        if why := unsteady(times):
            print(f"  unsteady, measure again: {name}: {why}", flush=True)


def show_seconds(title: str, seconds: Mapping[str, Seconds], notes: Mapping[str, str]) -> None:
    """Print each one's time, a note, how it compares, and what is unsteady."""
    print(f"\n{title}")
    width = max(map(len, seconds))
    for name, times in seconds.items():
        middle = Spread.of(times)
        line = f"  {name:{width}} {middle.median:7.3f} s ({middle.low:.3f} to {middle.high:.3f})"
        print(line + notes.get(name, "") + compare(name, seconds), flush=True)
    warn_unsteady(seconds)


def show_memory(
    title: str, peaks: Mapping[str, int], what: str = "the most memory of a process"
) -> None:
    """Print the memory of a case."""
    print(f"\n{title}; {what}")
    width = max(map(len, peaks))
    for name, peak in peaks.items():
        line = f"  {name:{width}} {peak / 1e9:6.2f} GB"
        if ours := opponent(name, peaks):
            line += f"; {ours} takes {peaks[ours] / peak:.0%} of it"
        elif name != OURS and OURS in peaks:
            line += f", {peak / peaks[OURS]:.0%} of {OURS}'s"
        print(line, flush=True)


@contextlib.contextmanager
def open_suite(kind: Kind, options: Options, name: str | None = None) -> Iterator[Suite]:
    """Check the options of a suite, choose the platform, and find or make the checkpoint.

    Args:
        kind: of the peers that take part.
        options: as they were given.
        name: of the suite, where it is not that of its kind.

    Raises:
        ValueError: an option is wrong, or there is no such platform; the message says which.
    """
    if options.rounds < 1:
        raise ValueError(f"rounds is {options.rounds}, but must be at least 1")
    if options.max_seconds <= 0:
        raise ValueError(f"max_seconds is {options.max_seconds}, but must be above 0")
    choose(options.platform)
    present, absent = available_peers(options.peers, kind)
    environment = machine.environment()
    if options.older is not None and (options.memory or name is not None):
        raise ValueError("another JAX takes part in the times of forward, generate and train")
    for peer, why in absent.items():
        print(f"{peer} does not take part: {why}", flush=True)
    with contextlib.ExitStack() as stack:
        if options.older is not None:
            other = stack.enter_context(OtherJax.start(options.older))
            present |= older_peers(other, kind, list(present))
            environment["older"] = {"python": other.python, "jax": other.jax}
        folder = options.model or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if options.model is None:
            config = gpt1.OpenAIGPTConfig(**TINY if options.quick else {})
            gpt1.OpenAIGPTLMHeadModel(config, rngs=nnx.Rngs(0)).save_pretrained(folder)
        yield Suite(
            options=options,
            folder=folder,
            config=gpt1.OpenAIGPTConfig.from_pretrained(folder),
            rounds=min(options.rounds, 2) if options.quick else options.rounds,
            peers=present,
            record={
                "suite": name or kind,
                "environment": {
                    **environment,
                    "quick": options.quick,
                    "model": options.model.name if options.model else "random weights",
                },
                "absent": absent,
                "cases": [],
            },
        )


def choose(platform: machine.Platform | None) -> None:
    """Have JAX run on a platform.

    Raises:
        ValueError: there is none of that kind, or JAX runs on another already.
    """
    # JAX would take most of a GPU's memory, and leave none to the peers.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if platform is None:
        return
    before = jax.config.values["jax_platforms"]
    jax.config.update("jax_platforms", {"gpu": "cuda"}.get(platform, platform))
    try:
        found = jax.default_backend()
    except RuntimeError as error:
        jax.config.update("jax_platforms", before)
        raise ValueError(f"there is no {platform} here: {error}") from None
    if found != platform:
        jax.config.update("jax_platforms", before)
        raise ValueError(f"JAX runs on a {found} already, not on a {platform}")


def write_json(file: Path, content: object) -> None:
    """Write a file of JSON, whole or not at all."""
    with atomic_file(file) as new:
        new.write_text(json_format.dumps(content, indent=1) + "\n")
