"""What is shown: by rich on a terminal and in a notebook, plain text elsewhere, pictures."""

import html
import io
import os
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

from rich.color import Color, blend_rgb
from rich.color_triplet import ColorTriplet
from rich.console import Console, RenderableType
from rich.jupyter import JUPYTER_HTML_FORMAT
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from gpt1_jax.text.tokenizer_files import END_OF_WORD

if TYPE_CHECKING:  # importing it takes a second
    import matplotlib.figure

WIDTH = 80  # of what is not printed on a terminal, in columns
UNLIMITED = 1_000_000  # columns

# How added tokens are mostly written: <pad>, [PAD], _start_.
_ADDED = re.compile(r"<.+>|\[.+\]|_.+_")
# What would move a terminal's cursor or change its state, as pictures; lines and tabs stay.
_HARMLESS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
_HARMLESS |= {0x7F: 0x2421, **dict.fromkeys(range(0x80, 0xA0), 0xFFFD)}

WHITE, BLACK = ColorTriplet(255, 255, 255), ColorTriplet(0, 0, 0)
SECOND_SHADE = 0.25  # the part of black in a colour, or of white in red
# Equally bright, and halfway between black and white: both can be read on them, and all three stand
# out from a dark page as much as from a light one.
GREY = ColorTriplet(118, 118, 118)
RED = ColorTriplet(217, 57, 47)
BLUE = ColorTriplet(46, 120, 190)
OPACITY = 0.7  # of the strongest mark in HTML: the page's own text is read on it
FAINT = 0.05  # marks below this share are left out on a terminal
# Pale, so that black can be read on them.
PALETTE = (
    ColorTriplet(166, 206, 227),
    ColorTriplet(178, 223, 138),
    ColorTriplet(253, 205, 172),
    ColorTriplet(251, 180, 174),
    ColorTriplet(190, 186, 240),
    ColorTriplet(255, 242, 174),
    ColorTriplet(222, 203, 228),
    ColorTriplet(179, 226, 205),
)


class Renderable:
    """Something that is plain as a string, coloured on a terminal and in a notebook."""

    def __rich__(self) -> RenderableType:
        """Return it as rich shows it."""
        raise NotImplementedError

    def __str__(self) -> str:
        return plain(self.__rich__())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return to_html(self.__rich__())


def show(shown: Renderable, file: TextIO) -> None:
    """Print something, in colour where the file is a terminal that has any.

    rich decides that, by NO_COLOR, FORCE_COLOR and TERM in the environment too.
    """
    # 24-bit colour: rich would ask COLORTERM, which ssh leaves behind.
    console = Console(file=file, color_system="truecolor")
    if console.is_terminal and not (console.no_color or console.is_dumb_terminal):
        console.print(shown)
    else:
        print(shown, file=file)


def plain(shown: RenderableType) -> str:
    """Return what rich shows as text, its lines as long as they are."""
    lines = "".join(text for text, _, _ in _segments(shown, UNLIMITED)).split("\n")
    return "\n".join(line.rstrip() for line in lines).removesuffix("\n")


def to_html(shown: RenderableType) -> str:
    """Return what rich shows as HTML, tables with their headers; notes appear under the mouse."""
    width = WIDTH
    if isinstance(shown, Table):
        shown.show_header, width = True, UNLIMITED
    code = ""
    for text, style, _ in _segments(shown, width):
        if style:
            note, css = style.meta.get("note"), style.meta.get("css") or style.get_html_style()
            title = f' title="{html.escape(note)}"' if note else ""
            code += f'<span style="{css}"{title}>{html.escape(text)}</span>'
        else:
            code += html.escape(text)
    return JUPYTER_HTML_FORMAT.format(code=code)


def _segments(shown: RenderableType, width: int) -> Iterable[Segment]:
    return Segment.simplify(Console(width=width).render(shown))


def label(token: str) -> str:
    """Return a token for a reader: a piece that does not end its word has a dot after it."""
    word = token.removesuffix(END_OF_WORD) or token
    if word == "\n":
        return "\u21b5"
    ended = word != token or _ADDED.fullmatch(token)
    return harmless(word if ended else f"{word}\u00b7")


def harmless(text: str) -> str:
    """Return a text with pictures in place of control characters, but for lines and tabs."""
    return text.translate(_HARMLESS)


def token_colour(id_: int) -> ColorTriplet:
    """Return the colour of a token."""
    return PALETTE[id_ % len(PALETTE)]


def token_styles(
    ids: Sequence[int], notes: Sequence[str], unknown: int | None = None
) -> list[Style]:
    """Return the styles of tokens that stand beside each other.

    A token has one colour wherever it stands, or a second shade of it after a neighbour that has
    that very colour: no two neighbours look the same.

    Args:
        ids: of the tokens.
        notes: for each token a note for a notebook.
        unknown: the id of the unknown token, which is red.
    """
    styles: list[Style] = []
    before = None
    for id_, note in zip(ids, notes, strict=True):
        pure = RED if id_ == unknown else token_colour(id_)
        shade = pure
        if pure == before:
            shade = blend_rgb(pure, WHITE if pure == RED else BLACK, SECOND_SHADE)
        styles.append(background(shade, note))
        before = shade
    return styles


def mark(share: float, colour: ColorTriplet, note: str = "") -> Style:
    """Return the style of text that is marked the more, the greater a share is.

    In HTML the mark is as opaque as the share says, over the page's own background and below its
    own text: a share of 0 leaves no mark, on a light page and on a dark one. A terminal does not
    tell its background: there the mark turns from grey to the colour, equally bright, so that a
    small share is never the brightest box.

    Args:
        share: 0 to 1.
        colour: of the mark, ``RED`` or ``BLUE``.
        note: for a notebook.
    """
    red, green, blue = colour
    css = f"background-color: rgba({red}, {green}, {blue}, {OPACITY * share:.3f})"
    meta = {"note": note, "css": css}
    if share < FAINT:
        return Style(meta=meta)
    shown = Color.from_triplet(blend_rgb(GREY, colour, share))
    return Style(color="#ffffff", bgcolor=shown, meta=meta)


def background(colour: ColorTriplet, note: str = "") -> Style:
    """Return the style of black text on a background, with a note for a notebook."""
    return Style(color="#000000", bgcolor=Color.from_triplet(colour), meta={"note": note})


def coloured_text(
    text: str, spans: Iterable[tuple[int, int]], styles: Iterable[Style | None]
) -> Text:
    """Return a text with those parts styled that tokens stand for.

    Control characters become pictures. Of tokens that share their characters, only the first is
    styled.

    Args:
        text: the raw text.
        spans: for each token its first character and the one after its last, in order.
        styles: for each token; None for none.
    """
    shown, end = Text(harmless(text)), 0
    for (first, last), style in zip(spans, styles, strict=True):
        if style and last > end:
            shown.stylize(style, max(first, end), last)
        end = max(end, last)
    return shown


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
