"""The whole command on a tiny model."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.compilation_cache import cache_variables

from benchmarks.accelerator import main
from gpt1_jax import estimate

ROOT = Path(__file__).parents[3]
# What the command may not need: as if it were not installed.
OPTIONAL = ("tyro", "grain", "tqdm", "huggingface_hub", "matplotlib", "sklearn", "ftfy", "spacy")
OPTIONAL += ("torch", "transformers", "orbax", "flatbuffers")
WITHOUT = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({OPTIONAL}))
sys.argv[0] = "benchmarks"
runpy.run_module("benchmarks", run_name="__main__", alter_sys=True)
"""


def start(
    out: Path, *arguments: str, code: str | None = None, **variables: str
) -> subprocess.Popen[str]:
    how = ["-m", "benchmarks"] if code is None else ["-c", code]
    return subprocess.Popen(
        [sys.executable, *how, "accelerator", "--quick", "--out", str(out), *arguments],
        cwd=ROOT,
        env={**os.environ, **cache_variables(out.parent / "compiled"), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def statuses(out: Path) -> dict[str, str]:
    record = json.loads((out / "accelerator.json").read_text())
    return {step["name"]: step["status"] for step in record["steps"]}


@pytest.mark.nightly
def test_accelerator_quick_takes_every_step(tmp_path: Path) -> None:
    process = start(tmp_path / "out")
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    found = statuses(tmp_path / "out")
    left_out = {name for name, status in found.items() if status == "left out"}
    tuned = {name for name in found if name.endswith(", tuned")}
    expected = {"mesh", *tuned}
    if not find_spec("torch"):
        expected.add("torch's logits")  # in races our own side runs
    assert left_out == expected
    assert set(found.values()) == {"passed", "measured", "left out"}
    page = (tmp_path / "out" / "README.md").read_text()
    assert "shows only that everything works" in page


@pytest.mark.nightly
def test_accelerator_needs_no_optional_package(tmp_path: Path) -> None:
    process = start(tmp_path / "out", code=WITHOUT)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    found = statuses(tmp_path / "out")
    assert found["torch's logits"] == found["exported program"] == "left out"
    assert found["profile: decode step"] == "measured"
    assert not list((tmp_path / "out").glob("*.png"))


@pytest.mark.nightly
def test_accelerator_shards_over_eight_devices(tmp_path: Path) -> None:
    flags = "--xla_force_host_platform_device_count=8"
    process = start(tmp_path / "out", "--only", "mesh", XLA_FLAGS=flags)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert statuses(tmp_path / "out") == {"mesh": "passed"}


@pytest.mark.nightly
def test_accelerator_that_is_stopped_leaves_a_report(tmp_path: Path) -> None:
    process = start(tmp_path / "out", "--only", "ed")  # donated cache, generated ids, ...
    record = tmp_path / "out" / "accelerator.json"
    begin = time.monotonic()
    while not record.exists() and time.monotonic() - begin < 300 and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 143, said
    found = statuses(tmp_path / "out")
    assert next(iter(found.values())) == "passed"
    assert list(found.values())[-1] in ("cut off", "passed")
    assert "| generated ids | passed |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "--minutes is 0, but must be above 0"),
        (["--only", "nonsense"], "--only is 'nonsense', but must be part of a step's name"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_accelerator_rejects_invalid_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


def test_accelerator_count_without_compilers_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without(name: str, *_: object, **__: object) -> None:
        raise ImportError(f"compiling for {name} needs its compiler")

    monkeypatch.setattr(estimate, "plan", without)
    assert main(["--count", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "benchmarks: compiling for h100 needs its compiler\n"
    assert not list(tmp_path.iterdir())


def test_accelerator_lists_steps_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert names[0] == "precision"
    order = ["decode 1 rows", "decode 32 rows", "forward 8 x 512", "train 32 x 512"]
    order += ["race: forward 8 x 512", "race: train 32 x 512", "race: train 32 x 512, tuned"]
    assert [name for name in names if name in order] == order
    assert names[-1] == order[-1]
