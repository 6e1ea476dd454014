"""Prompts in a file: one a line, as plain text or as a JSON object."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from gpt1_jax._conversion import json_file
from gpt1_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """The beginning of a text, as a user gives it.

    Attributes:
        place: where it was given, for error messages.
        text: None where ids were given.
        ids: None where a text was given.
        token_type_ids: of the ids, if they have types.
        new_token_type_id: of the tokens to come; None for the type of the last id.
        other: what else the JSON object of the prompt holds.
    """

    place: str
    text: str | None = None
    ids: Sequence[int] | None = None
    token_type_ids: Sequence[int] | None = None
    new_token_type_id: int | None = None
    other: dict[str, object] = dataclasses.field(default_factory=dict)

    def encode(self, tokenizer: Tokenizer | None, vocab_size: int) -> list[int]:
        """Return the prompt's ids.

        Args:
            tokenizer: needed for a text.
            vocab_size: of the model.

        Raises:
            ValueError: there is none, or one or a type is not in the vocabulary; names the place.
        """
        if self.ids is not None:
            ids = list(self.ids)
        elif tokenizer is None:
            raise ValueError(
                f"{self.place} needs a tokenizer, and the checkpoint has none: give ids"
            )
        else:
            try:
                ids = tokenizer.encode_prompt(self.text or "")
            except ValueError as error:
                raise ValueError(f"{self.place}: {error}") from None
        if not ids:
            raise ValueError(f"{self.place} is empty: it has no tokens")
        types = self.token_type_ids or ()
        new_types = () if self.new_token_type_id is None else (self.new_token_type_id,)
        for id_ in (*ids, *types, *new_types):
            if not 0 <= id_ < vocab_size:
                raise ValueError(f"{self.place}: the id {id_} is not in [0, {vocab_size})")
        return ids


def read_prompt_file(path: str) -> list[Prompt]:
    """Read the prompts of a UTF-8 file, or of standard input if the path is "-".

    Blank lines are skipped. A line that starts with { is a JSON object with the key "prompt", a
    string, or "ids", a list of token ids; every other line is a prompt as it is. Beside "ids" the
    object may have "token_type_ids", as many, and with them "new_token_type_id".

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no prompt, or a line is wrong; names the file and the line.
    """
    name = "standard input" if path == "-" else path
    content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    content = content.removeprefix(b"\xef\xbb\xbf")  # the byte-order mark of some editors
    prompts = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        place = f"{name}, line {number}"
        try:
            text = line.decode("utf-8").removesuffix("\r")
            if text.lstrip().startswith("{"):
                prompts.append(_prompt_of_json(text, place))
            elif text.strip():
                prompts.append(Prompt(place=place, text=text))
        except UnicodeDecodeError:
            raise ValueError(f"{place} is not UTF-8") from None
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    if not prompts:
        raise ValueError(f"{name} holds no prompt")
    return prompts


def _prompt_of_json(line: str, place: str) -> Prompt:
    try:
        fields = json_file.parse_json(line, constants=False)
    except ValueError as error:
        raise ValueError(f"starts with {{ but {error}") from None
    text, ids = fields.pop("prompt", None), fields.pop("ids", None)
    if (text is None) == (ids is None):
        raise ValueError('the object must have "prompt" or "ids", and not both')
    if text is not None and not isinstance(text, str):
        raise ValueError(f'"prompt" is {text!r}, but must be a string')
    if ids is not None and not (isinstance(ids, list) and all(type(id_) is int for id_ in ids)):
        raise ValueError(f'"ids" is {ids!r}, but must be a list of integers')
    types, new_type = fields.pop("token_type_ids", None), fields.pop("new_token_type_id", None)
    if types is None and new_type is not None:
        raise ValueError('"new_token_type_id" has no effect without "token_type_ids"')
    if types is not None and not (
        ids is not None
        and isinstance(types, list)
        and all(type(id_) is int for id_ in types)
        and len(types) == len(ids)
    ):
        raise ValueError('"token_type_ids" must be a list of integers, one for each of "ids"')
    if new_type is not None and type(new_type) is not int:
        raise ValueError(f'"new_token_type_id" is {new_type!r}, but must be an integer')
    return Prompt(
        place=place,
        text=text,
        ids=ids,
        token_type_ids=types,
        new_token_type_id=new_type,
        other=fields,
    )
