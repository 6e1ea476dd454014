"""The devices of a training, and the processes that have them: who is there, who writes."""

import contextlib
import dataclasses
import json
import os
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gpt1_jax._conversion import files
from gpt1_jax.nn.partitioning import DATA
from gpt1_jax.sharding.handshake import meet
from gpt1_jax.sharding.mesh import make_mesh, parse_mesh

# Seconds: for all processes to be there, and after which one that says nothing is given up.
START, SILENCE = 300, 30
MESSAGE = 2**15  # bytes of what a process tells the others at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceSettings:
    """The devices and processes to train on.

    Attributes:
        mesh: sizes of the mesh's axes, such as data=4,fsdp=2: data shards batches, fsdp shards
            batches and parameters, tensor shards heads and MLPs. By default one device, or all
            devices along data if training is distributed.
        distributed: train in several processes, each of which is given this same command. On TPU
            pods and under SLURM they find each other; elsewhere the coordinator, process id and
            number of processes must be given.
        coordinator: address host:port of process 0, which the other processes can reach.
        process_id: number of this process, counted from 0.
        num_processes: number of processes.

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
            raise ValueError(f"{given[0]} has no effect without distributed")
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
        ValueError: the mesh does not fit the devices, nothing tells where the processes are, or
            they do not fit together: see ``handshake.meet``.
        OSError: the coordinator cannot be reached, or, in process 0, its port is taken.
    """
    if settings.distributed:
        _join(settings, start)
    sizes = settings.mesh
    if sizes is None and settings.distributed:
        sizes = f"{DATA}={jax.device_count()}"
    try:
        with fail_together():
            mesh = None if sizes is None else make_mesh(sizes)
        yield mesh
    except jax.errors.JaxRuntimeError as error:
        # Out of memory, all are, and the same command again would be too.
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        reason = str(error).splitlines()[0]
        print(
            f"gpt1: the connection to another process of this training is lost ({reason}): if it "
            "was killed, give all of them the same command again to resume; otherwise its own "
            "message says what has to be mended first",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)  # an orderly end would wait for the others


def _join(settings: DeviceSettings, start: int) -> None:
    # Without an accelerator processes talk over gloo; for others JAX has its own ways.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM away from Python, and nothing here asks it.
    jax.config.update("jax_enable_preemption_service", False)
    if settings.coordinator is not None:
        assert settings.process_id is not None
        assert settings.num_processes is not None
        meet(settings.coordinator, settings.process_id, settings.num_processes, start)
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
            f"the other processes cannot be found ({error}): give coordinator, "
            "process_id and num_processes"
        ) from error


class ProcessesError(ValueError):
    """What is wrong with the processes of a training together: all of them raise it."""


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """Have an error that one process meets inside of a block end the block in all processes.

    All of them go through it. Inside, they wait for each other by the functions below alone, in the
    same order: a process that fails speaks up where the others listen next.

    Raises:
        ProcessesError: in the processes that did not fail; it says which one did, and why.
    """
    if jax.process_count() == 1:
        yield
        return
    try:
        yield
    except ProcessesError:
        raise
    except Exception as error:
        _tell({"error": (str(error) or type(error).__name__)[:1000]})
        raise
    _meet()


def _meet(**told: object) -> list[dict[str, Any]]:
    """Wait for all processes, and return what each of them told.

    Raises:
        ProcessesError: one of them has failed.
    """
    everyones = _tell(told)
    for number, one in enumerate(everyones):
        if "error" in one:
            raise ProcessesError(f"process {number} failed: {one['error']}")
    return everyones


def _tell(told: dict[str, object]) -> list[dict[str, Any]]:
    """Send a short JSON object to all processes, and return those of all."""
    from jax.experimental.multihost_utils import process_allgather

    message = json.dumps(told).encode()
    everyones = process_allgather(np.frombuffer(message.ljust(MESSAGE), np.uint8), tiled=True)
    return [json.loads(one.tobytes()) for one in np.asarray(everyones).reshape(-1, MESSAGE)]


def largest(value: int) -> int:
    """Return the largest of the values that the processes call this with."""
    if jax.process_count() == 1:
        return value
    from jax.experimental.multihost_utils import process_allgather

    return int(process_allgather(np.int32(value)).max())


def assert_same_on_all_processes(settings: Mapping[str, object], mesh: Mesh | None) -> None:
    """Check that all processes train the same: each would compute its part of something else.

    Args:
        settings: all that the result depends on, by name.
        mesh: what they are about to train on.

    Raises:
        ValueError: in every process; the message names what differs.
    """
    if jax.process_count() == 1:
        return
    settings = {**settings, "mesh": None if mesh is None else tuple(mesh.shape.items())}
    own = {name: zlib.crc32(repr(value).encode()) for name, value in settings.items()}
    items = [set(one["settings"].items()) for one in _meet(settings=own)]
    if differing := set.union(*items) - set.intersection(*items):
        raise ProcessesError(
            "the processes of this training were given different settings "
            f"({', '.join(sorted({name for name, _ in differing}))}): give all of them the same "
            "command, except for process_id"
        )


def assert_same_folder(folder: Path) -> None:
    """Check that a folder is the same for all processes, on whatever host; it is made if need be.

    Raises:
        OSError: it cannot be made.
        ValueError: it is another one than that of process 0.
    """
    if jax.process_count() == 1:
        return
    with contextlib.ExitStack() as stack:
        mark = None
        if is_main_process():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(NamedTemporaryFile(dir=folder, prefix=".seen-by-all-"))
            except OSError as error:
                raise files.os_error(
                    f"cannot write to {folder}: {error.strerror}", error
                ) from error
            mark = file.name
        told = _meet(mark=mark, folder=str(folder.absolute()))[0]
        if not (folder / Path(told["mark"]).name).exists():
            raise ValueError(
                f"the output folder {folder.absolute()} is not that of process 0, "
                f"{told['folder']}: give all processes the same folder, on a disk that they share"
            )
        _meet()


def is_main_process() -> bool:
    """Return whether this process is the one that writes and reports."""
    return jax.process_index() == 0


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """Have process 0 go through a block before the others do, who find there what it wrote."""
    if jax.process_count() > 1 and not is_main_process():
        _meet()
    yield
    if jax.process_count() > 1 and is_main_process():
        _meet()
