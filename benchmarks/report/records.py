"""The records of the suites, read and checked, and the numbers that are made of them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import DIRTY
from benchmarks.peers import OLDER, OURS, PEERS, dtype_of, opponent
from benchmarks.roofline import Roofline
from benchmarks.suite import share
from benchmarks.timing import Seconds, Spread, ratio, steps
from conversion.json_file import read_json

Case = dict[str, Any]
Record = dict[str, Any]

# What a timed case of each suite holds, itself or in its "case".
SUITES = {
    "forward": {"work", "errors", "left_out", "limits", "batch", "tokens", "head"},
    "generate": {"work", "first", "left_out", "logit_gaps", "limits", "batch", "prompt", "new"},
    "train": {"work", "losses", "limits", "batch", "tokens", "remat"},
    "load": {"limits", "checkpoint bytes"},
    "start": {"compilations"},
    "scaling": {"what"},
    "prompts": {"tokens", "command", "prompts", "mean", "new", "batch"},
    "activations": {"errors", "task", "tokens", "runs"},
    "score": {"tokens", "errors", "limits", "texts", "count"},
    "predict": {"errors", "limits", "texts", "count"},
}
OTHER_MODEL = "gpt2"  # a peer of another model
MACHINE = ("processor", "platform", "devices", "threads")
ENVIRONMENT = {*MACHINE, "date", "commit", "python", "system", "versions"}


def read_records(folder: Path) -> list[Record]:
    """Return the records of a folder, each with its "file", in the order of ``SUITES``.

    What ran under another JAX is in "older" of its case, by what was measured and the name of ours.

    Raises:
        FileNotFoundError: there is no record.
        ValueError: a file is no record, is of another machine, or has a case of another file.
    """
    records: list[Record] = []
    seen: dict[str, Path] = {}
    for file in sorted(folder.glob("*.json")):
        content = read_json(file)
        if wrong := _wrong(content):
            raise ValueError(f"{file} is no record of a suite: {wrong}")
        cases = [_with_older_apart(case) for case in content["cases"]]
        records.append({**content, "cases": cases, "file": file})
        first, here = records[0], content["environment"]
        for name in MACHINE:
            if here[name] != (there := first["environment"][name]):
                raise ValueError(
                    f"{file} is of another machine than {first['file']}: "
                    f"{name} is {here[name]}, not {there}"
                )
        for case in content["cases"]:
            kind = "seconds" if "seconds" in case else "bytes"
            key = f"{kind} of {content['suite']} {case['case']}"
            if seen.setdefault(key, file) != file:
                raise ValueError(f"{file} has a case that {seen[key]} has too: {key}")
    if not records:
        raise FileNotFoundError(f"there are no records (*.json) in {folder}")
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
    for number, case in enumerate(content["cases"]):
        if not isinstance(case, dict) or not isinstance(case.get("case"), dict):
            return f"its case {number} is none"
        if "seconds" in case:
            if missing := SUITES[content["suite"]] - case.keys() - case["case"].keys():
                return f'its case {number} has no "{min(missing)}"'
            rounds = {len(times) for times in case["seconds"].values()}
            if 0 in rounds or len(rounds) > 1:
                return f"its case {number} does not have as many rounds for each"
        elif not {"bytes", "exponents"} & case.keys():
            return f'its case {number} has no "seconds"'
    return None


def _with_older_apart(case: Case) -> Case:
    """Return a case with what ran under another JAX in its "older"."""
    found: Case = {"older": {}}
    for measure, values in case.items():
        if not isinstance(values, dict):
            found[measure] = values
            continue
        older = {name: value for name, value in values.items() if name.endswith(OLDER)}
        found[measure] = {name: value for name, value in values.items() if name not in older}
        found["older"][measure] = {name.removesuffix(OLDER): older[name] for name in older}
    return found


def unclean_files(records: Sequence[Record]) -> list[str]:
    """Return the names of the records' files that are not of a clean commit."""
    return [
        record["file"].name
        for record in records
        if (record["environment"]["commit"] or DIRTY).endswith(DIRTY)
    ]


def timed_cases(records: Sequence[Record], suite: str) -> list[Case]:
    """Return the cases of a suite that have times."""
    cases = [case for record in records if record["suite"] == suite for case in record["cases"]]
    return [case for case in cases if "seconds" in case]


def forward_cases(records: Sequence[Record]) -> dict[str, list[Case]]:
    """Return the forward's timed "logits" and "states", those there are, by batch and tokens."""
    found: dict[str, list[Case]] = {"logits": [], "states": []}
    for case in timed_cases(records, "forward"):
        found["logits" if case["case"]["head"] else "states"].append(case)
    return {
        name: sorted(cases, key=lambda case: (case["case"]["batch"], case["case"]["tokens"]))
        for name, cases in found.items()
        if cases
    }


def memory_cases(records: Sequence[Record]) -> dict[str, list[Case]]:
    """Return the cases that have memory, timed or not, of each suite that has some."""
    found: dict[str, list[Case]] = {}
    for record in records:
        if cases := [case for case in record["cases"] if "bytes" in case]:
            found.setdefault(record["suite"], []).extend(cases)
    return found


def describe(case: Case) -> str:
    """Return what tells a case from others of its suite."""
    shape = case["case"]
    if "checkpoint bytes" in shape:
        return f"checkpoint of {shape['checkpoint bytes'] / 1e6:.0f} MB"
    if not {"batch", "tokens"} <= shape.keys():
        return ", ".join(f"{name} {value}" for name, value in shape.items())
    text = f"{shape['batch']} x {shape['tokens']}" + ", states" * (not shape.get("head", True))
    if shape.get("remat", "none") != "none":
        text += f", {OURS} with remat {shape['remat']}"
    return text + ", dropout" * shape.get("dropout", False)


def peer_names(groups: Iterable[Mapping[str, object]]) -> list[str]:
    """Return the names in some mappings: peers in their order, then any others."""
    found = dict.fromkeys(name for group in groups for name in group)
    order = list(PEERS)
    return sorted(found, key=lambda name: order.index(name) if name in order else len(order))


def times_as_fast(seconds: Mapping[str, Seconds]) -> dict[str, Spread]:
    """Return how many times as fast as each peer this package is."""
    return {
        name: ratio(times, seconds[ours])
        for name, times in seconds.items()
        if (ours := opponent(name, seconds)) is not None
    }


def limit_shares(case: Case, seconds: Mapping[str, Seconds]) -> dict[str, Spread]:
    """Return the share of the machine's limit of those whose dtype has one."""
    work = Roofline(**case["work"])
    return {
        name: share(work, dtype_of(name), times, case["limits"])
        for name, times in seconds.items()
        # It has other weights to read.
        if name in PEERS and name != OTHER_MODEL and dtype_of(name) in case["limits"]
    }


def speeds(amount: float, seconds: Mapping[str, Seconds]) -> dict[str, Spread]:
    """Return how much each does a second, of tokens or whatever the amount is of."""
    return {name: Spread.of([amount / s for s in times]) for name, times in seconds.items()}


def step_seconds(case: Case) -> dict[str, Seconds]:
    """Return the seconds of each token after the first, by peer and round.

    A run so short that the noise hides the time of a token is left out.
    """
    found = {
        name: steps(whole, case["first"][name], case["case"]["new"] - 1)
        for name, whole in case["seconds"].items()
    }
    return {name: times for name, times in found.items() if min(times) > 0}
