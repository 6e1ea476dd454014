"""The metrics against their definitions in numpy, and where they are not defined."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt1_jax.training.metrics import METRICS, check_metric, compute_metrics, metrics_for

# float64 against float64, in another order. Measured: 5e-16.
TOLERANCE = 1e-12


def f1_of(k: int, predictions: np.ndarray, labels: np.ndarray) -> float:
    right = ((predictions == k) & (labels == k)).sum()
    all_ = (predictions == k).sum() + (labels == k).sum()
    return 2 * right / all_ if all_ else 0.0


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))


def ranks(x: np.ndarray) -> np.ndarray:
    """1-based; the mean of them where values are equal."""
    return np.array([(x < value).sum() + ((x == value).sum() + 1) / 2 for value in x])


@pytest.mark.parametrize("C", [2, 3])
@given(seed=st.integers(0, 2**32 - 1), N=st.integers(2, 30))
def test_evaluate_class_metrics_match_numpy(C: int, seed: int, N: int) -> None:
    rng = np.random.default_rng(seed)
    predictions, labels = rng.integers(C, size=(2, N)).astype(np.int32)
    labels[:C], predictions[:2] = np.arange(C)[:N], [0, 1]
    names = metrics_for("classes", C)
    assert ("f1" in names) == (C == 2)
    got = compute_metrics(names, predictions, labels)
    present = sorted({*predictions.tolist(), *labels.tolist()})
    scores = [f1_of(k, predictions, labels) for k in present]
    assert got["accuracy"] == pytest.approx((predictions == labels).mean(), abs=TOLERANCE)
    assert got["macro_f1"] == pytest.approx(np.mean(scores))
    if C == 2:
        assert got["f1"] == pytest.approx(f1_of(1, predictions, labels))
    # Gorodkin's R_K (doi:10.1016/j.compbiolchem.2004.09.006): correlated one-hot vectors.
    x, y = np.eye(C)[predictions], np.eye(C)[labels]
    x, y = x - x.mean(0), y - y.mean(0)
    expected = (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum())
    assert got["matthews"] == pytest.approx(expected, abs=TOLERANCE)


@given(seed=st.integers(0, 2**32 - 1), N=st.integers(3, 30))
def test_evaluate_correlations_match_numpy(seed: int, N: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=N).astype(np.float32)  # with ties
    labels[:2] = [0, 1]
    predictions = rng.standard_normal(N)
    got = compute_metrics(metrics_for("numbers", None), predictions, labels)
    assert got["pearson"] == pytest.approx(correlation(predictions, labels), abs=1e-6)
    expected = correlation(ranks(predictions), ranks(labels))
    assert got["spearman"] == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("predictions", [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0 + 1e-15]])
def test_evaluate_constant_predictions_give_nan_correlation(predictions: list[float]) -> None:
    got = compute_metrics(["pearson", "spearman"], predictions, [1.0, 2.0, 3.0])
    if predictions[0] == predictions[2]:
        assert math.isnan(got["pearson"])
        assert math.isnan(got["spearman"])
    assert all(
        map(math.isnan, compute_metrics(metrics_for("numbers", None), [1.0], [2.0]).values())
    )


@pytest.mark.parametrize("label", [0, 1])
def test_evaluate_handles_constant_class_predictions(label: int) -> None:
    got = compute_metrics(metrics_for("classes", 2), [label] * 4, [label] * 4)
    assert got == {"accuracy": 1, "f1": label, "macro_f1": 1, "matthews": 0}
    assert compute_metrics(["matthews"], [label] * 4, [0, 1, 0, 1])["matthews"] == 0


def test_metrics_for_several_classes_averages_f1_though_two_occur() -> None:
    """The number of classes is the task's: a set in which only 0 and 1 occur is no exception."""
    labels, predictions = [0, 1, 1, 0, 1], [0, 1, 0, 0, 1]
    got = compute_metrics(metrics_for("classes", 3), predictions, labels)
    assert got.keys() == {"accuracy", "macro_f1", "matthews"}
    assert got["macro_f1"] == pytest.approx((0.8 + 0.8) / 2)
    got = compute_metrics(metrics_for("classes", 2), [0, 1, 0, 0], [0, 1, 1, 0])
    assert got["f1"] == pytest.approx(2 / 3)
    assert got["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2)


def test_metrics_for_labels_match_their_definitions() -> None:
    predictions = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0]])
    labels = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 0], [0, 1, 0]])
    got = compute_metrics(metrics_for("labels", 3), predictions, labels)
    by_class = [f1_of(1, predictions[:, k], labels[:, k]) for k in range(3)]
    assert got == {
        "micro_f1": pytest.approx(f1_of(1, predictions.ravel(), labels.ravel())),
        "macro_f1": pytest.approx(np.mean(by_class)),
        "subset_accuracy": 0.5,
    }
    assert compute_metrics(["macro_f1"], labels * 0, labels * 0) == {"macro_f1": 0.0}


def test_check_metric_rejects_metric_of_other_tasks() -> None:
    check_metric("loss", metrics_for("numbers", None), "regression")
    message = (
        "metric is 'f1', but this entailment is measured by accuracy, macro_f1, matthews, loss"
    )
    with pytest.raises(ValueError, match=message):
        check_metric("f1", metrics_for("classes", 3), "entailment")


def test_evaluate_rejects_bad_input() -> None:
    with pytest.raises(ValueError, match="'bleu' is no metric; the metrics are accuracy, f1"):
        compute_metrics(["accuracy", "bleu"], [1], [1])
    for predictions, labels in [([1], [1, 0]), ([], []), ([[1]], [[1]])]:
        with pytest.raises(ValueError, match=r"must be \(N,\)"):
            compute_metrics(["accuracy"], predictions, labels)


@pytest.mark.parametrize("name", METRICS)
def test_evaluate_reports_missing_library(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r'pip install "gpt1-jax\[train\]"'):
        compute_metrics([name], [0, 1], [1, 0])
