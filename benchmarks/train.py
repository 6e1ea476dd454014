"""A training step in float32: this package, and transformers in torch, eager and compiled."""

import functools
import importlib.util
import json as json_format
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from benchmarks.peers import OURS, random_checkpoint
from benchmarks.timing import cores, interleave, ratio
from gpt1_jax.functional import merge, split
from gpt1_jax.model import OpenAIGPTLMHeadModel
from gpt1_jax.rematerialization import Remat
from gpt1_jax.training.lm_objective import lm_loss
from gpt1_jax.training.optimizer import OptimizerSettings, make_optimizer
from gpt1_jax.training.step import Batch, TrainState, make_step, micro_batches

CASES = ((8, 64), (4, 256), (8, 512))
OPTIMIZER = OptimizerSettings(
    optimizer="adamw", learning_rate=1e-4, schedule="constant", warmup=0, weight_decay=0.01
)
NO_DROPOUT: dict[str, Any] = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
# Steps whose losses are compared, and relative difference of the losses.
# Measured: 2.4e-6.
CHECKED, TOLERANCE = 3, 5e-5

# ids (B, T) -> the loss of predicting each from those before it, before the step that it takes.
Step = Callable[[np.ndarray], float]


def gpt1_jax(folder: Path, dropout: bool, remat: Remat) -> Step:
    """Ours."""
    rates: dict[str, Any] = {} if dropout else NO_DROPOUT
    model = OpenAIGPTLMHeadModel.from_pretrained(folder, remat=remat, **rates)
    graphdef, params = split(model)
    optimizer = make_optimizer(OPTIMIZER, total_steps=10_000)
    state = TrainState.create(params, optimizer, seed=0)
    del model, params

    def objective(params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return lm_loss(merge(graphdef, params), batch, key if dropout else None)

    step = make_step(objective, optimizer)

    def batch_of(ids: np.ndarray) -> Batch:
        # Ours predicts from every token that it reads. torch reads the last one and predicts
        # nothing from it: so that both do the same work, a token that does not count follows here.
        weights = np.ones(ids.shape, np.float32)
        weights[:, -1] = 0
        return micro_batches({"tokens": np.pad(ids, ((0, 0), (0, 1))), "weights": weights}, 1)

    def take(ids: np.ndarray) -> float:
        nonlocal state
        state, measures = step(state, {}, batch_of(ids))
        jax.block_until_ready(state)
        return float(measures["loss"])

    return take


def transformers(folder: Path, dropout: bool, remat: Remat) -> Step:
    """Hugging Face's model in torch; what is computed again is ours alone."""
    import torch
    from transformers import OpenAIGPTLMHeadModel

    rates: dict[str, Any] = {} if dropout else NO_DROPOUT
    model: Any = OpenAIGPTLMHeadModel.from_pretrained(folder, **rates).train()
    return _torch_step(torch, model, model)


def torch_compile(folder: Path, dropout: bool, remat: Remat) -> Step:
    """The same, compiled."""
    import torch
    from transformers import OpenAIGPTLMHeadModel

    rates: dict[str, Any] = {} if dropout else NO_DROPOUT
    model: Any = OpenAIGPTLMHeadModel.from_pretrained(folder, **rates).train()
    return _torch_step(torch, model, torch.compile(model))


def _torch_step(torch: Any, model: Any, forward: Callable[..., Any]) -> Step:
    torch.set_num_threads(cores())
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": OPTIMIZER.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=OPTIMIZER.learning_rate, fused=True)

    def take(ids: np.ndarray) -> float:
        tokens = torch.from_numpy(ids.astype(np.int64))
        loss = forward(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, OPTIMIZER.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return take


PEERS: dict[str, Callable[[Path, bool, Remat], Step]] = {
    OURS: gpt1_jax,
    "transformers": transformers,
    "torch.compile": torch_compile,
}


def train(
    model: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    peers: tuple[str, ...] = tuple(PEERS),
    cases: tuple[tuple[int, int], ...] = CASES,
    rounds: int = 5,
    dropout: bool = False,
    remat: Remat = "none",
    memory: bool = False,
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
) -> None:
    """Race training steps: gradients, clipping and AdamW; all must see the same losses.

    Args:
        model: a checkpoint; by default one of full size with random weights, which needs torch.
        peers: who takes part.
        cases: batch and tokens, at least two.
        rounds: how often each runs.
        dropout: train with dropout, whose masks differ, so the losses are not compared.
        remat: what this package computes again.
        memory: measure the most memory that each takes, in a process of its own, and not the time.
        json: write the seconds of every round, or the bytes, to this file.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, but must be at least 1")
    if unknown := set(peers) - set(PEERS):
        raise ValueError(f"{unknown.pop()!r} is no peer; the peers are {', '.join(PEERS)}")
    for case in cases:
        if case[0] < 1 or case[1] < 2:
            raise ValueError(f"the case {case} must have a batch, and two tokens at least")
    if memory and not Path("/proc/self/status").exists():
        raise ValueError("memory is read from /proc/self/status, which only Linux has")
    torch = importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")
    taking_part = [name for name in peers if name == OURS or torch]
    for name in sorted(set(peers) - set(taking_part)):
        print(f"{name} is not installed, and does not take part")
    with tempfile.TemporaryDirectory() as temporary:
        if model is None:
            if not torch:
                raise ValueError("random weights need torch: give --model, or install .[bench]")
            model = Path(temporary)
            random_checkpoint(model)
        play = _peaks if memory else functools.partial(_race, rounds=rounds)
        results = [play(model, taking_part, case, dropout, remat) for case in cases]
    if json is not None:
        json.write_text(json_format.dumps(results, indent=1) + "\n")


def _race(
    folder: Path,
    names: list[str],
    case: tuple[int, int],
    dropout: bool,
    remat: Remat,
    rounds: int,
) -> dict[str, Any]:
    """Run one case and print it."""
    ids = _ids(folder, case)
    steps = {name: PEERS[name](folder, dropout, remat) for name in names}
    losses = {name: [step(ids) for _ in range(CHECKED)] for name, step in steps.items()}
    for name in names[1:]:
        close = np.allclose(losses[name], losses[names[0]], rtol=TOLERANCE, atol=0)
        if not dropout and not close:
            raise ValueError(
                f"{name} has the losses {losses[name]}, but {names[0]} has {losses[names[0]]}"
            )
    seconds = interleave(
        {name: lambda step=step: step(ids) for name, step in steps.items()}, rounds
    )
    print(f"\n{case[0]} rows of {case[1]} tokens; medians of {rounds} rounds")
    for name in names:
        line = f"  {name:13} {1e3 * statistics.median(seconds[name]):8.0f} ms a step"
        if name != OURS and OURS in names:
            middle, low, high = ratio(seconds[name], seconds[OURS])
            line += f"   {OURS} is {middle:.2f} times as fast ({low:.2f} to {high:.2f})"
        print(line, flush=True)
    return {"case": case, "remat": remat, "losses": losses, "seconds": seconds}


def _peaks(
    folder: Path, names: list[str], case: tuple[int, int], dropout: bool, remat: Remat
) -> dict[str, Any]:
    """Measure the memory of one case and print it."""
    peaks = {}
    print(f"\n{case[0]} rows of {case[1]} tokens; the most memory of a process")
    for name in names:
        fresh = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=fresh) as pool:
            peaks[name] = pool.submit(_peak, folder, name, case, dropout, remat).result()
        line = f"  {name:13} {peaks[name] / 1e9:6.2f} GB"
        if name != OURS and OURS in peaks:
            line += f"   {OURS} takes {peaks[OURS] / peaks[name]:.0%} of it"
        print(line, flush=True)
    return {"case": case, "remat": remat, "bytes": peaks}


def _peak(folder: Path, name: str, case: tuple[int, int], dropout: bool, remat: Remat) -> int:
    """Return the most bytes of memory that this process, which takes some steps, has had."""
    step, ids = PEERS[name](folder, dropout, remat), _ids(folder, case)
    for _ in range(CHECKED):
        step(ids)
    # Not getrusage, which remembers what the parent had.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def _ids(folder: Path, case: tuple[int, int]) -> np.ndarray:
    V = json_format.loads((folder / "config.json").read_text())["vocab_size"]
    return np.random.default_rng(0).integers(V, size=case).astype(np.int32)
