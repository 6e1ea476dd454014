"""The loop with a model of four parameters: cadence, the best model, stops, kills, and resumption.

Every step depends on its batch and on noise drawn from the key, so nothing that is not resumed
exactly goes unseen.
"""

import dataclasses
import errno
import functools
import gc
import math
import signal
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.small_models import leaves_equal

from gpt1_jax.training import callbacks, log, loop
from gpt1_jax.training.callbacks import Callback, check_callbacks
from gpt1_jax.training.checkpoints import Checkpoints
from gpt1_jax.training.log import read_log
from gpt1_jax.training.loop import (
    LoopSettings,
    TrainProgress,
    TrainRun,
    TrainSpec,
    train,
    train_into,
)
from gpt1_jax.training.optimizer import OptimizerSettings, learning_rate, make_optimizer
from gpt1_jax.training.step import Sums, TrainState

STEPS = 12
SETTINGS = OptimizerSettings(optimizer="openai", learning_rate=0.1, schedule="linear", warmup=2)
OPTIMIZER = make_optimizer(SETTINGS, STEPS)
PARAMS = {"line": {"kernel": jnp.ones((3,)), "bias": jnp.zeros((1,))}}
MIDDLE = np.array([1.0, 0.7, 1.3])
FREQUENT = LoopSettings(log_every=2, eval_every=3, checkpoint_every=4)


class Batches:
    """Points of a line, endless; ``before`` is called with the number of every batch."""

    def __init__(self, before: Callable[[int], None] = lambda number: None):
        self.number = 0
        self.before = before

    def __next__(self) -> dict[str, np.ndarray]:
        self.before(self.number)
        rng = np.random.default_rng(self.number)
        self.number += 1
        x = rng.standard_normal((4, 3), np.float32)
        return {"x": x, "y": x @ np.array([1, -2, 3], np.float32)}

    def get_state(self) -> dict[str, int]:
        return {"number": self.number}

    def set_state(self, state: dict[str, int]) -> None:
        self.number = state["number"]


def grain_batches() -> Any:
    """The same points, through grain's own iterator."""
    import grain

    rows = [{name: row[0] for name, row in next(Batches()).items()} for _ in range(5)]
    rows = [{**row, "y": row["y"] + number} for number, row in enumerate(rows)]
    dataset = grain.MapDataset.source(rows).seed(0).shuffle().repeat().batch(4)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))


def objective(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Sums]:
    noise = 0.1 * jax.random.normal(key, batch["y"].shape)
    errors = batch["x"] @ params["line"]["kernel"] + params["line"]["bias"] + noise - batch["y"]
    return (errors**2).sum(), {"weight": jnp.full((), len(errors), jnp.float32)}


def distance(params: Any) -> dict[str, float]:
    """Measures of a model: how far it is from a point that training passes in the middle."""
    kernel = np.asarray(params["line"]["kernel"])
    return {"loss": float(np.abs(kernel - MIDDLE).sum()), "first": float(kernel[0])}


@dataclasses.dataclass
class Run:
    """What became of a run: what was saved, and when it was validated."""

    saved: list[Any] = dataclasses.field(default_factory=list)
    validated: int = 0

    def training(self, batches: Any = None, scores: Any = None, **fields: Any) -> TrainSpec:
        """A training whose validations give these scores, in turn, or else the distance."""

        def evaluate(params: Any) -> dict[str, float]:
            self.validated += 1
            if scores is None:
                return distance(params)
            return {"loss": scores[self.validated - 1]}

        def save(trained: Any, params: Any) -> None:
            assert leaves_equal(params, loop.combine_params(trained, spec.frozen))
            self.saved.append(jax.tree.map(np.array, trained))

        base: dict[str, Any] = {
            "params": PARAMS,
            "frozen": {},
            "objective": objective,
            "optimizer": OPTIMIZER,
            "learning_rate": learning_rate(SETTINGS, STEPS),
            "batches": Batches() if batches is None else batches,
            "tokens": lambda batch: batch["x"].size,
            "batch_size": 4,
            "steps": STEPS,
            "seed": 0,
            "save": save,
            "evaluate": evaluate,
        }
        spec = TrainSpec(**{**base, **fields})
        return spec


def final_state(out: Path) -> tuple[TrainState, dict[str, Any]]:
    with Checkpoints(out / "checkpoints") as checkpoints:
        found = checkpoints.latest(TrainState.create(PARAMS, OPTIMIZER, 0))
    assert found is not None
    return found


def steps_with(out: Path, name: str) -> list[int]:
    return [record["step"] for record in read_log(out / "log.jsonl") if name in record]


def steps_of_checkpoints(out: Path) -> list[int]:
    return sorted(int(path.name) for path in (out / "checkpoints").iterdir())


def losses(out: Path) -> list[dict[str, Any]]:
    """The log without what no two runs have in common."""
    records = read_log(out / "log.jsonl")
    return [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in records]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Compile a step once for all runs, and draw no pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_step", functools.cache(loop.make_step))
        patch.setattr(callbacks, "draw_losses", lambda log, picture: picture.touch())
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run, TrainProgress]:
    """A run that nobody interrupts."""
    out, run = tmp_path_factory.mktemp("whole") / "out", Run()
    return out, run, train(run.training(), FREQUENT, out)


def test_train_logs_and_saves_at_set_intervals(
    whole: tuple[Path, Run, TrainProgress],
) -> None:
    out, run, progress = whole
    # Every second step, and with every validation and checkpoint.
    assert steps_with(out, "loss") == [2, 3, 4, 6, 8, 9, 10, 12]
    assert steps_with(out, "valid_loss") == [3, 6, 9, 12]
    assert run.validated == 4
    assert steps_of_checkpoints(out) == [8, 12]
    assert sorted(path.name for path in out.iterdir()) == ["checkpoints", "log.jsonl", "loss.png"]
    assert progress.best_step == 6  # so that it has to be remembered
    assert len(run.saved) == 2
    assert (progress.stale, progress.stopped) == (2, False)


def test_train_draws_loss_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "draw_losses", log.draw_losses)
    train(Run().training(), LoopSettings(), tmp_path)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_train_logs_expected_fields(whole: tuple[Path, Run, TrainProgress]) -> None:
    out, _, progress = whole
    records = read_log(out / "log.jsonl")
    trained = [record for record in records if "loss" in record]
    assert all(
        list(record) == ["step", "learning_rate", "loss", "grad_norm", "tokens_per_second"]
        for record in trained
    )
    rate = learning_rate(SETTINGS, STEPS)
    assert [r["learning_rate"] for r in trained] == [float(rate(r["step"] - 1)) for r in trained]
    assert all(record["tokens_per_second"] > 0 for record in trained)
    assert trained[-1]["loss"] < trained[0]["loss"]
    validated = [record for record in records if "valid_loss" in record]
    assert all(list(record) == ["step", "valid_loss", "valid_first"] for record in validated)
    best = min(validated, key=lambda record: record["valid_loss"])
    assert progress.best == {"loss": best["valid_loss"], "first": best["valid_first"]}
    assert progress.best_step == best["step"]


def test_train_logs_mean_loss_since_last_record(
    tmp_path: Path, whole: tuple[Path, Run, TrainProgress]
) -> None:
    settings = LoopSettings(log_every=1, eval_every=3, checkpoint_every=4)
    train(Run().training(), settings, tmp_path)
    each = {r["step"]: r["loss"] for r in read_log(tmp_path / "log.jsonl") if "loss" in r}
    assert list(each) == list(range(1, STEPS + 1))
    before = 0
    for record in losses(whole[0]):
        if "loss" in record:
            steps = range(before + 1, record["step"] + 1)
            before = record["step"]
            assert record["loss"] == pytest.approx(np.mean([each[step] for step in steps]))


def test_train_checkpoints_the_final_state(whole: tuple[Path, Run, TrainProgress]) -> None:
    out, _, progress = whole
    state, rest = final_state(out)
    assert int(state.step) == STEPS
    assert rest == {"position": {"number": STEPS}, "progress": dataclasses.asdict(progress)}


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("better", "scores", "best"),
    [
        ("low", [3.0, 1.0, 2.0, 1.0], 2),  # the first of equals
        ("high", [3.0, 1.0, 4.0, 2.0], 3),
        ("low", [math.nan, 2.0, math.nan, 1.0], 4),
        ("high", [math.nan, math.nan, 1.0, math.nan], 3),
        ("high", [math.nan] * 4, 1),
        ("low", [math.inf, math.nan, 5.0, math.inf], 3),
    ],
)
def test_train_saves_the_best_model(
    tmp_path: Path, better: Any, scores: list[float], best: int
) -> None:
    run = Run()
    progress = train(run.training(scores=scores, better=better), FREQUENT, tmp_path)
    assert progress.best_step == 3 * best
    assert progress.stale == 4 - best
    np.testing.assert_equal(progress.best, {"loss": scores[best - 1]})
    # The parameters of that step, as a run that ends there has them.
    shorter = Run()
    train(shorter.training(steps=3 * best, evaluate=None), FREQUENT, tmp_path / "shorter")
    assert leaves_equal(run.saved[-1], shorter.saved[-1])


def test_train_selects_best_by_chosen_measure(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"chosen": "first", "better": "high"}
    progress = train(Run().training(**fields), FREQUENT, tmp_path)
    firsts = {r["step"]: r["valid_first"] for r in losses(tmp_path) if "valid_first" in r}
    assert progress.best_step == max(firsts, key=firsts.__getitem__)


def test_train_spec_worth_decides_ties_and_nan_by_the_loss() -> None:
    spec = Run().training(chosen="f1", better="high")
    nan = math.nan
    ranked = [(nan, nan), (nan, 0.9), (nan, 0.1), (0.5, nan), (0.5, 0.2), (0.5, 0.1), (0.6, 0.9)]
    worths = [spec.worth({"f1": score, "loss": loss}) for score, loss in ranked]
    assert worths == sorted(set(worths))
    by_loss = Run().training()
    assert (
        by_loss.worth({"loss": 0.1}) > by_loss.worth({"loss": 0.2}) > by_loss.worth({"loss": nan})
    )


@pytest.mark.parametrize(
    ("scores", "best"), [([1.0, 2.0, 3.0], 1), ([1.0, math.nan, 1.0], 1), ([math.nan] * 3, 1)]
)
def test_train_patience_stops_early(
    tmp_path: Path, scores: list[float], best: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run, settings = Run(), dataclasses.replace(FREQUENT, patience=2)
    progress = train(run.training(scores=scores), settings, tmp_path)
    assert (progress.stopped, progress.best_step, progress.stale) == (True, 3 * best, 2)
    assert len(run.saved) == 1
    assert steps_with(tmp_path, "loss")[-1] == 9
    assert int(final_state(tmp_path)[0].step) == 9
    # The same command again finds that out and says so, and a longer run is no other.
    told = "the run ended at step 9, after 2 validations without a better one"
    assert told not in capsys.readouterr().err
    again = Run()
    repeated = train(again.training(scores=scores, steps=STEPS + 3), settings, tmp_path)
    assert told in capsys.readouterr().err
    np.testing.assert_equal(dataclasses.asdict(repeated), dataclasses.asdict(progress))
    assert (again.saved, again.validated) == ([], 0)


def test_train_improvement_resets_patience(tmp_path: Path) -> None:
    settings = dataclasses.replace(FREQUENT, patience=2)
    progress = train(Run().training(scores=[2.0, 3.0, 1.0, 3.0]), settings, tmp_path)
    assert (progress.stopped, progress.best_step, progress.stale) == (False, 9, 1)


def test_train_without_validation_saves_last_model(tmp_path: Path) -> None:
    run = Run()
    progress = train(run.training(evaluate=None), FREQUENT, tmp_path)
    assert progress == TrainProgress()
    assert len(run.saved) == 1
    assert leaves_equal(run.saved[0], final_state(tmp_path)[0].params)
    assert steps_with(tmp_path, "loss") == [2, 4, 6, 8, 10, 12]


def test_train_validates_at_the_end_by_default(tmp_path: Path) -> None:
    train(Run().training(), LoopSettings(), tmp_path)
    assert steps_with(tmp_path, "loss") == [10, 12]
    assert steps_with(tmp_path, "valid_loss") == [12]
    assert steps_of_checkpoints(tmp_path) == [12]


def test_train_skips_finished_run(tmp_path: Path) -> None:
    run = Run()
    progress = train(run.training(), FREQUENT, tmp_path)
    logged = (tmp_path / "log.jsonl").read_bytes()
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    again = Run()

    def never(number: int) -> None:
        raise AssertionError("a step was taken")

    assert train(again.training(Batches(never)), FREQUENT, tmp_path) == progress
    assert (again.saved, again.validated) == ([], 0)
    assert (tmp_path / "log.jsonl").read_bytes() == logged
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == files


def test_train_checks_free_space_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For three checkpoints, of which two are kept, and two results, of which one is."""
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(TrainState.create(PARAMS, OPTIMIZER, 0)))
    needed = 3 * state + 2 * 16
    room = {"free": needed - 1}
    full = types.SimpleNamespace(disk_usage=lambda path: types.SimpleNamespace(**room))
    monkeypatch.setattr(loop, "shutil", full)

    def never(number: int) -> None:
        raise AssertionError("a step was taken")

    message = rf"take {needed:,} bytes, but only {needed - 1:,} are free$"
    with pytest.raises(OSError, match=message) as caught:
        train(Run().training(Batches(never)), FREQUENT, tmp_path)
    assert caught.value.errno == errno.ENOSPC
    room["free"] = needed
    train(Run().training(), FREQUENT, tmp_path)
    room["free"] = 0
    train(Run().training(), FREQUENT, tmp_path)  # nothing is left to do


class KilledError(Exception):
    """In place of a SIGKILL, which nobody catches."""


def killing_at(number: int) -> Callable[[int], None]:
    def kill(now: int) -> None:
        if now == number:
            raise KilledError

    return kill


@pytest.mark.parametrize("kills", [[0], [2], [4, 5], [7, 7, 8], [11], [1, 3, 6, 9, 10]])
def test_train_resumes_exactly_after_kills(
    tmp_path: Path, whole: tuple[Path, Run, TrainProgress], kills: list[int]
) -> None:
    out, expected, progress = whole
    for kill in kills:
        with pytest.raises(KilledError):
            train(Run().training(Batches(killing_at(kill))), FREQUENT, tmp_path)
        # Step `kill` was the first that was not taken.
        assert max([0, *steps_with(tmp_path, "loss")]) <= kill
    run = Run()
    assert train(run.training(), FREQUENT, tmp_path) == progress
    assert leaves_equal(final_state(tmp_path)[0], final_state(out)[0])
    assert final_state(tmp_path)[1] == final_state(out)[1]
    assert losses(tmp_path) == losses(out)
    if run.saved:  # else the best was saved before the last kill
        assert leaves_equal(run.saved[-1], expected.saved[-1])


def test_train_resumes_after_kill_in_validation_or_save(
    tmp_path: Path, whole: tuple[Path, Run, TrainProgress]
) -> None:
    out, expected, progress = whole

    def kill(*params: Any) -> Any:
        raise KilledError

    with pytest.raises(KilledError):
        train(Run().training(evaluate=kill), FREQUENT, tmp_path)
    with pytest.raises(KilledError):
        train(Run().training(save=kill), FREQUENT, tmp_path)
    run = Run()
    assert train(run.training(), FREQUENT, tmp_path) == progress
    assert leaves_equal(run.saved, expected.saved)
    assert losses(tmp_path) == losses(out)


@pytest.mark.nightly
def test_train_resumes_grain_iterator(tmp_path: Path) -> None:
    settings = dataclasses.replace(FREQUENT, accumulate=2)
    train(Run().training(grain_batches()), settings, tmp_path / "whole")
    run = Run()
    training = run.training(grain_batches())

    def stop(params: Any) -> dict[str, float]:
        if run.validated == 2:
            raise KilledError
        assert training.evaluate is not None
        return training.evaluate(params)

    with pytest.raises(KilledError):
        train(dataclasses.replace(training, evaluate=stop), settings, tmp_path / "killed")
    train(Run().training(grain_batches()), settings, tmp_path / "killed")
    ours, expected = (final_state(tmp_path / name) for name in ("killed", "whole"))
    assert leaves_equal(ours[0], expected[0])
    assert ours[1] == expected[1]


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [0, 4, 8])
def test_train_checkpoints_on_signal(
    tmp_path: Path, whole: tuple[Path, Run, TrainProgress], number: signal.Signals, step: int
) -> None:
    def interrupt(now: int) -> None:
        if now == step:
            signal.raise_signal(number)

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt) as caught:
        train(Run().training(Batches(interrupt)), FREQUENT, tmp_path)
    assert caught.value.args == (number,)  # of which the command makes its status
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    state, rest = final_state(tmp_path)
    assert int(state.step) == rest["position"]["number"] == step + 1
    assert steps_with(tmp_path, "loss")[-1] == step + 1
    out, _, progress = whole
    assert train(Run().training(), FREQUENT, tmp_path) == progress
    assert leaves_equal(final_state(tmp_path)[0], final_state(out)[0])


def test_train_signal_in_validation_keeps_progress(
    tmp_path: Path, whole: tuple[Path, Run, TrainProgress]
) -> None:
    def evaluate(params: Any) -> dict[str, float]:
        signal.raise_signal(signal.SIGINT)
        return distance(params)

    with pytest.raises(KeyboardInterrupt):
        train(Run().training(evaluate=evaluate), FREQUENT, tmp_path)
    state, rest = final_state(tmp_path)
    assert int(state.step) == 3
    assert rest["progress"]["best_step"] == 3
    out, _, progress = whole
    assert train(Run().training(), FREQUENT, tmp_path) == progress
    assert leaves_equal(final_state(tmp_path)[0], final_state(out)[0])


def test_train_second_signal_stops_immediately(tmp_path: Path) -> None:
    def interrupt(now: int) -> None:
        if now == 5:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(Run().training(Batches(interrupt)), FREQUENT, tmp_path)
    assert int(final_state(tmp_path)[0].step) == 4  # that of the last checkpoint


class Recorder(Callback):
    """Notes each call, and answers as told; ``answers`` are functions by event and step."""

    def __init__(self, **answers: Callable[[int], Any]):
        self.calls: list[tuple[Any, ...]] = []
        self.answers = answers

    def _answer(self, event: str, *args: Any) -> Any:
        self.calls.append((event, *args))
        return self.answers.get(event, lambda step: None)(args[0])

    def on_start(self, run: TrainRun) -> Any:
        self.run = run
        return self._answer("on_start", run.step)

    def on_step(self, step: int, metrics: Mapping[str, float]) -> Any:
        return self._answer("on_step", step, dict(metrics))

    def on_evaluate(self, step: int, metrics: Mapping[str, float]) -> Any:
        return self._answer("on_evaluate", step, dict(metrics))

    def on_checkpoint(self, step: int, path: Path) -> Any:
        return self._answer("on_checkpoint", step, path)

    def on_end(self, result: TrainProgress | None, error: BaseException | None) -> None:
        self._answer("on_end", result, error)


def at(step: int, answer: Any = "stop") -> Callable[[int], Any]:
    """Give this answer, or raise it, at this step."""

    def answer_at(now: int) -> Any:
        if now == step and isinstance(answer, Exception):
            raise answer
        return answer if now == step else None

    return answer_at


def test_train_calls_callbacks_in_order(tmp_path: Path) -> None:
    run, first, second = Run(), Recorder(), Recorder()

    def last_line(step: int) -> None:
        assert read_log(tmp_path / "log.jsonl")[-1]["step"] == step

    def evaluated(step: int) -> None:
        assert "valid_loss" in read_log(tmp_path / "log.jsonl")[-1]
        if first.run.progress.best_step == step:  # which is saved by then
            assert leaves_equal(run.saved[-1], first.run.params)

    first.answers = {"on_step": last_line, "on_evaluate": evaluated}
    progress = train(run.training(), FREQUENT, tmp_path, [first, second])
    assert first.calls == second.calls
    assert [call[:2] for call in first.calls[:-1]] == [
        ("on_start", 0),
        ("on_step", 2),
        ("on_step", 3),
        ("on_evaluate", 3),
        ("on_step", 4),
        ("on_checkpoint", 4),
        ("on_step", 6),
        ("on_evaluate", 6),
        ("on_step", 8),
        ("on_checkpoint", 8),
        ("on_step", 9),
        ("on_evaluate", 9),
        ("on_step", 10),
        ("on_step", 12),
        ("on_evaluate", 12),
        ("on_checkpoint", 12),
    ]
    assert first.calls[-1] == ("on_end", progress, None)
    lines = [(event, step, seen) for event, step, seen in first.calls[1:-1]]
    records = [{"step": step, **seen} for event, step, seen in lines if event == "on_step"]
    assert records == [r for r in read_log(tmp_path / "log.jsonl") if "loss" in r]
    measures = [{"step": s, **seen} for event, s, seen in lines if event == "on_evaluate"]
    validated = [r for r in read_log(tmp_path / "log.jsonl") if "valid_loss" in r]
    assert [{k.removeprefix("valid_"): v for k, v in r.items()} for r in validated] == measures
    paths = [(step, path) for event, step, path in lines if event == "on_checkpoint"]
    assert paths == [(step, tmp_path / "checkpoints" / str(step)) for step in (4, 8, 12)]


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("event", "step"),
    [("on_start", 0), ("on_step", 2), ("on_evaluate", 9), ("on_checkpoint", 4), ("on_step", 12)],
)
def test_train_stops_when_a_callback_says_so(
    tmp_path: Path, whole: tuple[Path, Run, TrainProgress], event: str, step: int
) -> None:
    run, recorder = Run(), Recorder(**{event: at(step)})
    stopped = train(run.training(), FREQUENT, tmp_path, [recorder, Recorder()])
    assert run.saved  # the best model so far, or else the current one
    assert not stopped.stopped  # that would be for lack of a better one, and for good
    assert recorder.calls[-1] == ("on_end", stopped, None)
    if step:
        assert int(final_state(tmp_path)[0].step) == step
        assert ("on_checkpoint", step) in [call[:2] for call in recorder.calls]
    out, _, progress = whole
    again = Recorder()
    assert train(Run().training(), FREQUENT, tmp_path, [again]) == progress
    assert again.calls[0] == ("on_start", step)
    assert leaves_equal(final_state(tmp_path)[0], final_state(out)[0])


def test_train_stopped_without_validation_saves_current_model(tmp_path: Path) -> None:
    run = Run()
    train(run.training(evaluate=None), FREQUENT, tmp_path, [Recorder(on_step=at(6))])
    assert len(run.saved) == 1
    assert leaves_equal(run.saved[0], final_state(tmp_path)[0].params)


@pytest.mark.parametrize(
    ("event", "step"), [("on_start", 0), ("on_step", 6), ("on_evaluate", 6), ("on_checkpoint", 8)]
)
def test_train_ends_at_error_in_callback(
    tmp_path: Path, whole: tuple[Path, Run, TrainProgress], event: str, step: int
) -> None:
    error = KilledError("in a callback")
    recorders = [Recorder(), Recorder(**{event: at(step, error)}), Recorder()]
    with pytest.raises(KilledError) as caught:
        train(Run().training(), FREQUENT, tmp_path, recorders)
    assert caught.value is error
    assert [r.calls[-1] for r in recorders] == [("on_end", None, error)] * 3
    assert not step or steps_of_checkpoints(tmp_path)[-1] == (8 if step == 8 else 4)
    out, _, progress = whole
    assert train(Run().training(), FREQUENT, tmp_path) == progress
    assert leaves_equal(final_state(tmp_path)[0], final_state(out)[0])
    assert losses(tmp_path) == losses(out)


def test_train_calls_every_on_end_despite_errors(tmp_path: Path) -> None:
    class Failing:
        def on_end(self, result: object, error: object) -> None:
            raise KilledError

    recorder = Recorder()
    failing: Any = Failing()
    with pytest.raises(KilledError):
        train(Run().training(), FREQUENT, tmp_path, [failing, recorder])
    assert recorder.calls[-1][0] == "on_end"
    assert int(final_state(tmp_path)[0].step) == STEPS


def test_train_tells_callbacks_of_a_signal(tmp_path: Path) -> None:
    def interrupt(now: int) -> None:
        if now == 5:
            signal.raise_signal(signal.SIGTERM)

    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt):
        train(Run().training(Batches(interrupt)), FREQUENT, tmp_path, [recorder])
    *_, checkpoint, (event, result, error) = recorder.calls
    assert checkpoint[:2] == ("on_checkpoint", 6)
    assert (event, result, type(error), error.args) == ("on_end", None, KeyboardInterrupt, (15,))


def test_train_frees_the_state_though_a_callback_keeps_the_run(tmp_path: Path) -> None:
    recorder = Recorder()
    train(Run().training(), FREQUENT, tmp_path, [recorder])
    run = weakref.ref(recorder.run)
    gc.disable()
    try:
        del recorder
        assert run() is None
    finally:
        gc.enable()


def test_train_takes_objects_with_one_method(tmp_path: Path) -> None:
    class StopsAtTarget:
        def on_evaluate(self, step: int, metrics: Mapping[str, float]) -> str | None:
            return "stop" if metrics["loss"] < 0.1 else None

    callback: Any = StopsAtTarget()
    progress = train(Run().training(), FREQUENT, tmp_path, [callback])
    assert progress.best_step == 6
    assert steps_with(tmp_path, "loss")[-1] == 6


def test_train_rejects_other_answers_of_callbacks(tmp_path: Path) -> None:
    recorder = Recorder(on_step=at(2, True))
    message = r'^Recorder\.on_step returned True, but must return "stop" or None$'
    with pytest.raises(ValueError, match=message):
        train(Run().training(), FREQUENT, tmp_path, [recorder])
    assert recorder.calls[-1][0] == "on_end"


@pytest.mark.parametrize("wrong", [Recorder, object(), print])
def test_train_into_rejects_what_is_no_callback(tmp_path: Path, wrong: Any) -> None:
    def never(out: Path) -> Any:
        raise AssertionError("something was prepared")

    with pytest.raises(ValueError, match=r"is not a callback: expected an object with at least on"):
        train_into(tmp_path / "out", never, [wrong])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [None, Callback()])
def test_check_callbacks_rejects_what_is_no_sequence(wrong: Any) -> None:
    with pytest.raises(ValueError, match="but must be a sequence of callbacks"):
        check_callbacks(wrong)


def test_train_notes_an_error_in_on_end_beside_the_first_one(tmp_path: Path) -> None:
    class Failing(Callback):
        def on_start(self, run: object) -> None:
            raise KilledError

        def on_end(self, result: object, error: object) -> None:
            raise OSError("no place left")

    with pytest.raises(KilledError) as caught:
        train(Run().training(), FREQUENT, tmp_path, [Failing()])
    assert caught.value.__notes__ == ["then a callback's on_end raised OSError('no place left')"]


def test_train_works_outside_main_thread(tmp_path: Path) -> None:
    found: list[TrainProgress] = []
    thread = threading.Thread(
        target=lambda: found.append(train(Run().training(), FREQUENT, tmp_path))
    )
    thread.start()
    thread.join()
    assert [progress.best_step for progress in found] == [6]


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_train_rejects_nonfinite_loss(tmp_path: Path, wrong: float) -> None:
    class Spoiled(Batches):
        def __next__(self) -> dict[str, np.ndarray]:
            batch = super().__next__()
            return {**batch, "y": batch["y"] * np.float32(wrong if self.number == 6 else 1)}

    run = Run()
    with pytest.raises(ValueError, match=r"^the loss is (nan|inf) at step 6: a lower learning_ra"):
        train(run.training(Spoiled()), FREQUENT, tmp_path)
    state, _ = final_state(tmp_path)
    assert int(state.step) == 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert steps_with(tmp_path, "loss") == [2, 3, 4]
    assert run.validated == 1


def test_train_names_a_parameter_that_was_not_finite_before(tmp_path: Path) -> None:
    spoiled = {"line": {**PARAMS["line"], "bias": PARAMS["line"]["bias"] * np.float32(np.nan)}}
    before = r"^the loss is nan at step 1: before the first step the parameter line\.bias held NaN"
    with pytest.raises(ValueError, match=before):
        train(Run().training(params=spoiled), LoopSettings(log_every=1), tmp_path)


def test_train_rejects_nonfinite_gradients(tmp_path: Path) -> None:
    """They spoil the parameters, though the loss is still one."""

    def rooted(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Sums]:
        kernel = params["line"]["kernel"]
        loss = jnp.sqrt(kernel - kernel).sum() + params["line"]["bias"].sum()
        return loss, {"weight": jnp.ones(())}

    with pytest.raises(ValueError, match=r"^the grad_norm is nan at step 1: "):
        train(Run().training(objective=rooted), LoopSettings(log_every=1), tmp_path)
    assert steps_of_checkpoints(tmp_path) == []


@pytest.mark.nightly
def test_train_validates_but_does_not_save_frozen(tmp_path: Path) -> None:
    trained, frozen = ({"line": {name: PARAMS["line"][name]}} for name in ("kernel", "bias"))
    seen = []

    def evaluate(params: Any) -> dict[str, float]:
        seen.append(jax.tree.map(np.array, params))
        return distance(params)

    run = Run()
    fields: dict[str, Any] = {"params": trained, "frozen": frozen, "evaluate": evaluate}
    train(run.training(**fields), FREQUENT, tmp_path)
    assert jax.tree.structure(run.saved[-1]) == jax.tree.structure(trained)
    assert all(leaves_equal(params["line"]["bias"], PARAMS["line"]["bias"]) for params in seen)


def test_train_rejects_mismatched_checkpoint(tmp_path: Path) -> None:
    train(Run().training(), FREQUENT, tmp_path)
    params = {"line": {"kernel": jnp.ones((4,)), "bias": jnp.zeros((1,))}}
    with pytest.raises(ValueError, match=r"12 is of another training: params\.line\.kernel is "):
        train(Run().training(params=params), FREQUENT, tmp_path)


def test_train_prints_validation_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(Run().training(scores=[2.0, 1.5, 3.0, 1.75]), FREQUENT, tmp_path)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [line for line in shown.err.splitlines() if line.startswith("step ")] == [
        "step 3: loss 2 (best)",
        "step 6: loss 1.5 (best)",
        "step 9: loss 3",
        "step 12: loss 1.75",
    ]


@pytest.mark.parametrize(
    "name", ["accumulate", "log_every", "eval_every", "checkpoint_every", "patience"]
)
@pytest.mark.parametrize("value", [0, -1])
def test_loop_settings_reject_invalid_values(name: str, value: int) -> None:
    fields: dict[str, Any] = {name: value}
    right = "at least 1, or None" if name in ("eval_every", "patience") else "at least 1"
    with pytest.raises(ValueError, match=f"^{name} is {value}, but must be {right}$"):
        LoopSettings(**fields)
