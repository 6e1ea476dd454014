"""The page of the report, in Markdown."""

import math
import statistics
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.machine import PRODUCT
from benchmarks.peers import ALL_OURS, OURS, dtype_of, opponent
from benchmarks.prompts import best_batch, rates
from benchmarks.report.records import (
    OTHER_MODEL,
    Case,
    Record,
    describe,
    forward_cases,
    limit_shares,
    memory_cases,
    peer_names,
    speeds,
    step_seconds,
    timed_cases,
    times_as_fast,
    unclean_files,
)
from benchmarks.timing import Seconds, Spread, ratio, unsteady

Cells = Mapping[str, Spread | str]  # by peer

WHO = {
    OURS: "this package, in float32",
    "gpt1-jax-bfloat16": "this package, in bfloat16",
    "gpt1-jax-int8": "this package, quantized by `gpt1.quantize`: dynamic int8",
    "transformers": "Hugging Face's model in eager torch, float32",
    "transformers-bfloat16": "the same, in bfloat16",
    "transformers-int8": "the same, by torch's dynamic int8 quantization of every product with "
    "weights; its Conv1D layers are made Linear first",
    "torch.compile": "Hugging Face's model, compiled by torch, float32",
    "torch.compile-bfloat16": "the same, in bfloat16",
    "torch.compile-int8": "transformers-int8, compiled by torch",
    "onnxruntime": "ONNX Runtime, with the graph that torch exports of that model, float32",
    "onnxruntime-int8": "the same, by its own dynamic int8 quantizer, the head too",
    "ctranslate2": "CTranslate2, float32",
    "ctranslate2-bfloat16": "CTranslate2, bfloat16",
    "ctranslate2-int8": "CTranslate2, int8 weights and products",
    "TransformerLens": "its adapter of Hugging Face's model in eager torch, float32",
    "minicons": "minicons, with Hugging Face's model in eager torch, float32",
    "gpt2": "Hugging Face's GPT-2 small, another model of about the same size: unlike "
    "Hugging Face's GPT-1 it has a cache",
}
SCALING = {
    "decode": "A new token, by the number of those before it",
    "length": "The forward of one row, by its tokens",
    "batch": "The forward, by its rows",
}
LIMITS = {
    "bytes": "memory, GB/s",
    "float32": "float32, GFLOP/s",
    "bfloat16": "bfloat16, GFLOP/s",
    "int8": "int8, Gop/s",
}
# What is compared beside the forward, by suite.
RACES = {
    "decoding": "generate",
    "training step": "train",
    "scoring": "score",
    "prediction": "predict",
    "activation patching": "activations",
    "loading": "load",
    "starting": "start",
}
SPEED = ("tokens/s", "share of the limit", "ratio")


def write_page(records: Sequence[Record], pictures: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        records: of all suites that ran, at least one.
        pictures: their files' names, and what each shows.
    """
    suites = (
        _forward,
        _generate,
        _prompts,
        _score,
        _predict,
        _train,
        _load,
        _start,
        _activations,
        _scaling,
        _memory,
    )
    lines = [*_opening(records), *_summary(records), *_losses(records)]
    lines += [f"![{text}]({name})\n" for name, text in pictures.items()]
    for part in (_method, _machine, _players, *suites, _older, _unsteady):
        lines += part(records)
    return "\n".join(lines).rstrip("\n") + "\n"


def _opening(records: Sequence[Record]) -> Iterator[str]:
    environments = [record["environment"] for record in records]
    machine = environments[0]
    where = machine["processor"]
    if machine["platform"] != "cpu":
        where = f"{', '.join(machine['devices'])} ({where})"
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
    days = _range(environment["date"][:10] for environment in environments)
    yield "# Benchmarks\n"
    if any(environment.get("quick") for environment in environments):
        yield "**This is of a tiny model, and shows only that all works.**\n"
    yield _text(
        f"{OURS} against other ways to run the same checkpoint: {where}, {threads}, {days}.",
        "`python -m benchmarks report` writes this page from the suites' records.",
    )
    if unclean := unclean_files(records):
        yield _text(
            f"**Not of a clean commit: {', '.join(unclean)}.** The code that was measured differed",
            "from its commit, or had none, so that nobody else can measure it again.",
        )


def _compared(records: Sequence[Record]) -> dict[str, list[tuple[str, dict[str, Spread]]]]:
    """Return what is raced: for each race its cases, and how many times as fast ours is in them."""
    runs = {f"forward, {name}": cases for name, cases in forward_cases(records).items()}
    for name, suite in RACES.items():
        runs[name] = timed_cases(records, suite)
    found: dict[str, list[tuple[str, dict[str, Spread]]]] = {}
    for name, cases in runs.items():
        for case in cases:
            seconds = step_seconds(case) if name == "decoding" else case["seconds"]
            ratios = times_as_fast(seconds)
            others = {peer: ratios[peer] for peer in ratios if not peer.startswith(OURS)}
            found.setdefault(name, []).append((describe(case), others))
    return found


def _summary(records: Sequence[Record]) -> Iterator[str]:
    columns: dict[str, dict[str, Spread | str]] = {}
    for name, cases in _compared(records).items():
        for peer in peer_names(found for _, found in cases):
            medians = [found[peer].median for _, found in cases if peer in found]
            spread = Spread(statistics.geometric_mean(medians), min(medians), max(medians))
            slower = spread.median < 1
            columns.setdefault(name, {})[peer] = _bold(spread) if slower else spread
    if columns:
        yield f"## How many times as fast {OURS} is\n"
        yield _text(
            "Geometric means over all cases, and below them the least and the greatest; above 1,",
            f"{OURS} is faster, and numbers in bold are those where it is slower. What computes",
            f"in bfloat16 or int8 is compared with {OURS} in that dtype where it takes part, else",
            "with float32. Starting is a new process to its first token, without compiled programs",
            "from a run before.",
        )
        yield from _table(["than", *columns], _rows(*columns.values()))


def _losses(records: Sequence[Record]) -> list[str]:
    rows = []
    for name, cases in _compared(records).items():
        for peer in peer_names(found for _, found in cases):
            ratios = {case: found[peer].median for case, found in cases if peer in found}
            lost = {case: ratio for case, ratio in ratios.items() if ratio < 1}
            if lost:
                worst = min(lost, key=lost.__getitem__)
                count = f"{len(lost)} of {len(ratios)}"
                rows.append([name, peer, count, worst, _number(1 / lost[worst])])
    return _section(
        f"Where {OURS} is slower",
        ["", "than", "in cases", "most in", "times as fast as ours there"],
        rows,
        "All that is faster by its median in at least one case.",
    )


def _method(records: Sequence[Record]) -> Iterator[str]:
    cases = [case for record in records for case in record["cases"]]
    timed = [case for case in cases if "seconds" in case]
    yield "## How it was measured\n"
    if timed:
        rounds = _range(len(times) for case in timed for times in case["seconds"].values())
        yield _text(
            f"All who take part in a case are warmed up and then run in turn, for {rounds} rounds,",
            "so that what else the machine does slows all of them alike. A number is the median of",
            "the rounds, and below it stand the quartiles; the fastest of a case, among those of",
            "its dtype, is in bold. Ratios are taken round by round. The checkpoint is the same",
            "for all. In forward, generate, train and start outputs are compared before they are",
            "timed.",
        )
    if any("work" in case for case in timed):
        rows, inputs, outputs = PRODUCT
        yield _text(
            "The *share of the limit* says how near a run comes to what the machine can do. The",
            "limit is the longer of two times: to read every weight once, as fast as a sum or a",
            "product with one vector reads memory, and to do the matrix products, as fast as one",
            f"({rows} x {inputs} by {inputs} x {outputs}) of that dtype is done. Both are timed in",
            "the same rounds, and the best of the case counts. On a shared machine that may still",
            "be less than it can do.",
        )
    if any("bytes" in case for case in cases):
        yield _text(
            "Memory is the most that a fresh process takes for a case. Its libraries are a part of",
            "it, JAX in every one, and so are export to ONNX and conversion for CTranslate2. On a",
            "GPU it is the memory of the device, of JAX and torch alone.",
        )


def _machine(records: Sequence[Record]) -> Iterator[str]:
    environments = [record["environment"] for record in records]
    versions = [environment["versions"] for environment in environments]
    first = environments[0]
    facts = {
        "processor": [first["processor"]],
        "JAX runs on": [f"{first['platform']}: {', '.join(first['devices'])}"],
        "threads": [str(first["threads"])],
        "system": [environment["system"] for environment in environments],
        "Python": [environment["python"] for environment in environments],
    }
    others = [environment["older"] for environment in environments if "older" in environment]
    if others:
        facts["another JAX"] = [f"{found['jax']}, Python {found['python']}" for found in others]
    for name in dict.fromkeys(name for found in versions for name in found):
        facts[name] = [found[name] for found in versions if name in found]
    yield "## Machine and versions\n"
    rows = [[name, " and ".join(dict.fromkeys(found))] for name, found in facts.items()]
    yield from _table(["", ""], rows, texts=2)

    rows = []
    for record in records:
        date = record["environment"]["date"][:16].replace("T", " ")
        row = [f"`{record['file'].name}`", date, record["environment"]["commit"] or ""]
        for name in LIMITS:
            measured = [case.get("limits", {}).get(name, []) for case in record["cases"]]
            giga = [speed / 1e9 for rounds in measured for speed in rounds]
            row.append(_cell(Spread.of(giga)) if giga else "")
        rows.append(row)
    yield "What was measured when, at which commit, and the limits of the machine meanwhile:\n"
    yield from _table(["record", "date (UTC)", "commit", *LIMITS.values()], rows)


def _players(records: Sequence[Record]) -> Iterator[str]:
    cases = [case for record in records for case in record["cases"]]
    present = peer_names(case.get(name, {}) for case in cases for name in ("seconds", "bytes"))
    forwards = forward_cases(records)
    errors: dict[str, dict[str, str]] = {}
    for name, found in forwards.items():
        measured = [case["errors"] for case in found]
        errors[f"error, {name}"] = {
            peer: _error(max(case[peer] for case in measured if peer in case))
            for peer in peer_names(measured)
        }
    yield "## Who takes part\n"
    who = {peer: WHO[peer] for peer in present if peer in WHO}
    yield from _table(["", "", *errors], _rows(who, *errors.values()), texts=2)
    if forwards:
        first = next(iter(next(iter(forwards.values()))[0]["errors"]), OURS)
        yield _text(
            "The error is the greatest of all cases, measured before the timing: the root mean",
            f"square of the difference from {first}, relative to that of its own output.",
        )
    missing = dict.fromkeys(
        f"- {peer}, in {record['suite']}: {why}"
        for record in records
        for peer, why in record["absent"].items()
    )
    if missing:
        yield "\n".join(["Absent:\n", *missing, ""])


def _forward(records: Sequence[Record]) -> list[str]:
    rows = []
    for case in (case for cases in forward_cases(records).values() for case in cases):
        rows += _by_peer(describe(case), *_columns(case))
    return _section(
        "Forward",
        ["batch x tokens", "", "ms", *SPEED],
        rows,
        "With the LM head, to the logits, or without it, to the states. The ratio says how many",
        f"times as fast {OURS} is.",
    )


def _generate(records: Sequence[Record]) -> list[str]:
    rows = []
    for case in timed_cases(records, "generate"):
        shape, later = case["case"], step_seconds(case)
        rows += _by_peer(
            f"{shape['batch']} x {shape['prompt']} + {shape['new']}",
            _left_out(case) | _fastest(_milliseconds(case["first"])),
            _fastest(_milliseconds(later)),
            speeds(shape["batch"], later),
            _percents(limit_shares(case, later)),
            times_as_fast(later),
            times_as_fast(case["seconds"]),
            {name: f"{gap:.2g}" for name, gap in case["logit_gaps"].items()},
        )
    head = ["case", "", "first token, ms", "each further, ms", "decoding, tokens/s"]
    head += ["share of the limit", "ratio, decoding", "ratio, whole", "logit gap"]
    return _section(
        "Generate",
        head,
        rows,
        "Greedy. A case is the batch, the tokens of a prompt, and how many are written. The",
        f"ratios say how many times as fast {OURS} is: in decoding, which is all that follows",
        "the first token, and in the whole run. All in float32 write the same ids; the logit gap",
        "is how far the logit of a token that is chosen lies below the greatest in float32, at",
        "most, in standard deviations of the logits.",
    )


def _prompts(records: Sequence[Record]) -> list[str]:
    rows = []
    for case in timed_cases(records, "prompts"):
        found = rates(case["seconds"], case["tokens"], case["command"])
        best = best_batch(found)
        rows += _by_peer(
            f"{case['case']['prompts']} x {case['case']['mean']} + {case['case']['new']}",
            found,
            {name: f"{rate.median / best:.0%}" for name, rate in found.items()},
        )
    return _section(
        "Many prompts",
        ["prompts x mean tokens + new", "", "new tokens/s", "of the best batch"],
        rows,
        "Prompts of equal lengths in fixed batches, and what `gpt1 generate --prompts` makes of as",
        "many tokens in mixed lengths; the command from its start to its end.",
    )


def _score(records: Sequence[Record]) -> list[str]:
    rows = []
    for case in timed_cases(records, "score"):
        seconds = case["seconds"]
        rows += _by_peer(
            f"{case['case']['count']} {case['case']['texts']}",
            _fastest(_seconds(seconds)),
            speeds(case["tokens"], seconds),
            times_as_fast(seconds),
            {name: _error(found) for name, found in case["errors"].items()},
        )
    return _section(
        "Score",
        ["texts", "", "seconds", "scored tokens/s", "ratio", "error"],
        rows,
        "The log-probability of every token of texts of mixed lengths, from strings. transformers",
        "is a batched loop over its model: texts sorted by length, the head on their own tokens",
        f"alone. The ratio says how many times as fast {OURS} is. The error is the root mean",
        f"square of the difference from {OURS}'s log-probabilities in float32, relative to theirs.",
    )


def _predict(records: Sequence[Record]) -> list[str]:
    rows = []
    for case in timed_cases(records, "predict"):
        seconds = case["seconds"]
        rows += _by_peer(
            f"{case['case']['count']} {case['case']['texts']}",
            _fastest(_seconds(seconds)),
            speeds(case["case"]["count"], seconds),
            times_as_fast(seconds),
            {name: _error(found) for name, found in case["errors"].items()},
        )
    return _section(
        "Predict",
        ["texts", "", "seconds", "texts/s", "ratio", "error"],
        rows,
        "The labels of short texts by a classifier, from strings. transformers is its",
        "text-classification pipeline in the fastest of several batch sizes. The ratio says how",
        f"many times as fast {OURS} is. The error is the root mean square of the difference from",
        f"{OURS}'s probabilities in float32, relative to theirs.",
    )


def _train(records: Sequence[Record]) -> list[str]:
    rows = []
    for case in timed_cases(records, "train"):
        losses = case["losses"]
        first = next(iter(losses.values()), [])
        apart = {
            name: max((abs(a / b - 1) for a, b in zip(found, first, strict=False)), default=0.0)
            for name, found in losses.items()
        }
        rows += _by_peer(
            describe(case),
            *_columns(case),
            {name: _error(found) for name, found in apart.items()},
        )
    return _section(
        "Train",
        ["batch x tokens", "", "a step, ms", *SPEED, "losses apart"],
        rows,
        f"A step: gradients, clipping and AdamW. The ratio says how many times as fast {OURS}",
        "is. The last column is the greatest relative difference from the losses of the first",
        "row, of the same steps.",
    )


def _load(records: Sequence[Record]) -> list[str]:
    rows = []
    for case in timed_cases(records, "load"):
        size, seconds = case["case"]["checkpoint bytes"], case["seconds"]
        sums = [size / speed for speed in case["limits"]["bytes"]]
        rows += _by_peer(
            describe(case),
            _fastest(_milliseconds(seconds)),
            speeds(size / 1e9, seconds),
            _percents({name: ratio(sums, times) for name, times in seconds.items()}),
            times_as_fast(seconds),
        )
    head = ["case", "", "ms", "GB/s of the file", "share of the sum's speed", "ratio"]
    return _section(
        "Load",
        head,
        rows,
        "From a checkpoint on the disk to a model that is ready, beside the speed at which a",
        f"plain sum reads memory. The ratio says how many times as fast {OURS} is.",
    )


def _start(records: Sequence[Record]) -> list[str]:
    rows = []
    for case in timed_cases(records, "start"):
        compiled = case["compilations"]
        rows += _by_peer(
            describe(case),
            _fastest(_seconds(case["seconds"])),
            times_as_fast(case["seconds"]),
            {name: str(found["count"]) for name, found in compiled.items()},
            {name: _number(found["seconds"]) for name, found in compiled.items()},
        )
    head = ["case", "", "seconds", "ratio", "programs compiled", "seconds of compiling"]
    return _section(
        "Start",
        head,
        rows,
        "A fresh process to its first token; what is cached has JAX's compiled programs from a",
        f"run before. The ratio says how many times as fast {OURS} is.",
    )


def _activations(records: Sequence[Record]) -> list[str]:
    rows = []
    for case in timed_cases(records, "activations"):
        rows += _by_peer(
            describe(case),
            _fastest(_seconds(case["seconds"])),
            times_as_fast(case["seconds"]),
            {name: f"{error:.0e}" for name, error in case["errors"].items()},
        )
    return _section(
        "Activation patching",
        ["case", "", "seconds", "ratio", "largest difference"],
        rows,
        "One text with one activation changed in each run, and of each run one logit: the state of",
        'another text before every block at every position ("restore"), and every head removed in',
        "turn. This package does either in one call, transformers' model in a loop of forwards,",
        "with hooks, TransformerLens in its own patching loop and an environment of its own.",
        "Differences are relative to the largest logit.",
    )


def _scaling(records: Sequence[Record]) -> Iterator[str]:
    parts: dict[str, list[Case]] = {}
    for case in timed_cases(records, "scaling"):
        parts.setdefault(case["case"]["what"], []).append(case)
    fitted = [case for record in records for case in record["cases"] if "exponents" in case]
    if parts:
        yield "## Scaling\n"
        yield _text(
            "Milliseconds, and the power of the size that fits them best: at 1 the time doubles",
            "when the size does, at 0 it stays.",
        )
    for what, cases in parts.items():
        names = peer_names(case["seconds"] for case in cases)
        rows = []
        for case in cases:
            sizes = [str(size) for name, size in case["case"].items() if name != "what"]
            cells = _left_out(case) | _milliseconds(case["seconds"])
            rows.append([" x ".join(sizes), *(_cell(cells.get(name)) for name in names)])
        for powers in [case["exponents"][what] for case in fitted if case["exponents"].get(what)]:
            power = {name: f"{found:.2f}" for name, found in powers.items()}
            rows.append(["power", *(power.get(name, "") for name in names)])
        yield f"{SCALING.get(what, what)}:\n"
        yield from _table(["", *names], rows)


def _memory(records: Sequence[Record]) -> list[str]:
    rows = []
    for suite, cases in memory_cases(records).items():
        for case in cases:
            for peaks, what in ((case["bytes"], ""), (case.get("kept", {}), ", kept")):
                ours = {name: opponent(name, peaks) for name in peaks}
                rows += _by_peer(
                    f"{suite}, {describe(case)}{what}",
                    {name: f"{peak / 1e9:.2f}" for name, peak in peaks.items()},
                    {name: f"{peaks[our] / peaks[name]:.0%}" for name, our in ours.items() if our},
                )
    return _section(
        "Memory",
        ["case", "", "peak, GB", f"{OURS} takes so much of it"],
        rows,
        "The most memory of a process; less is better. What is kept is by how much a loaded model",
        "makes a process larger that has imported everything.",
    )


def _older(records: Sequence[Record]) -> list[str]:
    versions = _range(
        record["environment"]["older"]["jax"]
        for record in records
        if "older" in record["environment"]
    )
    rows = []
    for record in records:
        for case in record["cases"]:
            for name, times in case["older"].get("seconds", {}).items():
                here = case["seconds"][name]
                found = ratio(times, here)
                if found.low <= 1 <= found.high:
                    continue
                rows.append(
                    [
                        f"{record['suite']}, {describe(case)}",
                        name,
                        *(_cell(_milliseconds({"": found})[""]) for found in (here, times)),
                        _cell(found),
                    ]
                )
    jax = records[0]["environment"]["versions"].get("jax", "")
    return _section(
        f"Under JAX {versions}",
        ["case", "", f"ms, JAX {jax}", f"ms, JAX {versions}", "ratio"],
        rows,
        "This package in another Python with another JAX, in the same rounds; above 1 the JAX of",
        "all other tables is faster. Cases whose quartiles include 1 are left out.",
    )


def _unsteady(records: Sequence[Record]) -> list[str]:
    rows = [
        [f"{record['suite']}, {describe(case)}", name, why]
        for record in records
        for case in record["cases"]
        for name, times in case.get("seconds", {}).items()
        if (why := unsteady(times))
    ]
    return _section(
        "Unsteady",
        ["case", "", "why"],
        rows,
        "The medians of these should not be relied on: the quartiles lie far apart, or the median",
        "of the last rounds is not that of the first.",
    )


# Its parts


def _section(title: str, head: list[str], rows: list[list[str]], *text: str) -> list[str]:
    """Return the lines of a section with a table, if that has rows."""
    return [f"## {title}\n", _text(*text), *_table(head, rows, texts=2)] if rows else []


def _text(*lines: str) -> str:
    """Return a paragraph."""
    return textwrap.fill(" ".join(lines), 100, break_on_hyphens=False) + "\n"


def _range(values: Iterable[Any]) -> str:
    """Return the least and the greatest value, or the only one."""
    ends = sorted(set(values)) or [""]
    return f"{ends[0]}" if len(ends) == 1 else f"{ends[0]} to {ends[-1]}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> Iterator[str]:
    """Yield a table's lines: columns of text, and of numbers, which stand to the right."""
    yield f"| {' | '.join(head)} |"
    yield "|" + "".join(" :--- |" if i < texts else " ---: |" for i in range(len(head)))
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _rows(*columns: Cells) -> list[list[str]]:
    """Return a row for each peer."""
    return [
        [name, *(_cell(column.get(name)) for column in columns)] for name in peer_names(columns)
    ]


def _by_peer(label: str, *columns: Cells) -> list[list[str]]:
    """Return a case's rows, one for each peer; only the first has the label."""
    return [["" if i else label, *row] for i, row in enumerate(_rows(*columns))]


def _columns(case: Case) -> list[Cells]:
    """Return the columns of what reads tokens: milliseconds, and those of ``SPEED``."""
    seconds = case["seconds"]
    return [
        _left_out(case) | _fastest(_milliseconds(seconds)),
        speeds(case["work"]["tokens"], seconds),
        _percents(limit_shares(case, seconds)),
        times_as_fast(seconds),
    ]


def _left_out(case: Case) -> dict[str, str]:
    left_out = case.get("left_out", {})
    return {name: f"left out: about {seconds:.0f} s" for name, seconds in left_out.items()}


def _seconds(seconds: Mapping[str, Seconds]) -> dict[str, Spread]:
    return {name: Spread.of(times) for name, times in seconds.items()}


def _milliseconds(seconds: Mapping[str, Seconds]) -> dict[str, Spread]:
    return {name: Spread.of([1e3 * s for s in times]) for name, times in seconds.items()}


def _fastest(times: Mapping[str, Spread]) -> dict[str, Spread | str]:
    """Return times of which the shortest of each dtype is in bold, if there is another."""
    marked: dict[str, Spread | str] = dict(times)
    for dtype in ALL_OURS:
        group = [name for name in times if dtype_of(name) == dtype and name != OTHER_MODEL]
        if len(group) > 1:
            best = min(group, key=lambda name: times[name].median)
            marked[best] = _bold(times[best])
    return marked


def _bold(spread: Spread) -> str:
    """Return a median in bold above its quartiles."""
    median, *quartiles = _cell(spread).split("<", 1)
    return "<".join([f"**{median}**", *quartiles])


def _percents(shares: Mapping[str, Spread]) -> dict[str, str]:
    return {name: f"{spread.median:.0%}" for name, spread in shares.items()}


def _cell(value: Spread | str | None) -> str:
    """Return a median above its quartiles, or a text, or nothing."""
    if not isinstance(value, Spread):
        return value or ""
    middle = _number(value.median)
    if value.low == value.high:
        return middle
    return f"{middle}<br><sub>{_number(value.low)} to {_number(value.high)}</sub>"


def _number(value: float) -> str:
    """Return a number with three digits at least."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _error(value: float) -> str:
    return f"{value:.1e}" if value else "0"
