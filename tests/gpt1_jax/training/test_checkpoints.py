"""Checkpoints: what was saved comes back bit by bit, and what fails leaves those before."""

import dataclasses
import errno
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compilation_cache import cache_variables
from support.small_models import leaves_equal, small_model

import gpt1_jax as gpt1
from gpt1_jax.training.checkpoints import KEPT, Checkpoints
from gpt1_jax.training.optimizer import OptimizerSettings, make_optimizer
from gpt1_jax.training.step import TrainState

REST: dict[str, Any] = {
    "position": {"next_index": 3, "nested": [1, None, "x"]},
    "progress": {"best": {"loss": 0.1 + 0.2}, "stopped": False},
}


def make_state(name: Any = "openai", seed: int = 0, dtype: str = "float32") -> TrainState:
    """A state as it is after some steps: no leaf is what it starts from."""
    settings = OptimizerSettings(optimizer=name, learning_rate=0.1, schedule="linear", warmup=0)
    params = small_model(gpt1.OpenAIGPTLMHeadModel, n_layer=1, seed=seed, param_dtype=dtype).params
    state = TrainState.create(params, make_optimizer(settings, 100), seed)
    rng = np.random.default_rng(seed)

    def values(leaf: jax.Array) -> jax.Array:
        if leaf.dtype == jnp.int32:
            return jnp.int32(seed)
        bits = rng.integers(0, 2**16, (*leaf.shape, leaf.dtype.itemsize // 2), np.uint16)
        return jnp.array(np.squeeze(bits.view(leaf.dtype), -1))  # NaNs and infinities too

    key = jax.random.key_data(jax.random.key(seed + 1))
    return dataclasses.replace(jax.tree.map(values, state), key=key)


def at(step: int, **fields: Any) -> TrainState:
    return dataclasses.replace(make_state(**fields), step=jnp.int32(step))


def steps_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["openai", "adamw"])
def test_checkpoints_save_then_latest_is_bit_exact(tmp_path: Path, name: str, dtype: str) -> None:
    state = at(7, name=name, dtype=dtype)
    with Checkpoints(tmp_path / "deep" / "checkpoints") as checkpoints:
        assert checkpoints.latest(state) is None
        checkpoints.save(state, REST)
    with Checkpoints(tmp_path / "deep" / "checkpoints") as checkpoints:
        found = checkpoints.latest(make_state(name, seed=1, dtype=dtype))
    assert found is not None
    assert leaves_equal(found[0], state)
    assert found[1] == REST
    draws = [jax.random.normal(jax.random.wrap_key_data(s.key), (5,)) for s in (found[0], state)]
    assert leaves_equal(*draws)


def test_checkpoints_keep_the_most_recent(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(3, 7):
            checkpoints.save(at(step, seed=step), {"step": step})
        found = checkpoints.latest(make_state())
    assert found is not None
    assert leaves_equal(found[0], at(6, seed=6))
    assert found[1] == {"step": 6}
    assert steps_in(tmp_path) == [str(step) for step in range(7 - KEPT, 7)]


def test_checkpoints_ignore_partly_deleted_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the midst of removing a checkpoint, a run leaves its remains elsewhere."""
    with monkeypatch.context() as killed, Checkpoints(tmp_path) as checkpoints:
        killed.setattr("gpt1_jax.training.checkpoints.shutil.rmtree", lambda *_, **__: None)
        for step in range(3, 7):
            checkpoints.save(at(step, seed=step), REST)
    whole = [str(step) for step in range(7 - KEPT, 7)]
    assert steps_in(tmp_path) == [*whole, "obsolete"]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest(make_state()) is not None
    assert steps_in(tmp_path) == whole


def test_checkpoints_save_each_step_once(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at(3), REST)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at(3, seed=1), {})
        found = checkpoints.latest(make_state())
    assert found is not None
    assert leaves_equal(found[0], at(3))
    assert found[1] == REST


def altered(name: str) -> TrainState:
    state = at(3)
    if name == "optimizer":
        return at(3, name="adamw")
    params: dict[str, Any] = dict(state.params)
    body = dict(params["transformer"])
    if name == "width":
        body["positions_embed"] = {"embedding": jnp.zeros((9, 8))}
    elif name == "dtype":
        body["positions_embed"] = {"embedding": jnp.zeros((8, 8), jnp.bfloat16)}
    elif name == "missing":
        del body["positions_embed"]
    elif name == "extra":
        body["more"] = {"kernel": jnp.zeros(2)}
    return dataclasses.replace(state, params={"transformer": body})


POSITIONS = r"params\.transformer\.positions_embed\.embedding"


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "difference"),
    [
        ("width", rf"{POSITIONS} is float32\[8, 8\] there, but float32\[9, 8\] here"),
        ("dtype", rf"{POSITIONS} is float32\[8, 8\] there, but bfloat16\[8, 8\] here"),
        ("missing", rf"{POSITIONS} is float32\[8, 8\] there, but missing here"),
        ("extra", r"params\.transformer\.more\.kernel is missing there, but float32\[2\] here"),
        ("optimizer", r"opt_state\.\d\.\d\.count is missing there, but int32\[\] here"),
    ],
)
def test_checkpoints_latest_rejects_mismatched_state(
    tmp_path: Path, name: str, difference: str
) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at(3), REST)
        with pytest.raises(
            ValueError, match=rf"^the checkpoint .*3 is of another training: {difference}$"
        ):
            checkpoints.latest(altered(name))
        found = checkpoints.latest(make_state())
    assert found is not None
    assert leaves_equal(found[0], at(3))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (ValueError("RESOURCE_EXHAUSTED: writing d/1\nmore"), "RESOURCE_EXHAUSTED: writing d/1"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_checkpoints_failed_save_keeps_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> NoReturn:
        raise error

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at(3), REST)
        monkeypatch.setattr(checkpoints._manager, "save", fail)
        message = rf"cannot write the checkpoint of step 4 to {tmp_path}: {reason}$"
        with pytest.raises(OSError, match=message) as caught:
            checkpoints.save(at(4), REST)
        assert caught.value.errno == getattr(error, "errno", None)
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.latest(make_state())
        assert found is not None
        assert leaves_equal(found[0], at(3))


def test_checkpoints_save_checks_free_space_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is begun that cannot be ended."""
    state = at(4)
    takes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    full = types.SimpleNamespace(disk_usage=lambda path: types.SimpleNamespace(free=takes - 1))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at(3), REST)
        with monkeypatch.context() as patch:
            patch.setattr("gpt1_jax.training.checkpoints.shutil", full)
            reason = f"it takes {takes:,} bytes, but only {takes - 1:,} are free"
            message = rf"cannot write the checkpoint of step 4 to {tmp_path}: {reason}$"
            with pytest.raises(OSError, match=message) as caught:
                checkpoints.save(state, REST)
        assert caught.value.errno == errno.ENOSPC
        assert steps_in(tmp_path) == ["3"]
        checkpoints.save(state, REST)
    assert steps_in(tmp_path) == ["3", "4"]


# A process of its own, since orbax's writers go on after one of them has failed.
LIMITED = """
import resource
import sys
from pathlib import Path

from test_checkpoints import REST, Checkpoints, at

with Checkpoints(Path(sys.argv[1])) as checkpoints:
    checkpoints.save(at(3), REST)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        checkpoints.save(at(4), REST)
    except OSError as error:
        print(error)
"""


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform == "win32", reason="files are limited by resource.setrlimit")
def test_checkpoints_survive_write_error_from_system(tmp_path: Path) -> None:
    """The system itself does, in the middle of the arrays."""
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        env={
            **os.environ,
            **cache_variables(tmp_path.with_name("compiled")),  # whose files are limited as well
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot write the checkpoint of step 4 to " in run.stdout
    assert run.stdout.count("\n") == 1
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.latest(make_state())
        assert found is not None
        assert leaves_equal(found[0], at(3))
        assert found[1] == REST
        checkpoints.save(at(4, seed=1), REST)
    assert steps_in(tmp_path) == ["3", "4"]


def test_checkpoints_remove_unfinished_ones(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at(3), REST)
    unfinished = tmp_path / "4.orbax-checkpoint-tmp"
    (unfinished / "arrays.orbax-checkpoint-tmp").mkdir(parents=True)
    (unfinished / "arrays.orbax-checkpoint-tmp" / "manifest.ocdbt").write_bytes(b"half")
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.latest(make_state())
        assert found is not None
        assert leaves_equal(found[0], at(3))
        checkpoints.save(at(4, seed=1), REST)
    assert steps_in(tmp_path) == ["3", "4"]
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.latest(make_state())
    assert found is not None
    assert leaves_equal(found[0], at(4, seed=1))


def test_checkpoints_latest_reports_corrupt_files(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        for step in (3, 4):
            checkpoints.save(at(step, seed=step), REST)
    for path in (tmp_path / "4").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with Checkpoints(tmp_path) as checkpoints:
        message = r"^the checkpoint .*4 cannot be read \(.+\); remove it, and training goes on"
        with pytest.raises(ValueError, match=message):
            checkpoints.latest(make_state())
    (tmp_path / "4").rename(tmp_path.parent / "lost")
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.latest(make_state())
    assert found is not None
    assert leaves_equal(found[0], at(3, seed=3))


def test_checkpoints_reject_file_as_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "checkpoints"):
        with pytest.raises(OSError, match=rf"cannot write to {folder}: "):
            Checkpoints(folder)
