"""What the steps share: the device, the checkpoint, and the processes beside this one."""

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

import gpt1_jax as gpt1
from benchmarks.accelerator import work
from benchmarks.accelerator.host import Host
from benchmarks.accelerator.runner import LeaveOutError
from benchmarks.accelerator.torch_peer import TorchPeer, missing
from gpt1_jax.estimate.targets import Chip, chip_of

PATIENCE = 150.0  # seconds for one thing that another process is asked for


@dataclasses.dataclass
class Bench:
    """What the steps are given.

    Attributes:
        quick: whether the model is tiny.
        sizes: of the cases.
        folder: for what is written between the processes.
        checkpoint: of the model.
        config: of it.
        host: computes what the device has to agree with.
        chip: what the device can do at best, where that is known.
        deadline: until when a step may take, of ``time.monotonic``.
    """

    quick: bool
    sizes: work.Sizes
    folder: Path
    checkpoint: Path
    config: gpt1.OpenAIGPTConfig
    host: Host
    chip: Chip | None
    deadline: float = float("inf")
    _torch: TorchPeer | None = None
    _stack: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)

    @classmethod
    @contextlib.contextmanager
    def open(cls, quick: bool) -> Iterator["Bench"]:
        """Write the checkpoint and start the processes; all end with the block."""
        # torch runs on the same device, so JAX may not take all of its memory.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
            if quick and jax.default_backend() == "cpu":
                work.compile_quickly()
            folder = Path(temporary)
            checkpoint = folder / "checkpoint"
            config = work.write_checkpoint(checkpoint, quick)
            host = stack.enter_context(Host.start(checkpoint, folder, quick))
            sizes = work.QUICK if quick else work.FULL
            chip = chip_of(jax.devices()[0].device_kind)
            bench = cls(quick, sizes, folder, checkpoint, config, host, chip, _stack=stack)
            if bench.torch_absent() is None:
                bench.start_torch()  # now, since importing it takes seconds
            yield bench

    @property
    def platform(self) -> str:
        """The platform as ``jax.export`` names it."""
        return {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())

    def load(self, **numerics: Any) -> gpt1.OpenAIGPTLMHeadModel:
        """Return the model on the device; see ``work.load``."""
        return work.load(self.checkpoint, **numerics)

    def reference(self, name: str) -> Any:
        """Return what the host computed; see ``host``."""
        return self.host.wait_for(name, min(self.deadline, time.monotonic() + PATIENCE))

    def torch_absent(self) -> str | None:
        """Return why torch cannot take part, or None if it can."""
        if self.platform == "tpu":
            return "a TPU belongs to one process, and torch does not run there"
        return missing()

    def start_torch(self) -> TorchPeer:
        """Start torch's process and return it."""
        peer = TorchPeer.start(self.checkpoint, self.platform, self.folder)
        self._torch = self._stack.enter_context(peer)
        return self._torch

    def torch(self, **request: Any) -> Any:
        """Return the answer of torch's process, which is started again if it was ended.

        Raises:
            LeaveOutError: torch is absent, or does not run on this device.
            RuntimeError: torch could not do it.
            TimeoutError: it took more than ``PATIENCE``, or than is left.
        """
        if absent := self.torch_absent():
            raise LeaveOutError(absent)
        peer = self._torch
        if peer is None or not peer.lives():
            peer = self.start_torch()
        deadline = min(self.deadline, time.monotonic() + PATIENCE)
        try:
            if self.platform == "cuda" and not peer.has_cuda(deadline):
                raise LeaveOutError("the torch that is installed has no CUDA")
            return peer.ask(request, deadline)
        except RuntimeError:
            # After some errors of CUDA a process can do nothing more: the next request starts anew.
            peer.end()
            raise

    def release_torch(self) -> None:
        """Have torch's process give back the memory of the device."""
        if self._torch is not None and self._torch.lives():
            self.torch(do="release")
