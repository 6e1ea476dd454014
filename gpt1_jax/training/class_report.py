"""How a classifier does on each of its classes: a table of numbers, and a confusion matrix."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt1_jax._conversion import extras, files

MOST_COUNTS = 40  # classes: of more, the cells of the picture have no numbers
MOST_LETTERS = 24  # of a class's name in the picture


def class_report(
    labels: Sequence[str], predictions: Sequence[str], names: Sequence[str]
) -> dict[str, Any]:
    """Return precision, recall, F1 and the number of rows of each class, and their averages.

    Args:
        labels: (N,) the true classes.
        predictions: (N,) the predicted ones.
        names: of all classes, in order.

    Returns:
        scikit-learn's ``classification_report``, as a dict. What would divide by 0 is 0.
    """
    return _report(labels, predictions, names, output_dict=True)


def class_report_text(
    labels: Sequence[str], predictions: Sequence[str], names: Sequence[str]
) -> str:
    """Return ``class_report`` as a table of lines."""
    return _report(labels, predictions, names, digits=4).rstrip()


def _report(
    labels: Sequence[str], predictions: Sequence[str], names: Sequence[str], **options: Any
) -> Any:
    from sklearn.metrics import classification_report

    by_zero: Any = 0.0  # which scikit-learn's types do not know
    return classification_report(
        labels, predictions, labels=list(names), zero_division=by_zero, **options
    )


def draw_confusion_matrix(
    labels: Sequence[str], predictions: Sequence[str], names: Sequence[str], picture: Path
) -> None:
    """Draw how often each class was predicted for each true class, as a PNG.

    The numbers are counts; the colours are shares of the true class, so that rare classes show.

    Args:
        labels: see ``class_report``, as the next two.
        predictions: likewise.
        names: likewise.
        picture: the file.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the picture cannot be written.
    """
    extras.require("a picture", "matplotlib", extra="train")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(labels, predictions, labels=list(names))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shown = [_shortened(name) for name in names]
    longest = max(map(len, shown))
    side = 1.6 + 0.07 * longest + max(1.6, 0.42 * len(names))
    # Not pyplot's, which are kept.
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= MOST_COUNTS:
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=color)
    places = range(len(names))
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(places, shown, **(slanted if longest > 3 else {}))
    axes.set_yticks(places, shown)
    axes.tick_params(labelsize=8, length=2)
    axes.set_xlabel("predicted label")
    axes.set_ylabel("true label")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true label")
    bar.ax.tick_params(labelsize=8)
    with files.atomic_file(picture) as new:
        figure.savefig(new, dpi=150, format="png", bbox_inches="tight")  # else labels are cut


def _shortened(name: str) -> str:
    """Return a name as matplotlib writes it: dollars are no formula."""
    short = name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}\u2026"
    return short.replace("$", r"\$")
