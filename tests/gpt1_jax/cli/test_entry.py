"""The entry of the command: light, with a version, and interrupted at any time."""

import gc
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import gpt1_jax
from gpt1_jax import cli

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_command_summary_is_that_of_its_docstring(name: str) -> None:
    summary = cli.COMMANDS[name][1]
    docstring = cli.command(name).__doc__
    assert docstring is not None
    assert docstring.split("\n\n")[0].replace("\n", " ").split() == summary.split()


def test_help_lists_every_command(run: Run) -> None:
    status, out, err = run("--help")
    assert (status, err) == (0, "")
    assert re.findall(r"^  (\w\S*)  ", out, re.M) == list(cli.COMMANDS)
    assert len(out.splitlines()) <= 30
    assert max(map(len, out.splitlines())) <= 80
    assert run("-h") == run() == (0, out, "")


@pytest.mark.smoke
def test_version_is_that_of_the_package(run: Run) -> None:
    assert run("--version") == (0, f"gpt1-jax {gpt1_jax.__version__}\n", "")


def test_unknown_command_is_an_error(run: Run) -> None:
    assert run("generat", "x") == (
        2,
        "",
        "gpt1: there is no command 'generat'; did you mean generate?\n",
    )
    status, out, err = run("zzz")
    assert (status, out) == (2, "")
    assert err.startswith("gpt1: there is no command 'zzz'; the commands are generate, score, ")
    _, _, err = run("--model", "demo")
    assert err.startswith("gpt1: expected a command before '--model'; the commands are generate")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "a", "--tempreture=2"), "no flag --tempreture; did you mean --temperature?"),
        (("generate", "--topp", "1"), "generate has no flag --topp; did you mean --top-p?"),
        (("score", "a", "--format", "csv"), "no flag --format; did you mean --output-format?"),
        (("finetune", "--confg", "a"), "no flag --confg; did you mean --config?"),
        (("tree", "demo", "--zzz"), "tree has no flag --zzz; gpt1 tree --help lists them"),
    ],
)
def test_unknown_flag_is_an_error(run: Run, arguments: tuple[str, ...], message: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_import_neither_jax_nor_flax(argument: str) -> None:
    code = (
        "import sys; sys.argv[1:] = [sys.argv[-1]]\nfrom gpt1_jax.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        'sys.exit(f\'{sorted({*sys.modules} & {"jax", "flax", "numpy"})}\')'
    )
    command = [sys.executable, "-c", code, argument]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == "[]\n"


def test_interrupt_during_imports_ends_with_130(tmp_path: Path) -> None:
    """Wherever it comes, from when the command's main function has begun."""
    code = (
        "import signal, sys; sys.argv = ['gpt1', 'generate', 'a']\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may ignore it\n"
        "from gpt1_jax.cli import main\n"
        "print('begun', flush=True)\nmain()"
    )
    rng = random.Random(0)
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.05 + rng.uniform(0, 0.6))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (130, "")


def test_interrupt_that_python_drops_ends_with_130() -> None:
    """In a callback of the garbage collector, where JAX has one, no exception can be raised."""
    code = (
        "import gc, signal\nfrom gpt1_jax import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "gc.callbacks.append(lambda *_: signal.raise_signal(signal.SIGINT))\n"
        "cli.run = lambda arguments: (gc.collect(), print('not heard'))\ncli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_program_skips_teardown_after_an_interrupt() -> None:
    """XLA's threads can crash it; what was printed is not lost."""
    code = (
        "import atexit\nfrom gpt1_jax import cli\n"
        "def run(arguments):\n    print('a line')\n    raise KeyboardInterrupt\n"
        "cli.run = run\natexit.register(print, 'teardown')\ncli.program()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "a line\n", "")


@pytest.mark.nightly
def test_program_keeps_modules_out_of_garbage_collections() -> None:
    code = (
        "import atexit, gc, sys\nfrom gpt1_jax import cli\nsys.argv = ['gpt1', 'tokens', 'a']\n"
        "atexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 100_000))\n"
        "cli.program()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1], done.stderr) == (0, "True True", "")


def test_main_leaves_garbage_collection_as_it_was(run: Run) -> None:
    frozen = gc.get_freeze_count()
    run("tokens", "a")
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen


@pytest.mark.parametrize("argument", ["--version", "--help", "generate", "generat"])
def test_main_leaves_interrupts_as_they_were(run: Run, argument: str) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run(argument)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_ignored_interrupt_stays_ignored(run: Run) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run("--help")
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("columns", ["1", "2", "5", "39"])
def test_cli_help_ends_in_narrow_terminals(
    run: Run, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    status, out, _ = run("convert", "--help")
    assert status == 0
    assert max(map(len, out.split("Examples:")[0].splitlines())) <= 40
    assert "--format" in out


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell, in which $GPT1 is the command."""
    return subprocess.run(
        ["sh", "-c", line],
        capture_output=True,
        text=True,
        env={**os.environ, "GPT1": f"{sys.executable} -m gpt1_jax.cli", **variables},
        check=False,
    )


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("line", "status", "err"),
    [
        ("$GPT1 tokens the >&-", 0, ""),
        ("$GPT1 --help >&-", 0, ""),
        ("$GPT1 generate --prompts - <&-", 2, "gpt1: standard input holds no prompt\n"),
        ("$GPT1 generate the --max-new-tokens 400 2>&-", 2, ""),
    ],
)
def test_closed_standard_streams_are_no_traceback(line: str, status: int, err: str) -> None:
    done = shell(line)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", err)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PYTHONIOENCODING": "cp1252"}, "0  '<unk>'  ->  0  unknown: '\\u65e5'\n"),
        (ASCII, "0  '<unk>'  ->  0  unknown: '\\u65e5'\n"),
        ({}, "0  '<unk>'  ->  0  unknown: '日'\n"),
    ],
)
def test_characters_that_a_terminal_lacks_are_escaped(
    variables: dict[str, str], expected: str
) -> None:
    done = shell("$GPT1 tokens 日", **variables)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


@pytest.mark.nightly
def test_arguments_are_utf8_in_an_ascii_locale(tmp_path: Path) -> None:
    assert shell("$GPT1 tokens é", **ASCII).stdout == shell("$GPT1 tokens é").stdout
    done = shell(f"$GPT1 convert demo {tmp_path}/é", **ASCII)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["é"]


def test_sigterm_ends_with_143(tmp_path: Path) -> None:
    code = (
        "import os, signal; from gpt1_jax import cli\n"
        "cli.run = lambda arguments: os.kill(os.getpid(), signal.SIGTERM)\n"
        "cli.program()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")
