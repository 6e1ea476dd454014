"""The log of a run: a JSON object a line, and a picture of the loss."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt1_jax._conversion import extras, files, json_file


class Log:
    """A file of JSON objects with the key "step", one a line.

    Args:
        path: of the file.
        step: what later steps have logged is taken out: they will be taken again.

    Raises:
        OSError: it cannot be written.
        ValueError: there is a file that is no log.
    """

    def __init__(self, path: Path, step: int):
        self.path = path
        kept = [record for record in read_log(path) if record["step"] <= step]
        with files.atomic_file(path) as new:
            text = "".join(json.dumps(record) + "\n" for record in kept)
            new.write_text(text, encoding="utf-8")

    def write(self, **record: object) -> None:
        """Append one object.

        Raises:
            OSError: it cannot be written; names the file.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:  # that of a full disk names no file
            message = f"cannot write to {self.path}: {error.strerror}"
            raise files.os_error(message, error) from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a log; a last line that was cut short is left out.

    Raises:
        ValueError: another line is no such object; names file and line.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json_file.parse_json(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise ValueError(f'{path}, line {number} is no JSON object with a "step"')
        records.append(record)
    return records


def draw_losses(log: Path, picture: Path) -> None:
    """Draw the losses of a log: of the training steps, and of the validations.

    Where the loss has parts, the one that the validations have is drawn beside them, and the
    auxiliary one apart, which is of another size.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the picture cannot be written.
    """
    extras.require("a picture", "matplotlib", extra="train")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = read_log(log)
    parts = any("task_loss" in record for record in records)
    figure = Figure(figsize=(7, 4), layout="constrained")  # not pyplot's, which would be kept
    FigureCanvasAgg(figure)
    axes, *below = figure.subplots(1 + parts, sharex=True, squeeze=False)[:, 0]
    _draw(axes, records, "task_loss" if parts else "loss", "training", "-")
    _draw(axes, records, "valid_loss", "validation", "o-")
    axes.set_ylabel("loss of the task (nats)" if parts else "loss (nats)")
    if axes.lines:
        axes.legend()
    for lower in below:
        _draw(lower, records, "lm_loss", "training", "-")
        lower.set_ylabel("auxiliary loss (nats)")
    for each in (axes, *below):
        each.grid(alpha=0.3)
    (axes, *below)[-1].set_xlabel("step")
    with files.atomic_file(picture) as new:
        figure.savefig(new, format="png", dpi=120)


def _draw(axes: Any, records: Sequence[dict[str, Any]], name: str, label: str, style: str) -> None:
    found = [(record["step"], record[name]) for record in records if name in record]
    if found:
        axes.plot(*zip(*found, strict=True), style, label=label, linewidth=1, markersize=3)
