"""The machine's limits and memory, and what is written about it."""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.machine import _processor, environment, kept, limits, peak, speeds


def test_environment_describes_the_machine() -> None:
    found = environment()
    assert {"date", "commit", "platform", "devices", "threads", "versions"} <= set(found)
    assert found["versions"]["jax"] == __import__("jax").__version__
    assert found["threads"] >= 1


def test_limits_can_be_measured() -> None:
    for name, (work, run) in limits().items():
        run()
        assert work > 1e8, name


def test_speeds_keeps_the_best_of_each_kind() -> None:
    work = {"bytes XLA": 10.0, "float32 XLA": 8.0, "float32 torch": 8.0}
    seconds = {"bytes XLA": [1.0, 2.0], "float32 XLA": [2.0, 1.0], "float32 torch": [1.0, 4.0]}
    assert speeds(work, seconds) == {"bytes": [10.0, 5.0], "float32": [8.0, 8.0]}


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_peak_measures_a_fresh_process() -> None:
    here = np.ones(1 << 27)  # a gigabyte, that the other process does not have
    small, large = peak(np.ones, 1 << 20), peak(np.ones, 1 << 26)
    assert len(here) == 1 << 27
    assert small < 1e9
    # 512 MB against 8 MB.
    assert 0.4e9 < large - small < 0.6e9


def megabytes(folder: Path) -> np.ndarray:
    """Return as many as a file says, and take as many more for a while."""
    size = int((folder / "size").read_text()) << 20
    np.ones(size, np.uint8)
    return np.ones(size, np.uint8)


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_kept_counts_only_what_is_returned(tmp_path: Path) -> None:
    for name, size in (("small", "1"), ("large", "300")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "size").write_text(size)
    assert 0.29e9 < kept(megabytes, tmp_path / "small", tmp_path / "large") < 0.33e9


def test_processor_names_its_features(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = "model name\t: Abacus 9000\nflags\t\t: fpu avx2 avx512f avx512_vnni avx_vnni\n\n"
    monkeypatch.setattr(Path, "read_text", lambda self: info)
    assert _processor() == "Abacus 9000 with AVX2, AVX-512, VNNI"
