"""The count of launches, with plans that no compiler has made."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.accelerator import count as module
from benchmarks.accelerator.count import CASES, RESULTS, Case, count
from gpt1_jax import estimate
from gpt1_jax.estimate import Plan
from gpt1_jax.estimate.launches import Launches
from gpt1_jax.estimate.targets import parse_target


@pytest.fixture
def compilers(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Machines whose compilers are there; each program has 3 launches."""
    present = {"h100", "v5e:2x2"}

    def plan(name: str, program: Any, *, rows: int, length: int, dtype: str, **how: Any) -> Plan:
        if name not in present:
            raise ImportError(f"compiling for {name} needs its compiler")
        launches = Launches(fusions=2, copies=1, bytes=3_350_000)
        sizes = {"arguments": 819_000, "launches": launches, **how}
        return Plan(parse_target(name), program, None, rows, length, dtype, **sizes)

    monkeypatch.setattr(estimate, "plan", plan)
    monkeypatch.setattr(module, "_installed", lambda name: True)
    return present


def test_count_writes_table_and_json(
    compilers: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = count(tmp_path / "new")
    assert len(plans) == 2 * len(CASES) - 1  # cuDNN is for the H100 alone
    page = (tmp_path / "new" / "launches.md").read_text()
    assert "| h100 | decode 1 x 256 | 3 | 2 | 0 | 1 | 0 | 3 | 1 | 0 |" in page
    assert "| h100 | forward 8 x 512, cudnn |" in page
    assert "were not installed: v6e:2x2." in page
    content = json.loads((tmp_path / "new" / "launches.json").read_text())
    assert "jax" in content["versions"]
    assert len(content["programs"]) == len(plans)
    last = content["programs"][-1]
    assert (last["machine"], last["program"], last["launches"]) == ("v5e:2x2", "train", 3)
    assert (last["bytes"], last["least_microseconds"]) == (3_350_000, 1.0)
    out = capsys.readouterr().out
    assert "v6e:2x2 is left out: compiling for v6e:2x2 needs its compiler" in out


def test_count_reports_missing_compilers_once(compilers: set[str], tmp_path: Path) -> None:
    compilers.clear()
    with pytest.raises(ImportError, match="compiling for h100 needs its compiler"):
        count(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_count_leaves_out_cudnn_without_it(
    compilers: set[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_installed", lambda name: name != "nvidia.cudnn")
    cases = (Case("decode", 1, 8), Case("forward", 1, 8, "cudnn"))
    (found,) = count(tmp_path, machines=["h100"], cases=cases)
    assert found.program == "decode"
    assert "it needs nvidia-cudnn-cu13" in capsys.readouterr().out


def test_count_results_hold_every_case() -> None:
    content = json.loads((RESULTS / "launches.json").read_text())
    held = {
        (row["machine"], row["program"], row["rows"], row["length"], row["attention"])
        for row in content["programs"]
    }
    assert held == {
        (machine, case.program, case.rows, case.length, case.attention)
        for machine in module.MACHINES
        for case in CASES
        if machine == "h100" or case.attention == "manual"
    }


def test_count_import_stays_light() -> None:
    heavy = "{'jax', 'tyro', 'tqdm', 'matplotlib', 'torch'}"
    code = f"import sys, benchmarks.accelerator.count; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
