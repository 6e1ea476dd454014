"""All suites, one after the other, and their report."""

import dataclasses
from pathlib import Path
from typing import Annotated

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


def run_all(
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("benchmarks/results"),
    options: tyro.conf.OmitArgPrefixes[Options] = DEFAULTS,
) -> None:
    """Run every suite against the peers and write its report.

    Args:
        out: where a file of JSON for each suite goes, and the report. Those of suites that are done
            stay if a later one is stopped.
        options: of every suite; ``peers`` may be given to single suites only.
    """
    if options.peers:
        raise ValueError("all suites have all their peers: give --peers to a single suite")
    if options.json is not None or options.memory:
        raise ValueError("all suites write to --out: leave out --json and --memory")

    def to(name: str, memory: bool = False) -> Options:
        # Fresh processes take seconds each, however small the model: one peer shows that they work.
        peers = (OURS,) if options.quick and (memory or name == "start") else ()
        file = out / f"{name}.json"
        return dataclasses.replace(options, json=file, memory=memory, peers=peers)

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
