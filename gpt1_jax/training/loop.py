"""The loop: steps, log, validation, checkpoints; a run that was killed goes on where it was."""

import dataclasses
import functools
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from gpt1_jax.checks import Count, MaybeCount, check_fields
from gpt1_jax.pretrained import Params
from gpt1_jax.pure import first_non_finite
from gpt1_jax.sharding.mesh import gather, make_global_batch, mesh_of, param_shardings, shard
from gpt1_jax.sharding.processes import fail_together, is_main_process
from gpt1_jax.training.checkpoints import Checkpoints
from gpt1_jax.training.freezing import combine_params
from gpt1_jax.training.log import Log, draw_losses
from gpt1_jax.training.step import Batch, Combine, Objective, TrainState, make_step, micro_batches


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """When to do what, counted in steps.

    Attributes:
        accumulate: micro-batches that a batch is computed in, one after another; takes less memory.
        log_every: steps between two lines of log.jsonl.
        eval_every: steps between two validations; by default an epoch's.
        checkpoint_every: steps between two checkpoints, from which a killed run goes on.
        patience: stop after so many validations in a row without a better one.
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
                raise ValueError(f"{name} is {value}, but needs a set to validate on")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """What is trained, on what, and what becomes of it.

    Attributes:
        params: those that are trained, before the first step. Where they lie on ``mesh``, the state
            of training takes their memory, and they must not be used again.
        frozen: those that are not.
        combine: makes the model's parameters of both.
        objective: the loss.
        optimizer: makes updates of its gradients.
        learning_rate: of the number of steps taken before, for the log.
        batches: an iterator of grain's, which knows its position; each batch is a dict of arrays,
            of the rows that are this process's own (``mesh.process_local_rows``).
        tokens: how many tokens of a batch are trained on.
        steps: how many to take.
        seed: of dropout.
        save: writes the result into the output folder, given the trained parameters and the
            model's, whole.
        evaluate: measures of the model's parameters, ``loss`` among them; None without validation.
        chosen: the measure that says which parameters are best.
        better: whether it should be high or low.
        mesh: the devices to train on; None for one.
        batch_size: rows of a batch, of which this process may read a part.
    """

    params: Params
    frozen: Params
    combine: Combine = combine_params
    objective: Objective
    optimizer: optax.GradientTransformation
    learning_rate: Callable[[Any], Any]
    batches: Any
    tokens: Callable[[Batch], int]
    steps: int
    seed: int
    save: Callable[[Params, Params], None]
    evaluate: Callable[[Params], dict[str, float]] | None = None
    chosen: str = "loss"
    better: Literal["high", "low"] = "low"
    mesh: Mesh | None = None
    batch_size: int | None = None


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


def run_training(spec: TrainSpec, settings: LoopSettings, out: Path) -> TrainProgress:
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

    Returns:
        How the validations went.

    Raises:
        ValueError: the checkpoint is of another training; the loss is no longer a number.
        OSError: something cannot be written; earlier checkpoints stay.
        KeyboardInterrupt: after SIGINT or SIGTERM, whose number is its argument.
    """
    from tqdm import tqdm

    frozen, mesh = spec.frozen, spec.mesh
    if mesh is not None:
        frozen = shard(frozen, param_shardings(mesh, frozen))
    progress = TrainProgress()
    first = is_main_process()
    step = make_step(spec.objective, spec.optimizer, spec.combine)
    eval_every = settings.eval_every or spec.steps

    def worth(measures: dict[str, float]) -> float:
        score = measures[spec.chosen]
        if np.isnan(score):
            return -np.inf  # never better, but as the first it is better than nothing
        return score if spec.better == "high" else -score

    def save() -> None:
        params = state.params, spec.combine(state.params, frozen)
        if mesh is not None:
            params = gather(params)
        if first:
            spec.save(*params)

    def validate(at: int) -> None:
        assert spec.evaluate is not None
        measures = spec.evaluate(spec.combine(state.params, frozen))
        if log is not None:
            log.write(step=at, **{f"valid_{name}": value for name, value in measures.items()})
        if progress.best is None or worth(measures) > worth(progress.best):
            progress.best, progress.best_step, progress.stale = measures, at, 0
            save()
        else:
            progress.stale += 1
            progress.stopped = progress.stale == settings.patience
        if not first:
            return
        shown = ", ".join(f"{name} {value:.4g}" for name, value in measures.items())
        mark = " (best)" if progress.best_step == at else ""
        tqdm.write(f"step {at}: {shown}{mark}", file=sys.stderr)
        draw_losses(path, out / "loss.png")

    with Checkpoints(out / "checkpoints") as checkpoints, _interruption() as interrupted:
        state, rest = _first_state(spec, checkpoints)
        if rest is not None:
            spec.batches.set_state(rest["position"])
            progress = TrainProgress(**rest["progress"])
        done = int(state.step)
        path = out / "log.jsonl"
        with fail_together():
            log = Log(path, done) if first else None

        def checkpoint() -> None:
            position = spec.batches.get_state()
            checkpoints.save(
                state, {"position": position, "progress": dataclasses.asdict(progress)}
            )

        window = _Window()
        # Shown by the first process, on a terminal.
        hidden = None if first else True
        bar = tqdm(total=spec.steps, initial=done, unit="step", disable=hidden)
        with bar:
            while done < spec.steps and not progress.stopped:
                batch = next(spec.batches)
                micro = micro_batches(batch, settings.accumulate)
                if mesh is not None:
                    assert spec.batch_size is not None
                    micro = make_global_batch(mesh, micro, spec.batch_size // settings.accumulate)
                state, measures = step(state, frozen, micro)
                done += 1
                window.add(measures, spec.tokens(batch))
                last = done == spec.steps
                validates = spec.evaluate is not None and (done % eval_every == 0 or last)
                saves = done % settings.checkpoint_every == 0 or last
                due = done % settings.log_every == 0 or validates or saves
                # Asked once, lest the run end without a checkpoint.
                ends = _anywhere(interrupted[0] if interrupted else 0, due)
                saves |= bool(ends)
                if due or ends:
                    record = window.close()
                    _check_finite(record, done, spec)
                    rate = float(spec.learning_rate(done - 1))  # which counts from 0
                    if log is not None:
                        log.write(step=done, learning_rate=rate, **record)
                    bar.set_postfix(
                        loss=f"{record['loss']:.4f}",
                        lr=f"{rate:.2e}",
                        tokens_per_second=f"{record['tokens_per_second']:.0f}",
                        refresh=False,
                    )
                if validates:
                    validate(done)
                    window.restart()
                if saves or progress.stopped:
                    checkpoint()
                    window.restart()
                bar.update()
                if ends:
                    if first:
                        message = f"stopped after step {done}; run again, it goes on"
                        tqdm.write(message, file=sys.stderr)
                    raise KeyboardInterrupt(ends)
        if spec.evaluate is None:
            save()
        if first:
            draw_losses(path, out / "loss.png")
    return progress


def _first_state(
    spec: TrainSpec, checkpoints: Checkpoints
) -> tuple[TrainState, dict[str, Any] | None]:
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


def _anywhere(received: int, due: bool) -> int:
    """Return a signal that any process has received, or 0; of several they ask when due."""
    if jax.process_count() == 1:
        return received
    return int(gather(np.asarray(received)[None]).max()) if due else 0


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

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.measures: list[dict[str, Any]] = []
        self.tokens = 0
        self.start = time.perf_counter()

    def add(self, measures: dict[str, Any], tokens: int) -> None:
        # Fetched when the line is written: the device need not wait for the host.
        self.measures.append(measures)
        self.tokens += tokens

    def close(self) -> dict[str, float]:
        """Return the means since the last line, and start anew."""
        means = {
            name: float(np.mean([np.asarray(measures[name]) for measures in self.measures]))
            for name in ("loss", "grad_norm")
        }
        seconds = time.perf_counter() - self.start
        means["tokens_per_second"] = round(self.tokens / seconds, 1)
        self.restart()
        return means


@contextmanager
def _interruption() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying of the first one."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # signals reach the main thread alone
        return

    def receive(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt(number)
        received.append(number)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
