"""Files of prompts: what they may hold, and what is said where they are wrong."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.small_tokenizer import SIZE, small_vocab, write_small

import gpt1_jax as gpt1
from gpt1_jax.cli.prompts import Prompt, read_prompt_file

CONTENT = b"""\xef\xbb\xbffirst prompt\r
\t
  indented "quoted"
"Hello," she said.
{"prompt": "with\\n{ and key", "id": 7, "tags": ["a", {"b": null}]}
 {"ids": [3, 1, 4], "prompt": null}
na\xc3\xafve \xe2\x80\xa8 one line
last, without an end"""


def test_read_prompt_file_reads_one_prompt_per_line(tmp_path: Path) -> None:
    path = str(tmp_path / "prompts.txt")
    Path(path).write_bytes(CONTENT)
    assert read_prompt_file(path) == [
        Prompt(place=f"{path}, line 1", text="first prompt"),
        Prompt(place=f"{path}, line 3", text='  indented "quoted"'),
        Prompt(place=f"{path}, line 4", text='"Hello," she said.'),
        Prompt(
            place=f"{path}, line 5",
            text="with\n{ and key",
            other={"id": 7, "tags": ["a", {"b": None}]},
        ),
        Prompt(place=f"{path}, line 6", ids=[3, 1, 4]),
        Prompt(place=f"{path}, line 7", text="na\u00efve \u2028 one line"),
        Prompt(place=f"{path}, line 8", text="last, without an end"),
    ]


def test_read_prompt_file_reads_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\na\n")))
    assert read_prompt_file("-") == [Prompt(place="standard input, line 2", text="a")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "prompts.txt holds no prompt"),
        (b"\n \n", "prompts.txt holds no prompt"),
        (b"a\n\nna\xefve\n", "prompts.txt, line 3 is not UTF-8"),
        (b'a\n{"prompt": "b\n', "prompts.txt, line 2: starts with { but is not JSON (Unt"),
        (b"{}", 'line 1: the object must have "prompt" or "ids", and not both'),
        (b'{"prompt": "a", "ids": [1]}', "and not both"),
        (b'{"prompt": ["a"]}', "line 1: \"prompt\" is ['a'], but must be a string"),
        (b'{"ids": "1 2"}', "line 1: \"ids\" is '1 2', but must be a list of integers"),
        (b'{"prompt": "a", "weight": NaN}', "line 1: starts with { but contains NaN, which"),
        (b'{"ids": [1, true]}', "but must be a list of integers"),
        (b'{"ids": [1, 2.0]}', "but must be a list of integers"),
        (b'{"ids": [1, 2], "token_type_ids": [1]}', '"token_type_ids" must be a list of integers'),
        (b'{"prompt": "a", "token_type_ids": [1]}', 'one for each of "ids"'),
        (b'{"ids": [1], "new_token_type_id": 1}', "has no effect without"),
        (b'{"ids": [1], "token_type_ids": [1], "new_token_type_id": 1.0}', "must be an integer"),
        (b'{"a": ' + b"[" * 100_000, "line 1: starts with { but is nested too deeply"),
    ],
)
def test_read_prompt_file_reports_bad_lines(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
        read_prompt_file(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_prompt_encode_returns_valid_ids(tmp_path: Path) -> None:
    tokenizer = gpt1.Tokenizer.from_pretrained(write_small(tmp_path))
    the = small_vocab()["the</w>"]
    assert Prompt(place="x", text="The the").encode(tokenizer, SIZE) == [the, the]
    assert Prompt(place="x", ids=(5, SIZE - 1)).encode(tokenizer, SIZE) == [5, SIZE - 1]
    for prompt, message in [
        (Prompt(place="here", text=" "), "here is empty: it has no tokens"),
        (Prompt(place="here", ids=()), "here is empty: it has no tokens"),
        (Prompt(place="here", ids=(1, SIZE)), rf"here: the id {SIZE} is not in \[0, {SIZE}\)"),
        (Prompt(place="here", ids=(-1,)), "here: the id -1 is not in"),
        (Prompt(place="here", ids=(10**30,)), f"here: the id {10**30} is not in"),
        (Prompt(place="here", text="a\ud800"), "here: .*surrogate"),
    ]:
        with pytest.raises(ValueError, match=message):
            prompt.encode(tokenizer, SIZE)
