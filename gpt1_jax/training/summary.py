"""What a training has understood: said before its first step, and kept in run.json."""

import math
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from gpt1_jax.sharding.processes import is_main_process
from gpt1_jax.training.data.corpus import TokenizedText
from gpt1_jax.training.data.labelled import Row
from gpt1_jax.training.data.tasks import Example, Task
from gpt1_jax.training.loop import TrainSpec
from gpt1_jax.training.optimizer import AnyOptimizer, OptimizerSettings

Summary = dict[str, Any]  # an object of JSON
MOST_CLASSES = 10  # that are printed


def summarize_rows(task: Task, rows: Sequence[Row]) -> Summary:
    """Return the number of rows, and of each class, label or choice, or the span of the numbers."""
    labels = [name for row in rows for name in row.names]
    if task.predicts == "numbers":
        numbers = list(map(float, labels))
        return {"rows": len(rows), "lowest": min(numbers), "highest": max(numbers)}
    names = task.classes or tuple(map(str, range(task.choices)))
    counts = Counter(labels)
    return {"rows": len(rows), task.predicts: {name: counts[name] for name in names}}


def summarize_text(text: TokenizedText, length: int) -> Summary:
    """Return the sizes of a text that is read in blocks of ``length`` tokens."""
    return {
        "files": len(text.files),
        "characters": text.characters,
        "tokens": len(text.ids),
        "blocks": (len(text.ids) - 1) // length,
    }


def summarize_cuts(task: Task, examples: Sequence[Example]) -> Summary:
    """Return how many examples have a text that was cut, to how many tokens, and the longest."""
    cut = [example.cut_from for example in examples if example.cut_from]
    return {"rows": len(cut), "tokens": task.budget, "longest": max(cut, default=0)}


def summarize_training(spec: TrainSpec, optimizer: AnyOptimizer, per_epoch: int) -> Summary:
    """Return steps, learning rates, numbers of parameters, the memory of a state, the command.

    The memory is that of weights, gradients and optimizer state, of one copy of the model: what a
    step takes at least. What activations take is known to the compiler alone (``gpt1 plan``).
    """
    state = jax.eval_shape(spec.optimizer.init, spec.params)
    trained, frozen = jax.tree.leaves(spec.params), jax.tree.leaves(spec.frozen)
    leaves = [*trained, *frozen, *trained, *jax.tree.leaves(state)]  # gradients are as the weights
    return {
        "steps": spec.steps,
        "steps_per_epoch": per_epoch,
        **_rates(spec, optimizer),
        "parameters": sum(leaf.size for leaf in (*trained, *frozen)),
        "trained_parameters": sum(leaf.size for leaf in trained),
        "state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
        "command": command_line(),
    }


def _rates(spec: TrainSpec, optimizer: AnyOptimizer) -> Summary:
    """Return the warm-up and the learning rates, where they are known."""
    if spec.learning_rate is None or not isinstance(optimizer, OptimizerSettings):
        return {}
    warmup = optimizer.warmup if optimizer.warmup >= 1 else optimizer.warmup * spec.steps
    # The peak is where the warm-up ends, or a step beside it.
    around = {0, math.floor(warmup), math.ceil(warmup), math.ceil(warmup) + 1}
    rates = [float(spec.learning_rate(step)) for step in sorted(around) if step < spec.steps]
    return {
        "warmup_steps": warmup,
        "first_learning_rate": rates[0],
        "highest_learning_rate": max(rates),
    }


def command_line() -> str | None:
    """Return the command that this process runs, if it is ``gpt1``."""
    program = Path(sys.argv[0])
    if program.name != "gpt1" and program.parts[-3:] != ("gpt1_jax", "cli", "__main__.py"):
        return None
    return shlex.join(["gpt1", *sys.argv[1:]])


def summarize_longer(spec: TrainSpec, shorter: int | None) -> Summary:
    """Return what a longer run goes on from, if it does: a step, and the learning rate there."""
    if shorter is None:
        return {}
    known = spec.learning_rate
    rate = {} if known is None else {"learning_rate": float(known(shorter))}
    return {"goes_on_from": {"step": shorter, **rate}}


def show_summary(summary: Mapping[str, Any]) -> None:
    """Print a summary on standard error, in the main process."""
    if is_main_process():
        print("\n".join(_lines(summary)), file=sys.stderr, flush=True)


def _lines(summary: Mapping[str, Any]) -> list[str]:
    lines = [_of_set(name, summary[name]) for name in ("train", "valid") if summary.get(name)]
    if share := summary.get("valid_share"):
        lines.append(f"the rows to validate on are {share:.4g} of all, drawn by the seed")
    if drawn_from := summary.get("drawn_from"):
        lines.append(f"the rows to train on are drawn from {drawn_from:,} by the seed")
    if cut := summary.get("cut", {}).get("rows"):
        longest, tokens = summary["cut"]["longest"], summary["cut"]["tokens"]
        lines.append(
            f"{cut:,} rows to train on have a text that is cut to {tokens} tokens; the longest has "
            f"{longest:,}"
        )
    if weights := summary.get("class_weights"):
        shown = [f"{name} {weight:.4g}" for name, weight in list(weights.items())[:MOST_CLASSES]]
        more = [f"and {len(weights) - MOST_CLASSES} more"] if len(weights) > MOST_CLASSES else []
        lines.append(f"class weights: {', '.join([*shown, *more])}")
    if before := summary.get("goes_on_from"):
        rate = before.get("learning_rate")
        lines.append(
            f"a run of {_count(before['step'], 'step')} that has ended is made longer: it goes on "
            "from its last state"
            + (f", by the new schedule, whose learning rate is {rate:.3g} there" if rate else "")
        )
    lines += [
        f"{_count(summary['steps'], 'step')}, {summary['steps_per_epoch']:,} an epoch; "
        + _of_rates(summary),
        f"{summary['trained_parameters']:,} of {summary['parameters']:,} parameters are trained; "
        f"weights, gradients and optimizer take {_size(summary['state_bytes'])}, activations more",
    ]
    return lines + [f"warning: {warning}" for warning in summary["warnings"]]


def _of_rates(summary: Mapping[str, Any]) -> str:
    if "warmup_steps" not in summary:
        return "the learning rate is that of an optimizer of your own"
    warmup = summary["warmup_steps"]
    first, highest = summary["first_learning_rate"], summary["highest_learning_rate"]
    return (
        f"{f'{warmup:,.4g} steps of warm-up' if warmup else 'no warm-up'}; the learning rate is "
        f"{first:.3g} at first and {highest:.3g} at most"
    )


def _of_set(name: str, given: Mapping[str, Any]) -> str:
    """Return the line of a labelled set, or of texts."""
    where = {"train": "to train on", "valid": "to validate on"}[name]
    if "tokens" in given:
        return (
            f"{where}: {_count(given['files'], 'file')}, {given['characters']:,} characters, "
            f"{given['tokens']:,} tokens, {_count(given['blocks'], 'block')}"
        )
    line = f"{where}: {_count(given['rows'], 'row')}"
    if "lowest" in given:
        return f"{line}, labels from {given['lowest']:g} to {given['highest']:g}"
    ((kind, counts),) = ((key, value) for key, value in given.items() if key != "rows")
    shown = [f"{name} ({count:,})" for name, count in list(counts.items())[:MOST_CLASSES]]
    more = [f"and {len(counts) - MOST_CLASSES} more"] if len(counts) > MOST_CLASSES else []
    return f"{line}, {len(counts)} {kind}: {', '.join([*shown, *more])}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _size(number: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number / 1e3:.3g} kB"
