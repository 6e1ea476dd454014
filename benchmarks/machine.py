"""What a measurement is made on: versions and devices, the limits of the machine, and memory."""

import contextlib
import ctypes
import datetime
import functools
import gc
import importlib.metadata
import importlib.util
import multiprocessing
import platform as python_platform
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.quiet import quiet
from benchmarks.timing import Seconds, cores

Platform = Literal["cpu", "gpu", "tpu"]
LIBRARIES = ("gpt1-jax", "jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")
LIBRARIES += ("torchao", "onnxruntime", "ctranslate2", "minicons")

# Rows, inputs and outputs of the product whose speed is the limit: the model's widest layer.
PRODUCT = (1024, 768, 3072)
STATUS = Path("/proc/self/status")  # of Linux
DIRTY = "-dirty"  # after the commit, where the code differs from it
READ = 1 << 28  # bytes, more than any cache holds
# What a processor computes with, by the flags of Linux.
FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "VNNI",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "bfloat16",
    "amx_bf16": "AMX",
}


def environment() -> dict[str, Any]:
    """Return versions, devices, threads, commit and date."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": python_platform.python_version(),
        "system": f"{python_platform.system()} {python_platform.machine()}",
        "processor": _processor(),
        "platform": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "threads": cores(),
        "versions": versions(LIBRARIES),
    }


def versions(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of those of the named distributions that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _commit() -> str | None:
    """Return the commit, marked if the code differs from it; results are no code."""

    def git(*arguments: str) -> str:
        here = Path(__file__).parents[1]
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, cwd=here, check=True
        ).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}{DIRTY}" if changed else commit


def _processor() -> str:
    """Return the processor's name and what it computes with, as Linux tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return python_platform.processor()
    fields = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    flags = fields.get("flags", "").split()
    features = dict.fromkeys(name for flag, name in FEATURES.items() if flag in flags)
    name = fields.get("model name", python_platform.machine())
    return f"{name} with {', '.join(features)}" if features else name


@functools.cache  # one compilation and one array for all cases of a suite
def limits() -> dict[str, tuple[float, Callable[[], object]]]:
    """Return what shows the machine's limits, to be timed in turn with those that are measured.

    Returns:
        By name, the work and a function that does it: bytes of "bytes numpy", a plain sum, and of
        "bytes XLA", a product with one vector; floating-point operations of the products
        "float32 XLA", "bfloat16 XLA", "int8 XLA" and, with torch, "float32 torch".
    """
    rows, inputs, outputs = PRODUCT
    flops = 2.0 * rows * inputs * outputs
    found: dict[str, tuple[float, Callable[[], object]]] = {}
    if jax.default_backend() == "cpu":
        found["bytes numpy"] = READ, _summing()
    columns = jnp.ones((2, READ // (8 * inputs), inputs), jnp.float32)
    vector = jnp.ones((2, inputs, 1), jnp.float32)
    multiply = jax.jit(jnp.matmul)
    found["bytes XLA"] = columns.nbytes, lambda: jax.block_until_ready(multiply(columns, vector))

    @jax.jit
    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        sums = jnp.int32 if x.dtype == jnp.int8 else jnp.float32
        return jnp.dot(x, kernel, precision="highest", preferred_element_type=sums)

    for dtype in ("float32", "bfloat16", "int8"):
        x, kernel = jnp.ones((rows, inputs), dtype), jnp.ones((inputs, outputs), dtype)
        found[f"{dtype} XLA"] = (
            flops,
            lambda x=x, kernel=kernel: jax.block_until_ready(product(x, kernel)),
        )
    if importlib.util.find_spec("torch") and jax.default_backend() == "cpu":
        import torch

        a, b = torch.ones(rows, inputs), torch.ones(inputs, outputs)
        found["float32 torch"] = flops, lambda: a @ b
    return found


def _summing() -> Callable[[], object]:
    """Return a function that reads ``READ`` bytes: a sum on every core."""
    parts = np.array_split(np.ones(READ // 4, np.float32), cores())
    pool = ThreadPoolExecutor(len(parts))
    return lambda: list(pool.map(np.sum, parts))  # numpy lets go of the interpreter meanwhile


def speeds(work: dict[str, float], seconds: dict[str, Seconds]) -> dict[str, Seconds]:
    """Return the limits in bytes or operations a second, round by round: the best of each kind."""
    found: dict[str, Seconds] = {}
    for name, amount in work.items():
        kind = name.split()[0]  # bytes, float32, bfloat16, int8
        measured = [amount / second for second in seconds[name]]
        found[kind] = [max(pair) for pair in zip(measured, found.get(kind, measured), strict=True)]
    return found


def peak(function: Callable[..., object], *arguments: object) -> int:
    """Return the most bytes of memory that a fresh process takes to call a function.

    On a GPU or TPU these are the bytes of the device, elsewhere those of the process.

    Raises:
        ValueError: there is no /proc/self/status to read them from, or this is a TPU, which belongs
            to one process.
    """
    return _in_fresh_process(_peak, function, *arguments)


def kept(function: Callable[[Path], object], small: Path, folder: Path) -> int:
    """Return by how many bytes what a function returns makes a fresh process larger.

    Args:
        function: loads a checkpoint.
        small: a checkpoint to load first, so that what is imported does not count.
        folder: the checkpoint.

    Raises:
        ValueError: as ``peak``.
    """
    return _in_fresh_process(_kept, function, small, folder)


def _in_fresh_process(measure: Callable[..., int], *arguments: object) -> int:
    if jax.default_backend() == "tpu":
        raise ValueError("a TPU belongs to one process: memory is not measured there")
    if not STATUS.exists():
        raise ValueError("memory is read from /proc/self/status, which only Linux has")
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        platforms = jax.config.values["jax_platforms"]
        return pool.submit(_quietly, platforms, measure, arguments).result()


def _quietly(
    platforms: str | None, measure: Callable[..., int], arguments: tuple[object, ...]
) -> int:
    jax.config.update("jax_platforms", platforms)
    with quiet():
        return measure(*arguments)


def _kept(function: Callable[[Path], object], small: Path, folder: Path) -> int:
    def resident() -> int:
        gc.collect()
        with contextlib.suppress(AttributeError):  # of glibc: gives back what was freed
            ctypes.CDLL(None).malloc_trim(0)
        return _status("VmRSS")

    function(small)
    before = resident()
    model = function(folder)
    after = resident()
    del model
    return after - before


def _status(name: str) -> int:
    """Return a number of bytes that Linux tells of this process."""
    return 1024 * int(STATUS.read_text().split(f"{name}:")[1].split()[0])


def _peak(function: Callable[..., object], *arguments: object) -> int:
    function(*arguments)
    if jax.default_backend() != "cpu":
        taken = [(jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)]
        if importlib.util.find_spec("torch"):
            import torch

            if torch.cuda.is_available():
                taken.append(torch.cuda.max_memory_allocated())
        return max(taken)
    return _status("VmHWM")  # not getrusage, which remembers what the parent had
