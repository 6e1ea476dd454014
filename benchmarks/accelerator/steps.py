"""The steps in their order, the most important first."""

from collections.abc import Callable
from typing import Any

from benchmarks.accelerator import checks, profiling, races
from benchmarks.accelerator.races import COMPILED, TUNED
from benchmarks.accelerator.runner import Result, Step
from benchmarks.accelerator.work import FULL, Sizes


def steps(sizes: Sizes) -> list[Step]:
    """Return the steps; their seconds are guesses for one H100 with nothing compiled before."""
    shape, *shapes = sizes.forward
    train, *trains = sizes.train
    found: list[Step] = []

    def add(name: str, seconds: float, run: Callable[..., Result], *arguments: Any) -> None:
        def take(bench: Any) -> Result:
            try:
                return run(bench, *arguments)
            finally:
                bench.release_torch()

        found.append(Step(name, seconds, take))

    add("precision", 60, checks.precision)
    add("generated ids", 60, checks.generated_ids)
    add("attention backends", 60, checks.attention)
    add("training losses", 40, checks.training)
    add("donated cache", 5, checks.donation)
    add("running ahead", 5, checks.run_ahead)
    add("exported program", 15, checks.exported)
    add("mesh", 20, checks.mesh)
    add("torch's logits", 25, checks.torch)
    for rows in sizes.generate[:2]:
        add(f"decode {rows} rows", 20, races.decode_alone, rows)
    add(f"forward {_size(shape)}", 20, races.forward_alone, shape)
    add(f"train {_size(train)}", 40, races.training_alone, train)
    add(f"race: forward {_size(shape)}", 60, races.forward_race, shape, COMPILED)
    # On a tiny model torch's compiler is shown by one race: it takes most of the time.
    modes = COMPILED if sizes is FULL else (None,)
    add(f"race: train {_size(train)}", 60, races.training_race, train, modes)
    for rows in sizes.generate[:2]:
        add(f"race: generate {rows} rows", 60, races.generation_race, rows)
    add("profile: decode step", 15, profiling.decode_step)
    add("profile: training step", 30, profiling.training_step)
    for other in shapes:
        add(f"race: forward {_size(other)}", 40, races.forward_race, other, COMPILED)
    for rows in sizes.generate[2:]:
        add(f"race: generate {rows} rows", 60, races.generation_race, rows)
    add(f"attention and remat: train {_size(train)}", 200, races.training_choices, train)
    for other in trains:
        add(f"race: train {_size(other)}", 60, races.training_race, other, COMPILED)
    add("compilation", 90, races.compilation)
    for rows in sizes.generate[:2]:
        add(f"memory: generate {rows} rows", 40, races.generation_memory, rows)
    add(f"race: forward {_size(shape)}, tuned", 150, races.forward_race, shape, TUNED)
    add(f"race: train {_size(train)}, tuned", 200, races.training_race, train, TUNED)
    return found


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]}"
