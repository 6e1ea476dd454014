"""Texts that a command works on: arguments, files of them, and standard input."""

import contextlib
import dataclasses
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from gpt1_jax.cli.prompts import Prompt
from gpt1_jax.text.tokenizer import Tokenizer
from gpt1_jax.text.tokenizer_files import Pipeline, has_tokenizer
from gpt1_jax.training.data.records import SUFFIXES, kind_of, parse, read_records

Texts = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="TEXT|FILE|-...", help_behavior_hint=""),
]
CONTENT = ("text", "ids", "context")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """A text, as a user gives it.

    Attributes:
        place: where it was given, for error messages.
        given: a string, or token ids.
        context: what comes before it: as ``given``, or a number of tokens; None for nothing.
        other: what else its JSON object or line holds.
    """

    place: str
    given: str | list[int]
    context: str | list[int] | int | None = None
    other: dict[str, object] = dataclasses.field(default_factory=dict)


def read_texts(arguments: Sequence[str], *, force_text: bool = False) -> list[Text]:
    """Read the texts that arguments give, which are all strings or all ids.

    An argument that is a file is read: one of records, see ``records.read_records``, has "text" or
    in JSON "ids" in each, and perhaps "context"; any other file has a text a line. Blank lines are
    skipped. "-" is standard input, whose lines are texts, or JSON objects where the first one
    begins with a brace. A single word that ends as such a file's name, but is none, is most likely
    a mistake and is refused.

    Args:
        arguments: of the command line.
        force_text: whether each argument is a text, whatever it looks like.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: there is no text, a file has none, or a line is wrong; names the file and line.
    """
    texts: list[Text] = []
    for argument in arguments:
        if not is_read(argument, force_text=force_text):
            texts.append(Text(place=f"the text {argument!r}", given=argument))
            continue
        found = list(_read(argument))
        if not found:
            raise ValueError(f"{_name(argument)} holds no text")
        texts += found
    if not texts:
        raise ValueError("give at least one text, a file of texts, or - for standard input")
    for text in texts:
        if isinstance(text.given, str) != isinstance(texts[0].given, str):
            raise ValueError(f"{text.place}: texts and ids cannot be mixed in one call")
    return texts


def is_read(argument: str, *, force_text: bool = False) -> bool:
    """Return whether an argument names a file or standard input, and is not a text itself.

    Raises:
        FileNotFoundError: it looks like the name of a file that is not there.
    """
    if force_text or argument == "-" or _is_file(argument):
        return not force_text
    if len(argument.split()) == 1 and kind_of(Path(argument)) in (".txt", *SUFFIXES):
        raise FileNotFoundError(f"there is no file {argument}; --text reads it as a text")
    return False


def _is_file(argument: str) -> bool:
    try:
        return Path(argument).is_file()
    except (OSError, ValueError):  # a text that is too long for a path, or has a null character
        return False


def read_argument(argument: str) -> tuple[str, str]:
    """Return the name and the content of a file, or of standard input for "-".

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8; names the line.
    """
    name = _name(argument)
    content = sys.stdin.buffer.read() if argument == "-" else Path(argument).read_bytes()
    try:
        return name, content.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{name}, line {line} is not UTF-8") from None


def is_json(argument: str, content: str) -> bool:
    """Return whether the lines of standard input, whose kind no suffix says, are JSON objects."""
    return argument == "-" and content.lstrip().startswith("{")


def lines_of(name: str, content: str) -> Iterator[tuple[str, str]]:
    """Yield the lines of a file that are not blank, with their places."""
    # Not splitlines, which also splits at characters that JSON allows inside a string.
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield f"{name}, line {number}", line.removesuffix("\r")


def _name(argument: str) -> str:
    return "standard input" if argument == "-" else argument


def _read(argument: str) -> Iterator[Text]:
    kind = kind_of(Path(argument))
    if kind in SUFFIXES:
        columns = () if kind in (".json", ".jsonl") else ("text",)
        for place, record in read_records(Path(argument), columns, keep_others=True):
            yield _text_of(record, place)
        return
    name, content = read_argument(argument)
    for place, line in lines_of(name, content):
        if is_json(argument, content):
            yield _text_of(parse(place, line), place)
        else:
            yield Text(place=place, given=line)


def _text_of(fields: Any, place: str) -> Text:
    if not isinstance(fields, dict) or ("text" in fields) == ("ids" in fields):
        raise ValueError(f'{place} must be an object with "text" or "ids", and not both')
    name = "text" if "text" in fields else "ids"
    given, context = fields[name], fields.get("context")
    right = "a string" if name == "text" else "a list of integers"
    if not _is_content(given, name):
        raise ValueError(f'{place}: "{name}" must be {right}')
    if context is not None and type(context) is not int and not _is_content(context, name):
        raise ValueError(f'{place}: "context" must be {right}, or a number of tokens')
    other = {key: value for key, value in fields.items() if key not in CONTENT}
    return Text(place=place, given=given, context=context, other=other)


def _is_content(value: object, name: str) -> bool:
    if name == "text":
        return isinstance(value, str)
    return isinstance(value, list) and all(type(id_) is int for id_ in value)


def check_other_keys(given: Iterable[Text | Prompt], keys: Collection[str]) -> None:
    """Check that what is copied from the input does not have the keys of the output.

    Raises:
        ValueError: it has; names the place and the keys.
    """
    for each in given:
        if taken := sorted(each.other.keys() & set(keys)):
            raise ValueError(f"{each.place}: the output has its own {taken}: rename the input's")


def tokenizer_of(
    folder: Path, model: str, pipeline: Pipeline | None, *, for_texts: bool
) -> Tokenizer | None:
    """Return the tokenizer of a checkpoint; None where it has none and ids alone were given.

    Args:
        folder: of the checkpoint.
        model: what the user calls it.
        pipeline: that the user chose.
        for_texts: whether a text was given, which needs a tokenizer.

    Raises:
        FileNotFoundError: a text has no tokenizer.
        ValueError: a pipeline is chosen for no tokenizer.
    """
    if for_texts or has_tokenizer(folder):
        return Tokenizer.from_pretrained(folder, pipeline=pipeline)
    if pipeline is not None:
        raise ValueError(f"--pipeline has no effect: {model} has no tokenizer")
    return None


@contextlib.contextmanager
def errors_name_places(texts: Sequence[Text]) -> Iterator[None]:
    """Put the place of a text before an error of the library that begins with its number."""
    try:
        yield
    except ValueError as error:
        found = re.match(r"(?:text|context) (\d+)", str(error))
        if found is None:
            raise
        raise ValueError(f"{texts[int(found[1])].place}: {error}") from None
