"""Numbers of each class, and their picture, of predictions that are counted by hand."""

from pathlib import Path

import pytest

from gpt1_jax.training.class_report import class_report, class_report_text, draw_confusion_matrix

pytest.importorskip("sklearn")

NAMES = ["neg", "pos", "never"]
LABELS = ["neg", "neg", "neg", "pos"]
PREDICTIONS = ["neg", "neg", "pos", "pos"]


def test_class_report_counts_every_class() -> None:
    found = class_report(LABELS, PREDICTIONS, NAMES)
    assert found["neg"]["precision"] == 1
    assert found["neg"]["recall"] == pytest.approx(2 / 3)
    assert found["pos"]["precision"] == 0.5
    assert found["pos"]["f1-score"] == pytest.approx(2 / 3)
    assert [found[name]["support"] for name in NAMES] == [3, 1, 0]
    assert found["never"]["f1-score"] == 0
    lines = class_report_text(LABELS, PREDICTIONS, NAMES).splitlines()
    assert lines[2].split() == ["neg", "1.0000", "0.6667", "0.8000", "3"]


def test_draw_confusion_matrix_writes_counts_and_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []

    class Kept(figure.Figure):
        def savefig(self, *args: object, **options: object) -> None:
            drawn.append(self)
            super().savefig(*args, **options)

    monkeypatch.setattr(figure, "Figure", Kept)
    names = ["neg", "pos", "costs $5, and has a long name"]
    draw_confusion_matrix(LABELS, PREDICTIONS, names, tmp_path / "matrix.png")
    assert (tmp_path / "matrix.png").read_bytes().startswith(b"\x89PNG")
    axes = drawn[0].axes[0]
    assert [text.get_text() for text in axes.texts] == [*"210", *"010", *"000"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted label", "true label")
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert shown == ["neg", "pos", "costs \\$5, and has a lon\u2026"]
