"""The help of the commands, written from the annotations and docstrings of their functions.

tyro parses the command line by the same annotations. Its own help has a frame for each Python
object; this one is plain text, which can be searched, with the flags grouped by what they set.
"""

import dataclasses
import difflib
import inspect
import itertools
import os
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

# In a narrower terminal, tyro's messages about wrong arguments have a letter a line, and below 8
# columns they never end. Lines longer than 80 characters are hard to read.
MIN_COLUMNS, MAX_COLUMNS = 40, 80
# The headings of the help in their order, and the flags below each. "export.text" is a flag of the
# command "export" alone, and "settings" stands for those of the parameter "settings" that have no
# heading of their own.
SECTIONS = {
    "Input": "text prompts ids",
    "Task and data": """task train valid recipe data split columns choices quoting class_weights
        valid_share train_rows numbers multi_label label_separator max_tokens""",
    "Stopping": "",  # these four are filled by the groups of ``generation_flags``
    "Sampling": "",
    "Beam search": "",
    "Constraints": "",
    "Scoring": "by join_punctuation stride bos_token_id",
    "Embedding": "embed.layer embed.pooling",
    "Picture": "picture.layer picture.head picture.count",
    "Training": "settings settings.batch_size accumulate",
    "LoRA": "lora_rank lora_alpha lora_targets lora_dropout use_rslora",
    "Optimizer": "optimizer",
    "Log and checkpoints": "loop report_to",
    "Model": """model adapter tokenizer dtype quantize attention remat pipeline revision
        local_files_only""",
    "New model": "new",
    "Programs": """plan.mesh forward_rows prefill_rows decode_rows plan.train_rows plan.length
        platforms""",
    "Output": """out output_format print_ids predictions report confusion_matrix table format
        max_shard_size pickle export.text nearest.count flax""",
    "Repository": "private commit_message push.revision create_pr",
    "Devices": "devices",
    "Speed and memory": """batch_size batch_tokens prompt_lookup_num_tokens compilation_cache
        timeout""",
}
OTHER = "Flags"
# What is true of all flags below a heading.
NOTES = {
    "Sampling": "All but --num-return-sequences need --do-sample.",
    "Beam search": "--length-penalty and --early-stopping need --num-beams above 1.",
    "LoRA": "The other flags need --lora-rank.",
    "New model": "These sizes have no effect on a model that --model names.",
}
EXAMPLES = {
    "generate": (
        'gpt1 generate "The old man looked at the sea" --max-new-tokens 40',
        'gpt1 generate "Once" --model openai-community/openai-gpt --do-sample',
        "gpt1 generate --prompts prompts.txt --output-format jsonl > completions.jsonl",
    ),
    "score": (
        'gpt1 score "The old man looked at the sea." --by word',
        "gpt1 score texts.jsonl --model FOLDER --out scores.jsonl",
        "gpt1 score texts.txt --by text --output-format csv",
    ),
    "embed": (
        "gpt1 embed texts.txt --out vectors.npy",
        'gpt1 embed "The old man" --layer 0 --pooling none',
    ),
    "predict": (
        'gpt1 predict "A wonderful film." --model FOLDER',
        "gpt1 predict rows.csv --model FOLDER --out predictions.csv",
    ),
    "convert": (
        "gpt1 convert openai-community/openai-gpt FOLDER --dtype bfloat16",
        "gpt1 convert finetune-transformer-lm/model FOLDER",
        "gpt1 convert FOLDER int8 --quantize int8",
    ),
    "export": (
        "gpt1 export demo FOLDER",
        "gpt1 export openai-community/openai-gpt FOLDER --platforms tpu",
    ),
    "push": (
        "gpt1 push FOLDER OWNER/NAME --private",
        'gpt1 push FOLDER OWNER/NAME --create-pr --commit-message "Train longer"',
    ),
    "verify": ("gpt1 verify openai-community/openai-gpt", "gpt1 verify FOLDER"),
    "pretrain": (
        "gpt1 pretrain books/*.txt --out FOLDER --n-layer 4 --n-embd 256 --n-head 4",
        "gpt1 pretrain text.txt --out FOLDER --model demo --lora-rank 8",
        "gpt1 pretrain --config flags.json --out FOLDER",
    ),
    "finetune": (
        "gpt1 finetune --task classification --train train.csv --valid valid.csv \\\n"
        "    --model openai-community/openai-gpt --out FOLDER",
        "gpt1 finetune --recipe sst-2 --data SST-2 --model demo --out FOLDER --epochs 1",
    ),
    "evaluate": (
        "gpt1 evaluate valid.csv --model FOLDER --report",
        "gpt1 evaluate text.txt --model openai-community/openai-gpt --stride 128",
    ),
    "lm-eval": (
        "gpt1 lm-eval --model FOLDER --tasks lambada_openai copa",
        "gpt1 lm-eval ls tasks",
    ),
    "tree": ("gpt1 tree demo", "gpt1 tree openai-community/openai-gpt"),
    "tokens": ('gpt1 tokens "The old man"', "gpt1 tokens --ids 0-5"),
    "nearest": ("gpt1 nearest king", 'gpt1 nearest "king - man + woman" --count 3'),
    "surprisal": ('gpt1 surprisal "The old man ate the sea."', "gpt1 surprisal text.txt"),
    "picture": (
        'gpt1 picture attention "The old man looked at the sea" --out attention.png',
        'gpt1 picture next-tokens "The old man" --count 20 --out next.svg',
    ),
    "plan": (
        "gpt1 plan cpu --train-rows 8",
        "gpt1 plan v5e:2x2 h100 --dtype bfloat16 --table plan.md",
    ),
    "doctor": ("gpt1 doctor",),
}


class Fields(NamedTuple):
    """Flags that one parameter of a command stands for, as metadata of its annotation.

    Attributes:
        title: the heading of the flags in the help.
        kinds: the annotations of the flags, by their names.
        defaults: the values of flags that are not given, by their names.
        owner: the class whose docstring describes the flags.
    """

    title: str
    kinds: Mapping[str, object]
    defaults: Mapping[str, object]
    owner: type


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag or a positional argument, as the help shows it.

    Attributes:
        name: as in Python.
        metavar: stands for the value; empty for a switch.
        description: what the flag does.
        default: the value where it is not given; empty where the description says what happens.
        positional: whether it is an argument without a name.
        required: whether it must be given.
        section: the heading that it stands below.
    """

    name: str
    metavar: str
    description: str
    default: str = ""
    positional: bool = False
    required: bool = False
    section: str = OTHER

    @property
    def options(self) -> tuple[str, ...]:
        """The spellings of the flag; none of a positional argument."""
        name = self.name.replace("_", "-")
        if self.positional:
            return ()
        return (f"--{name}",) if self.metavar else (f"--{name}", f"--no-{name}")

    @property
    def invocation(self) -> str:
        """The flag with its metavar."""
        return f"{', '.join(self.options)} {self.metavar}".strip()

    @property
    def text(self) -> str:
        """The description with the default."""
        hint = f" (default: {self.default})" if self.default else " (required)"
        return self.description + (hint if self.default or self.required else "")


def command_help(function: Callable[..., Any], prog: str, flags: Sequence[Flag]) -> str:
    """Return the help of a command.

    Args:
        function: the command, whose docstring says what it does.
        prog: the words that call it.
        flags: what it takes.
    """
    arguments = [flag for flag in flags if flag.positional]
    needed = [flag.invocation for flag in flags if flag.required and not flag.positional]
    usage = ["usage:", prog, *(flag.metavar for flag in arguments), *needed, "[flags]"]
    paragraphs, _ = read_docstring(function)
    blocks = [_fill(" ".join(usage), after="    "), *map(_fill, paragraphs)]
    if arguments:
        blocks.append(_section("Arguments", arguments))
    for title in (*SECTIONS, OTHER):
        found = [flag for flag in flags if not flag.positional and flag.section == title]
        if found:
            blocks.append(_section(title, found))
    blocks.append("  -h, --help\n      show this help")
    if examples := EXAMPLES.get(prog.removeprefix("gpt1 ")):
        blocks.append("Examples:\n" + "\n".join(textwrap.indent(each, "  ") for each in examples))
    return "\n\n".join(blocks)


def overview(prog: str, description: str, commands: Mapping[str, str], *notes: str) -> str:
    """Return a list of commands with a line for each.

    Args:
        prog: the words that come before a command.
        description: what the program is.
        commands: the summary of each command, by its name.
        *notes: further lines.
    """
    width = max(map(len, commands))
    lines = [
        _fill(f"  {name:{width}}  {summary}", after=" " * (width + 4))
        for name, summary in commands.items()
    ]
    usage = f"usage: {prog} COMMAND [flags]"
    return "\n".join([usage, "", _fill(description), "", *lines, "", *notes])


def flags_of(function: Callable[..., Any]) -> list[Flag]:
    """Return the flags and positional arguments of a command, in their order."""
    _, descriptions = read_docstring(function)
    hints = get_type_hints(function, include_extras=True)
    command = function.__name__
    flags: list[Flag] = []
    for name, parameter in inspect.signature(function).parameters.items():
        kind, metadata = _split(hints[name])
        fields = next((each for each in metadata if isinstance(each, Fields)), None)
        if fields is not None:
            own, values, title = fields.kinds, fields.defaults, fields.title
            texts = read_docstring(fields.owner)[1]
        elif dataclasses.is_dataclass(kind):
            own = get_type_hints(kind, include_extras=True)
            values = {each: getattr(parameter.default, each) for each in own}
            title = _SECTION_OF.get(name, OTHER)
            texts = _descriptions_of_fields(kind)
        else:
            own, values = {name: hints[name]}, {name: parameter.default}
            title, texts = OTHER, descriptions
        for each, hint in own.items():
            owner = command if each == name else name
            section = _SECTION_OF.get(f"{owner}.{each}") or _SECTION_OF.get(each) or title
            flags.append(_flag(each, hint, values.get(each), texts.get(each, ""), section))
    return flags


_SECTION_OF = {name: title for title, names in SECTIONS.items() for name in names.split()}


def read_docstring(documented: object) -> tuple[list[str], dict[str, str]]:
    """Return the paragraphs of a docstring, and the descriptions of its arguments or attributes."""
    text = inspect.getdoc(documented) or ""
    head, *_ = re.split(r"^(?:Args|Attributes|Returns|Raises):$", text, maxsplit=1, flags=re.M)
    section = re.search(r"^(?:Args|Attributes):\n((?: +.*\n?)*)", text, re.M)
    entries = re.findall(r"^    \*?(\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.M)
    return _one_line(head.strip().split("\n\n")), {
        name: _one_line([description])[0] for name, description in entries
    }


def _one_line(texts: list[str]) -> list[str]:
    return [" ".join(text.split()).replace("``", "") for text in texts if text]


def _descriptions_of_fields(kind: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if dataclasses.is_dataclass(each):
            found |= read_docstring(each)[1]
    return found


def _flag(name: str, hint: object, value: object, description: str, section: str) -> Flag:
    import tyro

    kind, metadata = _split(hint)
    positional = tyro.conf.Positional in metadata
    switch = kind is bool and not positional
    missing = value is inspect.Parameter.empty
    may_be_empty = get_origin(kind) is tuple
    shown = "" if missing or value is None or value == () or switch else _shown(value)
    return Flag(
        name=name,
        metavar="" if switch else _metavar(hint),
        description=description,
        default="" if "default" in description else shown,
        positional=positional,
        required=missing and not may_be_empty,
        section=section,
    )


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _split(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return a type without ``Annotated`` and ``Required``, and the metadata."""
    metadata: tuple[Any, ...] = ()
    while get_origin(hint) in (Annotated, Required):
        hint, *more = get_args(hint)
        metadata += tuple(more)
    return hint, metadata


def _metavar(hint: object) -> str:
    """Return what stands for a value: tyro's own where one is given, without None."""
    import tyro

    kind, metadata = _split(hint)
    for each in metadata:
        if isinstance(metavar := getattr(each, "metavar", None), str):
            return metavar
    if tyro.conf.UseAppendAction in metadata:  # one value a flag
        return _metavar(get_args(kind)[0])
    choices, others = _alternatives(kind)
    return "|".join([*([f"{{{','.join(choices)}}}"] if choices else []), *others])


def _alternatives(kind: Any) -> tuple[list[str], list[str]]:
    """Return the values that a type names, and words for those that it does not."""
    if get_origin(kind) is Literal:
        return list(map(str, get_args(kind))), []
    if get_origin(kind) in (Union, UnionType):
        parts = [_alternatives(_split(part)[0]) for part in get_args(kind) if part is not NoneType]
        choices, words = zip(*parts, strict=True)
        return [each for part in choices for each in part], [
            each for part in words for each in part
        ]
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        word = _metavar(parts[0]) + "..." if parts[1:] == (...,) else " ".join(map(_metavar, parts))
        return [], [word]
    if kind is bool:
        return ["True", "False"], []
    return [], [{int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}.get(kind, "VALUE")]


def _section(title: str, flags: list[Flag]) -> str:
    note = [_fill(NOTES[title], before="  ", after="  ")] if title in NOTES else []
    return "\n".join([f"{title}:", *note, *(_entry(flag) for flag in flags)])


def _entry(flag: Flag) -> str:
    invocation = flag.invocation
    if len(invocation) > columns() - 2:
        invocation = invocation.replace(",", ", ")
    lines = [_fill(invocation, before="  ", after="      ")]
    if flag.text:
        lines.append(_fill(flag.text, before="      ", after="      "))
    return "\n".join(lines)


def columns() -> int:
    """Return the width of the help."""
    return max(MIN_COLUMNS, min(MAX_COLUMNS, shutil.get_terminal_size().columns))


def _fill(text: str, before: str = "", after: str = "") -> str:
    return textwrap.fill(
        text,
        columns(),
        initial_indent=before,
        subsequent_indent=after,
        break_on_hyphens=False,
    )


def widen_narrow_terminal() -> None:
    """Have tyro write its messages as for a terminal of ``MIN_COLUMNS`` at least."""
    if shutil.get_terminal_size().columns < MIN_COLUMNS:
        os.environ["COLUMNS"] = str(MIN_COLUMNS)


def check_flags(flags: Iterable[Flag], arguments: Sequence[str], command: str) -> None:
    """Check that a command has the flags that it is given.

    Raises:
        ValueError: it has not; names the flag, and one that is spelt alike.
    """
    options = [option for flag in flags for option in flag.options]
    for word in itertools.takewhile(lambda word: word != "--", arguments):
        # What begins otherwise, such as "--2" or "-- a dash", can be a text or a number.
        found = re.match(r"(--[a-zA-Z][\w-]*)(?:=|$)", word)
        if found is None or (given := found[1].replace("_", "-")) in options:
            continue
        near = difflib.get_close_matches(given, options, n=1)
        near = near or [option for option in options if given[2:] in option.split("-")]
        hint = f"did you mean {near[0]}?" if near else f"gpt1 {command} --help lists them"
        raise ValueError(f"{command} has no flag {found[1]}; {hint}")
