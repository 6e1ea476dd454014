"""A program on a machine: the memory it takes, what its devices exchange, and how long at least."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from gpt1_jax._conversion import extras
from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.estimate.collectives import Collective
from gpt1_jax.estimate.launches import Launches
from gpt1_jax.estimate.targets import Target, parse_target
from gpt1_jax.nn.attention import Backend
from gpt1_jax.nn.partitioning import DATA
from gpt1_jax.nn.remat import Remat

Name = Literal["forward", "prefill", "decode", "train"]
DType = Literal["float32", "bfloat16"]

# What the compilers of other machines are called, where Python looks for them.
MODULES = {"tpu": ("libtpu",), "cuda": ("jax_cuda13_plugin",), "cpu": ()}
TIMEOUT = 1800.0  # seconds


@dataclasses.dataclass(frozen=True)
class Plan:
    """A program, compiled for a machine.

    All bytes and operations are those of one device and one call.

    Attributes:
        machine: what it was compiled for.
        program: which.
        mesh: how the work is split, None for all devices along "data".
        rows: for each part that the mesh splits a batch into.
        length: tokens of a row.
        dtype: of the computation.
        remat: what training computes again.
        attention: what computes it.
        tokens: that all devices together read or write.
        arguments: bytes of parameters and whatever else goes in.
        outputs: bytes that come out.
        donated: bytes of outputs that lie where arguments were.
        temporaries: bytes in between.
        flops: operations, the greater of XLA's count, which counts a loop's body once, and that of
            the matrix products by their shapes.
        bytes: that are read and written by XLA's count, which takes what one operation hands to
            the next for a way to memory and back; 0 for a GPU, where it does not tell.
        collectives: what is exchanged.
        launches: what the program starts on a device; None where it was refused.
        oom_message: what the compiler said, where it refused the program for lack of memory; the
            rest is 0 then.
    """

    machine: Target
    program: Name
    mesh: str | None
    rows: int
    length: int
    dtype: str
    remat: Remat = "linear"
    attention: Backend = "manual"
    tokens: int = 0
    arguments: int = 0
    outputs: int = 0
    donated: int = 0
    temporaries: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    collectives: tuple[Collective, ...] = ()
    launches: Launches | None = None
    oom_message: str | None = None

    @property
    def split(self) -> str:
        """How the work is split, spelled out."""
        return self.mesh or f"{DATA}={self.machine.devices}"

    @property
    def memory(self) -> int:
        """Bytes of a device that are taken at once."""
        return self.arguments + self.outputs - self.donated + self.temporaries

    @property
    def bytes_moved(self) -> int:
        """Bytes that have to be moved: arguments and outputs once, but for what stays in place."""
        return self.arguments + self.outputs - self.donated

    @property
    def fits(self) -> bool:
        """Whether a device has that much."""
        return self.oom_message is None and self.memory <= self.machine.chip.memory

    @property
    def times(self) -> dict[str, float]:
        """Seconds at least, for what the chip is known to do: the roofline model's three bounds.

        Computing, moving to and from memory, and exchanging go on at the same time at best
        (Williams et al. 2009).
        """
        chip = self.machine.chip
        found = {}
        if chip.flops is not None:
            found["compute"] = self.flops / chip.flops[self.dtype]
        if chip.bandwidth is not None:
            found["memory"] = self.bytes_moved / chip.bandwidth
        if chip.links is not None and self.machine.devices > 1:
            found["interconnect"] = sum(each.wire for each in self.collectives) / chip.links
        return found

    @property
    def bound(self) -> tuple[str, float] | None:
        """Which of the bounds holds, and its seconds; None where nothing is known of the chip."""
        return max(self.times.items(), key=lambda item: item[1], default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON holds it, the machine by its name."""
        fields = dataclasses.asdict(self)
        bound = self.bound
        return {
            **fields,
            "machine": self.machine.name,
            "devices": self.machine.devices,
            "memory": self.memory,
            "bytes_moved": self.bytes_moved,
            "capacity": self.machine.chip.memory,
            "fits": self.fits,
            "seconds": self.times,
            "bound": None if bound is None else bound[0],
            "source": self.machine.chip.source,
        }


def plan(
    name: str,
    program: Name,
    config: OpenAIGPTConfig | None = None,
    *,
    mesh: str | None = None,
    rows: int = 32,
    length: int = 512,
    dtype: DType = "float32",
    remat: Remat = "linear",
    attention: Backend = "manual",
    timeout: float = TIMEOUT,
) -> Plan:
    """Compile a program for a machine, in a process of its own, and return what it takes.

    Args:
        name: of the machine, see ``targets.parse_target``.
        program: "forward", "prefill", "decode" or "train", see ``programs.program``.
        config: of the model; GPT-1's by default.
        mesh: such as "data=4,fsdp=2", see ``sharding.mesh.make_mesh``; by default all devices lie
            along "data".
        rows: for each part that the mesh splits a batch into.
        length: tokens of a row.
        dtype: of the computation, "float32" or "bfloat16".
        remat: what training computes again.
        attention: what computes it where it can: training drops weights out and so takes the
            formula, and cuDNN's leaves a single query, or an odd number, to XLA's.
        timeout: seconds after which the compiler is given up.

    Raises:
        ValueError: there is no such machine, or the mesh or the length does not fit.
        ImportError: the machine's compiler is not installed.
        TimeoutError: the compiler took too long.
        OSError: it failed.
    """
    config = config or OpenAIGPTConfig()
    target = parse_target(name)
    missing = extras.absent(*MODULES[target.compiler])
    if missing:
        command = extras.explain(f"compiling for {name}", missing, "plan")
        raise ImportError(f"{command}, in an environment of its own")
    attention = _computing(attention, program, length, config)
    request = {
        "machine": name,
        "mesh": mesh,
        "config": config.to_dict(),
        "program": program,
        "rows": rows,
        "length": length,
        "dtype": dtype,
        "remat": remat,
        "attention": attention,
    }
    answer = _ask(request, target, timeout)
    if "error" in answer:
        raise ValueError(answer["error"])
    answer["collectives"] = tuple(Collective(**each) for each in answer.get("collectives", ()))
    if "launches" in answer:
        answer["launches"] = Launches(**answer["launches"])
    return Plan(target, program, mesh, rows, length, dtype, remat, attention, **answer)


def _computing(attention: Backend, program: Name, length: int, config: OpenAIGPTConfig) -> Backend:
    """What attention is computed by in a program, when this is asked for."""
    if program == "train" and config.attn_pdrop > 0:
        return "manual"
    odd = program == "decode" or (program == "prefill" and length % 2 == 1)
    return "xla" if attention == "cudnn" and odd else attention


def _ask(request: dict[str, object], target: Target, timeout: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file, errors = Path(folder) / "answer.json", Path(folder) / "errors"
        with (
            errors.open("wb") as stderr,
            subprocess.Popen(
                [sys.executable, "-m", "gpt1_jax.estimate.compilation", str(file)],
                env={**os.environ, **target.environment()},
                stdin=subprocess.PIPE,
                stdout=stderr,
                stderr=stderr,
            ) as compiler,
        ):
            assert compiler.stdin is not None
            # It stays open while this process lives: when it closes, the compiler ends.
            compiler.stdin.write(json.dumps(request).encode() + b"\n")
            compiler.stdin.flush()
            try:
                compiler.wait(timeout)
            except subprocess.TimeoutExpired:
                raise TimeoutError(
                    f"compiling {request['program']} for {target.name} took more than {timeout:g} s"
                ) from None
            finally:
                compiler.kill()
        if not file.is_file():
            said = errors.read_text(encoding="utf-8", errors="replace").strip()
            last = (said or f"status {compiler.returncode}").splitlines()[-1]
            raise OSError(f"the compiler for {target.name} failed: {last}")
        return json.loads(file.read_text(encoding="utf-8"))
