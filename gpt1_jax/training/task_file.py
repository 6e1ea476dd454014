"""task.json: what a checkpoint was fine-tuned for, and from which columns, beside its weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from gpt1_jax._conversion import files, json_file
from gpt1_jax.checks import wrong
from gpt1_jax.text.tokenizer import Tokenizer
from gpt1_jax.training.data.records import Quoting
from gpt1_jax.training.data.tasks import Task, prepare_tokenizer, task_columns

TASK = "task.json"


def read_task(folder: Path, tokenizer: Tokenizer, n_positions: int) -> tuple[Task, dict[str, str]]:
    """Return the task that a checkpoint was trained for, and the columns it was trained on.

    Raises:
        FileNotFoundError: the folder has no task.json.
        ValueError: the file is broken.
    """
    path = folder / TASK
    try:
        fields = json_file.parse_json(path.read_bytes())
        columns = fields.pop("columns")
        if not isinstance(columns, dict) or not all(isinstance(c, str) for c in columns.values()):
            raise ValueError(f"columns is {json_file.short(columns)}, but must hold names by roles")
        _quoting_of(fields)
        classes = fields.pop("classes")
        if not isinstance(classes, list | None):
            raise ValueError(f"classes is {json_file.short(classes)}, but must be a list")
        task = Task(
            tokenizer=tokenizer,
            special=prepare_tokenizer(tokenizer),
            n_positions=n_positions,
            classes=None if classes is None else tuple(classes),
            **fields,
        )
        named = [columns.pop(f"choice{k}") for k in range(task.choices)]
        columns = task_columns(task.name, columns, named)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} describes no task: {json_file.first_line(error)}") from None
    return task, columns


def read_quoting(folder: Path) -> Quoting | None:
    """Return the quoting of the files that a checkpoint was trained on, as ``finetune`` took it.

    Raises:
        FileNotFoundError: the folder has no task.json.
        ValueError: the file is broken.
    """
    try:
        return _quoting_of(json_file.parse_json((folder / TASK).read_bytes()))
    except (AttributeError, TypeError, ValueError) as error:
        message = json_file.first_line(error)
        raise ValueError(f"{folder / TASK} describes no task: {message}") from None


def _quoting_of(fields: dict[str, Any]) -> Quoting | None:
    quoting = fields.pop("quoting", None)  # which task.json of an older version lacks
    if quoting not in (None, *get_args(Quoting)):
        raise wrong("quoting", quoting, '"csv", "none" or null')
    return quoting


def write_task(out: Path, task: Task, columns: Mapping[str, str], quoting: Quoting | None) -> None:
    """Write what ``read_task`` and ``read_quoting`` read, beside a checkpoint or an adapter."""
    fields = {
        "name": task.name,
        "classes": task.classes,
        "choices": task.choices,
        "max_tokens": task.max_tokens,
        "columns": dict(columns),
        "quoting": quoting,
        "multi_label": task.multi_label,
        "label_separator": task.label_separator,
    }
    with files.atomic_write(out) as new:
        new(TASK).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
