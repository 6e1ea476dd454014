"""The command that describes an installation."""

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

import gpt1_jax
from gpt1_jax.cli.doctor import MISSING, PACKAGES, folder_size, packages_of

Run = Callable[..., tuple[int, str, str]]


def test_doctor_prints_versions_devices_caches_and_extras(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "program").write_bytes(bytes(3_000_000))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    status, out, err = run("doctor")
    assert (status, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert f"gpt1-jax {gpt1_jax.__version__} in {Path(gpt1_jax.__file__).parent}" in lines
    assert f"jax {jax.__version__}" in lines
    assert {line.split()[0] for line in lines} >= set(PACKAGES)
    assert "backend cpu" in lines
    assert "float32 products float32" in lines
    assert f"compiled programs {tmp_path} (3 MB)" in lines
    assert [line for line in lines if line.startswith("Hugging Face Hub /")]
    assert lines.index("Extras:") > lines.index("Caches:")


def test_doctor_works_without_devices(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("Unable to initialize backend 'tpu': no libtpu\nmore")

    monkeypatch.setattr(jax, "devices", fail)
    status, out, err = run("doctor")
    assert (status, err) == (0, "")
    assert "Unable to initialize backend 'tpu': no libtpu\n" in out
    assert "Extras:" in out


def test_doctor_imports_no_model() -> None:
    code = (
        "import sys; sys.argv[1:] = ['doctor']\nfrom gpt1_jax.cli import main\nmain()\n"
        'sys.exit(f\'{sorted({*sys.modules} & {"flax", "optax", "orbax", "torch", "grain"})}\')'
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "[]\n"


def test_doctor_names_extras_that_are_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    requires = {
        "gpt1-jax": ["jax>=0.10", "no-such>=1; extra == 'text'", "numpy; extra == 'train'"],
        "jax": ["libtpu; extra == 'tpu'", "jaxlib; extra == \"tpu\" and python_version > '3'"],
    }
    requires["gpt1-jax"].append("jax[tpu]; extra == 'plan'")
    monkeypatch.setattr(importlib.metadata, "requires", requires.get)
    assert packages_of("gpt1-jax", "text") == ["no-such"]
    assert packages_of("gpt1-jax", "plan") == ["libtpu", "jaxlib"]
    lines = [" ".join(line.split()) for line in run("doctor")[1].splitlines()]
    assert 'text no no-such: pip install "gpt1-jax[text]"' in lines
    assert f"train numpy {importlib.metadata.version('numpy')}" in lines
    assert MISSING not in [line for line in lines if line.startswith("text")]


def test_folder_size_counts_no_links(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(bytes(1000))
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "file")
    assert 1000 <= folder_size(tmp_path) < 1500
