"""The command ``gpt1 plan``."""

import itertools
import json
from pathlib import Path
from typing import Annotated

import tyro

from gpt1_jax._conversion import files, layout
from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.estimate.planning import TIMEOUT, DType, Name, Plan
from gpt1_jax.estimate.planning import plan as planned
from gpt1_jax.estimate.table import describe, markdown
from gpt1_jax.estimate.targets import parse_target
from gpt1_jax.nn.attention import Backend
from gpt1_jax.nn.remat import Remat
from gpt1_jax.sharding.mesh import check_devices


def plan(
    machines: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MACHINE...")],
    mesh: Annotated[str | None, tyro.conf.arg(help_behavior_hint="")] = None,
    forward_rows: int = 32,
    prefill_rows: int = 32,
    decode_rows: int = 64,
    train_rows: int = 64,
    length: int = 512,
    dtype: tuple[DType, ...] = ("float32", "bfloat16"),
    remat: Remat = "linear",
    attention: Backend = "manual",
    model: Annotated[
        str | None, tyro.conf.arg(metavar="FOLDER|HUB-ID", help_behavior_hint="")
    ] = None,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None,
    table: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None,
    timeout: float = TIMEOUT,
) -> None:
    """Estimate a model's memory and time on machines that are not here.

    Each program is compiled ahead of time for the machine. The output is the memory that a device
    needs and has, the floating-point operations, the bytes that are read and exchanged, and the
    least time of a call by the chip's published figures. Needs the extra "plan".

    Args:
        machines: machines to compile for: a TPU slice (v5e:2x2, v6e:4x4, v5p:2x2x1), h100, cpu for
            this processor, or cpu:8 for eight simulated devices.
        mesh: sizes of the mesh's axes, such as data=4,fsdp=2; by default all devices are along
            data.
        forward_rows: number of rows of a forward pass, for each part that the mesh splits a batch
            into; 0 leaves the program out.
        prefill_rows: number of prompts that prefill reads into a KV cache, for each part of the
            batch; 0 leaves the program out.
        decode_rows: number of rows of a decode step with a full KV cache, for each part of the
            batch; 0 leaves the program out.
        train_rows: number of rows of a training step with Adam, for each part of the batch; 0
            leaves the program out.
        length: number of tokens of a row.
        dtype: dtypes of the computation; each is compiled apart.
        remat: what the backward pass computes again to save memory: none, linear (everything but
            the outputs of linear layers) or all.
        attention: implementation of attention in forward and prefill: manual, xla or cudnn (an
            h100, with nvidia-cudnn-cu13 installed).
        model: checkpoint whose configuration is read; by default the sizes of GPT-1.
        out: JSON file to write all results to, rewritten after each program.
        table: Markdown file to write the table of results to, rewritten after each program.
        timeout: number of seconds after which a compilation is given up.
    """
    if not machines:
        raise ValueError("give at least one machine, such as cpu, h100 or a TPU slice, v5e:2x2")
    rows: dict[Name, int] = {
        "forward": forward_rows,
        "prefill": prefill_rows,
        "decode": decode_rows,
        "train": train_rows,
    }
    if min(rows.values()) < 0 or not any(rows.values()):
        raise ValueError("the numbers of rows must be at least 0, and one of them at least 1")
    if not 0 < timeout < float("inf"):
        raise ValueError(f"timeout is {timeout:g}, but must be a number of seconds above 0")
    if out is not None and table is not None and out.absolute() == table.absolute():
        raise ValueError(f"--out and --table are both {out}, but must be two files")
    for file in (out, table):
        if file is not None and file.is_dir():
            raise ValueError(f"{file} is a folder, but must be a file")
    config = OpenAIGPTConfig() if model is None else OpenAIGPTConfig.from_pretrained(model)
    layout.check_not_quantized(config.to_dict(), "gpt1 plan", model)
    for name in machines:  # before the first compilation
        target = parse_target(name)
        if mesh is not None:
            check_devices(mesh, target.devices)
        if attention == "cudnn" and (target.compiler != "cuda" or "float32" in dtype):
            raise ValueError("--attention cudnn needs the machine h100 and --dtype bfloat16")
    chosen: list[tuple[Name, int]] = [
        (program, number) for program, number in rows.items() if number
    ]
    plans: list[Plan] = []
    for name, kind, (program, number) in itertools.product(machines, dtype, chosen):
        one = planned(
            name,
            program,
            config,
            mesh=mesh,
            rows=number,
            length=length,
            dtype=kind,
            remat=remat,
            attention=attention,
            timeout=timeout,
        )
        print(describe(one), flush=True)
        plans.append(one)
        # After each: a compilation takes minutes, and a later one may fail.
        if table is not None:
            _write(table, markdown(plans))
        if out is not None:
            text = json.dumps([one.to_dict() for one in plans], indent=1)
            _write(out, text + "\n")


def _write(file: Path, text: str) -> None:
    with files.atomic_file(file) as new:
        new.write_text(text, encoding="utf-8")
