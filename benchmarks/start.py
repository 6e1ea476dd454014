"""A cold command to its first token: what a user waits for after pressing return."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import tyro

from benchmarks.machine import Platform
from benchmarks.peers import OURS
from benchmarks.suite import DEFAULTS, Options, Suite, open_suite, show_seconds
from benchmarks.timing import Spread, cores, interleave
from gpt1_jax import Tokenizer
from gpt1_jax.demo import FOLDER as DEMO

CACHED = f"{OURS} cached"
TRANSFORMERS = "transformers"
PROMPT = 16  # tokens
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")

COMMAND = (sys.executable, "-m", "gpt1_jax.cli")
# The same command, which also tells what XLA compiles: the last line on standard error.
COUNTED = """
import json, sys
import jax
from gpt1_jax import cli

found = {"count": 0, "seconds": 0.0, "from the cache": 0}

def listen(event, seconds, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        found["count"] += 1
        found["seconds"] += seconds
    found["from the cache"] += event == "/jax/compilation_cache/cache_retrieval_time_sec"

jax.monitoring.register_event_duration_secs_listener(listen)
cli.main()
print(json.dumps(found), file=sys.stderr)
"""
THEIRS = """
import json, sys
import torch
from transformers import OpenAIGPTLMHeadModel

folder, ids, device, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
model = OpenAIGPTLMHeadModel.from_pretrained(folder).eval().to(device)
ids = torch.tensor([json.loads(ids)], device=device)
out = model.generate(
    ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False, pad_token_id=0
)
print(*out[0].tolist())
"""


def start(options: tyro.conf.OmitArgPrefixes[Options] = DEFAULTS) -> dict[str, Any]:
    """Race fresh processes to the first token; all must write the same one.

    This package is its own command: without its cache of compiled programs, and with that cache,
    which a run before has filled. The command reads a tokenizer too, the checkpoint's own or the
    demo's small one. transformers is the shortest program that does the same with ids. Each has run
    before, so files are in the system's cache.

    Args:
        options: of every suite.

    Returns:
        What is written to the file.

    Raises:
        ValueError: an option is wrong, or a program fails or writes another token; the message
            says which.
    """
    able = (OURS, TRANSFORMERS)
    for name in options.peers:
        if name not in able:
            raise ValueError(f"{name!r} is no peer in start; the peers are {', '.join(able)}")
    if options.memory:
        raise ValueError("start measures no memory; load does")
    options = dataclasses.replace(options, peers=(options.peers and (OURS, *options.peers)) or able)
    with (
        open_suite("generate", options, name="start") as suite,
        tempfile.TemporaryDirectory() as cache,
        with_tokenizer(suite.folder) as folder,
    ):
        _race(suite, folder, cache)
        return suite.record


def _race(suite: Suite, folder: Path, cache: str) -> None:
    if jax.default_backend() == "tpu":
        raise ValueError("a TPU belongs to one process, and this is it: start cannot run there")
    prompt = suite.ids(1, PROMPT)[0].tolist()
    flags = (
        "generate",
        "--model",
        str(folder),
        "--prompts",
        "-",
        "--print-ids",
        "--max-new-tokens",
        "1",
    )
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    theirs = (sys.executable, "-c", THEIRS, str(folder), str(prompt), device, str(cores()))
    line = json.dumps({"ids": prompt})
    caches = {OURS: None, CACHED: cache}

    def run(name: str, *counted: str) -> tuple[str, str]:
        command = theirs if name == TRANSFORMERS else (*(counted or COMMAND), *flags)
        return _finish(
            name, command, line, command_variables(suite.options.platform, caches.get(name))
        )

    runs: dict[str, Callable[[], tuple[str, str]]] = {}
    for name in (OURS, CACHED, TRANSFORMERS):
        if name.removesuffix(" cached") in suite.peers:
            runs[name] = lambda name=name: run(name)
    written = {name: once()[0].split() for name, once in runs.items()}
    reference = next(iter(written.values()))
    for name, ids in written.items():
        if ids != reference or ids[:-1] != list(map(str, prompt)):
            raise ValueError(f"{name} writes {ids}, and {next(iter(written))} {reference}")

    compilations = {}
    for name in [name for name in caches if name in runs]:
        _, messages = run(name, sys.executable, "-c", COUNTED)
        compilations[name] = json.loads(messages.splitlines()[-1])
    seconds = interleave(runs, suite.rounds)
    notes = {
        name: f", compiles {it['count']} programs in {it['seconds']:.3f} s"
        f" ({it['from the cache']} from the cache)"
        for name, it in compilations.items()
    }
    show_seconds(f"To the first token; medians of {suite.rounds} rounds", seconds, notes)
    if CACHED in seconds:
        rounds = zip(seconds[OURS], seconds[CACHED], strict=True)
        saved = Spread.of([cold - warm for cold, warm in rounds])
        print(f"  the cache saves {saved.median:.3f} s ({saved.low:.3f} to {saved.high:.3f})")
    suite.add(case={"new tokens": 1}, seconds=seconds, compilations=compilations)


def command_variables(platform: Platform | None, cache: str | None) -> dict[str, str]:
    """Return the variables of a process on a platform, with a cache of programs or none."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if not (name.startswith("JAX_") and "CACHE" in name)
    }
    variables |= {"HF_HUB_OFFLINE": "1", "GPT1_CACHE": cache or "none"}
    if platform is not None:
        variables["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(platform, platform)
    return variables


def _finish(
    name: str, command: Sequence[str], line: str, variables: dict[str, str]
) -> tuple[str, str]:
    """Run a program to its end, and return its outputs."""
    done = subprocess.run(command, input=line, capture_output=True, text=True, env=variables)
    if done.returncode:
        message = "".join(done.stderr.splitlines(keepends=True)[-1:]).strip()
        raise ValueError(f"{name} fails with the exit status {done.returncode}: {message}")
    return done.stdout, done.stderr


@contextlib.contextmanager
def with_tokenizer(folder: Path) -> Iterator[Path]:
    """Give a checkpoint a tokenizer if it has none: the command does not run without."""
    try:
        Tokenizer.from_pretrained(folder)
    except FileNotFoundError:
        with tempfile.TemporaryDirectory() as temporary:
            files = [*folder.iterdir(), *(DEMO / name for name in TOKENIZER)]
            for file in files:
                (Path(temporary) / file.name).symlink_to(file.absolute())
            yield Path(temporary)
    else:
        yield folder
