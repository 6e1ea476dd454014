"""JSON as users write it: read as Python reads it, or one error that says what is wrong."""

import contextlib
import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from conversion.json_file import first_line, parse_json, read_json, short

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(LEAVES, lambda each: st.lists(each) | st.dictionaries(st.text(), each))


@pytest.mark.nightly
@given(value=VALUES, indent=st.sampled_from([None, 1]), as_bytes=st.booleans())
def test_parse_json_returns_what_was_written(value: Any, indent: Any, as_bytes: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    encodable = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace") == text
    given = text.encode() if as_bytes and encodable else text
    assert parse_json(given) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON (Expecting value, character 1)"),
        ('{"a": 1,\n "b" 2}', "is not JSON (Expecting ':' delimiter, line 2, character 6)"),
        (b"[1\xff]", "is not JSON (byte 3 is not UTF-8)"),
        ('{"n_layer": 1, "n_head": 2, "n_layer": 3}', "has the key 'n_layer' more than once"),
        ('[{"a": {"b": 1, "b": 1}}]', "has the key 'b' more than once"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"a": ' * 100_000, "is nested too deeply"),
        ("1" * 4301, "contains a number of too many digits"),
        ('{"a": NaN}', "contains NaN, which JSON does not allow"),
        ("[-Infinity]", "contains -Infinity, which JSON does not allow"),
    ],
)
def test_parse_json_says_what_is_wrong(text: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        parse_json(text, constants=False)
    assert str(error.value) == message
    file = tmp_path / "config.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as error:  # noqa: PT011
        read_json(file, constants=False)
    assert str(error.value) == f"{file} {message}"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_parse_json_reads_what_editors_write(encoding: str) -> None:
    assert parse_json('{"text": "Straße"}'.encode(encoding)) == {"text": "Straße"}


@given(data=st.binary())
@example(data=b"\xef\xbb\xbf{}")
@example(data=b'{"\\ud800": 1}')
def test_parse_json_raises_nothing_but_value_errors(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse_json(data)


def test_read_json_names_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^.* has no config\.json$"):
        read_json(tmp_path / "config.json")


def test_short_limits_what_an_error_shows() -> None:
    assert short("a\n") == repr("a\n")
    assert short([7] * 10_000) == f"{str([7] * 200)[:500]} ... (30000 characters)"
    value: Any = []
    for _ in range(100_000):
        value = [value]
    assert short(value) == "a list that is nested too deeply"


def test_first_line_limits_an_error() -> None:
    assert first_line(ValueError("a\nb")) == "a"
    assert first_line(KeyError()) == "KeyError"
    assert first_line(ValueError("x" * 501)) == "x" * 500 + " ... (501 characters)"
