"""The weights of classes against scikit-learn's, and tasks that have none."""

from typing import Any

import numpy as np
import pytest

from gpt1_jax.training.class_weights import weigh_classes
from gpt1_jax.training.data.labelled import Row

NAMES = ("no", "yes", "maybe")
LABELS = ["yes"] * 5 + ["no"] * 2 + ["maybe"]
ROWS = [Row("rows, line 1", {}, label) for label in LABELS]


class StandIn:
    """What is read of a task."""

    name, predicts, classes = "classification", "classes", NAMES


def test_weigh_classes_balances_as_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    task: Any = StandIn()
    expected = compute_class_weight("balanced", classes=np.array(NAMES), y=LABELS)
    found = weigh_classes("balanced", task, ROWS)
    assert found is not None
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="the class 'maybe' has no rows to balance"):
        weigh_classes("balanced", task, ROWS[:7])


def test_weigh_classes_follows_the_order_of_the_classes() -> None:
    task: Any = StandIn()
    found = weigh_classes({"maybe": 3, "yes": 1.5, "no": 2.0}, task, ROWS)
    np.testing.assert_array_equal(found, [2.0, 1.5, 3.0])
    assert weigh_classes(None, task, ROWS) is None
    task.predicts = "choices"
    with pytest.raises(
        ValueError, match="of rows with one class each, but a classification here p"
    ):
        weigh_classes("balanced", task, ROWS)
