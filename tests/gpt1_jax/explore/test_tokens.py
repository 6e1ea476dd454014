"""The table of tokens, letter by letter: plain, in a terminal's colours, and as HTML."""

import html.parser
import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.small_tokenizer import TOKENS, write_small

from gpt1_jax.explore import TokenTable, token_table
from gpt1_jax.explore.display import RED
from gpt1_jax.text.tokenizer import Tokenizer

TEXT = "The thing,\n中 is <b>"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_pretrained(write_small(tmp_path_factory.mktemp("small")))


def test_token_table_of_text_lists_tokens_and_ids(tokenizer: Tokenizer) -> None:
    table = token_table(tokenizer, TEXT)
    assert str(table).splitlines() == [
        "0  'the</w>'  ->  100",
        "1  'th'       ->   99",
        "2  'ing</w>'  ->  103",
        "3  ',</w>'    ->   77",
        "4  '<unk>'    ->    0  unknown: '中'",
        "5  'is</w>'   ->  101",
        "6  '<</w>'    ->   83",
        "7  'b</w>'    ->   51",
        "8  '></w>'    ->   84",
    ]
    assert repr(table) == str(table)
    assert table.text == TEXT


def test_token_table_of_ids_lists_tokens(tokenizer: Tokenizer) -> None:
    table = token_table(tokenizer, [107, 0, 1])
    assert str(table).splitlines() == [
        f"0  107  ->  {TOKENS[107]!r}",
        "1    0  ->  '<unk>'   unknown",
        "2    1  ->  'a'",
    ]
    assert table.text == tokenizer.decode([107, 0, 1])
    assert str(token_table(tokenizer, range(1, 3))).splitlines() == [
        "0  1  ->  'a'",
        "1  2  ->  'b'",
    ]


def test_token_table_shows_ids_beyond_the_tokenizer(tokenizer: Tokenizer) -> None:
    table = token_table(tokenizer, [1, len(TOKENS), 2])
    assert str(table).splitlines() == [
        "0    1  ->  'a'",
        "1  108  ->  None  not in the vocabulary",
        "2    2  ->  'b'",
    ]
    assert table.text == "ab"
    with pytest.raises(ValueError, match="id -1 is out of range"):
        token_table(tokenizer, [-1])


def test_token_table_aligns_columns(tokenizer: Tokenizer) -> None:
    lines = str(token_table(tokenizer, "a " * 11)).splitlines()
    assert lines[0].startswith(" 0  ")
    assert lines[-1].startswith("10  ")
    assert len({line.index("->") for line in lines}) == 1


def test_token_table_of_empty_input_is_empty(tokenizer: Tokenizer) -> None:
    assert str(token_table(tokenizer, "")) == ""
    assert str(token_table(tokenizer, [])) == ""


def coloured(table: TokenTable) -> str:
    """What a terminal is given."""
    console = Console(file=io.StringIO(), color_system="truecolor", force_terminal=True)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_token_table_colours_tokens_consistently(tokenizer: Tokenizer) -> None:
    """The same token has one colour, and what is unknown is red; without colours it is the plain
    text and table."""
    shown = coloured(token_table(tokenizer, "a 中\nb a"))
    red = "\x1b[38;2;0;0;0;48;2;{};{};{}m".format(*RED)
    text, rest, *lines = shown.splitlines()
    first, *_, last = [part.split("m", 1)[0] for part in (text + rest).split(";48;2;")[1:]]
    assert first == last
    assert f"{red}中\x1b[0m" in text
    assert red in lines[1]
    plain = "\n".join(line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", shown).splitlines())
    assert plain == f"a 中\nb a\n{token_table(tokenizer, 'a 中' + chr(10) + 'b a')}"
    # Of ids only the table: the text that they decode to is another's to show.
    assert len(coloured(token_table(tokenizer, [1, 2])).splitlines()) == 2


class Reader(html.parser.HTMLParser):
    """Reads what a browser would show; every element must be closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.notes: list[str] = []
        self.shown = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.notes += [value or "" for name, value in attrs if name == "title"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.shown += data


def test_token_table_html_shows_text_and_table(tokenizer: Tokenizer) -> None:
    reader = Reader()
    reader.feed(token_table(tokenizer, TEXT)._repr_html_())
    assert not reader.open
    text, table, _ = reader.shown.split("\n\n")
    assert text == TEXT
    header, *lines = [line.split() for line in table.splitlines()]
    assert header == ["place", "token", "id"]
    assert lines[0] == ["0", "'the</w>'", "->", "100"]
    assert lines[4] == ["4", "'<unk>'", "->", "0", "unknown:", "'中'"]
    assert reader.notes[:2] == ["the</w> 100", "th 99"]
    reader = Reader()
    reader.feed(token_table(tokenizer, [100])._repr_html_())
    assert reader.shown.split() == ["the", "place", "id", "token", "0", "100", "->", "'the</w>'"]


def test_token_table_supports_original_pipeline(tmp_path: Path) -> None:
    pytest.importorskip("spacy")
    original = Tokenizer.from_pretrained(write_small(tmp_path / "small"), pipeline="original")
    table = token_table(original, "a…\n\nb")
    assert str(table).splitlines()[-2:] == [
        f"{len(table.ids) - 2}  {chr(39)}\\n</w>'  ->  {len(TOKENS) - 1}",
        f"{len(table.ids) - 1}  'b</w>'   ->   51",
    ]
    assert table.text == "a…\n\nb"


def test_token_table_replaces_control_characters(tokenizer: Tokenizer) -> None:
    """Those that are dropped or kept would move the colours or the cursor."""
    shown = token_table(tokenizer, "\x07\ra\x1b[2Ja\x9b").coloured()
    assert shown.plain == "\u2407\u240da\u241b[2Ja\ufffd"
    assert [shown.plain[span.start : span.end] for span in shown.spans] == [*"a[2Ja"]


@pytest.mark.parametrize("given", [5, [1.5], None])
def test_token_table_rejects_other_types(tokenizer: Tokenizer, given: Any) -> None:
    with pytest.raises(TypeError):
        token_table(tokenizer, given)
