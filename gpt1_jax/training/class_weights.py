"""Weights of classes in the loss: given by name, or such that all classes count alike."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from gpt1_jax.checks import ABOVE_0, check, short
from gpt1_jax.training.data.labelled import Row
from gpt1_jax.training.data.tasks import Task

ClassWeights = Mapping[str, float] | Literal["balanced"]


def weigh_classes(given: ClassWeights | None, task: Task, rows: Sequence[Row]) -> np.ndarray | None:
    """Return the weights of a task's classes, in their order: (C,) float32; None if none are given.

    Args:
        given: a number above 0 for each class by its name; or "balanced", which is scikit-learn's:
            the number of rows, divided by that of the classes and by that of the class's rows.
        task: whose classes they are.
        rows: those that are trained on.

    Raises:
        ValueError: the task has no classes, a name is missing or none, a number is wrong, or a
            class has no rows to balance.
    """
    if given is None:
        return None
    if task.predicts != "classes" or task.classes is None:
        raise ValueError(
            "class_weights are of rows with one class each, but a "
            f"{task.name} here predicts {task.predicts}"
        )
    if given == "balanced":
        counts = Counter(row.label for row in rows)
        if missing := [name for name in task.classes if not counts[name]]:
            raise ValueError(f"class_weights: the class {missing[0]!r} has no rows to balance")
        scale = len(rows) / len(task.classes)
        return np.array([scale / counts[name] for name in task.classes], np.float32)
    if not isinstance(given, Mapping) or given.keys() != set(task.classes):
        names = short(list(task.classes))
        found = short(list(given) if isinstance(given, Mapping) else given)
        raise ValueError(
            f'class_weights must be "balanced", or a number for each of {names}, not for {found}'
        )
    for name, weight in given.items():
        check(f"the class weight of {name!r}", weight, ABOVE_0)
    return np.array([given[name] for name in task.classes], np.float32)
