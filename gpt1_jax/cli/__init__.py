"""The ``gpt1`` command.

This module is light, so that ``gpt1 --help`` answers at once and an interruption is heard from the
start: a command's own module, which imports JAX, is imported when that command is called.
"""

import contextlib
import difflib
import gc
import importlib
import io
import itertools
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import gpt1_jax
from gpt1_jax.cli.help import (
    check_flags,
    command_help,
    flags_of,
    overview,
    widen_narrow_terminal,
)

DESCRIPTION = "GPT-1 in Flax: generate, score, fine-tune and convert."
# The module and the summary of each command. A test compares the summaries with the docstrings.
COMMANDS = {
    "generate": ("generate", "Continue a prompt, or each prompt of a file."),
    "score": ("score", "Print the log-probability of each token, word or text, in nats."),
    "embed": ("embed", "Write a layer's hidden states as vectors of texts, tokens or words."),
    "predict": ("predict", "Label texts or rows with a fine-tuned model."),
    "convert": ("checkpoints", "Convert a checkpoint to another format or dtype."),
    "export": ("checkpoints", "Export a model as programs that JAX runs without this package."),
    "push": ("checkpoints", "Upload a checkpoint, a run or an adapter to the Hugging Face Hub."),
    "verify": ("checkpoints", "Check a checkpoint's tensors, and its outputs against torch."),
    "pretrain": ("training", "Train a language model on text files."),
    "finetune": ("training", "Fine-tune a model for a task on a labelled set."),
    "evaluate": ("training", "Measure a language model on texts, or a fine-tuned model on rows."),
    "lm-eval": ("lm_eval", "Evaluate a model on tasks of the lm-evaluation-harness."),
    "tree": ("explore", "Print a model's modules as torch prints them, and its parameters."),
    "tokens": ("explore", "Show the tokens and ids of a text, or the tokens of ids."),
    "nearest": ("explore", 'Show the tokens nearest to a word or to a sum such as "king - man".'),
    "surprisal": ("explore", "Show how much each token of a text surprises a model, in bits."),
    "picture": ("explore", "Draw attention weights, next tokens or a logit lens of a text."),
    "plan": ("estimate", "Estimate a model's memory and time on machines that are not here."),
    "doctor": ("doctor", "Print versions, devices, caches and extras, for bug reports."),
}
# The commands that take the flag --config.
TAKE_CONFIG = ("pretrain", "finetune", "evaluate")
NOTES = (
    "  -h, --help   Show this help, or after a command its flags and examples.",
    "  --version    Print the version.",
    "  --tyro-write-completion {bash,zsh,fish,tcsh} FILE",
    "               Write a script that completes commands and flags in a shell.",
    "",
    'Example: gpt1 generate "The old man looked at the sea" --max-new-tokens 40',
)
_PYTHON_FORMAT = warnings.formatwarning


def command(name: str) -> Callable[..., None]:
    """Import the function of a command."""
    module = importlib.import_module(f"gpt1_jax.cli.{COMMANDS[name][0]}")
    return getattr(module, name.replace("-", "_"))


def run(arguments: Sequence[str]) -> None:
    """Run the command that the arguments name, or print the help or the version."""
    name = next(iter(arguments), "--help")
    if name in ("-h", "--help"):
        summaries = {each: summary for each, (_, summary) in COMMANDS.items()}
        print(overview("gpt1", DESCRIPTION, summaries, *NOTES))
        return
    if name == "--version":
        print(f"gpt1-jax {gpt1_jax.__version__}")
        return
    if name.startswith("--tyro-"):
        _complete(arguments)
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
        wrong = "expected a command before" if name.startswith("-") else "there is no command"
        raise ValueError(f"{wrong} {name!r}; {hint}")
    with _interrupts_end_at_once():
        import tyro

        from gpt1_jax.cli.arguments import PATHS
        from gpt1_jax.cli.config_flag import CONFIG, with_config

        chosen = command(name)
    if not gc.isenabled():  # in a process of its own: see ``program``
        gc.freeze()
        gc.enable()
    arguments = arguments[1:]
    if name == "lm-eval":  # whose flags are the harness's
        chosen(arguments)
        return
    prog, flags, takes_config = f"gpt1 {name}", flags_of(chosen), name in TAKE_CONFIG
    flags += [CONFIG] if takes_config else []
    if {"-h", "--help"} & set(itertools.takewhile(lambda word: word != "--", arguments)):
        print(command_help(chosen, prog, flags))
        return
    if takes_config:
        arguments = with_config([name, *arguments], chosen)[1:]
    check_flags(flags, arguments, name)
    widen_narrow_terminal()
    tyro.cli(chosen, prog=prog, args=list(arguments), registry=PATHS)


def _complete(arguments: Sequence[str]) -> None:
    """Write the completions of a shell, with the flags of all commands, as tyro makes them."""
    import tyro

    from gpt1_jax.cli.arguments import PATHS

    app = tyro.extras.SubcommandApp()
    for name, (_, summary) in COMMANDS.items():
        app.command(name=name, help=summary)(_no_flags if name == "lm-eval" else command(name))
    app.cli(prog="gpt1", description=DESCRIPTION, args=list(arguments), registry=PATHS)


def _no_flags() -> None:
    """Stand for a command whose flags are another program's."""


@contextlib.contextmanager
def _interrupts_end_at_once() -> Iterator[None]:
    """End the process at an interrupt while imports run, which can swallow its exception."""
    raising = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _raise_interrupt}
    # A parent may have others ignored.
    heard = [number for number, handler in raising.items() if signal.getsignal(number) is handler]
    for number in heard:
        signal.signal(number, lambda number, frame: os._exit(128 + number))
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, raising[number])


def _raise_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def _status(interrupt: BaseException | None) -> int:
    """Return the exit status by which a shell names the signal that has ended a process."""
    number = interrupt.args[0] if interrupt is not None and interrupt.args else signal.SIGINT
    return 128 + number


def _hear_swallowed_interrupts(unraisable: "sys.UnraisableHookArgs") -> None:
    """End the process where Python drops a KeyboardInterrupt, as in JAX's callback of the gc."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        os._exit(_status(unraisable.exc_value))
    sys.__unraisablehook__(unraisable)


def _format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Return a warning of this package as one line, and others as Python writes them."""
    if filename.startswith(str(Path(gpt1_jax.__file__).parent)):
        return f"gpt1: {message}\n"
    return _PYTHON_FORMAT(message, category, filename, lineno, line)


def main() -> None:
    """Run the command; wrong input is one message on standard error and exit status 2."""
    before, sys.unraisablehook = sys.unraisablehook, _hear_swallowed_interrupts
    warnings.formatwarning = _format_warning
    try:
        run([_as_utf8(argument) for argument in sys.argv[1:]])
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as error:
        sys.exit(_status(error))
    except (ValueError, OSError, ImportError) as error:
        message = re.sub(r"^\[Errno \d+\] ", "", str(error))
        print(f"gpt1: {message}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        # JAX's error of a device without memory is a RuntimeError.
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print("gpt1: out of memory: use smaller batches or shorter texts", file=sys.stderr)
        sys.exit(2)
    finally:
        sys.unraisablehook = before
        warnings.formatwarning = _PYTHON_FORMAT


def _as_utf8(argument: str) -> str:
    """Return an argument whose bytes were not those of the system's encoding, ASCII perhaps."""
    try:
        argument.encode()
    except UnicodeEncodeError:  # Python's stand-ins for such bytes
        return os.fsencode(argument).decode("utf-8", "surrogateescape")
    return argument


def _prepare_streams() -> None:
    """Have the three standard streams, and let none of them fail at a character."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the shell, as by >&-
            # It gets the descriptor that is missing, which a file of weights would get otherwise.
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123  (open to the end)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(errors="backslashreplace")


def program() -> None:
    """Run the command as a process of its own: what the script ``gpt1`` calls."""
    _prepare_streams()
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # a parent may have it ignored
        # By default the first process of a container would not hear it.
        signal.signal(signal.SIGTERM, _raise_interrupt)
    # A garbage collection finds nothing among the million objects of modules, which stay to the
    # end: without one while they are imported, and with them left out of all others, of the last
    # at exit too, a command is 0.4 s shorter.
    gc.disable()
    try:
        main()
    except SystemExit as end:
        if end.code not in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            raise
        # XLA may still be compiling in a thread, and crashes when Python tears itself down.
        with contextlib.suppress(OSError):  # the reader of our output may be gone
            sys.stdout.flush()
        os._exit(end.code)
    finally:
        gc.freeze()
