"""Pictures of a forward trace, by matplotlib: attention maps, what comes next, the logit lens."""

import math
import operator
from typing import TYPE_CHECKING

from gpt1_jax.explore import display
from gpt1_jax.explore.display import Figure
from gpt1_jax.explore.forward_trace import ForwardTrace, LogitLens, NextTokens

if TYPE_CHECKING:  # importing it takes a second
    from matplotlib.axes import Axes

COLUMNS = 4  # of a picture of all heads
LABELLED = 40  # tokens: more are not written beside a map


def draw_attention(trace: ForwardTrace, layer: int, head: int | None = None) -> Figure:
    """Draw where each token looks: a row for each, and a column for each that it looks at.

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
    side = 2.6 if head is None else max(3.5, 0.3 * min(T, LABELLED) + 1.5)
    picture = _figure(side * columns + 1, side * rows + 0.4)
    labels = [_label(token) for token in trace.tokens]
    drawn = []
    for number, shown_head in enumerate(shown, start=1):
        axes: Axes = picture.figure.add_subplot(rows, columns, number)
        drawn.append(axes)
        weights = trace.attentions[layer, shown_head]
        axes.imshow(weights, cmap="Blues", vmin=0, vmax=1)
        axes.set_title(f"layer {layer}, head {shown_head}", fontsize=10)
        # Of many small maps only those at the edges name the tokens.
        named = T <= LABELLED
        left = named and (number - 1) % columns == 0
        bottom = named and number + columns > len(shown)
        axes.set_xticks(range(T) if bottom else [], labels if bottom else [], rotation=90)
        axes.set_yticks(range(T) if left else [], labels if left else [])
        axes.tick_params(labelsize=8 if head is not None else 7, length=2)
    picture.figure.supxlabel("looks at", fontsize=9)
    picture.figure.supylabel("token", fontsize=9)
    picture.figure.colorbar(drawn[0].images[0], ax=drawn, shrink=0.6, label="share")
    return picture


def draw_next_tokens(expected: NextTokens) -> Figure:
    """Draw the most probable next tokens as a bar chart.

    Raises:
        ImportError: matplotlib is not installed.
    """
    count = len(expected.tokens)
    picture = _figure(6.5, 0.28 * count + 1.0)
    axes: Axes = picture.figure.add_subplot()
    bars = axes.barh(range(count), expected.probabilities, color="#7fb1d8")
    axes.bar_label(bars, [f"{p:.1%}" for p in expected.probabilities], padding=3, fontsize=8)
    axes.set_yticks(range(count), [_label(token) for token in expected.tokens])
    axes.invert_yaxis()
    axes.set_xlim(0, float(expected.probabilities[0]) * 1.15)
    axes.set_xlabel("probability")
    axes.set_title(f"after \u201c{_label(expected.after)}\u201d", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return picture


def draw_logit_lens(lens: LogitLens) -> Figure:
    """Draw what each layer would say next, the last layer on top; dark is sure.

    Raises:
        ImportError: matplotlib is not installed.
    """
    layers, T = lens.ids.shape
    picture = _figure(max(4.0, 0.85 * T + 1.8), 0.38 * layers + 1.2)
    axes: Axes = picture.figure.add_subplot()
    image = axes.imshow(
        lens.probabilities, cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower"
    )
    for layer in range(layers):
        for place in range(T):
            dark = lens.probabilities[layer, place] > 0.6
            axes.text(
                place,
                layer,
                _label(lens.tokens[layer][place]),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "black",
            )
    axes.set_xticks(
        range(T), [_label(token) for token in lens.trace.tokens], rotation=45, ha="right"
    )
    axes.set_yticks(range(layers), lens.names)
    axes.set_xlabel("after")
    axes.tick_params(labelsize=8, length=2)
    picture.figure.colorbar(image, ax=axes, label="probability")
    return picture


def _label(token: str) -> str:
    """A token as matplotlib writes it: dollars are no formula."""
    return display.label(token).replace("$", r"\$")


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
