"""Processes meet before JAX joins them, which hangs or crashes where they do not fit together.

Process 0 listens at the coordinator's address until all the others have come and said which they
are and how many there should be; then every one of them learns whether that fits. JAX's own service
takes the port afterwards.
"""

import contextlib
import errno
import json
import os
import socket
import sys
import time

# Seconds: for a process that has connected to speak; in which those that come after two that do not
# fit together are told so too; and after which process 0 says whom it waits for.
SPEAK, LINGER, NOTICE = 5, 10, 10


def meet(coordinator: str, process_id: int, num_processes: int, seconds: float) -> None:
    """Return when all processes are there, each of them once.

    Args:
        coordinator: host:port of process 0.
        process_id: which process this is.
        num_processes: how many there are.
        seconds: in which all have to be there.

    Raises:
        OSError: process 0 cannot be reached, or cannot listen there.
        ValueError: in every process that has come: some are missing, two have the same number, or
            they were told different numbers of processes.
    """
    if process_id:
        _introduce(coordinator, process_id, num_processes, seconds)
    else:
        _receive(coordinator, num_processes, seconds)


def _receive(coordinator: str, num_processes: int, seconds: float) -> None:
    """Wait for the other processes, and tell them what is wrong, if anything."""
    fault, missing = None, set(range(1, num_processes))
    begin = time.monotonic()
    end, notice = begin + seconds, begin + NOTICE
    with _listen(coordinator, num_processes) as server, contextlib.ExitStack() as stack:
        connections = []
        while missing or fault:
            server.settimeout(max(min(end, notice) - time.monotonic(), 0.001))
            try:
                connection = stack.enter_context(server.accept()[0])
            except TimeoutError:
                if time.monotonic() >= end:
                    break
                notice = end
                print(f"waiting for {_named(missing, num_processes)}", file=sys.stderr, flush=True)
                continue
            told = _read(connection)
            if told is None:
                continue  # a stranger's
            connections.append(connection)
            number, count = told.get("process_id"), told.get("num_processes")
            if count != num_processes:
                problem = (
                    f"num_processes is {num_processes} in process 0, but {count} in process "
                    f"{number}: give all processes the same"
                )
            elif not isinstance(number, int) or number not in missing:
                problem = f"process_id {number} was given to two processes: give each its own"
            else:
                missing.remove(number)
                continue
            if fault is None:
                fault = problem
                end = notice = min(end, time.monotonic() + LINGER)
        if fault is None and missing:
            fault = (
                f"{_named(missing, num_processes)} did not come to the coordinator {coordinator} "
                f"in {seconds:g} seconds"
            )
        for connection in connections:
            _send(connection, fault=fault)
    if fault is not None:
        raise ValueError(fault)


def _named(missing: set[int], num_processes: int) -> str:
    return f"process {', '.join(map(str, sorted(missing)))} of {num_processes}, counted from 0,"


def _listen(coordinator: str, num_processes: int) -> socket.socket:
    port = int(coordinator.rpartition(":")[2])
    try:
        try:
            return socket.create_server(
                ("", port), backlog=1024, family=socket.AF_INET6, dualstack_ipv6=True
            )
        except (OSError, ValueError) as error:  # perhaps because there is no IPv6 here
            if getattr(error, "errno", None) == errno.EADDRINUSE:
                raise
            return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        with contextlib.suppress(OSError), _connect(coordinator, 0) as connection:
            _send(connection, process_id=0, num_processes=num_processes)  # perhaps to another one
        raise OSError(
            f"process 0 cannot listen at port {port} of the coordinator {coordinator} "
            f"({os.strerror(error.errno or 0)}): give all processes another one, and process_id 0 "
            "to one of them alone"
        ) from error


def _introduce(coordinator: str, process_id: int, num_processes: int, seconds: float) -> None:
    """Tell process 0 who is here, and hear whether that fits."""
    with _connect(coordinator, seconds) as connection:
        _send(connection, process_id=process_id, num_processes=num_processes)
        answer = _read(connection, seconds + LINGER)  # process 0 may take all of its seconds
    if answer is None:
        raise ValueError(
            f"process 0 at {coordinator} has ended, or has begun without this process: give "
            f"process_id {process_id} to one process alone, and each run a coordinator of its own"
        )
    if answer.get("fault") is not None:
        raise ValueError(answer["fault"])


def _connect(coordinator: str, seconds: float) -> socket.socket:
    host, _, port = coordinator.rpartition(":")
    end = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection((host.strip("[]"), int(port)), timeout=SPEAK)
        except OSError as error:
            if time.monotonic() >= end:
                raise OSError(
                    f"the coordinator {coordinator} could not be reached in {seconds:g} seconds "
                    f"({error.strerror or error}): it must be the address of process 0, which has "
                    "to run"
                ) from error
        time.sleep(0.2)


def _send(connection: socket.socket, **told: object) -> None:
    with contextlib.suppress(OSError):  # the other side has ended meanwhile
        connection.sendall(json.dumps(told).encode() + b"\n")


def _read(connection: socket.socket, seconds: float = SPEAK) -> dict[str, object] | None:
    """Return the JSON object on the line that the other side sends, or None if it sends none."""
    connection.settimeout(seconds)
    try:
        with connection.makefile("rb") as lines:
            found = json.loads(lines.readline(10_000))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
