"""Plans as text: a few lines each, and a table of several in Markdown."""

from collections.abc import Sequence

from gpt1_jax.estimate.launches import Launches
from gpt1_jax.estimate.planning import Plan


def describe(plan: Plan) -> str:
    """Return a plan for a reader."""
    sizes = f"{plan.rows} x {plan.length} for each part"
    how = f", remat {plan.remat}" if plan.program == "train" else ""
    if plan.attention != "manual":
        how += f", attention {plan.attention}"
    head = f"{plan.program}, {sizes}, {plan.dtype}, {plan.split}{how}, on {plan.machine.name}"
    if plan.oom_message is not None:
        return f"{head}: does not fit, says its compiler: {plan.oom_message}"
    share = plan.memory / plan.machine.chip.memory
    verdict = f"{share:.0%} of a device's {_size(plan.machine.chip.memory)}"
    parts = ", ".join(
        f"{name} {_size(getattr(plan, name))}"
        for name in ("arguments", "outputs", "donated", "temporaries")
    )
    counted = f" ({_size(plan.bytes)} by XLA's count)" if plan.bytes else ""
    lines = [
        head,
        f"  memory    {_size(plan.memory)}, {verdict}{'' if plan.fits else ': DOES NOT FIT'}",
        f"            ({parts})",
        f"  work      {plan.flops / 1e9:,.1f} GFLOP, {_size(plan.bytes_moved)} moved{counted}",
    ]
    exchanged = [f"{each.count} {each.kind} of {_size(each.bytes)}" for each in plan.collectives]
    lines.append(f"  exchanged {', '.join(exchanged) or 'nothing'}")
    if plan.launches is not None:
        moved = _size(plan.launches.bytes)
        lines.append(f"  launches  {_launched(plan.launches)}; {moved} read and written by them")
    if plan.bound is not None:
        what, seconds = plan.bound
        times = ", ".join(f"{name} {_time(value)}" for name, value in plan.times.items())
        rate = plan.tokens / seconds
        lines.append(f"  at least  {_time(seconds)}, by {what} ({times}); {rate:,.0f} tokens/s")
    return "\n".join(lines)


def markdown(plans: Sequence[Plan]) -> str:
    """Return a table of plans, with the sources of what is said of chips."""
    columns = ("machine", "mesh", "program", "dtype", "memory", "of a device", "GFLOP")
    columns += ("exchanged", "at least")
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for plan in plans:
        case = f"{plan.program} {plan.rows} x {plan.length}"
        if plan.program == "train":
            case += f", remat {plan.remat}"
        if plan.attention != "manual":
            case += f", attention {plan.attention}"
        cells = [plan.machine.name, plan.split, case, plan.dtype]
        if plan.oom_message is not None:
            cells += ["does not fit", "", "", "", ""]
        else:
            exchanged = ", ".join(
                f"{each.count} {each.kind} ({_size(each.bytes)})" for each in plan.collectives
            )
            bound = "" if plan.bound is None else f"{_time(plan.bound[1])}, {plan.bound[0]}"
            share = f"{plan.memory / plan.machine.chip.memory:.0%}"
            mark = share if plan.fits else f"**{share}**"
            work = f"{plan.flops / 1e9:,.1f}"
            cells += [_size(plan.memory), mark, work, exchanged or "nothing", bound]
        rows.append(f"| {' | '.join(cells)} |")
    sources = dict.fromkeys(plan.machine.chip.source for plan in plans)
    note = "Peaks, memory and links of the chips: " + "; ".join(sources) + "."
    return "\n".join([*rows, "", note, ""])


def _launched(found: Launches) -> str:
    """All launches, and how many of each kind there are."""
    names = {
        "fusions": ("fusion", "fusions"),
        "custom_calls": ("custom call", "custom calls"),
        "copies": ("copy", "copies"),
        "others": ("other", "others"),
    }
    kinds = (
        f"{number} {several if number > 1 else one}"
        for field, (one, several) in names.items()
        if (number := getattr(found, field))
    )
    return f"{found.total} ({', '.join(kinds)})"


def _size(number: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return (
                f"{number / scale:.2f} {unit}" if unit == "GB" else f"{number / scale:.0f} {unit}"
            )
    return f"{number:.0f} B"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"
