"""What trainings on fsdp=8 keep on each of eight simulated devices: a report in JSON.

    cd tests && python -m support.device_memory [--full-size]

For every stage of pre-training, of a run that goes on from a checkpoint and of fine-tuning: the
most bytes that one device holds, as a multiple of those of the parameters.
A process of its own: JAX makes the devices when it starts.
"""

import collections
import contextlib
import dataclasses
import gc
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest
from support.small_training import finetune, pretrain, write_checkpoint, write_rows, write_text

import gpt1_jax as gpt1
from gpt1_jax.sharding.mesh import init_sharded, make_mesh
from gpt1_jax.training import loop

# Wide enough that biases, which every device has, are a small part.
SIZES = {"n_layer": 1, "n_embd": 128, "n_head": 8}
FULL_SIZE = {"vocab_size": 40478, "n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 512}


def held() -> int:
    """The most bytes that one device holds."""
    buffers = {}
    for array in jax.live_arrays():
        with contextlib.suppress(RuntimeError):  # deleted meanwhile
            for shard in array.addressable_shards:
                buffers[shard.device, shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
    devices: collections.Counter[Any] = collections.Counter()
    for (device, _), size in buffers.items():
        devices[device] += size
    return max(devices.values(), default=0)


class Stages:
    """The most bytes that one device held in each stage, looked at again and again."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}
        self.stage = "begin"
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def begin(self, stage: str) -> None:
        self.note()
        self.stage = stage
        self.note()

    def note(self) -> None:
        stage = self.stage
        self.found[stage] = max(held(), self.found.get(stage, 0))

    def _watch(self) -> None:
        while not self.ended.wait(0.002):
            self.note()

    def before(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that begins a stage."""

        def begun(*args: Any, **kwargs: Any) -> Any:
            self.begin(stage)
            return function(*args, **kwargs)

        return begun


class KilledError(Exception):
    """In place of a kill."""


def trainings(folder: Path, sizes: dict[str, Any], base: dict[str, Any]) -> dict[str, float]:
    """Of every stage, the most bytes on one device, as a multiple of the parameters'."""
    text = write_text(folder / "train.txt", lines=100)
    rows = [{"text": "the cat sat", "label": label} for label in ("good", "bad") * 4]
    labelled = write_rows(folder / "train.csv", rows)
    if base:  # a vocabulary that no such text has
        sizes = {"model": write_checkpoint(folder / "base", **base)}
    mesh = make_mesh("fsdp=8")
    fields = {"mesh": mesh, "valid": [text], "steps": 3, "eval_every": 1, "checkpoint_every": 1}
    gc.collect()
    with Stages() as stages, pytest.MonkeyPatch.context() as patch:
        run = ""
        steps = 0

        def train(spec: Any, *args: Any) -> Any:
            stages.begin(f"{run}: before the first step")
            evaluate = stages.before(f"{run}: evaluate", spec.evaluate)
            save = stages.before(f"{run}: save", spec.save)
            return TRAIN(dataclasses.replace(spec, evaluate=evaluate, save=save), *args)

        def make_step(*args: Any) -> Any:
            step = stages.before(f"{run}: step", MAKE_STEP(*args))

            def counted(*args: Any) -> Any:
                nonlocal steps
                steps += 1
                if run == "pretrain" and steps == 3:
                    raise KilledError
                return step(*args)

            return counted

        patch.setattr(loop, "make_step", make_step)
        patch.setattr(loop, "train", train)
        run = "pretrain"
        stages.begin(f"{run}: initialise")
        with contextlib.suppress(KilledError):
            pretrain([text], folder / "out", **fields, **sizes)
        gc.collect()
        run = "resume"
        stages.begin(f"{run}: initialise")
        pretrain([text], folder / "out", **fields, **sizes)
        gc.collect()
        run = "finetune"
        stages.begin(f"{run}: load")
        finetune(
            "classification",
            labelled,
            labelled,
            folder / "task",
            folder / "out",
            mesh=mesh,
            epochs=1,
        )
        gc.collect()
        stages.begin("init_sharded")
        config = gpt1.OpenAIGPTConfig.from_pretrained(folder / "out")
        model = init_sharded(gpt1.OpenAIGPTLMHeadModel, config, mesh, seed=0)
        jax.block_until_ready(model.params)
        stages.begin("end")
    size = 4 * model.num_parameters()
    return {
        stage: round(most / size, 3)
        for stage, most in stages.found.items()
        if stage not in ("begin", "end")
    }


TRAIN, MAKE_STEP = loop.train, loop.make_step

if __name__ == "__main__":
    base = FULL_SIZE if "--full-size" in sys.argv else {}
    with TemporaryDirectory() as folder:
        json.dump(trainings(Path(folder), SIZES, base), sys.stdout, indent=1)
