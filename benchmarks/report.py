"""The report of the benchmarks: a page of tables, and pictures, from the records of the suites."""

import json
import math
import statistics
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks.generate import steps
from benchmarks.machine import PRODUCT
from benchmarks.peers import OURS, PEERS
from benchmarks.suite import Work, share
from benchmarks.timing import Seconds, Spread, ratio
from conversion.atomic import replacing

Case = dict[str, Any]
Record = dict[str, Any]

# What a timed case of each suite holds, and what its "case" does.
SUITES: dict[str, tuple[set[str], set[str]]] = {
    "forward": ({"work", "errors", "left_out", "limits"}, {"batch", "tokens", "head"}),
    "generate": ({"work", "first", "left_out", "regrets", "limits"}, {"batch", "prompt", "new"}),
    "train": ({"work", "losses", "limits"}, {"batch", "tokens", "remat"}),
    "load": ({"limits"}, {"checkpoint bytes"}),
    "start": ({"compilations"}, set()),
    "scaling": (set(), {"what"}),
}
ENVIRONMENT = {"date", "commit", "python", "system", "processor", "platform", "devices"}
ENVIRONMENT |= {"threads", "versions"}

OTHER_MODEL = "gpt2"  # it has other weights to read, so the limit of ours is not its limit
WHO = {
    OURS: "this package, in float32",
    "gpt1-jax-bfloat16": "this package, computing in bfloat16",
    "transformers": "Hugging Face's model in eager torch, float32",
    "transformers-bfloat16": "the same, in bfloat16",
    "torch.compile": "Hugging Face's model, compiled by torch, float32",
    "onnxruntime": "ONNX Runtime, with the graph that torch exports of that model, float32",
    "ctranslate2": "CTranslate2, float32",
    "ctranslate2-int8": "CTranslate2, with weights rounded to 8 bits",
    OTHER_MODEL: "Hugging Face's GPT-2 small, another model of about the same size: unlike "
    "Hugging Face's GPT-1 it has a cache",
}

SCALING = {
    "decode": "A new token, by the number of those before it",
    "length": "The forward of one row, by its tokens",
    "batch": "The forward, by its rows",
}

# Pictures: a colour (of Okabe and Ito, told apart by the colour-blind) and a marker for each
# library, a line for each dtype.
LOOKS = {
    "gpt1-jax": ("#D55E00", "o"),
    "transformers": ("#0072B2", "s"),
    "torch.compile": ("#56B4E9", "^"),
    "onnxruntime": ("#009E73", "D"),
    "ctranslate2": ("#CC79A7", "v"),
}
ANY_LOOK = ("#777777", "x")
LINES = {"float32": "-", "bfloat16": "--", "int8": ":"}
WIDTH, DPI = 8.2, 110  # inches, and pixels an inch


def report(
    folder: Annotated[Path, tyro.conf.Positional] = Path("benchmarks/results"),
    out: Path | None = None,
) -> Path:
    """Write a page and pictures of what the suites measured.

    Args:
        folder: the records, files of JSON that the suites wrote with --json, all of one machine.
        out: where to write README.md and the pictures; by default beside the records.

    Returns:
        The page.

    Raises:
        FileNotFoundError: there is no record.
        ValueError: a file is no record, or the records do not go together; the message names it.
        ImportError: matplotlib is not installed.
    """
    records = _read(folder)
    out = out or folder
    pictures = {
        f"{name}.png": figure
        for name, draw in PICTURES.items()
        if (figure := draw(records)) is not None
    }
    with replacing(out) as temporary:
        for name, figure in pictures.items():
            figure.savefig(temporary(name), format="png", dpi=DPI)
        temporary("README.md").write_text(_page(records, list(pictures)), encoding="utf-8")
    return out / "README.md"


# Records


def _read(folder: Path) -> list[Record]:
    """Return the records of a folder, in the order of ``SUITES``."""
    records: list[Record] = []
    for file in sorted(folder.glob("*.json")):
        try:
            content = json.loads(file.read_bytes())
        except ValueError:
            raise ValueError(f"{file} is not JSON") from None
        if wrong := _wrong(content):
            raise ValueError(f"{file} is no record of a suite: {wrong}")
        records.append({**content, "file": file})
    if not records:
        raise FileNotFoundError(f"there are no records (*.json) in {folder}")
    first = records[0]
    seen: dict[str, Path] = {}
    for record in records:
        for name in ("processor", "platform", "devices", "threads"):
            if record["environment"][name] != first["environment"][name]:
                raise ValueError(
                    f"{record['file']} is of another machine than {first['file']}: {name} is "
                    f"{record['environment'][name]}, not {first['environment'][name]}"
                )
        for case in record["cases"]:
            key = f"{record['suite']} {case.get('case', 'exponents')} {_is_memory(case)}"
            if seen.setdefault(key, record["file"]) != record["file"]:
                raise ValueError(f"{record['file']} has a case that {seen[key]} has too: {key}")
    return sorted(records, key=lambda record: list(SUITES).index(record["suite"]))


def _wrong(content: Any) -> str | None:
    """Return why something is no record, or None if it is one."""
    if not isinstance(content, dict) or content.get("suite") not in list(SUITES):
        return f'"suite" must be one of {", ".join(SUITES)}'
    for name, kind in (("environment", dict), ("absent", dict), ("cases", list)):
        if not isinstance(content.get(name), kind):
            return f'it has no "{name}"'
    if missing := ENVIRONMENT - content["environment"].keys():
        return f'its environment has no "{min(missing)}"'
    inside, shape = SUITES[content["suite"]]
    for number, case in enumerate(content["cases"]):
        if isinstance(case, dict) and "exponents" in case:
            continue
        if not isinstance(case, dict) or not isinstance(case.get("case"), dict):
            return f"its case {number} is none"
        wanted = set() if _is_memory(case) else {"seconds", *inside}
        if missing := (wanted - case.keys()) | (shape - case["case"].keys()):
            return f'its case {number} has no "{min(missing)}"'
        rounds = {len(times) for times in case.get("seconds", {}).values()}
        if 0 in rounds or len(rounds) > 1:
            return f"its case {number} does not have as many rounds for each"
    return None


def _is_memory(case: Case) -> bool:
    return "bytes" in case and "seconds" not in case


def _timed(records: list[Record], suite: str, **shape: object) -> list[Case]:
    """Return the cases of a suite that have times, of those with such a shape."""
    return [
        case
        for record in records
        if record["suite"] == suite
        for case in record["cases"]
        if "seconds" in case and shape.items() <= case["case"].items()
    ]


def _forwards(records: list[Record]) -> dict[str, list[Case]]:
    """Return the forward's cases with and without the head, by batch and tokens."""
    found = {}
    for name, head in (("logits", True), ("states", False)):
        cases = _timed(records, "forward", head=head)
        if cases:
            found[name] = sorted(cases, key=lambda c: (c["case"]["batch"], c["case"]["tokens"]))
    return found


def _peaks(records: list[Record]) -> Iterator[tuple[str, list[Case]]]:
    """Yield each suite that has measured memory, with its cases."""
    for suite in SUITES:
        cases = [case for r in records if r["suite"] == suite for case in r["cases"]]
        if cases := [case for case in cases if "bytes" in case]:
            yield suite, cases


def _decode(case: Case) -> dict[str, Seconds]:
    """Return the seconds of each token after the first, by peer and round.

    A run so short that the noise hides the time of a token is left out.
    """
    found = {
        name: steps(whole, case["first"][name], case["case"]["new"])
        for name, whole in case["seconds"].items()
    }
    return {name: times for name, times in found.items() if min(times) > 0}


# Numbers


def _opponent(name: str, present: Mapping[str, object]) -> str | None:
    """Return which of ours a peer is compared with: the one of its dtype if it takes part."""
    if name.startswith(OURS):
        return None
    same = f"{OURS}-{PEERS[name].dtype}" if name in PEERS else OURS
    ours = same if same in present else OURS
    return ours if ours in present else None


def _ratios(seconds: Mapping[str, Seconds]) -> dict[str, Spread]:
    """Return how many times as fast as each peer this package is."""
    return {
        name: ratio(times, seconds[ours])
        for name, times in seconds.items()
        if (ours := _opponent(name, seconds)) is not None
    }


def _shares(case: Case, seconds: Mapping[str, Seconds]) -> dict[str, Spread]:
    """Return the share of the machine's limit of those whose dtype has one."""
    work = Work(**case["work"])
    return {
        name: share(work, PEERS[name].dtype, times, case["limits"])
        for name, times in seconds.items()
        if name in PEERS and name != OTHER_MODEL and PEERS[name].dtype in case["limits"]
    }


def _speeds(tokens: float, seconds: Mapping[str, Seconds]) -> dict[str, Spread]:
    """Return each one's tokens a second."""
    return {name: Spread.of([tokens / s for s in times]) for name, times in seconds.items()}


def _names(groups: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the names in some mappings: peers in their order, then any others."""
    found = list(dict.fromkeys(name for group in groups for name in group))
    order = list(PEERS)
    return sorted(found, key=lambda name: order.index(name) if name in order else len(order))


# The page


def _page(records: list[Record], pictures: list[str]) -> str:
    sections = [
        *_opening(records),
        *_summary(records),
        *(f"![{PICTURE_TEXTS[name]}]({name})\n" for name in pictures),
        *_method(records),
        *_machine(records),
        *_players(records),
        *_forward(records),
        *_generate(records),
        *_train(records),
        *_load(records),
        *_start(records),
        *_scaling(records),
        *_memory(records),
    ]
    return "\n".join(sections).rstrip("\n") + "\n"


def _opening(records: list[Record]) -> Iterator[str]:
    machine = records[0]["environment"]
    dates = sorted({record["environment"]["date"][:10] for record in records})
    days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    where = machine["processor"]
    if machine["platform"] != "cpu":
        where = f"{', '.join(machine['devices'])} ({where})"
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
    yield "# Benchmarks\n"
    yield _text(
        f"{OURS} against other ways to run the same checkpoint: {where}, {threads}, {days}.",
        "`python -m benchmarks report` writes this page from the suites' records.",
    )


def _summary(records: list[Record]) -> Iterator[str]:
    runs: dict[str, list[Mapping[str, Seconds]]] = {
        f"forward, {name}": [case["seconds"] for case in cases]
        for name, cases in _forwards(records).items()
    }
    runs["decoding"] = [_decode(case) for case in _timed(records, "generate")]
    runs["training step"] = [case["seconds"] for case in _timed(records, "train")]
    runs["loading"] = [case["seconds"] for case in _timed(records, "load")]
    ratios = {name: [_ratios(seconds) for seconds in cases] for name, cases in runs.items()}
    ratios = {name: cases for name, cases in ratios.items() if any(cases)}
    rows = []
    for peer in _names([found for cases in ratios.values() for found in cases]):
        row = [peer]
        for cases in ratios.values():
            medians = [found[peer].median for found in cases if peer in found]
            row.append(
                _cell(Spread(statistics.geometric_mean(medians), min(medians), max(medians)))
                if medians
                else ""
            )
        rows.append(row)
    if rows:
        yield f"## How many times as fast {OURS} is\n"
        yield _text(
            "Geometric means over all cases, and below them the least and the greatest; above 1,",
            f"{OURS} is faster. What computes in bfloat16 is compared with {OURS} in bfloat16,",
            "where that takes part, and all else, int8 too, with float32.",
        )
        yield from _table(["than", *ratios], rows)


def _method(records: list[Record]) -> Iterator[str]:
    cases = [case for record in records for case in record["cases"] if "seconds" in case]
    rounds = sorted({len(times) for case in cases for times in case["seconds"].values()})
    yield "## How it was measured\n"
    if rounds:
        number = f"{rounds[0]}" if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
        yield _text(
            f"All who take part in a case are warmed up and then run in turn, for {number} rounds,",
            "so that what else the machine does slows all of them alike. A number is the median of",
            "the rounds, and below it stand the quartiles. Ratios are taken round by round. The",
            "checkpoint is the same for all, and their outputs are compared before the timing.",
        )
    if any("work" in case for case in cases):
        rows, inputs, outputs = PRODUCT
        yield _text(
            "The *share of the limit* says how near a run comes to what the machine can do. The",
            "limit is the longer of two times: to read every weight once, as fast as a plain sum",
            "reads memory, and to do the matrix products, as fast as a large one",
            f"({rows} x {inputs} by {inputs} x {outputs}) of that dtype is done. Both are timed in",
            "the same rounds. At 100%, only reading or computing less would be faster. int8 has no",
            "share, since the speed of its products is not measured.",
        )
    if any("bytes" in case for record in records for case in record["cases"]):
        yield _text(
            "Memory is the most that a fresh process takes for a case; its libraries are a part of",
            "it. On a GPU it is the memory of the device.",
        )


def _machine(records: list[Record]) -> Iterator[str]:
    environments = [record["environment"] for record in records]
    yield "## Machine and versions\n"

    def all_of(found: list[Any]) -> str:
        return " and ".join(dict.fromkeys(map(str, found)))

    first = environments[0]
    rows = [
        ["processor", first["processor"]],
        ["JAX runs on", f"{first['platform']}: {', '.join(first['devices'])}"],
        ["threads", str(first["threads"])],
        ["system", all_of([environment["system"] for environment in environments])],
        ["Python", all_of([environment["python"] for environment in environments])],
    ]
    for name in dict.fromkeys(name for e in environments for name in e["versions"]):
        found = [e["versions"][name] for e in environments if name in e["versions"]]
        rows.append([name, all_of(found)])
    yield from _table(["", ""], rows, texts=2)

    units = {
        "bytes": "memory, GB/s",
        "float32": "float32, GFLOP/s",
        "bfloat16": "bfloat16, GFLOP/s",
    }
    rows = []
    for record in records:
        environment = record["environment"]
        date = environment["date"][:16].replace("T", " ")
        row = [f"`{record['file'].name}`", date, environment["commit"] or ""]
        for name in units:
            speeds = [case.get("limits", {}).get(name, []) for case in record["cases"]]
            speeds = [speed / 1e9 for case in speeds for speed in case]
            row.append(_cell(Spread.of(speeds)) if speeds else "")
        rows.append(row)
    yield "What was measured when, at which commit, and the limits of the machine meanwhile:\n"
    yield from _table(["record", "date (UTC)", "commit", *units.values()], rows)


def _players(records: list[Record]) -> Iterator[str]:
    cases = [case for record in records for case in record["cases"]]
    present = [case.get(name, {}) for case in cases for name in ("seconds", "bytes")]
    names = [name for name in _names(present) if name in WHO]
    errors = {
        name: {
            peer: max(case["errors"][peer] for case in found if peer in case["errors"])
            for peer in names
            if any(peer in case["errors"] for case in found)
        }
        for name, found in _forwards(records).items()
    }
    yield "## Who takes part\n"
    rows = [[peer, WHO[peer], *(_error(e.get(peer)) for e in errors.values())] for peer in names]
    yield from _table(["", "", *(f"error, {name}" for name in errors)], rows, texts=2)
    if errors:
        first = next(iter(next(iter(_forwards(records).values()))[0]["errors"]), OURS)
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
        yield "Absent:\n"
        yield from missing
        yield ""


def _forward(records: list[Record]) -> Iterator[str]:
    for name, cases in _forwards(records).items():
        what = "with the LM head" if name == "logits" else "without the LM head"
        yield f"## Forward, {name} ({what})\n"
        yield "Milliseconds; less is better.\n"
        times = [_milliseconds(case["seconds"]) for case in cases]
        later = [{peer: _left_out(s) for peer, s in case["left_out"].items()} for case in cases]
        yield from _by_shape(cases, times, later)
        yield f"How many times as fast {OURS} is; above 1 it is faster.\n"
        yield from _by_shape(cases, [_ratios(case["seconds"]) for case in cases])
        yield "Tokens a second; more is better.\n"
        yield from _by_shape(
            cases, [_speeds(case["work"]["tokens"], case["seconds"]) for case in cases]
        )
        yield "Share of the limit; 100% is best.\n"
        shares = [_shares(case, case["seconds"]) for case in cases]
        yield from _by_shape(
            cases, [{n: f"{s.median:.0%}" for n, s in found.items()} for found in shares]
        )


def _by_shape(
    cases: list[Case],
    numbers: Sequence[Mapping[str, Spread | str]],
    others: Sequence[Mapping[str, str]] | None = None,
) -> Iterator[str]:
    """Yield a table with a row for each case and a column for each peer."""
    cells = [
        {**more, **found}
        for found, more in zip(numbers, others or [{}] * len(numbers), strict=True)
    ]
    names = _names(cells)
    if names:
        rows = [
            [_batch_tokens(case["case"]), *(_cell(found.get(name)) for name in names)]
            for case, found in zip(cases, cells, strict=True)
        ]
        yield from _table(["batch x tokens", *names], rows)


def _generate(records: list[Record]) -> Iterator[str]:
    rows = []
    for case in _timed(records, "generate"):
        shape, later = case["case"], _decode(case)
        speeds, shares = _speeds(shape["batch"], later), _shares(case, later)
        times, decode = _ratios(case["seconds"]), _ratios(later)
        first, each = _milliseconds(case["first"]), _milliseconds(later)
        label = f"{shape['batch']} x {shape['prompt']} + {shape['new']}"
        left_out, regrets = case["left_out"], case["regrets"]
        for name in _names([case["seconds"], left_out]):
            if name in left_out:
                rows.append([label, name, _left_out(left_out[name]), *[""] * 6])
                continue
            row = [label, name, *(_cell(found.get(name)) for found in (first, each, speeds))]
            row.append(_percent(shares.get(name)))
            row += [_cell(decode.get(name)), _cell(times.get(name))]
            rows.append([*row, f"{regrets[name]:.2g}" if name in regrets else ""])
    if rows:
        yield "## Generate\n"
        yield _text(
            "Greedy. A case is the batch, the tokens of a prompt, and how many are written. The",
            f"ratios say how many times as fast {OURS} is: in decoding, which is all that follows",
            "the first token, and in the whole run. All in float32 write the same ids; the regret",
            "is how far the logit of a token that is chosen lies below the greatest in float32, at",
            "most, in standard deviations of the logits.",
        )
        head = ["case", "", "first token, ms", "each further, ms", "decoding, tokens/s"]
        head += ["share of the limit", "ratio, decoding", "ratio, whole", "regret"]
        yield from _table(head, _grouped(rows), texts=2)


def _train(records: list[Record]) -> Iterator[str]:
    rows = []
    for case in _timed(records, "train"):
        seconds, losses = case["seconds"], case["losses"]
        times, ratios = _milliseconds(seconds), _ratios(seconds)
        speeds, shares = _speeds(case["work"]["tokens"], seconds), _shares(case, seconds)
        reference = next(iter(losses.values()), [])
        for name in _names([seconds]):
            apart = [
                abs(a / b - 1) for a, b in zip(losses.get(name, []), reference, strict=False) if b
            ]
            row = [_shape(case), name, *(_cell(found.get(name)) for found in (times, speeds))]
            row += [_percent(shares.get(name)), _cell(ratios.get(name))]
            rows.append([*row, _error(max(apart, default=None))])
    if rows:
        yield "## Train\n"
        yield _text(
            f"A step: gradients, clipping and AdamW. The ratio says how many times as fast {OURS}",
            "is. The last column is the greatest relative difference from the losses of the first",
            "row, of the same steps.",
        )
        head = ["batch x tokens", "", "a step, ms", "tokens/s", "share of the limit", "ratio"]
        yield from _table([*head, "losses apart"], _grouped(rows), texts=2)


def _load(records: list[Record]) -> Iterator[str]:
    rows = []
    for case in _timed(records, "load"):
        size, seconds = case["case"]["checkpoint bytes"], case["seconds"]
        times, ratios = _milliseconds(seconds), _ratios(seconds)
        speeds, sums = _speeds(size / 1e9, seconds), case["limits"]["bytes"]
        for name in _names([seconds]):
            row = [_shape(case), name, *(_cell(found.get(name)) for found in (times, speeds))]
            row.append(_percent(ratio([size / speed for speed in sums], seconds[name])))
            rows.append([*row, _cell(ratios.get(name))])
    if rows:
        yield "## Load\n"
        yield _text(
            "From a checkpoint on the disk to a model that is ready, beside the speed at which a",
            f"plain sum reads memory. The ratio says how many times as fast {OURS} is.",
        )
        head = ["case", "", "ms", "GB/s of the file", "share of the sum's speed", "ratio"]
        yield from _table(head, _grouped(rows), texts=2)


def _start(records: list[Record]) -> Iterator[str]:
    rows = []
    for case in _timed(records, "start"):
        ratios = _ratios(case["seconds"])
        for name in _names([case["seconds"]]):
            row = [_shape(case), name, _cell(Spread.of(case["seconds"][name]))]
            row.append(_cell(ratios.get(name)))
            if compiled := case["compilations"].get(name):
                row += [str(compiled["count"]), _number(compiled["seconds"])]
            rows.append([*row, *[""] * (6 - len(row))])
    if rows:
        yield "## Start\n"
        yield _text(
            "A fresh process to its first token; what is cached has JAX's compiled programs from a",
            f"run before. The ratio says how many times as fast {OURS} is.",
        )
        head = ["case", "", "seconds", "ratio", "programs compiled", "seconds of compiling"]
        yield from _table(head, _grouped(rows), texts=2)


def _scaling(records: list[Record]) -> Iterator[str]:
    parts: dict[str, list[Case]] = {}
    for case in _timed(records, "scaling"):
        parts.setdefault(case["case"]["what"], []).append(case)
    exponents = {
        what: found
        for record in records
        for case in record["cases"]
        for what, found in case.get("exponents", {}).items()
    }
    if parts:
        yield "## Scaling\n"
        yield _text(
            "Milliseconds, and the power of the size that fits them best: at 1 the time doubles",
            "when the size does, at 0 it stays.",
        )
    for what, cases in parts.items():
        yield f"{SCALING.get(what, what)}:\n"
        names = _names([case["seconds"] for case in cases])
        rows = []
        for case in cases:
            cells = {peer: _left_out(s) for peer, s in case.get("left_out", {}).items()}
            cells |= {peer: _cell(s) for peer, s in _milliseconds(case["seconds"]).items()}
            sizes = [str(size) for name, size in case["case"].items() if name != "what"]
            rows.append([" x ".join(sizes), *(cells.get(name, "") for name in names)])
        if powers := exponents.get(what):
            powers = {name: f"{power:.2f}" for name, power in powers.items()}
            rows.append(["power", *(powers.get(name, "") for name in names)])
        yield from _table(["", *names], rows)


def _memory(records: list[Record]) -> Iterator[str]:
    rows = []
    for suite, cases in _peaks(records):
        for case in cases:
            peaks = case["bytes"]
            for name in _names([peaks]):
                ours = _opponent(name, peaks)
                rows.append(
                    [
                        f"{suite}, {_shape(case)}",
                        name,
                        f"{peaks[name] / 1e9:.2f}",
                        "" if ours is None else f"{peaks[ours] / peaks[name]:.0%}",
                    ]
                )
    if rows:
        yield "## Memory\n"
        yield "The most memory of a process; less is better.\n"
        head = ["case", "", "peak, GB", f"{OURS} takes so much of it"]
        yield from _table(head, _grouped(rows), texts=2)


# Its parts


def _text(*lines: str) -> str:
    """Return a paragraph."""
    return textwrap.fill(" ".join(lines), 100, break_on_hyphens=False) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> Iterator[str]:
    """Yield a table's lines: columns of text, and of numbers, which stand to the right."""
    yield f"| {' | '.join(head)} |"
    yield "|" + "".join(" :--- |" if i < texts else " ---: |" for i in range(len(head)))
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _grouped(rows: list[list[str]]) -> list[list[str]]:
    """Return rows with the first cell empty where it is that of the row above."""
    firsts = [None, *(row[0] for row in rows)]
    return [
        ["" if row[0] == above else row[0], *row[1:]]
        for row, above in zip(rows, firsts, strict=False)
    ]


def _shape(case: Case) -> str:
    """Return what tells a case from others of its suite."""
    left = dict(case["case"])
    parts = []
    if {"batch", "tokens"} <= left.keys():
        parts.append(_batch_tokens(left))
        del left["batch"], left["tokens"]
    for name, value in left.items():
        if name == "head":
            parts += [] if value else ["states"]
        elif name == "remat" and value == "none":
            continue
        elif isinstance(value, bool):
            parts += [name] if value else []
        elif name.endswith(" bytes"):
            parts.append(f"{name.removesuffix(' bytes')} of {value / 1e6:.0f} MB")
        else:
            parts.append(f"{name} {value}")
    return ", ".join(parts)


def _batch_tokens(shape: Mapping[str, Any]) -> str:
    return f"{shape['batch']} x {shape['tokens']}"


def _left_out(seconds: float) -> str:
    return f"left out: about {seconds:.0f} s"


def _milliseconds(seconds: Mapping[str, Seconds]) -> dict[str, Spread]:
    return {name: Spread.of([1e3 * s for s in times]) for name, times in seconds.items()}


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


def _percent(value: Spread | None) -> str:
    return "" if value is None else f"{value.median:.0%}"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}" if value else "0"


# Pictures


def _panels(columns: int, rows: int = 1, height: float = 3.8, **options: Any) -> tuple[Any, Any]:
    """Return a figure and its axes (rows, columns)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")  # not pyplot's, which is kept
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, **options)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9)
    return figure, panels


def _look(name: str) -> dict[str, Any]:
    """Return how a peer's line looks."""
    dtype = PEERS[name].dtype if name in PEERS else "float32"
    color, marker = LOOKS.get(name.removesuffix(f"-{dtype}"), ANY_LOOK)
    ours = name.startswith(OURS)
    return {
        "color": color,
        "marker": marker,
        "linestyle": LINES[dtype],
        "linewidth": 2.2 if ours else 1.3,
        "markersize": 6 if ours else 5,
        "markerfacecolor": color if dtype == "float32" else "white",
        "zorder": 3 if ours else 2,
    }


def _lines(axes: Any, ticks: Sequence[object], numbers: Sequence[Mapping[str, float]]) -> None:
    """Draw a line for each peer over evenly spaced ticks."""
    for name in _names(numbers):
        points = [(i, found[name]) for i, found in enumerate(numbers) if name in found]
        axes.plot(*zip(*points, strict=True), label=name, **_look(name))
    axes.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
    axes.margins(x=0.08)


def _legend(figure: Any, panels: Any) -> None:
    """Name every line once, below the panels."""
    found = {}
    for axes in panels.flat:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    names = _names([found])
    figure.legend(
        [found[name] for name in names],
        names,
        loc="outside lower center",
        ncols=4,
        fontsize=9,
        frameon=False,
        handlelength=3,
        columnspacing=1.5,
    )


def _by_batch(cases: list[Case]) -> dict[int, list[Case]]:
    found: dict[int, list[Case]] = {}
    for case in cases:
        found.setdefault(case["case"]["batch"], []).append(case)
    return found


def _rows(batch: int) -> str:
    return f"{batch} row{'s' * (batch != 1)}"


def _logarithmic(axes: Any, low: float, high: float) -> None:
    """Make the y axis logarithmic, with as many plain numbers on it as its span leaves room for."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    span = high / low
    digits = (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    if span > 4:
        digits = (1, 1.5, 2, 3, 5, 7) if span < 10 else (1, 2, 5) if span < 1000 else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**exponent for exponent in exponents for digit in digits]
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _around(panels: Any) -> tuple[float, float]:
    """Return the limits of an axis that shows all lines."""
    values = [value for axes in panels.flat for line in axes.lines for value in line.get_ydata()]
    return min(values) / 1.2, max(values) * 1.2


def _draw_throughput(records: list[Record]) -> Any:
    forwards = _forwards(records)
    if not forwards:
        return None
    name, cases = next(iter(forwards.items()))
    batches = _by_batch(cases)
    figure, panels = _panels(len(batches), height=4.2, sharey=True)
    for axes, (batch, found) in zip(panels.flat, batches.items(), strict=True):
        speeds = [_speeds(case["work"]["tokens"], case["seconds"]) for case in found]
        medians = [{peer: s.median for peer, s in speed.items()} for speed in speeds]
        _lines(axes, [case["case"]["tokens"] for case in found], medians)
        axes.set_title(_rows(batch), fontsize=10)
        axes.set_xlabel("tokens a row", fontsize=10)
    _logarithmic(panels[0, 0], *_around(panels))
    panels[0, 0].set_ylabel("tokens/s", fontsize=10)
    figure.suptitle(f"Forward to the {name}: tokens a second, higher is better", fontsize=12)
    _legend(figure, panels)
    return figure


def _draw_speedup(records: list[Record]) -> Any:
    forwards = {
        name: [(case["case"], _exact(_ratios(case["seconds"]))) for case in cases]
        for name, cases in _forwards(records).items()
    }
    forwards = {name: cases for name, cases in forwards.items() if any(r for _, r in cases)}
    if not forwards:
        return None
    names = _names([ratios for cases in forwards.values() for _, ratios in cases])
    figure, panels = _panels(1, len(forwards), 1.0 + 2.5 * len(forwards), sharey=True)
    for axes, (head, cases) in zip(panels.flat, forwards.items(), strict=True):
        for j, name in enumerate(names):
            points = [(i, ratios[name]) for i, (_, ratios) in enumerate(cases) if name in ratios]
            if not points:
                continue
            middles = [spread.median for _, spread in points]
            down = [spread.median - spread.low for _, spread in points]
            up = [spread.high - spread.median for _, spread in points]
            axes.errorbar(
                [i + 0.16 * (j - (len(names) - 1) / 2) for i, _ in points],
                middles,
                yerr=[down, up],
                label=name,
                capsize=2,
                **{**_look(name), "linestyle": "none"},
            )
        axes.axhline(1, color="#333333", linewidth=1)
        axes.set_title(head, fontsize=10)
        shapes = [_batch_tokens(shape) for shape, _ in cases]
        axes.set_xticks(range(len(shapes)), shapes)
        for i in range(1, len(shapes)):
            axes.axvline(i - 0.5, color="#EEEEEE", linewidth=0.7)
        axes.set_xlim(-0.5, len(shapes) - 0.5)
        axes.set_ylabel("times as fast", fontsize=10)
    ends = [
        end
        for cases in forwards.values()
        for _, ratios in cases
        for spread in ratios.values()
        for end in (spread.low, spread.high)
    ]
    _logarithmic(panels[0, 0], min(*ends, 0.95) / 1.05, max(*ends, 1.05) * 1.05)
    panels[-1, 0].set_xlabel("batch x tokens (median and quartiles of the rounds)", fontsize=10)
    figure.suptitle(
        f"Forward: how many times as fast {OURS} is in float32; above 1 it is faster", fontsize=12
    )
    _legend(figure, panels)
    return figure


def _exact(found: Mapping[str, Spread]) -> dict[str, Spread]:
    """Return what is of float32 peers."""
    return {
        name: spread
        for name, spread in found.items()
        if name not in PEERS or PEERS[name].dtype == "float32"
    }


def _draw_limit(records: list[Record]) -> Any:
    drawn: list[tuple[str, str, list[object], list[dict[str, float]]]] = []
    forwards = _forwards(records)
    if forwards:
        name, cases = next(iter(forwards.items()))
        for batch, found in _by_batch(cases).items():
            shares = [_drawn_shares(case, case["seconds"]) for case in found]
            ticks: list[object] = [case["case"]["tokens"] for case in found]
            drawn.append((f"forward to the {name}, {_rows(batch)}", "tokens a row", ticks, shares))
    if cases := _comparable(records):
        shares = [_drawn_shares(case, _decode(case)) for case in cases]
        drawn.append(("decoding", "rows", [case["case"]["batch"] for case in cases], shares))
    if not any(found for _, _, _, shares in drawn for found in shares):
        return None
    figure, panels = _panels(len(drawn), sharey=True)
    for axes, (title, label, ticks, shares) in zip(panels.flat, drawn, strict=True):
        _lines(axes, ticks, shares)
        axes.axhline(100, color="#333333", linewidth=1)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(label, fontsize=10)
    panels[0, 0].set_ylim(bottom=0)
    panels[0, 0].set_ylabel("share of the limit, %", fontsize=10)
    figure.suptitle("How near to the machine's limit: 100% is best", fontsize=12)
    _legend(figure, panels)
    return figure


def _drawn_shares(case: Case, seconds: Mapping[str, Seconds]) -> dict[str, float]:
    return {name: 100 * spread.median for name, spread in _shares(case, seconds).items()}


def _comparable(records: list[Record]) -> list[Case]:
    """Return the generate cases that differ only in their batch: the most there are of such."""
    groups: dict[tuple[int, int], list[Case]] = {}
    for case in _timed(records, "generate"):
        groups.setdefault((case["case"]["prompt"], case["case"]["new"]), []).append(case)
    largest = max(groups.values(), key=len, default=[])
    return sorted(largest, key=lambda case: case["case"]["batch"])


def _draw_generate(records: list[Record]) -> Any:
    cases = _comparable(records)
    speeds = [
        {name: s.median for name, s in _speeds(case["case"]["batch"], _decode(case)).items()}
        for case in cases
    ]
    if not any(speeds):
        return None
    figure, panels = _panels(1, height=4.0)
    axes = panels[0, 0]
    _lines(axes, [case["case"]["batch"] for case in cases], speeds)
    _logarithmic(axes, *_around(panels))
    axes.set_xlabel("rows that are written at once", fontsize=10)
    axes.set_ylabel("tokens/s, all rows together", fontsize=10)
    shape = cases[0]["case"]
    figure.suptitle(
        f"Decoding after {shape['prompt']} tokens: tokens a second, higher is better", fontsize=12
    )
    _legend(figure, panels)
    return figure


def _draw_memory(records: list[Record]) -> Any:
    drawn = []
    for suite, cases in _peaks(records):
        # The one that is largest for us: the others take no less in it, whatever we save elsewhere.
        case = max(cases, key=lambda case: case["bytes"].get(OURS, 0))
        if case["bytes"]:
            drawn.append((f"{suite}\n{_shape(case)}", case["bytes"]))
    if not drawn:
        return None
    names = _names([peaks for _, peaks in drawn])
    figure, panels = _panels(len(drawn), height=1.5 + 0.3 * len(names), sharey=True)
    for axes, (title, peaks) in zip(panels.flat, drawn, strict=True):
        found = [(i, name) for i, name in enumerate(names) if name in peaks]
        bars = axes.barh(
            [i for i, _ in found],
            [peaks[name] / 1e9 for _, name in found],
            color=[_look(name)["color"] for _, name in found],
            height=0.7,
        )
        axes.bar_label(bars, fmt="%.2f", fontsize=9, padding=2)
        axes.set_yticks(range(len(names)), names)
        axes.margins(x=0.2)
        axes.grid(visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("GB", fontsize=10)
    panels[0, 0].invert_yaxis()
    figure.suptitle("Peak memory of a process, in the largest case: lower is better", fontsize=12)
    return figure


PICTURES: dict[str, Callable[[list[Record]], Any]] = {
    "speedup": _draw_speedup,
    "throughput": _draw_throughput,
    "generate": _draw_generate,
    "limit": _draw_limit,
    "memory": _draw_memory,
}
PICTURE_TEXTS = {
    "speedup.png": f"How many times as fast as each float32 peer {OURS} is, by shape",
    "throughput.png": "Tokens a second of the forward, by shape",
    "generate.png": "Tokens a second of decoding, by batch",
    "limit.png": "Share of the machine's limit, of the forward and of decoding",
    "memory.png": "Peak memory",
}
