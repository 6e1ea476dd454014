"""Pictures of a forward trace, by matplotlib: attention maps, what comes next, the logit lens."""

import math
import operator
import textwrap
from typing import TYPE_CHECKING

from gpt1_jax.explore import display
from gpt1_jax.explore.display import Figure
from gpt1_jax.explore.forward_trace import ForwardTrace, LogitLens, NextTokens

if TYPE_CHECKING:  # importing it takes a second
    from matplotlib.axes import Axes

COLUMNS = 4  # of a picture of all heads
LABELLED = 40  # tokens: maps of more are numbered
BARS = 50  # of next tokens
# The lens is wrapped into rows of places, and shows the last of a long text.
LENS_PLACES, LENS_ROWS = 12, 5
LENS_LETTERS = 11  # of a token in a cell
TITLE_LETTERS = 60  # of a text in a title


def draw_attention(trace: ForwardTrace, layer: int, head: int | None = None) -> Figure:
    """Draw where each token looks: a row for each, and a column for each that it looks at.

    Maps of more than 40 tokens have the numbers of the tokens in place of the tokens.

    Args:
        trace: of the text.
        layer: from 0.
        head: from 0; by default all heads of the layer are drawn side by side.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no such layer or head.
    """
    layers, heads, T, _ = trace.attentions.shape
    layer, head = operator.index(layer), None if head is None else operator.index(head)
    for name, value, number in (("layer", layer, layers), ("head", head or 0, heads)):
        if not 0 <= value < number:
            raise ValueError(f"{name} is {value}, but must be 0 to {number - 1}")
    shown = range(heads) if head is None else [head]
    columns = min(COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    named = T <= LABELLED
    size = 8 if head is not None else 7  # points, of the tokens
    # Wide enough for the tokens' names, which stand upright below it.
    side = max(3.2 if head is not None else 2.4, (size + 2.5) / 72 * T * named)
    picture = _figure(side * columns + 1.7, side * rows + 1.1)
    labels = [_label(token) for token in trace.tokens]
    drawn: list[Axes] = []
    for number, shown_head in enumerate(shown):
        axes: Axes = picture.figure.add_subplot(rows, columns, number + 1)
        drawn.append(axes)
        weights = trace.attentions[layer, shown_head]
        axes.imshow(weights, cmap="Blues", vmin=0, vmax=1)
        if head is None:
            axes.set_title(f"head {shown_head}", fontsize=9)
        # Of many small maps only those at the edges name the tokens.
        left, bottom = number % columns == 0, number + columns >= len(shown)
        if named:
            axes.set_xticks(range(T) if bottom else [], labels if bottom else [], rotation=90)
            axes.set_yticks(range(T) if left else [], labels if left else [])
        axes.tick_params(labelsize=size, length=2, labelleft=left, labelbottom=bottom)
    whose = f"layer {layer}" if head is None else f"layer {layer}, head {head}"
    picture.figure.suptitle(f"Attention of {whose}", fontsize=11)
    what = "token" if named else "number of the token"
    picture.figure.supxlabel(f"{what} that is looked at (key)", fontsize=9)
    picture.figure.supylabel(f"{what} that looks (query)", fontsize=9)
    bar = picture.figure.colorbar(drawn[0].images[0], ax=drawn, shrink=0.8)
    bar.set_label("attention weight, which sums to 1 in a row", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return picture


def draw_next_tokens(expected: NextTokens) -> Figure:
    """Draw the most probable next tokens as a bar chart, up to 50 of them.

    Raises:
        ImportError: matplotlib is not installed.
    """
    count = min(len(expected.tokens), BARS)
    probabilities = expected.probabilities[:count]
    picture = _figure(6.5, 0.25 * count + 1.3)
    axes: Axes = picture.figure.add_subplot()
    bars = axes.barh(range(count), probabilities, color="#7fb1d8")
    axes.bar_label(bars, [f"{p:.1%}" for p in probabilities], padding=3, fontsize=8)
    axes.set_yticks(range(count), [_label(token) for token in expected.tokens[:count]])
    axes.invert_yaxis()
    axes.margins(y=0.5 / count)
    axes.set_xlim(0, float(probabilities[0]) * 1.15)
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    axes.set_xlabel("probability", fontsize=9)
    axes.set_ylabel("next token", fontsize=9)
    axes.tick_params(labelsize=9, length=2)
    written = " ".join(display.harmless(expected.text).split())
    if len(written) > TITLE_LETTERS:
        written = f"\u2026{written[1 - TITLE_LETTERS :]}"
    which = f"{count} most probable next tokens" if count > 1 else "most probable next token"
    title = f"The {which} after\n\u201c{_plain(written)}\u201d"
    picture.figure.suptitle(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return picture


def draw_logit_lens(lens: LogitLens) -> Figure:
    """Draw what each layer would say next, the last layer on top; dark is sure.

    A text of more than 12 tokens is wrapped, and of one of more than 60 the last 60 are drawn.

    Raises:
        ImportError: matplotlib is not installed.
    """
    layers, T = lens.ids.shape
    first = max(0, T - LENS_PLACES * LENS_ROWS)
    rows = math.ceil((T - first) / LENS_PLACES)
    places = math.ceil((T - first) / rows)  # of each row
    picture = _figure(max(4.5, 0.85 * places + 2.0), (0.33 * layers + 0.8) * rows + 0.7)
    drawn: list[Axes] = []
    for row in range(rows):
        axes: Axes = picture.figure.add_subplot(rows, 1, row + 1)
        drawn.append(axes)
        begin = first + row * places
        _draw_lens_row(axes, lens, slice(begin, min(begin + places, T)))
        axes.set_xlim(-0.5, places - 0.5)  # the last row may be shorter
    drawn[-1].set_xlabel("token that has been read", fontsize=9)
    title = "Logit lens: the most probable next token, if the model ended after each layer"
    if first:
        title += f"; the last {T - first} of {T} tokens"
    picture.figure.suptitle(textwrap.fill(title, 12 * places + 24), fontsize=10)
    bar = picture.figure.colorbar(drawn[0].images[0], ax=drawn, fraction=0.05, pad=0.02)
    bar.set_label("probability", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return picture


def _draw_lens_row(axes: "Axes", lens: LogitLens, places: slice) -> None:
    """Draw some places of a lens."""
    probabilities = lens.probabilities[:, places]
    layers, count = probabilities.shape
    axes.imshow(probabilities, cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
    for layer in range(layers):
        for place, token in enumerate(lens.tokens[layer][places]):
            color = "white" if probabilities[layer, place] > 0.6 else "black"
            text = _label(token, LENS_LETTERS)
            axes.text(place, layer, text, ha="center", va="center", fontsize=8, color=color)
    tokens = lens.trace.tokens[places]
    axes.set_xticks(range(count), [_label(token, LENS_LETTERS) for token in tokens])
    axes.set_yticks(range(layers), lens.names)
    axes.tick_params(labelsize=8, length=2)


def _label(token: str, letters: int | None = None) -> str:
    """Return a token as matplotlib writes it, and no longer than so many letters."""
    text = display.label(token)
    if letters is not None and len(text) > letters:
        text = f"{text[: letters - 1]}\u2026"
    return _plain(text)


def _plain(text: str) -> str:
    """Return a text as matplotlib writes it: dollars are no formula."""
    return text.replace("$", r"\$")


def _figure(width: float, height: float) -> Figure:
    """An empty picture, in inches."""
    from gpt1_jax._conversion import extras  # which `import gpt1_jax.explore` does without

    extras.require("a picture", "matplotlib", extra="train")
    from matplotlib import figure as matplotlib_figure
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # Not pyplot's, which are kept.
    figure = matplotlib_figure.Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return Figure(figure)
