"""Metrics of fine-tuned models, by scikit-learn and scipy."""

import importlib
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
from numpy.typing import ArrayLike


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of predictions that are right."""
    return float(_library("sklearn.metrics").accuracy_score(labels, predictions))


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the F1 score: of class 1 where there are classes 0 and 1 alone, else the mean of all.

    A class without a right prediction scores 0.
    """
    average = "binary" if max(labels.max(), predictions.max()) <= 1 else "macro"
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
    try:
        return importlib.import_module(module)
    except ImportError as error:
        hint = 'pip install "gpt1-jax[train]"'
        raise ImportError(f"metrics need scikit-learn and scipy: {hint}") from error


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
# What a task is measured by, after what it predicts (``Task.predicts``); the first chooses models.
DEFAULTS = {
    "classes": ("accuracy", "f1", "matthews"),
    "numbers": ("pearson", "spearman"),
    "choices": ("accuracy",),
}


def compute_metrics(
    names: Sequence[str], predictions: ArrayLike, labels: ArrayLike
) -> dict[str, float]:
    """Compare predictions with labels.

    Args:
        names: of ``METRICS``.
        predictions: (N,) classes (or choices), integer; or numbers.
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
    if predictions.ndim != 1 or predictions.shape != labels.shape or not labels.size:
        raise ValueError(
            f"predictions have shape {predictions.shape}, labels {labels.shape}, "
            "but both must be (N,), N at least 1"
        )
    return {name: METRICS[name](predictions, labels) for name in names}
