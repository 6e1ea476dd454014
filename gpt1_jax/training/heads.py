"""The head of a checkpoint that is fine-tuned: kept where its rows mean the same, else new."""

import dataclasses
import functools
from pathlib import Path
from typing import Self

from flax import nnx
from flax.traverse_util import unflatten_dict

from gpt1_jax._conversion import conversion, json_file, layout
from gpt1_jax.checks import short
from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.pretrained import flatten, initial_params
from gpt1_jax.training.data.tasks import MULTI_LABEL, Task, TaskName
from gpt1_jax.training.task_file import TASK
from gpt1_jax.training.task_objective import TaskModel


@dataclasses.dataclass(frozen=True)
class TrainedHead:
    """What the head of a checkpoint was trained for.

    Attributes:
        architecture: of the checkpoint.
        task: its name in task.json; None where no such file says it.
        classes: the names of its rows, in their order; None where it has no classes.
        multi_label: whether any number of the classes may be right at once.
    """

    architecture: str
    task: str | None
    classes: tuple[str, ...] | None
    multi_label: bool = False

    @classmethod
    def read(cls, folder: Path, config: OpenAIGPTConfig) -> Self | None:
        """Return what a checkpoint's head is for; None where it has none but a language model's."""
        architecture = conversion.read_architecture(folder)
        if architecture not in (layout.CLASSIFICATION, layout.DOUBLE_HEADS):
            return None
        path = folder / TASK
        fields = json_file.read_json(path) if path.is_file() else None
        task = fields.get("name") if isinstance(fields, dict) else None
        names = tuple(name for _, name in sorted(config.id2label.items()))
        by_class = architecture == layout.CLASSIFICATION and len(names) > 1
        multi_label = config.problem_type == MULTI_LABEL
        return cls(architecture, task, names if by_class else None, multi_label)

    def order(self, task: TaskName, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Return a training set's classes, in the order of the rows if they are the same."""
        if self.task in (None, task) and sorted(self.classes or ()) == sorted(classes):
            return self.classes or ()
        return classes

    def fits(self, task: Task) -> bool:
        """Return whether the rows mean what those of a task's head mean."""
        return self._is_of(task) and self.classes == task.classes

    def check_replaceable(self, task: Task, source: object) -> None:
        """Check that a new head is no surprise: that this one was trained for another task.

        Args:
            task: the task to train, which this head does not fit.
            source: the checkpoint, as the error names it.

        Raises:
            ValueError: it was trained for the same task, with other classes.
        """
        if self._is_of(task):
            trained, wanted = map(_shown, (self.classes, task.classes))
            raise ValueError(
                f"{source} was trained on {trained}, but the training set has {wanted}: pass "
                "new_head=True (--new-head) to train a new head"
            )

    def describe(self) -> str:
        """Return what it was trained for."""
        return self.task or ("choices" if self.classes is None else _shown(self.classes))

    def _is_of(self, task: Task) -> bool:
        known = (self.architecture, self.multi_label) == (task.architecture, task.multi_label)
        return known and self.task in (None, task.name)


def draw_head(model: TaskModel, rngs: nnx.Rngs) -> None:
    """Give a model a new head, in place: all parameters but those of the transformer."""
    paths = [path for path in model.shapes if path[0] != "transformer"]
    new = initial_params(functools.partial(type(model), model.config), rngs, paths)
    model.load_params(unflatten_dict({**flatten(model.params), **new}))


def _shown(classes: tuple[str, ...] | None) -> str:
    return "numbers" if classes is None else f"the classes {short(list(classes))}"
