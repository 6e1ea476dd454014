"""``python -m benchmarks``."""

import sys

import tyro

from benchmarks.generate import generate
from benchmarks.kneser_ney import kneser_ney
from benchmarks.tasks import tasks
from benchmarks.train import train

SUITES = {"generate": generate, "kneser-ney": kneser_ney, "tasks": tasks, "train": train}

if __name__ == "__main__":
    try:
        tyro.extras.subcommand_cli_from_dict(
            SUITES,
            prog="python -m benchmarks",
            description="gpt1-jax against its peers and against simple baselines.",
        )
    except (ValueError, OSError, ImportError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(2)
