"""What the model's programs launch and move on accelerators, counted in what XLA compiles.

Nothing is run, and no accelerator is needed: the compilers of the extra "plan" are.
"""

import dataclasses
import importlib.util
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it takes seconds to import
    from gpt1_jax.estimate import Plan
    from gpt1_jax.estimate.planning import Name
    from gpt1_jax.nn.attention import Backend

# Not beside the suites' records: ``benchmarks report`` reads every JSON file that lies there.
RESULTS = Path(__file__).parents[1] / "results" / "accelerator"
# What a device does depends on the rows of its own alone, but for training's all-reduces.
MACHINES = ("h100", "v5e:2x2", "v6e:2x2")
COMPILERS = ("jax", "libtpu", "jax-cuda13-plugin")
WIDTHS = (8, 30, 8, 7, 12, 6, 6, 9, 9, 9)
COLUMNS = ("machine", "program", "launches", "fusions", "custom calls", "copies", "others")
COLUMNS += ("MB", "us", "least us")


@dataclasses.dataclass(frozen=True)
class Case:
    """A program to compile, in bfloat16.

    Attributes:
        program: which.
        rows: of a device.
        length: tokens of a row, or slots of the cache.
        attention: what computes it.
    """

    program: "Name"
    rows: int
    length: int
    attention: "Backend" = "manual"

    def __str__(self) -> str:
        """What a reader calls it."""
        how = "" if self.attention == "manual" else f", {self.attention}"
        return f"{self.program} {self.rows} x {self.length}{how}"


CASES = (
    Case("decode", 1, 256),
    Case("decode", 32, 256),
    Case("forward", 8, 512),
    Case("forward", 8, 512, "cudnn"),
    Case("train", 8, 512),
)


def count(
    out: Path | None = None,
    *,
    machines: Sequence[str] = MACHINES,
    cases: Sequence[Case] = CASES,
) -> "list[Plan]":
    """Count the launches and the bytes of a call of each program, for each machine.

    Prints a line for each program, and writes ``launches.md`` and ``launches.json``. Takes about
    ten minutes on two cores.

    Args:
        out: the folder to write into; ``benchmarks/results/accelerator`` by default.
        machines: to compile for, see ``gpt1_jax.estimate.targets.parse_target``.
        cases: to compile; those of cuDNN for NVIDIA's GPUs alone.

    Returns:
        The plans that were counted in, machine by machine.

    Raises:
        ImportError: none of the machines' compilers is installed.
        OSError: a compiler failed, or the files cannot be written.
    """
    from benchmarks.machine import versions
    from conversion.files import atomic_write
    from gpt1_jax.estimate import plan

    print(_line(COLUMNS), flush=True)
    plans, missing = [], {}
    for machine in machines:
        for case in cases:
            if reason := _obstacle(machine, case):
                print(f"{machine}, {case}: {reason}", flush=True)
                continue
            if case.attention == "cudnn" and machine != "h100":
                continue
            try:
                found = plan(
                    machine,
                    case.program,
                    rows=case.rows,
                    length=case.length,
                    dtype="bfloat16",
                    attention=case.attention,
                )
            except ImportError as error:
                missing[machine] = str(error)
                print(f"{machine} is left out: {error}", flush=True)
                break
            print(_line(_cells(found)), flush=True)
            plans.append(found)
    if not plans:
        raise ImportError(next(iter(missing.values()), "there is nothing to compile"))
    compilers = versions(COMPILERS)
    with atomic_write((out or RESULTS).absolute()) as new:
        new("launches.md").write_text(_page(plans, missing, compilers), encoding="utf-8")
        text = json.dumps({"versions": compilers, "programs": list(map(_record, plans))}, indent=1)
        new("launches.json").write_text(text + "\n", encoding="utf-8")
    return plans


def _obstacle(machine: str, case: Case) -> str | None:
    """Why a case that is for this machine cannot be compiled."""
    if case.attention != "cudnn" or machine != "h100" or not _installed("jax_cuda13_plugin"):
        return None
    return None if _installed("nvidia.cudnn") else "left out, it needs nvidia-cudnn-cu13"


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package in which it would be
        return False


def _record(plan: "Plan") -> dict[str, Any]:
    """A program as JSON holds it."""
    launches = plan.launches
    return {
        "machine": plan.machine.name,
        "program": plan.program,
        "rows": plan.rows,
        "length": plan.length,
        "dtype": plan.dtype,
        "attention": plan.attention,
        "launches": None if launches is None else launches.total,
        **({} if launches is None else dataclasses.asdict(launches)),
        "microseconds": _microseconds(plan, None if launches is None else launches.bytes),
        "least_bytes": plan.bytes_moved,
        "least_microseconds": _microseconds(plan, plan.bytes_moved),
    }


def _microseconds(plan: "Plan", size: int | None) -> float | None:
    """How long the chip's memory takes for so many bytes at least, where that is known."""
    bandwidth = plan.machine.chip.bandwidth
    if size is None or bandwidth is None:
        return None
    return round(size / bandwidth * 1e6, 1)


def _cells(plan: "Plan") -> list[str]:
    """A row of the table."""
    case = Case(plan.program, plan.rows, plan.length, plan.attention)
    record = _record(plan)
    if plan.launches is None:
        return [plan.machine.name, str(case), "does not fit", *[""] * (len(COLUMNS) - 3)]
    numbers = [record[name] for name in ("launches", "fusions", "custom_calls", "copies", "others")]
    times = [record["microseconds"], record["least_microseconds"]]
    return [
        plan.machine.name,
        str(case),
        *map(str, numbers),
        f"{plan.launches.bytes / 1e6:,.0f}",
        *("" if time is None else f"{time:,.0f}" for time in times),
    ]


def _line(cells: Sequence[str]) -> str:
    first = [f"{cell:<{width}}" for cell, width in zip(cells[:2], WIDTHS[:2], strict=True)]
    rest = [f"{cell:>{width}}" for cell, width in zip(cells[2:], WIDTHS[2:], strict=True)]
    return "  ".join([*first, *rest])


def _page(plans: "Sequence[Plan]", missing: dict[str, str], compilers: dict[str, str]) -> str:
    """The page, in Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in compilers.items())
    sources = "; ".join(dict.fromkeys(plan.machine.chip.source for plan in plans))
    rules = "| :--- | :--- |" + " ---: |" * (len(COLUMNS) - 2)
    rows = [f"| {' | '.join(cells)} |" for cells in (COLUMNS, *map(_cells, plans))]
    left_out = f"Left out, since their compilers were not installed: {', '.join(missing)}."
    parts = [
        "# Launches and bytes of a call",
        _text(
            "What GPT-1 (116 M parameters) in bfloat16 starts and moves on one device in a step of "
            "greedy decoding with a cache of 256 slots, in a forward and in a training step, "
            f"counted in the programs that XLA compiles ({versions}). `python -m benchmarks "
            "accelerator --count` writes this page. Nothing was run: the figures are not timings."
        ),
        "\n".join([rows[0], rules, *rows[1:]]),
        _text(
            "*Launches*: fusions, calls of libraries, copies, and other operations that run by "
            "themselves. A GPU launches each as a kernel or a copy; a TPU runs them as steps of "
            "one program, its scalar operations among them, and copies in the background. A loop's "
            "body counts as often as it runs where the compiler tells that, which is for the H100 "
            "alone: for TPUs, the training step's loop over 8 parts of the loss counts once."
        ),
        _text(
            "*MB*: operands and results of these in the device's memory, without what a TPU keeps "
            "on the chip. Of an operand that is only sliced, and of a cache that is updated in "
            "place, the slices count. *us*: how long the memory takes to move that many bytes at "
            "its full bandwidth. *least us*: the same for the program's arguments and results, "
            "each once."
        ),
        _text(
            "A decoding step reads the last token of each row and chooses the next; the condition "
            "of the loop around it is not counted. On a GPU one row is decoded as two equal ones."
        ),
        _text(
            "A TPU's figures are those of a chip of four with so many rows each. Only its training "
            "step exchanges anything with the others."
        ),
        *([_text(left_out)] if missing else []),
        _text(f"Bandwidths: {sources}."),
    ]
    return "\n\n".join(parts) + "\n"


def _text(paragraph: str) -> str:
    return textwrap.fill(paragraph, 100, break_long_words=False, break_on_hyphens=False)
