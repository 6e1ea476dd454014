"""How trainings in several processes end: a line of JSON for each case.

cd tests && python -m support.two_trainings PORT PROCESS_ID NUM_PROCESSES FOLDER
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np

from gpt1_jax.sharding.mesh import make_mesh
from gpt1_jax.sharding.processes import DeviceSettings, devices
from gpt1_jax.training.callbacks import Callback
from gpt1_jax.training.loop import LoopSettings, TrainSpec, train
from gpt1_jax.training.optimizer import OptimizerSettings, learning_rate, make_optimizer
from gpt1_jax.training.step import Sums

PORT, NUMBER, NUM_PROCESSES, FOLDER = sys.argv[1:]
STEPS = 6
SETTINGS = OptimizerSettings(
    optimizer="openai", learning_rate=0.1, schedule="constant", warmup=0, weight_decay=0.0
)


class Batches:
    """Two rows of which each process has one; ``before`` is called with the number of each."""

    def __init__(self, before: Callable[[int], None] = lambda number: None):
        self.number = 0
        self.before = before

    def __next__(self) -> dict[str, np.ndarray]:
        self.before(self.number)
        self.number += 1
        return {"x": np.full((1, 3), self.number + int(NUMBER), np.float32)}

    def get_state(self) -> dict[str, int]:
        return {"number": self.number}

    def set_state(self, state: dict[str, int]) -> None:
        self.number = state["number"]


class Answering(Callback):
    """Calls a function at step 2."""

    def __init__(self, answer: Callable[[], Any] = lambda: None):
        self.answer = answer

    def on_evaluate(self, step: int, metrics: Mapping[str, float]) -> Any:
        return self.answer() if step == 2 else None


def objective(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Sums]:
    errors = (batch["x"] * params["line"]["scale"]).sum(axis=1)
    return (errors**2).sum(), {"weight": jnp.full((), len(errors), jnp.float32)}


def fail() -> None:
    raise FileNotFoundError("no target")


def terminate(now: int) -> None:
    if now == 3 and NUMBER == "1":
        signal.raise_signal(signal.SIGTERM)


def run(case: str, batches: Batches, callback: Callback) -> None:
    """Train into a folder of its own, and report how that ended, and after which step."""
    params = {"line": {"scale": jnp.ones(3)}}
    spec = TrainSpec(
        params=params,
        frozen={},
        objective=objective,
        optimizer=make_optimizer(SETTINGS, STEPS),
        learning_rate=learning_rate(SETTINGS, STEPS),
        batches=batches,
        tokens=lambda batch: 1,
        steps=STEPS,
        seed=0,
        save=lambda trained, params: None,
        evaluate=lambda params: {"loss": 0.0},
        mesh=make_mesh("data=2"),
        batch_size=2,
    )
    settings = LoopSettings(log_every=4, eval_every=2, checkpoint_every=10)
    ended = None
    try:
        train(spec, settings, Path(FOLDER) / case, [callback])
    except (Exception, KeyboardInterrupt) as error:
        ended = f"{type(error).__name__}: {error}"
    print(json.dumps([case, ended, batches.number]), flush=True)


settings = DeviceSettings(
    distributed=True,
    coordinator=f"127.0.0.1:{PORT}",
    process_id=int(NUMBER),
    num_processes=int(NUM_PROCESSES),
)
heard = []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
with devices(settings):
    signal.raise_signal(signal.SIGTERM)
    print(json.dumps(["heard outside of a training", heard, 0]), flush=True)
    run("stop", Batches(), Answering(lambda: "stop"))
    run("stop", Batches(), Callback())
    run("error", Batches(), Answering(fail))
    run("signal", Batches(terminate), Callback())
