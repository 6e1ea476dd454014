"""The processes beside the command: what they cannot do is one clear error in the parent."""

import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.accelerator.host import Host
from benchmarks.accelerator.torch_peer import TorchPeer, missing

SIZES = {"rows": 1, "tokens": 2, "dtype": "float32"}


def soon() -> float:
    return time.monotonic() + 120


def test_host_reports_the_error_of_its_process(tmp_path: Path) -> None:
    with (
        Host.start(tmp_path / "absent", tmp_path, quick=True) as host,
        pytest.raises(RuntimeError, match=r"the host's process failed: .*absent"),
    ):
        host.wait_for("float64.npz", soon())


def test_host_gives_up_at_the_deadline(tmp_path: Path) -> None:
    with (
        Host.start(tmp_path / "absent", tmp_path, quick=True) as host,
        pytest.raises(TimeoutError, match=r"the host has not computed float64\.npz in time"),
    ):
        host.wait_for("float64.npz", time.monotonic())


@pytest.mark.nightly
@pytest.mark.skipif(not find_spec("torch"), reason="torch is not installed")
def test_torch_peer_reports_errors_and_goes_on(tmp_path: Path) -> None:
    with TorchPeer.start(tmp_path / "absent", "cpu", tmp_path) as peer:
        with pytest.raises(RuntimeError, match=r"torch: \w+Error: .*absent"):
            peer.ask({"do": "prepare", "kind": "forward", **SIZES}, soon())
        assert peer.ask({"do": "memory"}, soon()) is None
        with pytest.raises(TimeoutError, match="torch took too long"):
            peer.ask({"do": "run", "times": 10**9}, time.monotonic())
        with pytest.raises(RuntimeError, match="torch's process has ended"):
            peer.ask({"do": "memory"}, soon())


def test_missing_names_absent_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "benchmarks.accelerator.torch_peer.NEEDED", ("numpy", "no_such_package", "no_other")
    )
    assert missing() == "no_such_package and no_other not installed"
