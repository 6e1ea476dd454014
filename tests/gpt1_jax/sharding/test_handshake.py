"""Processes meet before a training: they go on together, or each hears what does not fit."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.ports import free_port

from gpt1_jax.sharding import handshake
from gpt1_jax.sharding.handshake import meet


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "LINGER", 1)


def outcomes(*processes: tuple[int, int], seconds: float = 20) -> list[str]:
    """What each of these processes, (process_id, num_processes), hears; "" if all is well."""
    coordinator = f"127.0.0.1:{free_port()}"

    def run(process: tuple[int, int]) -> str:
        try:
            meet(coordinator, *process, seconds)
        except (ValueError, OSError) as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(run, processes))


def test_meet_returns_when_all_are_there() -> None:
    assert outcomes((0, 1)) == [""]
    assert outcomes((2, 3), (0, 3), (1, 3)) == ["", "", ""]


@pytest.mark.parametrize("counts", [(2, 3), (3, 2)])
def test_meet_reports_different_numbers_of_processes(counts: tuple[int, int]) -> None:
    fault = (
        f"num_processes is {counts[0]} in process 0, but {counts[1]} in process 1: give all "
        "processes the same"
    )
    assert outcomes((0, counts[0]), (1, counts[1])) == [fault, fault]


def test_meet_tells_a_fault_to_those_that_come_later() -> None:
    fault = "process_id 1 was given to two processes: give each its own"
    assert outcomes((0, 4), (1, 4), (1, 4), (2, 4)) == [fault] * 4


def test_meet_reports_two_processes_0() -> None:
    found = sorted(outcomes((0, 2), (0, 2)))
    assert found[0].startswith("process 0 cannot listen at port ")
    assert found[1] == "process_id 0 was given to two processes: give each its own"


def test_meet_names_the_processes_that_are_missing(capfd: pytest.CaptureFixture[str]) -> None:
    fault = "process 2, 3 of 4, counted from 0, did not come to the coordinator 127.0.0.1:"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handshake, "NOTICE", 0.5)
        found = outcomes((0, 4), (1, 4), seconds=1)
    assert all(message.startswith(fault) for message in found)
    assert capfd.readouterr().err == "waiting for process 2, 3 of 4, counted from 0,\n"


def test_meet_refuses_a_process_where_the_training_has_begun() -> None:
    """What listens then is JAX's own service, or, as here, whatever closes the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        coordinator = f"127.0.0.1:{server.getsockname()[1]}"
        begin = time.monotonic()
        late = pool.submit(meet, coordinator, 1, 2, 20)
        server.accept()[0].close()
        right = f"^process 0 at {coordinator} has ended, or has begun without this process: "
        with pytest.raises(ValueError, match=right):
            late.result()
        assert time.monotonic() - begin < 10


def test_meet_ignores_strangers() -> None:
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, f"127.0.0.1:{port}", 0, 2, 20)
        for sent in (b"GET / HTTP/1.1\r\n", b"[1]\n", b""):
            with handshake._connect(f"127.0.0.1:{port}", 5) as stranger:
                stranger.sendall(sent)
        pool.submit(meet, f"127.0.0.1:{port}", 1, 2, 20).result()
        first.result()
