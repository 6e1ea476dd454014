"""What is computed on the device and on the host alike, from one checkpoint with random weights."""

import dataclasses
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from flax import nnx

import gpt1_jax as gpt1
from benchmarks.peers.ours import NO_DROPOUT, OPTIMIZER, training_batch
from benchmarks.roofline import TINY
from gpt1_jax.nn.remat import Remat
from gpt1_jax.pure import merge, split
from gpt1_jax.training.lm_objective import lm_loss
from gpt1_jax.training.optimizer import make_optimizer
from gpt1_jax.training.step import Sums, TrainState, make_step

STEPS = 20  # of training, whose losses are compared


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the cases; rows and tokens.

    Attributes:
        logits: ids whose logits and gradients are compared.
        prompts: lengths of the prompts that are continued.
        new: how many tokens they are continued by.
        training: of the steps whose losses are compared.
        attention: of the attention backends' comparison; the tokens are even.
        forward: that are raced, the most important first.
        generate: rows that are raced, the most important first.
        context: of a prompt that is raced, and of what is written.
        train: that are raced, the most important first.
        dtypes: that are raced.
        remat: what a training step may compute again, as the cases that are compared.
        rounds: how often each runs in a race.
    """

    logits: tuple[int, int] = (4, 256)
    prompts: tuple[int, ...] = (5, 40, 17, 3)
    new: int = 64
    training: tuple[int, int] = (2, 128)
    attention: tuple[int, int] = (3, 64)
    forward: tuple[tuple[int, int], ...] = ((8, 512), (1, 128), (1, 512), (32, 512))
    generate: tuple[int, ...] = (1, 32, 8, 128)
    context: int = 128
    train: tuple[tuple[int, int], ...] = ((32, 512), (8, 512), (64, 512))
    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    remat: tuple[Remat, ...] = get_args(Remat)
    rounds: int = 5


FULL = Sizes()
QUICK = Sizes(
    logits=(2, 16),
    prompts=(3, 9, 1),
    new=8,
    training=(2, 8),
    attention=(2, 8),
    forward=((2, 16),),
    generate=(1, 2),
    context=8,
    train=((2, 16),),
    dtypes=("bfloat16",),
    remat=("linear",),
    rounds=2,
)


def compile_quickly() -> None:
    """Have XLA leave out most of its optimisation, to see on a CPU that everything works."""
    jax.config.update("jax_disable_most_optimizations", True)


def write_checkpoint(folder: Path, quick: bool) -> gpt1.OpenAIGPTConfig:
    """Write a checkpoint with random weights, the same everywhere, and return its config."""
    config = gpt1.OpenAIGPTConfig(**TINY if quick else {})
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        model = gpt1.OpenAIGPTLMHeadModel(config, rngs=seeded_rngs())
    # In one file, for which huggingface_hub, which may be absent, is not needed.
    model.save_pretrained(folder, max_shard_size=1 << 40)
    return config


def load(folder: Path, **numerics: Any) -> gpt1.OpenAIGPTLMHeadModel:
    """Return the checkpoint's model on JAX's default device, by default without dropout."""
    fields: dict[str, Any] = {**NO_DROPOUT, **numerics}
    return gpt1.OpenAIGPTLMHeadModel.from_pretrained(folder, **fields)


def seeded_rngs() -> nnx.Rngs:
    """Return the keys of random weights, the same everywhere."""
    return nnx.Rngs(0)


def random_ids(config: gpt1.OpenAIGPTConfig, *shape: int, seed: int = 0) -> np.ndarray:
    """Return random ids of a shape, the same everywhere."""
    ids = np.random.default_rng(seed).integers(config.vocab_size, size=shape)
    return ids.astype(np.int32)


def prompts(config: gpt1.OpenAIGPTConfig, sizes: Sizes) -> list[np.ndarray]:
    """Return the ragged batch of prompts that is continued."""
    return [random_ids(config, length, seed=length) for length in sizes.prompts]


def logits_and_gradients(
    model: gpt1.OpenAIGPTLMHeadModel, ids: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the logits, and of the loss the gradients of the first and the last block.

    Returns:
        "logits" (B, T, V), "loss" (), and a gradient by each parameter's path.
    """
    apply, params = gpt1.functional(model)
    last = str(model.config.n_layer - 1)

    @jax.jit
    def both(params: Any) -> tuple[jax.Array, jax.Array, Any]:
        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            out = apply(params, ids, labels=ids)
            return out.loss, out.logits

        (value, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        blocks = gradients["transformer"]["h"]
        return value, logits, {name: blocks[name] for name in ("0", last)}

    value, logits, gradients = both(params)
    named = jax.tree_util.tree_leaves_with_path(gradients)
    found = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in named}
    return {"logits": np.asarray(logits), "loss": np.asarray(value), **found}


def texts(model: gpt1.OpenAIGPTLMHeadModel, sizes: Sizes) -> dict[str, list[list[int]]]:
    """Return the ids of texts, written greedily, by beams and by sampling."""
    batch = prompts(model.config, sizes)
    ways: dict[str, dict[str, Any]] = {
        "greedy": {},
        "sampling": {"do_sample": True, "top_k": 50, "seed": 1},
        "beams": {"num_beams": 4},
    }
    return {
        name: [
            np.asarray(row).tolist()
            for row in gpt1.generate(model, batch, max_new_tokens=sizes.new, **settings)
        ]
        for name, settings in ways.items()
    }


@dataclasses.dataclass
class Training:
    """A training step that was compiled, and its state; ``losses`` runs it.

    Attributes:
        compiled: the step.
        state: before the next step.
        batch: that every step takes.
    """

    compiled: Any
    state: TrainState
    batch: Any

    @classmethod
    def build(cls, model: gpt1.OpenAIGPTLMHeadModel, ids: np.ndarray) -> "Training":
        """Compile a step of ``model``, whose parameters are float32, for ids (B, T)."""
        structure, params = split(model)
        transform = make_optimizer(OPTIMIZER, total_steps=10_000)
        state = TrainState.create(params, transform, seed=0)

        def objective(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Sums]:
            dropout = model.config.resid_pdrop > 0
            return lm_loss(merge(structure, params), batch, key if dropout else None)

        batch = jax.device_put(training_batch(ids))
        step: Any = make_step(objective, transform)
        return cls(step.lower(state, {}, batch).compile(), state, batch)

    def losses(self, number: int) -> list[jax.Array]:
        """Take steps, and return the losses before each; none is waited for."""
        found = []
        for _ in range(number):
            self.state, measures = self.compiled(self.state, {}, self.batch)
            found.append(measures["loss"])
        return found


def training_losses(model: gpt1.OpenAIGPTLMHeadModel, sizes: Sizes) -> list[float]:
    """Return the losses of ``STEPS`` steps on one batch."""
    training = Training.build(model, random_ids(model.config, *sizes.training))
    return [float(loss) for loss in training.losses(STEPS)]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the root mean square of a difference, relative to that of what is expected."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
