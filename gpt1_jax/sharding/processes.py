"""The devices of a training, and the processes that have them: who is there, who writes."""

import contextlib
import dataclasses
import os
import socket
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gpt1_jax.nn.partitioning import DATA
from gpt1_jax.sharding.mesh import make_mesh, parse_mesh

# Seconds: for all processes to be there, and after which one that says nothing is given up.
START, SILENCE = 300, 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceSettings:
    """What devices to train on.

    Attributes:
        mesh: how to split the work over devices, such as data=4,fsdp=2: "data" splits batches,
            "fsdp" batches and parameters, "tensor" heads and MLPs. By default one device, or with
            --distributed all of them along "data".
        distributed: train in several processes, each of which is given this same command. On TPU
            pods and under SLURM they find each other; elsewhere the next three say where.
        coordinator: host:port of process 0, which the others can reach.
        process_id: which of the processes this is, from 0 on.
        num_processes: how many there are.

    Raises:
        ValueError: settings that do not go together; the message names them.
    """

    mesh: str | None = None
    distributed: bool = False
    coordinator: str | None = None
    process_id: int | None = None
    num_processes: int | None = None

    def __post_init__(self) -> None:
        if self.mesh is not None:
            parse_mesh(self.mesh)
        explicit = {
            name: getattr(self, name) for name in ("coordinator", "process_id", "num_processes")
        }
        given = [name for name, value in explicit.items() if value is not None]
        if given and not self.distributed:
            raise ValueError(f"{given[0]} is of several processes, which need distributed")
        if given and len(given) < len(explicit):
            missing = ", ".join(name for name in explicit if name not in given)
            raise ValueError(f"{given[0]} is given, which needs {missing} as well")
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 2**16:
                raise ValueError(f"coordinator is {self.coordinator!r}, but must be host:port")
            assert self.process_id is not None
            assert self.num_processes is not None
            if not 0 <= self.process_id < self.num_processes:
                raise ValueError(
                    f"process_id is {self.process_id}, but must be in [0, {self.num_processes}), "
                    f"num_processes being {self.num_processes}"
                )


@contextlib.contextmanager
def devices(settings: DeviceSettings, *, start: int = START) -> Iterator[Mesh | None]:
    """Join the other processes, if there are any, and make the mesh; before JAX computes anything.

    JAX ends a process whose others are silent for half a minute, with a message of its own.

    Args:
        settings: what devices to train on.
        start: seconds in which all processes have to be there.

    Yields:
        The mesh; None for a single device.

    Raises:
        ValueError: the mesh does not fit the devices, or nothing tells where the processes are.
        OSError: the coordinator cannot be reached, or, in process 0, its port is taken.
    """
    if settings.distributed:
        _join(settings, start)
    sizes = settings.mesh
    if sizes is None and settings.distributed:
        sizes = f"{DATA}={jax.device_count()}"
    try:
        yield None if sizes is None else make_mesh(sizes)
    except jax.errors.JaxRuntimeError as error:
        # Out of memory, all are, and the same command again would be too.
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        reason = str(error).splitlines()[0]
        print(
            f"gpt1: the processes of this training have lost each other ({reason}): another one "
            "has ended; give all of them the same command again, and it goes on",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)  # an orderly end would wait for the others


def _join(settings: DeviceSettings, start: int) -> None:
    # Without an accelerator processes talk over gloo; for others JAX has its own ways.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if settings.coordinator is not None:
        if settings.process_id:
            _wait_for(settings.coordinator, start)
        else:
            _check_free(settings.coordinator)
    try:
        jax.distributed.initialize(
            settings.coordinator,
            settings.num_processes,
            settings.process_id,
            initialization_timeout=start,
            heartbeat_timeout_seconds=SILENCE,
            shutdown_timeout_seconds=SILENCE,
        )
    except ValueError as error:
        raise ValueError(
            f"nothing here tells where the other processes are ({error}): give coordinator, "
            "process_id and num_processes"
        ) from error


def _wait_for(coordinator: str, seconds: int) -> None:
    """Return when something listens there: JAX, not finding it, would abort the process."""
    host, _, port = coordinator.rpartition(":")
    end = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
                return
        except OSError as error:
            if time.monotonic() >= end:
                reason = error.strerror or error
                raise OSError(
                    f"the coordinator {coordinator} could not be reached in {seconds} seconds "
                    f"({reason}): it must be the address of process 0, which has to run"
                ) from error
        time.sleep(0.2)


def _check_free(coordinator: str) -> None:
    """Check that process 0 can listen there: JAX, where it cannot, would crash."""
    port = int(coordinator.rpartition(":")[2])
    try:
        with socket.create_server(("", port)):
            return
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            f"process 0 cannot listen at port {port} of the coordinator {coordinator} ({reason}): "
            "give all processes another one"
        ) from error


def assert_same_on_all_processes(settings: Mapping[str, Any], mesh: Mesh | None) -> None:
    """Check that all processes train the same: each would compute its part of something else.

    Args:
        settings: all that the result depends on, by name.
        mesh: what they are about to train on.

    Raises:
        ValueError: in every process; the message names what differs.
    """
    from jax.experimental.multihost_utils import process_allgather

    if jax.process_count() == 1:
        return
    settings = {**settings, "mesh": None if mesh is None else tuple(mesh.shape.items())}
    own = [zlib.crc32(repr(settings[name]).encode()) for name in sorted(settings)]
    everyones = np.asarray(process_allgather(np.array(own, np.uint32)))
    differing = (everyones != everyones[0]).any(axis=0)
    if differing.any():
        names = ", ".join(np.array(sorted(settings))[differing])
        raise ValueError(
            f"the processes of this training were given different settings ({names}): "
            "give all of them the same command, but for process_id"
        )


def is_main_process() -> bool:
    """Return whether this process is the one that writes and reports."""
    return jax.process_index() == 0


@contextlib.contextmanager
def main_process_first(what: str) -> Iterator[None]:
    """Have process 0 go through a block before the others do, who find there what it wrote."""
    from jax.experimental.multihost_utils import sync_global_devices

    if not is_main_process():
        sync_global_devices(what)
    yield
    if is_main_process():
        sync_global_devices(what)
