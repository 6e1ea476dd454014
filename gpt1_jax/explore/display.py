"""What is shown: coloured text on a terminal and in a notebook, plain text elsewhere, pictures."""

import dataclasses
import html
import io
import os
import re
from typing import TYPE_CHECKING, Protocol, TextIO

from gpt1_jax.text.tokenizer_files import END_OF_WORD

if TYPE_CHECKING:  # importing it takes a second
    import matplotlib.figure

Colour = tuple[int, int, int]  # red, green, blue: 0 to 255

# How added tokens are mostly written: <pad>, [PAD], _start_.
_ADDED = re.compile(r"<.+>|\[.+\]|_.+_")
# What would move a terminal's cursor or change its state, as pictures; lines and tabs stay.
_HARMLESS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
_HARMLESS |= {0x7F: 0x2421, **dict.fromkeys(range(0x80, 0xA0), 0xFFFD)}

WHITE: Colour = (255, 255, 255)
RED: Colour = (222, 60, 50)
# Pale, so that black can be read on them.
PALETTE: tuple[Colour, ...] = (
    (166, 206, 227),
    (178, 223, 138),
    (253, 205, 172),
    (251, 180, 174),
    (203, 213, 232),
    (255, 242, 174),
    (222, 203, 228),
    (179, 226, 205),
)


class Renderable(Protocol):
    """Something that is plain as a string, coloured on a terminal and in a notebook."""

    def __str__(self) -> str: ...

    def ansi(self) -> str:
        """Return it as a terminal colours it."""
        ...

    def _repr_html_(self) -> str: ...


def show(shown: Renderable, file: TextIO) -> None:
    """Print something, in colour where the file is a terminal that has any.

    NO_COLOR (no-color.org) in the environment, of any value but an empty one, turns colours off.
    """
    plain = not file.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    print(str(shown) if plain else shown.ansi(), file=file)


def label(token: str) -> str:
    """Return a token for a reader: a piece that does not end its word has a dot after it."""
    word = token.removesuffix(END_OF_WORD) or token
    if word == "\n":
        return "\u21b5"
    return word if word != token or _ADDED.fullmatch(token) else f"{word}\u00b7"


def token_colour(id_: int) -> Colour:
    """Return the colour of a token, the same wherever it stands."""
    return PALETTE[id_ % len(PALETTE)]


def blend(share: float, colour: Colour) -> Colour:
    """Return a colour between white (0) and the given one (1)."""
    red, green, blue = (
        round(white + share * (full - white)) for white, full in zip(WHITE, colour, strict=True)
    )
    return red, green, blue


def ansi(text: str, background: Colour | None) -> str:
    """Return text in black on a background, as terminals with 24-bit colour show it.

    Line ends are left out of the colour, which some terminals would stretch to the margin. Other
    control characters become pictures.
    """
    text = text.translate(_HARMLESS)
    if background is None or not text:
        return text
    start = "\x1b[48;2;{};{};{}m\x1b[38;2;0;0;0m".format(*background)
    return "\n".join(f"{start}{line}\x1b[0m" if line else "" for line in text.split("\n"))


def span(text: str, background: Colour | None, note: str = "") -> str:
    """Return text on a background as HTML; the note appears under the mouse."""
    text = html.escape(text)
    if background is None:
        return text
    title = f' title="{html.escape(note)}"' if note else ""
    colour = "rgb({},{},{})".format(*background)
    return f'<span style="background:{colour};color:#000;border-radius:3px"{title}>{text}</span>'


def bar(length: int, colour: Colour) -> str:
    """Return a bar as HTML, as long as so many characters."""
    shape = f"display:inline-block;height:0.8em;width:{length}ch"
    return '<span style="{};background:rgb({},{},{})"></span>'.format(shape, *colour)


def preformatted(content: str) -> str:
    """Return HTML in which white space counts and long lines wrap."""
    style = "font-family:monospace;white-space:pre-wrap;line-height:1.6"
    return f'<div style="{style}">{content}</div>'


def table(rows: list[list[str]], header: list[str]) -> str:
    """Return an HTML table of cells that are HTML, with a header."""
    cell = 'style="text-align:left;padding:2px 8px;font-family:monospace;white-space:pre"'
    head = "".join(f"<th {cell}>{html.escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td {cell}>{content}</td>" for content in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class Lines:
    """Something shown in lines, whose cells have backgrounds on a terminal."""

    def _lines(self) -> list[list[tuple[str, Colour | None]]]:
        """The cells of each line, aligned, with their backgrounds."""
        raise NotImplementedError

    def __str__(self) -> str:
        return "\n".join("".join(text for text, _ in line).rstrip() for line in self._lines())

    __repr__ = __str__

    def ansi(self) -> str:
        """Return the lines as a terminal colours them."""
        return "\n".join("".join(ansi(*cell) for cell in line) for line in self._lines())


@dataclasses.dataclass(frozen=True)
class ColouredText:
    """A text in pieces, each with a background and a note.

    Attributes:
        pieces: texts, their backgrounds (None for none) and notes; joined they are the whole text.
    """

    pieces: tuple[tuple[str, Colour | None, str], ...]

    @classmethod
    def of(
        cls,
        text: str,
        spans: list[tuple[int, int]],
        colours: list[Colour | None],
        notes: list[str],
    ) -> "ColouredText":
        """Colour those parts of a text that tokens stand for.

        Of tokens that share their characters, only the first is coloured.

        Args:
            text: the raw text.
            spans: for each token its first character and the one after its last, in order.
            colours: for each token.
            notes: for each token.
        """
        pieces: list[tuple[str, Colour | None, str]] = []
        end = 0
        for (first, last), colour, note in zip(spans, colours, notes, strict=True):
            start = max(first, end)
            if start > end:
                pieces.append((text[end:start], None, ""))
            if last > start:
                pieces.append((text[start:last], colour, note))
                end = last
        return cls((*pieces, (text[end:], None, "")))

    def __str__(self) -> str:
        return "".join(text for text, _, _ in self.pieces)

    def ansi(self) -> str:
        """Return the text as a terminal colours it."""
        return "".join(ansi(text, colour) for text, colour, _ in self.pieces)

    def html(self) -> str:
        """Return the text as HTML, in which white space counts."""
        return preformatted("".join(span(*piece) for piece in self.pieces))

    _repr_html_ = html


class Figure:
    """A figure of matplotlib's that notebooks show by themselves.

    Attributes:
        figure: to be changed at will.
    """

    def __init__(self, figure: "matplotlib.figure.Figure"):
        self.figure = figure

    def __repr__(self) -> str:
        width, height = self.figure.get_size_inches()
        return f"Figure({width:.1f} x {height:.1f} inches)"

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write the picture, whole or not at all, in the format that the file's ending names.

        Raises:
            OSError: the file cannot be written.
            ValueError: matplotlib knows no such format, or the path is empty.
        """
        from gpt1_jax._conversion import files

        path = files.output_path(file)
        known = self.figure.canvas.get_supported_filetypes()
        format_ = path.suffix.removeprefix(".").lower()
        if format_ not in known:
            raise ValueError(f"{path}: a picture ends in one of {', '.join(sorted(known))}")
        with files.atomic_file(path) as new:
            self.figure.savefig(new, format=format_, dpi=120)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=96)
        return buffer.getvalue()
