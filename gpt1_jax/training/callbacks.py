"""Callbacks: what a training calls while it runs, and those that it logs and shows itself by."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from gpt1_jax.training.log import Log, draw_losses

if TYPE_CHECKING:
    from gpt1_jax.training.loop import TrainProgress, TrainRun

Answer = Literal["stop"] | None
Event = Literal["on_start", "on_step", "on_evaluate", "on_checkpoint", "on_end"]
EVENTS: tuple[Event, ...] = get_args(Event)


class Callback:
    """The base class of callbacks: a subclass overrides the methods that it needs.

    They are called in the main process alone, in the order of the callbacks, after the line of the
    log is written. A method that returns "stop" ends the training: after the first step or a later
    one a checkpoint is written, from which the same call resumes, and the result is saved, which is
    the best model so far or, without a validation so far, the current one. An exception ends the
    training in all processes at once; earlier checkpoints stay.
    """

    def on_start(self, run: "TrainRun") -> Answer:
        """Act before the first step, or the first one after a resumption.

        ``run`` tells the state of the training at any time: ``run.step``, ``run.progress``,
        ``run.params``, ``run.spec``, ``run.settings`` and the output folder ``run.out``.
        """

    def on_step(self, step: int, metrics: Mapping[str, float]) -> Answer:
        """Act every ``log_every`` steps, and before each call of the next two.

        ``metrics`` holds ``learning_rate``, unless the optimizer is a transformation of one's own,
        and, over the steps since the last call, the means of ``loss``, ``grad_norm`` and
        ``tokens_per_second``; in fine-tuning with an auxiliary loss also those of the two parts of
        the loss, ``task_loss`` and ``lm_loss``.
        """

    def on_evaluate(self, step: int, metrics: Mapping[str, float]) -> Answer:
        """Act after a validation, given its measures; the best model so far is saved by then."""

    def on_checkpoint(self, step: int, path: Path) -> Answer:
        """Act after a checkpoint was written, given its folder."""

    def on_end(self, result: "TrainProgress | None", error: BaseException | None) -> None:
        """Act once at the end, given the result or the exception that ended the training.

        The exception is a KeyboardInterrupt with the signal's number after SIGINT or SIGTERM.
        """


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Check that each callback is an object with at least one of the methods.

    Raises:
        ValueError: one is not; the message names it.
    """
    if not isinstance(callbacks, Sequence):
        raise ValueError(f"callbacks is {callbacks!r}, but must be a sequence of callbacks")
    for callback in callbacks:
        if isinstance(callback, type) or not any(hasattr(callback, event) for event in EVENTS):
            raise ValueError(
                f"{callback!r} is not a callback: expected an object with at least one of the "
                f"methods {', '.join(EVENTS)}"
            )


def says_stop(callback: Callback, event: Event, *args: object) -> bool:
    """Call a method of a callback, if it has it, and return whether the answer is "stop".

    Raises:
        ValueError: the answer is neither "stop" nor None.
    """
    method = getattr(callback, event, None)
    answer = None if method is None else method(*args)
    if answer is not None and answer != "stop":
        raise ValueError(
            f'{type(callback).__name__}.{event} returned {answer!r}, but must return "stop" or None'
        )
    return answer == "stop"


class ProgressBar(Callback):
    """A bar on a terminal, and a line on standard error for every validation."""

    def on_start(self, run: "TrainRun") -> None:
        from tqdm import tqdm

        self.progress = run.progress
        self.bar = tqdm(total=run.spec.steps, initial=run.step, unit="step", disable=None)

    def advance(self) -> None:
        """Move by one step; the loop calls this at every step, and no other callback so often."""
        self.bar.update()

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        shown = {"loss": ".4f", "learning_rate": ".2e", "tokens_per_second": ".0f"}
        values = {
            name: format(metrics[name], form) for name, form in shown.items() if name in metrics
        }
        self.bar.set_postfix(values, refresh=False)

    def on_evaluate(self, step: int, metrics: Mapping[str, float]) -> None:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self.tell(f"step {step}: {shown}{' (best)' if self.progress.best_step == step else ''}")

    def tell(self, line: str) -> None:
        """Print a line on standard error, above the bar."""
        self.bar.write(line, file=sys.stderr)

    def on_end(self, result: "TrainProgress | None", error: BaseException | None) -> None:
        self.bar.close()


class LogFile(Callback):
    """``log.jsonl``: a line for every call of ``on_step``, and one for every validation."""

    def on_start(self, run: "TrainRun") -> None:
        self.log = Log(run.out / "log.jsonl", run.step)

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        self.log.write(step=step, **metrics)

    def on_evaluate(self, step: int, metrics: Mapping[str, float]) -> None:
        self.log.write(step=step, **{f"valid_{name}": value for name, value in metrics.items()})


class LossPicture(Callback):
    """``loss.png``, drawn from the log at every validation and in the end."""

    def on_start(self, run: "TrainRun") -> None:
        self.out = run.out

    def on_evaluate(self, step: int, metrics: Mapping[str, float]) -> None:
        draw_losses(self.out / "log.jsonl", self.out / "loss.png")

    def on_end(self, result: "TrainProgress | None", error: BaseException | None) -> None:
        if error is None:
            draw_losses(self.out / "log.jsonl", self.out / "loss.png")
