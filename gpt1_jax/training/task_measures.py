"""The measures of a model on labelled rows of its task: what is predicted beside the labels."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from gpt1_jax.pretrained import Params
from gpt1_jax.pure import split
from gpt1_jax.training import metrics
from gpt1_jax.training.data.labelled import Row
from gpt1_jax.training.data.tasks import Example, Task
from gpt1_jax.training.metrics import MetricFunction
from gpt1_jax.training.task_forward import forward
from gpt1_jax.training.task_objective import TaskModel


def task_metrics(task: Task) -> tuple[str, ...]:
    """Return the names of the metrics that a task is measured by, see ``metrics.metrics_for``."""
    classes = task.classes
    return metrics.metrics_for(task.predicts, None if classes is None else len(classes))


def task_measures(
    model: TaskModel,
    task: Task,
    rows: Sequence[Row],
    *,
    batch_size: int = 32,
    own_metrics: Mapping[str, MetricFunction] = MappingProxyType({}),
) -> Callable[[Params], dict[str, float]]:
    """Return the function from a model's parameters to its measures on labelled rows.

    Args:
        model: whose structure it is; its own parameters are not used.
        task: that it was trained for.
        rows: to predict.
        batch_size: examples that are computed at once.
        own_metrics: measures beside the metrics of the task.

    Returns:
        Parameters -> the metrics of the task (``task_metrics``), and ``loss``, the mean of the
        task's own loss; and those of one's own.

    Raises:
        ValueError: a row is wrong; names the file and the line.
    """
    structure, _ = split(model)
    examples = [task.encode(row) for row in rows]

    def measure(params: Params) -> dict[str, float]:
        logits, loss = forward(structure, params, examples, batch_size=batch_size)
        return compare(task, examples, logits, loss, own_metrics)

    return measure


def compare(
    task: Task,
    examples: Sequence[Example],
    logits: np.ndarray,
    loss: float,
    own_metrics: Mapping[str, MetricFunction] = MappingProxyType({}),
) -> dict[str, float]:
    """Return what ``task_measures`` returns, of what ``task_forward.forward`` has computed."""
    outcome = _outcome(task, examples, logits)
    measures = {"loss": loss, **metrics.compute_metrics(task_metrics(task), *outcome)}
    return measures | {name: float(of(*outcome)) for name, of in own_metrics.items()}


def _outcome(
    task: Task, examples: Sequence[Example], logits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what is predicted, and the labels, as metrics compare them."""
    if task.predicts == "labels":
        predictions = (logits > 0).astype(np.int32)
    else:
        predictions = logits[:, 0] if task.predicts == "numbers" else logits.argmax(-1)
    dtype = np.float32 if task.predicts == "numbers" else np.int32
    return predictions, np.array([example.label for example in examples], dtype)
