"""Machines that programs can be compiled for from afar, and what their makers say of them.

Sources: Google's pages "TPU v5e", "TPU v5p" and "TPU v6e" (docs.cloud.google.com/tpu/docs) and
NVIDIA's data sheets "H100 Tensor Core GPU", "H200 Tensor Core GPU" and "A100 80GB" (SXM, without
sparsity).
"""

import dataclasses
import math
import os
import re
from typing import Literal

Compiler = Literal["tpu", "cuda", "cpu"]


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a device can do at best.

    Attributes:
        memory: bytes.
        flops: operations a second of its matrix units, by the dtype of the computation, in the
            precision that JAX takes by default: bfloat16 on a TPU whatever the dtype, TF32 for
            float32 on a GPU. None where it is not known.
        bandwidth: bytes a second from its memory.
        links: bytes a second to other chips, one way.
        source: where these figures are from.
    """

    memory: float
    flops: dict[str, float] | None
    bandwidth: float | None
    links: float | None
    source: str


def _tpu(memory: float, flops: float, bandwidth: float, both_ways: float, page: str) -> Chip:
    both = {"float32": flops, "bfloat16": flops}
    return Chip(memory, both, bandwidth, both_ways / 2, f"docs.cloud.google.com/tpu/docs/{page}")


CHIPS = {
    "v5e": _tpu(16e9, 197e12, 819e9, 400e9, "v5e"),
    "v6e": _tpu(32e9, 918e12, 1638e9, 800e9, "v6e"),
    "v5p": _tpu(95e9, 459e12, 2765e9, 1200e9, "v5p"),
    "h100": Chip(
        memory=80e9,
        flops={"float32": 494.7e12, "bfloat16": 989.4e12},
        bandwidth=3.35e12,
        links=450e9,
        source="NVIDIA's H100 data sheet, SXM5",
    ),
}

# Devices as JAX names them (``device.device_kind``), whole, since a slice or another board of the
# same chip can do less.
_KINDS = {
    "TPU v5 lite": CHIPS["v5e"],
    "TPU v6 lite": CHIPS["v6e"],
    "TPU v5": CHIPS["v5p"],
    "NVIDIA H100 80GB HBM3": CHIPS["h100"],
    "NVIDIA H200": dataclasses.replace(
        CHIPS["h100"], memory=141e9, bandwidth=4.8e12, source="NVIDIA's H200 data sheet, SXM5"
    ),
    "NVIDIA A100-SXM4-80GB": Chip(
        memory=80e9,
        flops={"float32": 156e12, "bfloat16": 312e12},
        bandwidth=2.039e12,
        links=300e9,
        source="NVIDIA's A100 data sheet, SXM4, 80 GB",
    ),
}


def chip_of(device_kind: str) -> Chip | None:
    """Return what a device can do at best, or None where it is not known.

    Args:
        device_kind: the name that JAX gives it, such as "NVIDIA H100 80GB HBM3".
    """
    return _KINDS.get(device_kind)


# What XLA is told of an H100, as protobuf text of its GpuTargetConfigProto.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Target:
    """Several chips of one kind.

    Attributes:
        name: as it was given, such as "v5e:4x4".
        compiler: which of XLA's it takes.
        devices: how many.
    """

    name: str
    compiler: Compiler
    devices: int

    @property
    def chip(self) -> Chip:
        """What one of them can do."""
        if self.compiler == "cpu":
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / self.devices
            return Chip(memory, None, None, None, "the memory at hand; the rest is not known")
        return CHIPS[self.name.split(":")[0]]

    def environment(self) -> dict[str, str]:
        """Return the variables that the compiler needs, in a process without such a device."""
        if self.compiler == "tpu":
            return {
                "JAX_PLATFORMS": "cpu",
                "TPU_SKIP_MDS_QUERY": "1",
                "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any: the topology is named later
                "TPU_WORKER_HOSTNAMES": "localhost",
                "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is taken
            }
        if self.compiler == "cuda":
            return {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
        count = f"--xla_force_host_platform_device_count={self.devices}"
        flags = f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()  # the last one counts
        return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def parse_target(name: str) -> Target:
    """Return the machine of a name.

    Args:
        name: "v5e:2x2", "v6e:4x4", "v5p:2x2x1" (a TPU and the shape of its slice), "h100", or
            "cpu", this one, which "cpu:8" takes for eight devices.

    Raises:
        ValueError: no such machine; the message says which there are.
    """
    kind, _, shape = name.partition(":")
    dimensions = {"v5e": 2, "v6e": 2, "v5p": 3}
    if name == "h100":
        return Target(name, "cuda", 1)
    if kind == "cpu" and re.fullmatch("|[1-9][0-9]{0,3}", shape):
        return Target(name, "cpu", int(shape or 1))
    if kind in dimensions:
        sides = shape.split("x")
        if len(sides) == dimensions[kind] and all(re.fullmatch("[1-9][0-9]*", s) for s in sides):
            return Target(name, "tpu", math.prod(map(int, sides)))
        example = "x".join(["2"] * dimensions[kind])
        raise ValueError(
            f"{name!r} is not a slice of {kind}: give its shape, as in {kind}:{example}"
        )
    right = "v5e:2x2, v6e:2x2, v5p:2x2x1 (with any shape that there is), h100 and cpu"
    raise ValueError(f"there is no machine {name!r}; there are {right}")
