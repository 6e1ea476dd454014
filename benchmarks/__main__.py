"""``python -m benchmarks``."""

import sys

import tyro

from benchmarks.generate import generate

SUITES = {"generate": generate}

if __name__ == "__main__":
    try:
        tyro.extras.subcommand_cli_from_dict(
            SUITES,
            prog="python -m benchmarks",
            description="Races of gpt1-jax against its peers.",
        )
    except (ValueError, OSError, ImportError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(2)
