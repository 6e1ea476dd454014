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
from benchmarks.report import report
from benchmarks.scaling import scaling
from benchmarks.start import start
from benchmarks.suite import DEFAULTS, Options
from benchmarks.train import train

LARGEST = (8, 512)


def run_all(options: tyro.conf.OmitArgPrefixes[Options] = DEFAULTS) -> None:
    """Run every suite against the peers and write its report.

    The results go to the folder --out, by default benchmarks/results: a JSON file for each suite,
    and the report. The files of finished suites stay if a later one is stopped.

    Args:
        options: of every suite; ``peers`` may be given to single suites only.
    """
    if options.peers:
        raise ValueError("all suites have all their peers: give --peers to a single suite")
    if options.memory:
        raise ValueError("all suites measure memory where they can: leave out --memory")
    out = options.out or Path("benchmarks/results")

    def to(name: str, memory: bool = False) -> Options:
        # Fresh processes take seconds each, however small the model: one peer shows that they work.
        peers = (OURS,) if options.quick and (memory or name == "start") else ()
        file = out / f"{name}.json"
        return dataclasses.replace(options, out=file, memory=memory, peers=peers)

    forward(to("forward"))
    generate(to("generate"))
    train(to("train"))
    load(to("load"))
    scaling(to("scaling"))
    if jax.default_backend() != "tpu":  # which belongs to one process
        start(to("start"))
    if jax.default_backend() != "tpu" and STATUS.exists():
        cases = () if options.quick else (LARGEST,)
        forward(to("forward-memory", memory=True), cases=cases, head=(True,))
        train(to("train-memory", memory=True), cases=cases, remat="linear")
    report(out)
