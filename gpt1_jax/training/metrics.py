"""Metrics of fine-tuned models, by scikit-learn and scipy."""

import importlib
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from gpt1_jax._conversion import extras


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of predictions that are right."""
    return float(_library("sklearn.metrics").accuracy_score(labels, predictions))


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the F1 score of class 1, of the two classes 0 and 1."""
    return _f1(predictions, labels, "binary")


def macro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of the F1 scores of all classes that occur in predictions or labels.

    Where rows have any number of the classes, (N, C), it is the mean of all.
    """
    return _f1(predictions, labels, "macro")


def micro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the F1 score of all decisions of all rows together, (N, C) of 0 and 1."""
    return _f1(predictions, labels, "micro")


def subset_accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of rows of which all labels are right and none is missing, (N, C)."""
    return accuracy(predictions, labels)


def _f1(predictions: np.ndarray, labels: np.ndarray, average: str) -> float:
    """Return scikit-learn's F1; a class without a right prediction scores 0."""
    # zero_division is what it is by default, without the warning.
    score = _library("sklearn.metrics").f1_score
    return float(score(labels, predictions, average=average, zero_division=0.0))


def matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return Matthews' correlation coefficient; 0 where all predictions, or labels, are equal."""
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0  # scikit-learn's value too, but with a warning
    return float(_library("sklearn.metrics").matthews_corrcoef(labels, predictions))


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return Pearson's correlation coefficient; NaN where all predictions, or labels, are equal."""
    return _correlation("pearsonr", predictions, labels)


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return Spearman's rank correlation; NaN where all predictions, or labels, are equal."""
    return _correlation("spearmanr", predictions, labels)


def _correlation(name: str, predictions: np.ndarray, labels: np.ndarray) -> float:
    if len(labels) < 2:
        return float("nan")
    stats = _library("scipy.stats")
    with warnings.catch_warnings():  # the NaN says it
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        return float(getattr(stats, name)(predictions, labels).statistic)


def _library(module: str) -> ModuleType:
    extras.require("a metric", module.partition(".")[0], extra="train")
    return importlib.import_module(module)


# (predictions (N,), labels (N,)) -> a number. Both are classes or choices, integer, or numbers; or
# where several labels may be right, (N, C) of 0 and 1.
MetricFunction = Callable[[np.ndarray, np.ndarray], float]
METRICS: dict[str, MetricFunction] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
    "micro_f1": micro_f1,
    "subset_accuracy": subset_accuracy,
}
# What chooses the best model: a metric, which is better the higher it is, or the loss.
Metric = Literal[
    "accuracy",
    "f1",
    "macro_f1",
    "matthews",
    "pearson",
    "spearman",
    "micro_f1",
    "subset_accuracy",
    "loss",
]
OF_LABELS = ("micro_f1", "macro_f1", "subset_accuracy")


def metrics_for(predicts: str, num_classes: int | None) -> tuple[str, ...]:
    """Return the names of the metrics of a task; the first chooses the best model by default.

    Args:
        predicts: see ``Task.predicts``.
        num_classes: of the task, whether they occur in a set or not; None if it has no classes.
    """
    if predicts == "numbers":
        return ("pearson", "spearman")
    if predicts == "choices":
        return ("accuracy",)
    if predicts == "labels":
        return OF_LABELS
    return ("accuracy", *(("f1",) if num_classes == 2 else ()), "macro_f1", "matthews")


def check_metric(metric: str, names: Sequence[str], task: str) -> None:
    """Check that a task is measured by a metric that is to choose its best model.

    Raises:
        ValueError: it is not; the message names those that it is measured by.
    """
    if metric not in (*names, "loss"):
        found = ", ".join((*names, "loss"))
        raise ValueError(f"metric is {metric!r}, but this {task} is measured by {found}")


def compute_metrics(
    names: Sequence[str], predictions: ArrayLike, labels: ArrayLike
) -> dict[str, float]:
    """Compare predictions with labels.

    Args:
        names: of ``METRICS``.
        predictions: (N,) classes (or choices), integer; or numbers; or any number of C classes,
            (N, C) of 0 and 1.
        labels: (N,) likewise.

    Returns:
        Each metric by its name.

    Raises:
        ValueError: a name that is none, nothing to compare, or shapes that differ.
        ImportError: scikit-learn or scipy is not installed.
    """
    if unknown := [name for name in names if name not in METRICS]:
        raise ValueError(f"{unknown[0]!r} is no metric; the metrics are {', '.join(METRICS)}")
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    several = labels.ndim == 2 and set(names) <= set(OF_LABELS)
    if predictions.ndim != 1 + several or predictions.shape != labels.shape or not labels.size:
        raise ValueError(
            f"predictions have shape {predictions.shape}, labels {labels.shape}, "
            "but both must be (N,), N at least 1"
        )
    return {name: METRICS[name](predictions, labels) for name in names}
