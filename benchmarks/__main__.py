"""``python -m benchmarks``."""

import os
import sys
from pathlib import Path

# An editable installation finds this package from everywhere, but not its results.
if not (checkout := Path(__file__).resolve().parents[1]).samefile(Path.cwd()):
    print(f"benchmarks: must run from the checkout: cd {checkout}", file=sys.stderr)
    sys.exit(2)

if sys.argv[1:2] == ["accelerator"]:  # which does without tyro, so it is looked for first
    from benchmarks.accelerator import main

    status = main(sys.argv[2:])
    sys.stdout.flush()
    if status > 128:  # stopped, perhaps while XLA's threads work, which crash Python's teardown
        os._exit(status)
    sys.exit(status)

import tyro

from benchmarks.activations import activations
from benchmarks.all_suites import run_all
from benchmarks.forward import forward
from benchmarks.generate import generate
from benchmarks.kneser_ney import kneser_ney
from benchmarks.lm_eval import lm_eval
from benchmarks.load import load
from benchmarks.predict import predict
from benchmarks.prompts import prompts
from benchmarks.report import report
from benchmarks.scaling import scaling
from benchmarks.score import score
from benchmarks.start import start
from benchmarks.tasks import tasks
from benchmarks.text import text
from benchmarks.train import train
from gpt1_jax.cli.arguments import PATHS
from gpt1_jax.cli.help import (
    command_help,
    flags_of,
    overview,
    read_docstring,
    widen_narrow_terminal,
)

SUITES = {
    "forward": forward,
    "generate": generate,
    "train": train,
    "load": load,
    "start": start,
    "scaling": scaling,
    "prompts": prompts,
    "activations": activations,
    "score": score,
    "predict": predict,
    "all": run_all,
    "report": report,
    "kneser-ney": kneser_ney,
    "tasks": tasks,
    "text": text,
    "lm-eval": lm_eval,
}

PROG = "python -m benchmarks"
DESCRIPTION = (
    "Race gpt1-jax against its peers and simple baselines. The command accelerator, with flags of "
    "its own, checks and races everything on a GPU or TPU."
)

if __name__ == "__main__":
    widen_narrow_terminal()
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        summaries = {each: read_docstring(suite)[0][0] for each, suite in SUITES.items()}
        print(overview(PROG, DESCRIPTION, summaries, "  -h, --help  Show this help, or a suite's."))
        sys.exit()
    if name in SUITES and {"-h", "--help"} & set(words):
        print(command_help(SUITES[name], f"{PROG} {name}", flags_of(SUITES[name])))
        sys.exit()
    try:
        tyro.extras.subcommand_cli_from_dict(
            SUITES, prog=PROG, description=DESCRIPTION, registry=PATHS
        )
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(2)
