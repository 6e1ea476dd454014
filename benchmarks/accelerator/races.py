"""How fast: forward, generation and training steps, alone and in turn with torch's."""

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import jax
import numpy as np

import gpt1_jax as gpt1
from benchmarks.accelerator import work
from benchmarks.accelerator.bench import Bench
from benchmarks.accelerator.page import RATIO, SHARE
from benchmarks.accelerator.runner import LeaveOutError, Result, Row
from benchmarks.peers.ours import NO_DROPOUT
from benchmarks.roofline import BYTES, Roofline
from benchmarks.timing import clock
from gpt1_jax.nn.remat import Remat
from gpt1_jax.pure import merge, split

LEAST = 0.2  # seconds of one round, so that what a call costs the host is spread over many
DTYPES = ("bfloat16", "float32")


@dataclasses.dataclass
class Runner:
    """What is timed.

    Attributes:
        once: runs it so many times and waits; returns the seconds of one.
        first: seconds of the first run, compilation included.
        memory: bytes of the device that it takes, where that is known.
    """

    once: Callable[[int], float]
    first: float
    memory: int | None = None


def ours(call: Callable[[], Any], first: float, memory: int | None = None) -> Runner:
    """Return a runner of a function of this package that is compiled."""

    def once(times: int) -> float:
        begin = clock()
        out = None
        for _ in range(times):
            out = call()
        jax.block_until_ready(out)
        return (clock() - begin) / times

    return Runner(once, first, memory)


def theirs(bench: Bench, **request: Any) -> Runner:
    """Return a runner of torch's process, which holds one at a time."""
    prepared = bench.torch(do="prepare", **request)

    def once(times: int) -> float:
        return bench.torch(do="run", times=times)

    # Once more, so that the count of memory is that of a run.
    once(1)
    return Runner(once, prepared["first"], bench.torch(do="memory"))


def interleave(bench: Bench, runners: Mapping[str, Runner]) -> dict[str, list[float]]:
    """Return the seconds of one run in every round, by name; all run in turn."""
    times = {name: max(1, int(LEAST / runner.once(1))) for name, runner in runners.items()}
    if bench.quick:
        times = dict.fromkeys(runners, 1)
    found: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(bench.sizes.rounds):
        for name, runner in runners.items():
            found[name].append(runner.once(times[name]))
    return found


# This package's own side.


def forward(bench: Bench, shape: tuple[int, int], dtype: str, precision: Any = None) -> Runner:
    """Compile the forward of ids (B, T), with parameters in ``dtype``."""
    # A precision of its own keeps attention to the formula.
    attention: Any = "auto" if precision is None else "manual"
    model = bench.load(param_dtype=dtype, precision=precision, attention=attention)
    structure, params = split(model)
    ids = jax.device_put(work.random_ids(bench.config, *shape))

    @jax.jit
    def logits(params: Any, ids: jax.Array) -> jax.Array:
        return merge(structure, params).forward(ids).logits

    begin = clock()
    compiled = logits.lower(params, ids).compile()
    call = functools.partial(compiled, params, ids)
    jax.block_until_ready(call())
    return ours(call, clock() - begin, _bytes(compiled))


def _bytes(compiled: Any) -> int:
    memory = compiled.memory_analysis()
    taken = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return taken - memory.alias_size_in_bytes + memory.temp_size_in_bytes


def training(
    bench: Bench,
    shape: tuple[int, int],
    dtype: str,
    attention: Any = "auto",
    remat: Remat = "linear",
    **fields: Any,
) -> Runner:
    """Compile a training step on float32 parameters, computing in ``dtype``."""
    model = bench.load(
        dtype=dtype, param_dtype="float32", attention=attention, remat=remat, **fields
    )
    begin = clock()
    step = work.Training.build(model, work.random_ids(bench.config, *shape))
    jax.block_until_ready(step.losses(1))
    first = clock() - begin

    def once(times: int) -> float:
        begin = clock()
        jax.block_until_ready((step.losses(times), step.state))
        return (clock() - begin) / times

    return Runner(once, first, _bytes(step.compiled))


def generation(bench: Bench, rows: int, dtype: str) -> tuple[Runner, Runner]:
    """Return greedy generation to the context's length again, and to the first token alone."""
    model = bench.load(param_dtype=dtype, attention="auto")
    prompt = work.random_ids(bench.config, rows, bench.sizes.context)

    def runner(new: int) -> Runner:
        def call() -> Any:
            return gpt1.generate(model, prompt, max_new_tokens=new, min_new_tokens=new)

        begin = clock()
        call()
        return ours(call, clock() - begin)

    return runner(bench.sizes.context), runner(1)


# Figures of a case.


def _forward_rows(bench: Bench, shape: tuple[int, int], runners: Mapping[str, Runner]) -> list[Row]:
    least = Roofline.forward(bench.config, *shape, shape[1], head=True)
    return _rows(bench, runners, tokens=least.tokens, flops=least.flops)


def _train_rows(bench: Bench, shape: tuple[int, int], runners: Mapping[str, Runner]) -> list[Row]:
    least = Roofline.forward(bench.config, *shape, shape[1], head=True)
    return _rows(bench, runners, tokens=least.tokens, flops=3 * least.flops)


def _rows(bench: Bench, runners: Mapping[str, Runner], *, tokens: int, flops: float) -> list[Row]:
    """Time runners in turn, and return their figures; ratios are to ours of the same dtype."""
    seconds = interleave(bench, runners)
    found: list[Row] = []
    for name, times in seconds.items():
        row: Row = {
            "": name,
            "milliseconds": 1e3 * median(times),
            "tokens/s": tokens / median(times),
            "first run, s": runners[name].first,
        }
        if (memory := runners[name].memory) is not None:
            row["memory, GB"] = memory / 1e9
        dtype = _dtype(name)
        # Of float32 the peak is that of TF32, which torch does not use unless it is allowed to.
        coarse = "bfloat16" in name or "TF32" in name or name.endswith("default precision")
        if bench.chip is not None and bench.chip.flops is not None and coarse:
            row[SHARE] = flops / median(times) / bench.chip.flops[dtype]
        if own := _own(name, seconds):
            row[RATIO] = median([a / b for a, b in zip(times, seconds[own], strict=True)])
        found.append(row)
    return found


def _dtype(name: str) -> str:
    return next(dtype for dtype in DTYPES if dtype in name)


def _own(name: str, seconds: Mapping[str, Any]) -> str | None:
    """Return our runner that torch's is compared with: of the same dtype, and of its precision."""
    if not name.startswith("torch"):
        return None
    own = [
        each for each in seconds if not each.startswith("torch") and _dtype(each) == _dtype(name)
    ]
    exact = _dtype(name) == "float32" and "TF32" not in name
    own.sort(key=lambda each: ("highest" in each) != exact)
    return own[0] if own else None


# Steps.

COMPILED = (None, "default")  # of torch.compile; None is eager
TUNED = ("reduce-overhead", "max-autotune")  # which compile longest


def decode_alone(bench: Bench, rows: int) -> Result:
    """Time generation by this package alone, in both dtypes."""
    return _generation(bench, rows, {})


def forward_alone(bench: Bench, shape: tuple[int, int]) -> Result:
    """Time the forward of this package alone."""
    return Result(_forward_rows(bench, shape, _forwards(bench, shape)))


def _forwards(bench: Bench, shape: tuple[int, int]) -> dict[str, Runner]:
    found = {"gpt1-jax, bfloat16": forward(bench, shape, "bfloat16")}
    if "float32" in bench.sizes.dtypes:
        found["gpt1-jax, float32, default precision"] = forward(bench, shape, "float32")
        found["gpt1-jax, float32, highest"] = forward(bench, shape, "float32", "highest")
    return found


def training_alone(bench: Bench, shape: tuple[int, int]) -> Result:
    """Time the training step of this package in bfloat16, with the attention that "auto" takes."""
    runner = training(bench, shape, "bfloat16")
    note = "float32 weights, no dropout; attention auto, remat linear."
    return Result(_train_rows(bench, shape, {"gpt1-jax, bfloat16": runner}), note=note)


def forward_race(bench: Bench, shape: tuple[int, int], modes: tuple[str | None, ...]) -> Result:
    """Race the forward with torch, compiled in the given modes (None: eager)."""
    _check_modes(bench, modes)
    rows: list[Row] = []
    own = _forwards(bench, shape)
    for mode in modes:
        cases = [(dtype, False) for dtype in bench.sizes.dtypes]
        if mode is None and bench.platform == "cuda":
            cases.append(("float32", True))
        for dtype, tf32 in cases:
            name = _torch_name(mode, dtype, tf32)
            request = {"rows": shape[0], "tokens": shape[1], "dtype": dtype, "mode": mode}
            rows += _race(
                own,
                name,
                functools.partial(theirs, bench, kind="forward", tf32=tf32, **request),
                functools.partial(_forward_rows, bench, shape),
            )
    if not any(row[""] in own for row in rows):
        rows = [*_forward_rows(bench, shape, own), *rows]
    return Result(_unique(rows))


def training_race(bench: Bench, shape: tuple[int, int], modes: tuple[str | None, ...]) -> Result:
    """Race the training step with torch's, in bfloat16 by its mixed precision."""
    _check_modes(bench, modes)
    own = {"gpt1-jax, bfloat16": training(bench, shape, "bfloat16")}
    rows: list[Row] = []
    for mode in modes:
        request = {"rows": shape[0], "tokens": shape[1], "dtype": "bfloat16", "mode": mode}
        rows += _race(
            own,
            _torch_name(mode, "bfloat16"),
            functools.partial(theirs, bench, kind="train", **request),
            functools.partial(_train_rows, bench, shape),
        )
    if not any(row[""] in own for row in rows):
        rows = [*_train_rows(bench, shape, own), *rows]
    return Result(_unique(rows), note="float32 weights, no dropout, AdamW, clipping.")


def _check_modes(bench: Bench, modes: tuple[str | None, ...]) -> None:
    if bench.platform == "cpu" and modes == TUNED:
        raise LeaveOutError("these modes of torch.compile are for GPUs")


def _race(
    own: dict[str, Runner],
    name: str,
    prepare: Callable[[], Runner],
    rows: Callable[[dict[str, Runner]], list[Row]],
) -> list[Row]:
    """Race one of torch's with ours of its dtype; what torch cannot do is a row that says why."""
    try:
        runner = prepare()
    except (RuntimeError, TimeoutError, LeaveOutError) as error:
        return [{"": name, "left out": str(error)[:200]}]
    dtype = _dtype(name)
    return rows({**{key: each for key, each in own.items() if _dtype(key) == dtype}, name: runner})


def _unique(rows: list[Row]) -> list[Row]:
    """Return the rows with the first of each of ours alone: they run once in every race."""
    found = {}
    for row in rows:
        found.setdefault(row[""], row)
    return list(found.values())


def _torch_name(mode: str | None, dtype: str, tf32: bool = False) -> str:
    how = "eager" if mode is None else f"compiled, {mode}"
    return f"torch {how}, {dtype}{' with TF32' * tf32}"


def generation_race(bench: Bench, rows: int) -> Result:
    """Race generation with transformers' GPT-1, which has no cache, and GPT-2, which has one."""
    peers: dict[str, dict[str, Any]] = {
        "torch GPT-1, no cache": {},
        "torch GPT-2, cache": {"gpt2": True},
    }
    if bench.platform == "cuda":  # elsewhere transformers compiles nothing
        peers["torch GPT-2, static cache, compiled"] = {"gpt2": True, "static": True}
    return _generation(bench, rows, peers)


def _generation(bench: Bench, rows: int, peers: Mapping[str, dict[str, Any]]) -> Result:
    new = bench.sizes.context
    found: list[Row] = []
    for dtype in bench.sizes.dtypes:
        whole, first = generation(bench, rows, dtype)
        found.append(_generation_row(bench, rows, dtype, whole, first))
        for name, fields in peers.items():
            request = {"rows": rows, "prompt": new, "dtype": dtype, **fields}
            label = f"{name}, {dtype}"
            try:
                peer = theirs(bench, kind="generate", new=new, **request)
                times = interleave(bench, {"ours": whole, label: peer})
            except (RuntimeError, TimeoutError, LeaveOutError) as error:
                found.append({"": label, "left out": str(error)[:200]})
                continue
            seconds = median(times[label])
            ratio = median([a / b for a, b in zip(times[label], times["ours"], strict=True)])
            found.append({"": label, "tokens/s": rows * new / seconds, RATIO: ratio})
    note = f"{rows} x ({new} + {new}) tokens, greedy. The share of the peak is that of the memory "
    return Result(found, note=f"{note}bandwidth: weights, and keys and values so far, once a step.")


def _generation_row(bench: Bench, rows: int, dtype: str, whole: Runner, first: Runner) -> Row:
    """Return the figures of this package's own generation."""
    new = bench.sizes.context
    times = interleave(bench, {"whole": whole, "first": first})
    step = (median(times["whole"]) - median(times["first"])) / (new - 1)
    row: Row = {
        "": f"gpt1-jax, {dtype}",
        "tokens/s": rows * new / median(times["whole"]),
        "first token, ms": 1e3 * median(times["first"]),
        "a step, ms": 1e3 * step,
    }
    if bench.chip is not None and bench.chip.bandwidth is not None:
        keys = bench.sizes.context + new // 2
        read = Roofline.forward(bench.config, rows, 1, keys, head=True).weights * BYTES[dtype]
        row[SHARE] = read / step / bench.chip.bandwidth
    return row


def training_choices(bench: Bench, shape: tuple[int, int]) -> Result:
    """Time the training step with each attention backend and each rematerialisation."""
    rows: list[Row] = []
    for dropout in (False, True):
        fields = dict.fromkeys(NO_DROPOUT, 0.1) if dropout else {}
        for attention in ("manual", "xla", "cudnn"):
            for remat in bench.sizes.remat:
                if dropout and attention != "manual":
                    continue  # which keeps no weights to drop
                name = f"{attention}, remat {remat}{', dropout' * dropout}, bfloat16"
                if time.monotonic() > bench.deadline:
                    rows.append({"": name, "left out": "no time is left"})
                    continue
                try:
                    runner = training(bench, shape, "bfloat16", attention, remat, **fields)
                    rows += _train_rows(bench, shape, {name: runner})
                except (ValueError, jax.errors.JaxRuntimeError) as error:
                    rows.append({"": name, "left out": str(error).splitlines()[0][:200]})
    return Result(rows, note="Dropout of attention needs the formula.")


def compilation(bench: Bench) -> Result:
    """Time compilation, and the same with JAX's persistent cache of programs filled."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    shape, rows = bench.sizes.forward[0], bench.sizes.generate[0]
    programs: dict[str, Callable[[], object]] = {
        f"forward {shape[0]} x {shape[1]}": lambda: forward(bench, shape, "bfloat16"),
        f"generation, {rows} rows": lambda: generation(bench, rows, "bfloat16"),
        "training step": lambda: training(bench, bench.sizes.train[0], "bfloat16"),
    }
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            jax.config.update(names[0], folder)
            jax.config.update(names[1], 0.0)
            _reset_cache()
            for name, program in programs.items():
                row: Row = {"": f"{name}, bfloat16"}
                for column in ("first, s", "from the cache, s"):
                    jax.clear_caches()
                    begin = time.perf_counter()
                    program()
                    row[column] = time.perf_counter() - begin
                found.append(row)
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            _reset_cache()
    return Result(found, note="With loading the checkpoint and the first run.")


def _reset_cache() -> None:
    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()


def generation_memory(bench: Bench, rows: int) -> Result:
    """Return the peak memory of generation, in a process of its own: JAX's peak only grows."""
    from benchmarks import machine

    if bench.platform == "tpu":
        raise LeaveOutError("a TPU belongs to one process")
    found: list[Row] = []
    for dtype in bench.sizes.dtypes:
        peak = machine.peak(_generate_once, str(bench.checkpoint), rows, bench.sizes.context, dtype)
        found.append({"": f"{rows} rows, {dtype}", "memory, GB": peak / 1e9})
    return Result(found, note="On a CPU the memory of the process, elsewhere that of the device.")


def _generate_once(checkpoint: str, rows: int, context: int, dtype: str) -> None:
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(checkpoint, param_dtype=dtype)
    prompt = np.zeros((rows, context), np.int32)
    gpt1.generate(model, prompt, max_new_tokens=context, min_new_tokens=context)
