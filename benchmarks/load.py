"""From a folder to parameters that are ready, and the memory that this takes."""

import functools
import gc
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import tyro
from flax import nnx

import gpt1_jax as gpt1
from benchmarks.machine import STATUS, kept, peak
from benchmarks.peers import PEERS
from benchmarks.quiet import quiet
from benchmarks.roofline import TINY, Roofline
from benchmarks.suite import (
    DEFAULTS,
    Options,
    Suite,
    open_suite,
    share,
    show_memory,
    show_seconds,
)

WEIGHTS = (".safetensors", ".bin", ".npy")
PAGE = 1024  # numbers: in float32, a page of 4096 bytes
CONVERTS = "ctranslate2"  # and its variants


def load(options: tyro.conf.OmitArgPrefixes[Options] = DEFAULTS) -> dict[str, Any]:
    """Race the loading of a checkpoint, and measure its memory.

    Each has loaded once before: imports do not count, and the file is in the system's cache. The
    memory is that of a fresh process, imports included; on a CPU also by how much the loaded model
    makes a process larger that has imported everything.

    CTranslate2 does not read such a checkpoint: its time and memory include converting it, to a
    file of its own that it reads then. transformers only maps the file: so that its parameters are
    in memory as all others' are, a number of every page is read.

    Args:
        options: of every suite.

    Returns:
        What is written to the file.

    Raises:
        ValueError: an option is wrong; the message says which.
    """
    with open_suite("load", options) as suite:
        size = sum(file.stat().st_size for file in suite.folder.iterdir() if file.suffix in WEIGHTS)
        print(f"\nA checkpoint of {size / 1e6:.1f} MB", flush=True)
        if any(name.startswith(CONVERTS) for name in suite.peers):
            print(f"  {CONVERTS} converts it first, and that counts", flush=True)
        measured: dict[str, Any] = {}
        if not options.memory:
            measured |= _race(suite, size)
        if options.memory or (STATUS.exists() and jax.default_backend() != "tpu"):
            names = list(suite.peers)[:1] if options.quick else suite.peers
            measured["bytes"] = {name: peak(_load, name, suite.folder) for name in names}
            show_memory("Loading", measured["bytes"])
            if jax.default_backend() == "cpu":
                measured["kept"] = _kept_by(names, suite.folder)
                show_memory("What is loaded", measured["kept"], "what it keeps of memory")
        else:
            print("Memory is measured on Linux alone, and not on a TPU", flush=True)
        suite.add(case={"checkpoint bytes": size}, **measured)
        return suite.record


def _race(suite: Suite, size: int) -> dict[str, Any]:
    runs = {}
    for name in suite.peers:
        runs[name] = lambda name=name: _load(name, suite.folder)
        # Outside of the time: models refer to themselves, and would pile up.
        runs[f"{name} dropped"] = gc.collect
    with quiet():
        for run in runs.values():
            run()
        seconds, limits = suite.race(runs)
    seconds = {name: seconds[name] for name in suite.peers}
    work = Roofline(tokens=0, flops=0.0, weights=size)  # bytes, each an int8
    notes = {
        name: f", {share(work, 'int8', times, limits).median:4.0%} of the speed of a plain sum"
        for name, times in seconds.items()
    }
    show_seconds(f"Loading; medians of {suite.rounds} rounds", seconds, notes)
    return {"seconds": seconds, "limits": limits}


def _kept_by(names: Iterable[str], folder: Path) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as small:
        config = gpt1.OpenAIGPTConfig(**TINY)
        gpt1.OpenAIGPTLMHeadModel(config, rngs=nnx.Rngs(0)).save_pretrained(small)
        return {name: kept(functools.partial(_load, name), Path(small), folder) for name in names}


def _load(name: str, folder: Path) -> object:
    read = PEERS[name].load
    assert read is not None
    model: Any = read(folder)
    if hasattr(model, "parameters"):
        # transformers maps the file, and reads nothing before it is used: a number of every page.
        for parameter in model.parameters():
            parameter.reshape(-1)[::PAGE].sum()
    return model
