"""One command that proves and races everything on an accelerator: what is right, fast, and where.

It needs JAX, Flax, optax, numpy, safetensors, tokenizers and a checkout that need not be installed.
What else it can use, torch and matplotlib, it uses where it is there.
"""

import argparse
import os
import signal
import sys
import tempfile
import time

from conversion.files import output_path

MINUTES = 8.0


def main(arguments: list[str] | None = None) -> int:  # noqa: PLR0915 (the steps, in the order that they run in)
    """Run the command, and return its exit status: 1 where a check failed.

    Args:
        arguments: of the command line, without the program's name.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks accelerator",
        description="Check the results on the device that JAX chooses against float64 on the "
        "host, race it against torch on the same device, and profile it. What was done so far is "
        "written after every step, the most important steps come first, and steps for which the "
        "minutes do not suffice are left out by name.",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="run every step on a tiny model, to see that everything works",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="where to write accelerator.json, README.md and the pictures; by default "
        "benchmarks/results/DEVICE, with --quick DEVICE-quick",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=MINUTES,
        help="minutes after which no step is begun (default: %(default)g)",
    )
    parser.add_argument(
        "--only",
        metavar="TEXT",
        help="run only the steps with this text in their names, as --list shows them",
    )
    parser.add_argument("--list", action="store_true", help="list the steps and run none")
    parser.add_argument(
        "--count",
        action="store_true",
        help="instead count the launches and bytes of each step's program on an H100, a TPU v5e "
        "and a TPU v6e, with the compilers of the extra `plan`, and write launches.md to --out "
        "(by default benchmarks/results/accelerator)",
    )
    begin = time.monotonic()
    given = parser.parse_args(arguments)
    if not given.minutes > 0:
        parser.error(f"--minutes is {given.minutes:g}, but must be above 0")
    if given.out is not None:
        try:
            given.out = output_path(given.out)
            given.out.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=given.out).close()
        except ValueError as error:
            parser.error(f"--out: {error}")
        except OSError as error:
            parser.error(f"--out {given.out} cannot be written: {error.strerror}")
    if given.count:
        from benchmarks.accelerator.count import count

        try:
            count(given.out)
        except (OSError, ImportError) as error:
            print(f"benchmarks: {error}", file=sys.stderr)
            return 2
        return 0
    _with_cpu()
    from benchmarks.accelerator.bench import Bench
    from benchmarks.accelerator.runner import Stopped, run, sigterm_raises
    from benchmarks.accelerator.steps import steps
    from benchmarks.accelerator.work import FULL, QUICK

    known = steps(QUICK if given.quick else FULL)
    chosen = [step for step in known if given.only is None or given.only in step.name]
    if not chosen:
        names = ", ".join(step.name for step in known)
        parser.error(f"--only is {given.only!r}, but must be part of a step's name: {names}")
    if given.list:
        print(*(step.name for step in chosen), sep="\n")
        return 0
    try:
        with sigterm_raises(), Bench.open(given.quick) as bench:
            return run(
                bench,
                chosen,
                out=given.out,
                minutes=given.minutes,
                arguments=sys.argv[1:],
                begin=begin,
            )
    except Stopped:  # before the first step
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2


def _with_cpu() -> None:
    """Have JAX keep the CPU beside the platforms that the user chose: float64 is computed there."""
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms and "cpu" not in platforms.split(","):
        os.environ["JAX_PLATFORMS"] = f"{platforms},cpu"
