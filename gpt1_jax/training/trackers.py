"""Trackers: callbacks that report a training to TensorBoard or to Weights & Biases."""

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from gpt1_jax._conversion import extras, json_file
from gpt1_jax.training.callbacks import Callback
from gpt1_jax.training.run_folder import SETTINGS

if TYPE_CHECKING:
    from gpt1_jax.training.loop import TrainProgress, TrainRun

TrackerName = Literal["tensorboard", "wandb"]
RUN_ID = "wandb_run.txt"


class TensorBoard(Callback):
    """Writes event files into the folder ``tensorboard`` of a run.

    ``tensorboard --logdir OUT`` shows them: ``train/loss`` and the like for every line of the log,
    ``valid/...`` for every validation. A run that is resumed goes on in the same curves.

    Raises:
        ImportError: tensorboardX is not installed.
    """

    def __init__(self):
        extras.require("TensorBoard", "tensorboardX", extra="tensorboard")
        self._module = importlib.import_module("tensorboardX")

    def on_start(self, run: "TrainRun") -> None:
        # What was written after the last checkpoint comes again, and is hidden by purge_step.
        folder, purge_step = str(run.out / "tensorboard"), run.step or None
        self._writer = self._module.SummaryWriter(folder, purge_step=purge_step)

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._add("train", step, metrics)

    def on_evaluate(self, step: int, metrics: Mapping[str, float]) -> None:
        self._add("valid", step, metrics)

    def _add(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def on_end(self, result: "TrainProgress | None", error: BaseException | None) -> None:
        self._writer.close()


class WandB(Callback):
    """Reports to Weights & Biases, by the account and the mode that its own variables name.

    $WANDB_PROJECT names the project, by default "gpt1-jax", and $WANDB_MODE=offline keeps the run
    on disk. The settings in run.json are the run's configuration. A training that is resumed goes
    on in the same run, whose id is kept in the folder.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self):
        extras.require("WandB", "wandb", extra="wandb")
        self._module = importlib.import_module("wandb")

    def on_start(self, run: "TrainRun") -> None:
        path = run.out / RUN_ID
        settings = run.out / SETTINGS
        self._run = self._module.init(
            project=os.environ.get("WANDB_PROJECT", "gpt1-jax"),
            name=run.out.resolve().name,
            dir=str(run.out),
            config=json_file.read_json(settings) if settings.is_file() else None,
            id=path.read_text(encoding="utf-8").strip() if path.is_file() else None,
            resume="allow",
        )
        path.write_text(f"{self._run.id}\n", encoding="utf-8")

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({f"train/{name}": value for name, value in metrics.items()}, step=step)

    def on_evaluate(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({f"valid/{name}": value for name, value in metrics.items()}, step=step)

    def on_end(self, result: "TrainProgress | None", error: BaseException | None) -> None:
        if result is not None and result.best is not None:
            best = {f"best/{name}": value for name, value in result.best.items()}
            self._run.summary.update({**best, "best/step": result.best_step})
        self._run.finish(exit_code=0 if error is None else 1)


TRACKERS: Mapping[TrackerName, type[Callback]] = {"tensorboard": TensorBoard, "wandb": WandB}


def trackers(names: Sequence[TrackerName]) -> list[Callback]:
    """Return the trackers of these names.

    Raises:
        ImportError: the package of one is not installed; the message says how to get it.
    """
    return [TRACKERS[name]() for name in names]
