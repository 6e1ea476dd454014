"""A cold command, on a tiny model: its record, not its times."""

import sys
from pathlib import Path

import pytest

from benchmarks import start as suite
from benchmarks.suite import Options
from gpt1_jax import Tokenizer
from gpt1_jax.demo import FOLDER


def test_with_tokenizer_adds_only_missing_tokenizer(tmp_path: Path) -> None:
    with suite.with_tokenizer(FOLDER) as folder:
        assert folder == FOLDER
    (tmp_path / "config.json").write_text("{}")
    with suite.with_tokenizer(tmp_path) as folder:
        assert (folder / "config.json").read_text() == "{}"
        assert len(Tokenizer.from_pretrained(folder)) == len(Tokenizer.from_pretrained(FOLDER))
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_environment_sets_cache_and_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "another")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    variables = suite.command_variables(None, None)
    assert "JAX_COMPILATION_CACHE_DIR" not in variables
    assert variables["GPT1_CACHE"] == "none"
    assert variables["JAX_PLATFORMS"] == "cpu"
    variables = suite.command_variables("gpu", "this")
    assert variables["GPT1_CACHE"] == "this"
    assert variables["JAX_PLATFORMS"] == "cuda"


def test_finish_reports_failing_program() -> None:
    command = (sys.executable, "-c", "import sys; sys.exit('first\\nlast')")
    with pytest.raises(ValueError, match=r"^gpt9 fails with the exit status 1: last$"):
        suite._finish("gpt9", command, "", {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(quick=True, rounds=0), "rounds is 0, but must be at least 1"),
        (Options(peers=("gpt2",)), "'gpt2' is no peer in start; the peers are gpt1-jax, transform"),
        (Options(memory=True), "start measures no memory"),
    ],
)
def test_start_rejects_bad_input(options: Options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suite.start(options)
