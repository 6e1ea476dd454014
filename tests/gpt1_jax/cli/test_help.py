"""The help of the commands: complete, as tyro parses them, and with examples that parse."""

import functools
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tyro

from gpt1_jax import cli
from gpt1_jax.cli.arguments import PATHS
from gpt1_jax.cli.help import EXAMPLES, OTHER, SECTIONS, Flag, flags_of, read_docstring

Run = Callable[..., tuple[int, str, str]]
OWN = [name for name in cli.COMMANDS if name != "lm-eval"]  # whose flags are the harness's
# Beginnings of a description that continues what stands elsewhere.
CONTINUATIONS = ("its ", "of ", "see ", "or ", "and ", "that ", "which ", "likewise", "on ", "to ")


def help_of(run: Run, name: str) -> list[str]:
    status, out, err = run(name, "--help")
    assert (status, err) == (0, "")
    return out.splitlines()


@pytest.mark.parametrize("name", OWN)
def test_help_fits_80_columns_and_ends_in_examples(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    lines = help_of(run, name)
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"usage: gpt1 {name}")
    examples = lines[lines.index("Examples:") + 1 :]
    assert [line.removeprefix("  ") for line in examples] == "\n".join(EXAMPLES[name]).split("\n")
    headings = [line.removesuffix(":") for line in lines if re.fullmatch(r"[A-Z][\w ]*:", line)]
    order = ["Arguments", *SECTIONS, "Examples"]
    assert headings == sorted(headings, key=order.index)  # and none is ``OTHER``


@pytest.mark.parametrize("name", OWN)
def test_help_describes_every_flag(run: Run, name: str) -> None:
    text = "\n".join(help_of(run, name))
    for flag in flags_of(cli.command(name)):
        assert flag.section != OTHER or flag.positional, flag.name
        assert flag.description.endswith("."), flag.name
        assert not flag.description.startswith(CONTINUATIONS), flag.name
        assert "None" not in flag.metavar + flag.default, flag.name
        assert (flag.invocation or flag.metavar).split(",")[0] in text, flag.name


@pytest.mark.parametrize("name", OWN)
def test_help_has_the_flags_that_tyro_parses(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        tyro.cli(cli.command(name), args=["--help"], registry=PATHS)
    shown = capsys.readouterr().out
    _, *found = re.split(r"^[│ ] ((?:--[a-z][\w-]*(?:, )?)+)", shown, flags=re.M)
    texts = dict(zip(found[::2], found[1::2], strict=True))
    flags = [flag for flag in flags_of(cli.command(name)) if not flag.positional]
    assert texts.keys() == {", ".join(flag.options) for flag in flags}
    for flag in flags:
        assert flag.required == ("(required)" in texts[", ".join(flag.options)]), flag.name


@pytest.mark.parametrize(
    ("name", "example"), [(name, each) for name in cli.COMMANDS for each in EXAMPLES[name]]
)
def test_help_examples_parse(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, example: str
) -> None:
    words, _, _ = example.replace("\\\n", " ").partition(" > ")
    program, called, *arguments = shlex.split(words)
    assert (program, called) == ("gpt1", name)
    real, calls = cli.command(name), []

    @functools.wraps(real)
    def recorded(*args: Any, **kwargs: Any) -> None:
        calls.append((args, kwargs))

    monkeypatch.setattr(cli, "command", lambda name: recorded)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flags.json").write_text(json.dumps({"texts": ["text.txt"], "batch_size": 2}))
    assert run(name, *arguments) == (0, "", "")
    assert len(calls) == 1


def test_help_of_a_flag_names_its_default_once() -> None:
    def command(a: int = 3, b: str | None = None, c: bool = False, d: tuple[int, ...] = (1, 2)):
        """Do something.

        It has two paragraphs.

        Args:
            a: number of ``things``, of which the description has
                two lines.
            b: name; by default "x".
            c: do it.
            d: numbers.
        """

    flags = flags_of(command)
    assert read_docstring(command)[0] == ["Do something.", "It has two paragraphs."]
    assert [flag.invocation for flag in flags] == [
        "--a INT",
        "--b STR",
        "--c, --no-c",
        "--d INT...",
    ]
    assert [flag.text for flag in flags] == [
        "number of things, of which the description has two lines. (default: 3)",
        'name; by default "x".',
        "do it.",
        "numbers. (default: 1 2)",
    ]
    assert flags[0] == Flag(
        name="a",
        metavar="INT",
        description="number of things, of which the description has two lines.",
        default="3",
    )


def test_completion_knows_commands_and_flags(run: Run, tmp_path: Path) -> None:
    assert run("--tyro-write-completion", "bash", tmp_path / "gpt1") == (0, "", "")
    script = (tmp_path / "gpt1").read_text()
    assert all(name in script for name in cli.COMMANDS)
    assert "--max-new-tokens" in script
