"""All suites, one after the other, and their report."""

import dataclasses
from pathlib import Path

import jax
import tyro

from benchmarks.forward import forward
from benchmarks.generate import generate
from benchmarks.load import load
from benchmarks.machine import STATUS
from benchmarks.peers import OURS
from benchmarks.prompts import prompts
from benchmarks.report import report
from benchmarks.scaling import scaling
from benchmarks.score import score
from benchmarks.start import start
from benchmarks.suite import DEFAULTS, Options
from benchmarks.train import train

# What takes longest in each suite is left to a run of that suite alone.
GENERATE = ((1, 16, 64), (1, 128, 128), (4, 16, 64), (8, 16, 64))
TRAIN = ((8, 64), (4, 256))
LARGEST = ((8, 512),)
SCORED = 100  # texts of each set
MAX_SECONDS = 10.0


def run_all(options: tyro.conf.OmitArgPrefixes[Options] = DEFAULTS, full: bool = False) -> None:
    """Run every suite against the peers and write its report.

    The results go to the folder --out, by default benchmarks/results: a JSON file for each suite,
    and the report. The files of finished suites stay if a later one is stopped.

    Args:
        options: of every suite; ``peers`` may be given to single suites only, and ``older`` is for
            forward, generate and train.
        full: every case of every suite, scaling and the memory of training too: two hours.
    """
    if options.peers:
        raise ValueError("all suites have all their peers: give --peers to a single suite")
    if options.memory:
        raise ValueError("all suites measure memory where they can: leave out --memory")
    out = options.out or Path("benchmarks/results")
    short = not (full or options.quick)

    def to(name: str, memory: bool = False) -> Options:
        # Fresh processes take seconds each, however small the model: one peer shows that they work.
        peers = (OURS,) if options.quick and (memory or name == "start") else ()
        return dataclasses.replace(
            options,
            out=out / f"{name}.json",
            memory=memory,
            peers=peers,
            max_seconds=min(options.max_seconds, MAX_SECONDS) if short else options.max_seconds,
            older=options.older if name in ("forward", "generate", "train") else None,
        )

    forward(to("forward"), head=(True,) if short else (True, False))
    generate(to("generate"), cases=GENERATE if short else ())
    train(to("train"), cases=TRAIN if short else ())
    load(to("load"))
    prompts(to("prompts"))
    try:
        score(to("score"), count=SCORED if short else 1000)
    except FileNotFoundError as error:
        print(f"score is left out: {error}", flush=True)
    if not short:
        scaling(to("scaling"))
    if jax.default_backend() != "tpu":  # which belongs to one process
        start(to("start"))
    if jax.default_backend() != "tpu" and STATUS.exists():
        cases = () if options.quick else LARGEST
        forward(to("forward-memory", memory=True), cases=cases, head=(True,))
        if not short:
            train(to("train-memory", memory=True), cases=cases, remat="linear")
    report(out)
