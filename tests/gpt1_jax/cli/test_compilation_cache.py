"""A command that keeps what it compiles, and one that finds it; in processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jaxlib
import pytest

from benchmarks.start import COUNTED
from gpt1_jax.cli.compilation_cache import default_folder, machine, prune

COMMAND = ("generate", "the", "--max-new-tokens", "1", "--print-ids")


def compiled(
    variables: dict[str, str], *flags: object, through: Sequence[str] = ()
) -> dict[str, float]:
    """How many programs a command compiles, and how many of them it takes from the cache."""
    command = [*through, sys.executable, "-c", COUNTED, *COMMAND, *map(str, flags)]
    environment = {k: v for k, v in os.environ.items() if "CACHE" not in k} | variables
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "116 797\n"
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return json.loads(done.stderr)


@pytest.mark.nightly
def test_compilation_cache_by_default_serves_later_runs_and_replaces_damaged_programs(
    tmp_path: Path,
) -> None:
    caches = {"XDG_CACHE_HOME": str(tmp_path)}
    first = compiled(caches)
    assert first["from the cache"] == 0
    folder = tmp_path / "gpt1-jax" / f"{jaxlib.__version__}-{machine()}"
    kept = list(folder.glob("*-cache"))
    assert len(kept) == first["count"] > 0
    for path in kept:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert compiled(caches) == first | {"seconds": pytest.approx(0, abs=1e3)}
    again = compiled(caches)
    assert again["from the cache"] == again["count"] == first["count"]


def test_generate_compiles_two_programs(tmp_path: Path) -> None:
    """Loading compiles none: the state before the first token, and the loop."""
    (tmp_path / "file").write_text("")  # no cache can be made there, which is silent
    found = compiled({"GPT1_CACHE": str(tmp_path / "file")})
    assert (found["count"], found["from the cache"]) == (2, 0)


@pytest.mark.nightly
def test_compilation_cache_on_full_disk_is_silent(tmp_path: Path) -> None:
    small_files = ("sh", "-c", 'ulimit -f 1; exec "$@"', "sh")  # of a block, 512 or 1024 bytes
    for _ in range(2):
        found = compiled({}, "--compilation-cache", tmp_path, through=small_files)
        assert found["from the cache"] == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.nightly
def test_compilation_cache_serves_processes_that_start_together(tmp_path: Path) -> None:
    caches = {"GPT1_CACHE": str(tmp_path)}
    with ThreadPoolExecutor() as threads:
        first, second = threads.map(compiled, [caches] * 2)
    assert first["count"] == second["count"]
    again = compiled(caches)
    assert again["from the cache"] == again["count"] == first["count"]


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("flags", "variable"), [((), "none"), (("--compilation-cache", "none"), "")]
)
def test_compilation_cache_none_keeps_nothing(
    tmp_path: Path, flags: tuple[str, ...], variable: str
) -> None:
    variables = {"GPT1_CACHE": variable, "XDG_CACHE_HOME": str(tmp_path)}
    for _ in range(2):
        assert compiled(variables, *flags)["from the cache"] == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.nightly
def test_compilation_cache_respects_jax_variables(tmp_path: Path) -> None:
    """It works by itself; so that small programs are kept, JAX has a second one."""
    variables = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "GPT1_CACHE": str(tmp_path / "ours"),
    }
    _, second = (compiled(variables) for _ in range(2))
    assert second["from the cache"] == second["count"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["jax"]


def test_compilation_cache_rejects_a_file(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    status, _, err = run(*COMMAND, "--compilation-cache", file)
    assert status == 2
    assert err == f"gpt1: cannot create the compilation cache {file}: Not a directory\n"


def test_import_enables_no_compilation_cache() -> None:
    code = "import jax, gpt1_jax.cli.generate; print(jax.config.jax_compilation_cache_dir)"
    environment = {k: v for k, v in os.environ.items() if "CACHE" not in k}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert (done.stdout, done.stderr) == ("None\n", "")


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"GPT1_CACHE": "/a"}, Path("/a")),
        ({"GPT1_CACHE": "~/a"}, Path("/home/me/a")),
        ({"GPT1_CACHE": "none"}, None),
        ({"GPT1_CACHE": ""}, Path("/home/me/.cache/gpt1-jax")),
        ({"XDG_CACHE_HOME": "/b"}, Path("/b/gpt1-jax")),
        ({"XDG_CACHE_HOME": "relative"}, None),
    ],
)
def test_default_folder_follows_variables(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], folder: Path | None
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for name in ("GPT1_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert default_folder() == folder


def test_machine_names_the_processors_features(tmp_path: Path) -> None:
    def name(flags: str, mhz: str, cores: int = 2) -> str:
        core = f"vendor_id\t: A\nmodel\t\t: 1\ncpu MHz\t\t: {mhz}\nflags\t\t: {flags}\n"
        (tmp_path / "cpuinfo").write_text("\n".join([core] * cores))
        return machine(tmp_path / "cpuinfo")

    assert name("sse avx", "1000", 2) == name("sse avx", "2000", 1)
    assert name("sse avx", "1000") != name("sse avx avx512_vnni", "1000")
    assert machine(tmp_path / "absent").startswith(sys.platform)


def test_prune_removes_what_was_not_used_for_longest(tmp_path: Path) -> None:
    for version, names in (("1", "ab"), ("2", "cd")):
        (tmp_path / version).mkdir()
        for name in names:
            path = tmp_path / version / f"{name}-cache"
            path.write_bytes(bytes(10))
            os.utime(path, (ord(name), ord(name)))
    (tmp_path / "other").write_bytes(bytes(100))
    prune(tmp_path, max_bytes=25)
    kept = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert kept == ["c-cache", "d-cache", "other"]
