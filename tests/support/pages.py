"""The code blocks of a Markdown page: run in their order, and their outputs compared.

A comment on the line before a block says how it is run:

    <!-- not run: REASON -->    it needs a network, an accelerator or minutes
    <!-- eight devices -->      in a process of its own, with eight simulated devices
    <!-- test command -->       by .ci/run
    <!-- example output -->     this output is not compared

A block without a language shows the output of the block before it. Numbers with a decimal point may
differ by 2 % in the last places, since the versions of JAX round in their own ways.
"""

import importlib.util
import math
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from gpt1_jax import cli

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(?:^<!-- ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Installation is not repeated, and .ci/run calls the tests.
NOT_REPEATED = re.compile(r"(pip install|python -m venv|pytest) ")
NUMBER = re.compile(r"-?\d+\.\d+")


@dataclass(frozen=True)
class Block:
    """A block of code of a page.

    Attributes:
        place: the page and the line of the block.
        language: bash or python.
        code: the block's text.
        comment: that of the HTML comment before the block, or an empty text.
        output: the output that the page shows, or None.
    """

    place: str
    language: str
    code: str
    comment: str
    output: str | None

    @property
    def runs(self) -> bool:
        """Whether a test runs the block."""
        return not self.comment.startswith(("not run: ", "test command"))


def read_blocks(page: Path) -> list[Block]:
    """Read the blocks of bash and Python of a page."""
    text, blocks = page.read_text(encoding="utf-8"), []
    for found in BLOCK.finditer(text):
        comment, language, code = found[1] or "", found[2], found[3]
        if language in ("bash", "python"):
            place = f"{page.name}:{text[: found.start(3)].count(chr(10)) + 1}"
            blocks.append(Block(place, language, code, comment, None))
        elif not language and blocks and comment != "example output":
            blocks[-1] = Block(**{**vars(blocks[-1]), "output": code})
    return blocks


def run_page(
    page: Path,
    folder: Path,
    monkeypatch: Any,
    captured: Callable[[], str],
    more: Callable[[Sequence[str]], Sequence[str]] = lambda arguments: (),
) -> None:
    """Run the blocks of a page in a folder, Python's in one namespace, and compare outputs.

    Args:
        page: the page.
        folder: the current folder of all blocks.
        monkeypatch: of the test.
        captured: returns what was printed since its last call.
        more: returns what a command of ``gpt1`` with these arguments gets besides, to be small.
    """
    monkeypatch.chdir(folder)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in read_blocks(page):
        if not block.runs or (needs_torch(block) and importlib.util.find_spec("torch") is None):
            continue
        captured()
        try:
            # As JAX is for a reader, not as it is in other tests.
            with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
                if block.comment == "eight devices":
                    in_process(block.code)
                elif block.language == "python":
                    exec(compile(block.code, block.place, "exec"), namespace)
                else:
                    run_bash(block.code, more)
        except (Exception, SystemExit) as error:
            error.add_note(f"{block.place}, which printed:\n{captured()}")
            raise
        printed = captured()
        if block.output is not None:
            assert agree(printed, block.output), f"{block.place} printed:\n{printed}"


def needs_torch(block: Block) -> bool:
    """Whether a block imports torch or a library that needs it."""
    return re.search(r"^(from|import) (torch|transformers|peft)\b", block.code, re.M) is not None


def run_bash(code: str, more: Callable[[Sequence[str]], Sequence[str]]) -> None:
    """Run commands: those of ``gpt1`` here, where what is compiled is shared, others by bash."""
    for command in split_commands(code):
        if NOT_REPEATED.match(command):
            check_extras(command)
        elif found := re.match(r"gpt1 ([^|<>]*)(?:> (\S+))?$", command):
            arguments = shlex.split(found[1], comments=True)
            arguments = [name for each in arguments for name in expanded(each)]
            with ExitStack() as stack:
                if found[2]:
                    file = stack.enter_context(Path(found[2]).open("w"))
                    stack.enter_context(redirect_stdout(file))
                cli.run([*arguments, *more(arguments)])
        else:
            in_bash(command)


def split_commands(code: str) -> Iterator[str]:
    """Yield the commands of a block, each with its continued lines or its here-document."""
    lines = iter(code.replace("\\\n", " ").splitlines())
    for line in lines:
        command = line
        if heredoc := re.search(r"<<(\w+)$", line):
            for more in lines:
                command += f"\n{more}"
                if more == heredoc[1]:
                    break
        if command.strip() and not command.startswith("#"):
            yield command


def expanded(argument: str) -> list[str]:
    """The files that a pattern such as train/*.txt stands for, or the argument itself."""
    if re.fullmatch(r"[\w/.]*\*[\w.]*", argument):
        return sorted(map(str, Path().glob(argument)))
    return [argument]


def check_extras(command: str) -> None:
    """Check that the extras that a command installs are this package's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for names in re.findall(r'"?(?:\.|gpt1-jax)\[([\w,-]+)\]', command):
        assert set(names.split(",")) <= project["optional-dependencies"].keys(), command


def in_bash(command: str) -> None:
    """Run a command by bash, for which ``gpt1`` is this package's."""
    gpt1 = f'gpt1() {{ "{sys.executable}" -m gpt1_jax.cli "$@"; }}\n'
    done = subprocess.run(
        ["bash", "-ec", gpt1 + command], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    print(done.stdout, end="")


def in_process(program: str) -> None:
    """Run a program of Python in a process of its own, with eight simulated devices."""
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**environment(), "XLA_FLAGS": flags},
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout, end="")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def agree(printed: str, shown: str) -> bool:
    """Whether two outputs are equal, but for the ends of lines and small changes of numbers."""
    ours, theirs = (
        [line.rstrip() for line in text.strip().splitlines()] for text in (printed, shown)
    )
    if [NUMBER.sub("#", line) for line in ours] != [NUMBER.sub("#", line) for line in theirs]:
        return False
    pairs = zip(NUMBER.findall("\n".join(ours)), NUMBER.findall("\n".join(theirs)), strict=True)
    # A last decimal that is rounded the other way. README's figures themselves differ by 1e-6
    # between JAX 0.10.2 and 0.12, with XLA's optimisation and without.
    return all(math.isclose(float(a), float(b), rel_tol=0.02) for a, b in pairs)


def dead_links(page: Path) -> list[str]:
    """The links of a page to files of this repository, or headings of its pages, that are none."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    return dead


def anchors(page: Path) -> set[str]:
    """The names by which the headings of a page are linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}
