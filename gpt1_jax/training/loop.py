"""The training loop: steps, log, validation, checkpoints; a run that was killed is resumed."""

import contextlib
import dataclasses
import errno
import functools
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Literal

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from gpt1_jax._conversion import files
from gpt1_jax.checks import Count, MaybeCount, check_fields
from gpt1_jax.pretrained import Params
from gpt1_jax.pure import first_non_finite
from gpt1_jax.sharding.mesh import gather, make_global_batch, mesh_of, param_shardings, shard
from gpt1_jax.sharding.processes import fail_together, is_main_process, largest
from gpt1_jax.training import run_folder
from gpt1_jax.training.callbacks import (
    Callback,
    Event,
    LogFile,
    LossPicture,
    ProgressBar,
    check_callbacks,
    says_stop,
)
from gpt1_jax.training.checkpoints import KEPT, Checkpoints, Rest
from gpt1_jax.training.data.batches import BatchIterator
from gpt1_jax.training.freezing import combine_params
from gpt1_jax.training.model_card import ModelCard
from gpt1_jax.training.step import Batch, Combine, Objective, TrainState, make_step, micro_batches

STOP = 1  # what a callback asks for, beside the numbers of SIGINT and SIGTERM


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """The intervals of log, validation and checkpoints, in steps.

    Attributes:
        accumulate: number of micro-batches that a batch is split into (gradient accumulation); a
            larger number takes less memory.
        log_every: number of steps between two lines of log.jsonl.
        eval_every: number of steps between two validations; by default the steps of an epoch.
        checkpoint_every: number of steps between two checkpoints, from which an interrupted run
            resumes.
        patience: number of validations in a row without a better one after which training stops
            early; by default it does not.
    """

    accumulate: Count = 1
    log_every: Count = 10
    eval_every: MaybeCount = None
    checkpoint_every: Count = 500
    patience: MaybeCount = None

    def __post_init__(self) -> None:
        check_fields(self)

    def check_for(self, batch_size: int, *, validates: bool) -> None:
        """Check that the settings fit a training.

        Raises:
            ValueError: they ask for what it cannot do, or for what needs a validation.
        """
        if batch_size % self.accumulate:
            raise ValueError(
                f"batch_size is {batch_size}, but must be a multiple of accumulate = "
                f"{self.accumulate}"
            )
        for name in ("eval_every", "patience"):
            value = getattr(self, name)
            if value is not None and not validates:
                raise ValueError(f"{name} is {value}, but needs a validation set")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """What is trained, on what, and what becomes of it.

    Attributes:
        params: those that are trained, before the first step. Where they lie on ``mesh``, the state
            of training takes their memory, and they must not be used again.
        frozen: those that are not.
        combine: makes the model's parameters of both.
        combine_to_train: makes of both what the objective takes, where it is something else.
        objective: the loss.
        optimizer: makes updates of its gradients.
        learning_rate: of the number of steps taken before, for the log; None if it is not known.
        batches: an iterator of grain's, which knows its position; each batch is a dict of arrays,
            of the rows that are this process's own (``mesh.process_local_rows``).
        tokens: how many tokens of a batch are trained on.
        batch_size: number of rows in a batch; this process may read only some of them.
        steps: how many to take.
        seed: of dropout.
        save: writes the result into the output folder, given the trained parameters and the
            model's, whole.
        evaluate: measures of the model's parameters, ``loss`` among them; None without validation.
        chosen: the measure that says which parameters are best; the loss, where it is equal.
        better: whether it should be high or low.
        mesh: the devices to train on; None for one.
    """

    params: Params
    frozen: Params
    combine: Combine = combine_params
    combine_to_train: Combine | None = None
    objective: Objective
    optimizer: optax.GradientTransformation
    learning_rate: Callable[[int], jax.Array] | None = None
    batches: BatchIterator
    tokens: Callable[[Batch], int]
    batch_size: int
    steps: int
    seed: int
    save: Callable[[Params, Params], None]
    evaluate: Callable[[Params], dict[str, float]] | None = None
    chosen: str = "loss"
    better: Literal["high", "low"] = "low"
    mesh: Mesh | None = None

    def worth(self, measures: Mapping[str, float]) -> tuple[float, float]:
        """Return how good measures are: the greater, the better.

        Of equal values of ``chosen`` the one with the lower loss is better. A NaN, such as the
        correlation of equal predictions, is worse than every number.
        """
        score = measures[self.chosen] if self.better == "high" else -measures[self.chosen]
        return _nan_last(score), _nan_last(-measures["loss"])


def _nan_last(value: float) -> float:
    return -np.inf if np.isnan(value) else value


@dataclasses.dataclass
class TrainProgress:
    """How the validations went.

    Attributes:
        best: all measures of the best one.
        best_step: when that was.
        stale: how many there were since.
        stopped: whether training ended for lack of a better one.
    """

    best: dict[str, float] | None = None
    best_step: int = 0
    stale: int = 0
    stopped: bool = False


def train_into(
    out: str | os.PathLike[str],
    prepare: Callable[[Path], tuple[TrainSpec, LoopSettings]],
    callbacks: Sequence[Callback],
) -> TrainProgress:
    """Hold an output folder while a training is prepared, and then train; in all processes.

    Args:
        out: the output folder, which gets a model card in the end; made if need be.
        prepare: what returns the arguments of ``train``, given the folder.
        callbacks: see ``train``.

    Raises:
        BlockingIOError: another training holds the folder.
        ValueError: a callback is none; see also ``train`` and ``prepare``.
        OSError: see ``train`` and ``prepare``.
    """
    check_callbacks(callbacks)
    with contextlib.ExitStack() as stack:
        with fail_together():
            folder = files.output_path(out)
            stack.enter_context(run_folder.locked(folder))
            spec, settings = prepare(folder)
        return train(spec, settings, folder, [ModelCard(), *callbacks])


def train(
    spec: TrainSpec, settings: LoopSettings, out: Path, callbacks: Sequence[Callback] = ()
) -> TrainProgress:
    """Train, from the latest checkpoint in ``out`` if there is one.

    ``out`` gets ``log.jsonl``, ``loss.png``, ``checkpoints/`` and what ``spec.save`` writes:
    the best parameters so far, or without validation the last ones. SIGINT and SIGTERM end the run
    after the current step, with a checkpoint; a second one at once. Of several processes, all of
    which call this, the first alone writes and reports, and a signal to any of them is heard when
    a line of the log is due.

    Args:
        spec: what to train.
        settings: when to do what.
        out: the output folder; made if need be.
        callbacks: called while training runs; see ``Callback``.

    Returns:
        How the validations went.

    Raises:
        ValueError: the checkpoint is of another training; the loss is no longer a number.
        OSError: something cannot be written; earlier checkpoints stay.
        KeyboardInterrupt: after SIGINT or SIGTERM, whose number is its argument.
    """
    with Checkpoints(out / "checkpoints") as checkpoints, _interruption() as received:
        return TrainRun(spec, settings, out, callbacks, checkpoints, received).run()


class TrainRun:
    """A training that runs.

    Attributes:
        spec: what is trained.
        settings: when to do what.
        out: the output folder.
        step: how many steps have been taken.
        progress: how the validations went so far.
    """

    def __init__(
        self,
        spec: TrainSpec,
        settings: LoopSettings,
        out: Path,
        callbacks: Sequence[Callback],
        checkpoints: Checkpoints,
        received: list[int],
    ):
        self.spec, self.settings, self.out = spec, settings, out
        self._checkpoints, self._received = checkpoints, received
        self._ending = 0  # STOP, or the number of a signal; the same in all processes
        self._bar = ProgressBar()
        self._callbacks: Sequence[Callback] = ()
        if is_main_process():
            self._callbacks = (self._bar, LogFile(), LossPicture(), *callbacks)
        self._frozen = spec.frozen
        if spec.mesh is not None:
            self._frozen = shard(spec.frozen, param_shardings(spec.mesh, spec.frozen))
        self._compiled_step = make_step(
            spec.objective, spec.optimizer, spec.combine_to_train or spec.combine
        )
        self._state, rest = _first_state(spec, checkpoints)
        self.step = int(self._state.step)
        self.progress = TrainProgress()
        if rest is not None:
            spec.batches.set_state(rest["position"])
            self.progress = TrainProgress(**rest["progress"])
        self._window = _Window()

    @property
    def params(self) -> Params:
        """The model's parameters as they are now, which the next step overwrites."""
        return self.spec.combine(self._state.params, self._frozen)

    def run(self) -> TrainProgress:
        """Train to the end, see ``train``."""
        self._check_space()
        try:
            self._call("on_start", self)
            if self.progress.stopped and is_main_process():
                self._bar.tell(
                    f"the run ended at step {self.step}, after {self.progress.stale} validations "
                    "without a better one"
                )
            self._train()
            if self._ending > STOP:
                if is_main_process():
                    self._bar.tell(
                        f"stopped after step {self.step}; run the same command to resume"
                    )
                raise KeyboardInterrupt(self._ending)
            if self.progress.best is None:
                self._save()
        except BaseException as error:
            try:
                self._end(None, error)
            except Exception as second:
                error.add_note(f"then a callback's on_end raised {second!r}")
            raise
        with fail_together():
            self._end(self.progress, None)
        return self.progress

    def _train(self) -> None:
        self._window.restart()
        while self.step < self.spec.steps and not self.progress.stopped and not self._ending:
            self._take_step()
            evaluates = self.spec.evaluate is not None and self._is_every(self.settings.eval_every)
            saves = self._is_every(self.settings.checkpoint_every)
            interrupted = jax.process_count() == 1 and self._received  # else at the next log line
            if evaluates or saves or interrupted or self._is_every(self.settings.log_every):
                self._log()
                if evaluates:
                    self._evaluate()
                if saves or self._ending or self.progress.stopped:
                    self._checkpoint()
                self._window.restart()  # which is of the steps alone

    def _check_space(self) -> None:
        """Check that the disk has room for the result and the checkpoints that are kept.

        At most there are one checkpoint more, before the oldest is removed, and two results, before
        the new one takes the name of the old one.
        """
        left = self.spec.steps - self.step
        if left <= 0 or self.progress.stopped:
            return
        params = jax.eval_shape(self.spec.combine, self._state.params, self._frozen)
        state, model = (
            sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
            for tree in (self._state, params)
        )
        there, writes = self._checkpoints.number, -(-left // self.settings.checkpoint_every)
        checkpoints = min(KEPT + 1, there + writes) - there
        results = 1
        if self.spec.evaluate is not None and self.progress.best is None:
            results = min(2, -(-left // (self.settings.eval_every or left)))
        needed = checkpoints * state + results * model
        with fail_together():
            free = shutil.disk_usage(self.out).free
            if is_main_process() and free < needed:
                raise OSError(
                    errno.ENOSPC,
                    f"the result and the checkpoints of the training in {self.out} take {needed:,} "
                    f"bytes, but only {free:,} are free",
                )

    def _is_every(self, steps: int | None) -> bool:
        """Return whether this step is the last, or a multiple of ``steps``."""
        return self.step == self.spec.steps or (steps is not None and self.step % steps == 0)

    def _take_step(self) -> None:
        spec, accumulate = self.spec, self.settings.accumulate
        batch = next(spec.batches)
        micro = micro_batches(batch, accumulate)
        if spec.mesh is not None:
            micro = make_global_batch(spec.mesh, micro, spec.batch_size // accumulate)
        self._state, measures = self._compiled_step(self._state, self._frozen, micro)
        self.step += 1
        self._window.add(measures, spec.tokens(batch))
        if is_main_process():
            self._bar.advance()

    def _log(self) -> None:
        record = self._window.means()
        _check_finite(record, self.step, self.spec)
        if self.spec.learning_rate is not None:
            rate = float(self.spec.learning_rate(self.step - 1))  # which counts from 0
            record = {"learning_rate": rate, **record}
        self._call("on_step", self.step, record)

    def _evaluate(self) -> None:
        """Validate, keep the best parameters, and stop when patience is at its end.

        This is not a callback, because all processes take part in computing, gathering and
        deciding, and the progress is part of a checkpoint.
        """
        assert self.spec.evaluate is not None
        measures, progress = self.spec.evaluate(self.params), self.progress
        if progress.best is None or self.spec.worth(measures) > self.spec.worth(progress.best):
            progress.best, progress.best_step, progress.stale = measures, self.step, 0
            self._save()
        else:
            progress.stale += 1
            progress.stopped = progress.stale == self.settings.patience
        self._call("on_evaluate", self.step, measures)

    def _save(self) -> None:
        params = self._state.params, self.params
        if self.spec.mesh is not None:
            params = gather(params)
        with fail_together():
            if is_main_process():
                self.spec.save(*params)

    def _checkpoint(self) -> None:
        position = self.spec.batches.get_state()
        progress = dataclasses.asdict(self.progress)
        path = self._checkpoints.save(self._state, {"position": position, "progress": progress})
        self._call("on_checkpoint", self.step, path)

    def _call(self, event: Event, *args: object) -> None:
        """Call the callbacks, and agree on whether to end: all processes come here together.

        JAX's own ``reached_preemption_sync_point`` is asked at every step, hears SIGTERM alone and
        up to a second late, and keeps a second one from ending the process; and what callbacks
        answer would need this exchange anyway.
        """
        with fail_together():
            answers = [says_stop(callback, event, *args) for callback in self._callbacks]
        self._ending = largest(max(self._ending, STOP * any(answers), *self._received))

    def _end(self, result: TrainProgress | None, error: BaseException | None) -> None:
        with contextlib.ExitStack() as stack:  # each is called, whatever another one raises
            for callback in reversed(self._callbacks):
                stack.callback(says_stop, callback, "on_end", result, error)
        self._callbacks = ()  # one that keeps the run would keep itself, and so the parameters


def _first_state(spec: TrainSpec, checkpoints: Checkpoints) -> tuple[TrainState, Rest | None]:
    """Return the state of the latest checkpoint, and what else is in it; else a new state, None.

    On a mesh, each device gets its own shards of either, and nothing else.
    """
    create = functools.partial(TrainState.create, optimizer=spec.optimizer, seed=spec.seed)
    if spec.mesh is None:
        state = create(spec.params)
        return checkpoints.latest(state) or (state, None)
    shapes = jax.eval_shape(create, spec.params)
    shardings = param_shardings(spec.mesh, shapes)
    if checkpoints.any:
        like = jax.tree.map(lambda leaf, where: leaf.update(sharding=where), shapes, shardings)
        if mesh_of(spec.params) is not None:
            for leaf in jax.tree.leaves(spec.params):
                leaf.delete()  # its memory is the checkpoint's now
        found = checkpoints.latest(like)
        assert found is not None
        return found
    params = shard(spec.params, param_shardings(spec.mesh, spec.params))
    return jax.jit(create, out_shardings=shardings, donate_argnums=0)(params), None


def _check_finite(means: dict[str, float], step: int, spec: TrainSpec) -> None:
    """Check that the loss and the gradient are finite; the error says what may help."""
    for name in ("loss", "grad_norm"):
        if not np.isfinite(means[name]):
            gone = any(leaf.is_deleted() for leaf in jax.tree.leaves(spec.params))  # on a mesh
            wrong = None if gone else first_non_finite(spec.combine(spec.params, spec.frozen))
            reason = "a lower learning_rate, or a lower max_grad_norm, may help"
            if wrong is not None:
                reason = f"before the first step the parameter {wrong} held NaN or inf"
            raise ValueError(f"the {name} is {means[name]} at step {step}: {reason}")


class _Window:
    """Measures of the steps between two lines of the log."""

    def restart(self) -> None:
        self.measures: list[dict[str, jax.Array]] = []
        self.tokens = 0
        self.start = time.perf_counter()

    def add(self, measures: dict[str, jax.Array], tokens: int) -> None:
        # Fetched when the line is written: the device need not wait for the host.
        self.measures.append(measures)
        self.tokens += tokens

    def means(self) -> dict[str, float]:
        """Return the means since the last line."""
        parts = sorted(self.measures[0].keys() - {"loss", "grad_norm"})
        means = {
            name: float(np.mean([np.asarray(measures[name]) for measures in self.measures]))
            for name in ("loss", *parts, "grad_norm")
        }
        seconds = time.perf_counter() - self.start
        means["tokens_per_second"] = round(self.tokens / seconds, 1)
        return means


@contextlib.contextmanager
def _interruption() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying of the first one."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # signals reach the main thread alone
        return

    def receive(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt(number)
        received.append(number)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
