"""gpt1-jax itself."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import gpt1_jax as gpt1
from gpt1_jax.nn.remat import Remat
from gpt1_jax.pure import merge, split
from gpt1_jax.training.lm_objective import lm_loss
from gpt1_jax.training.optimizer import OptimizerSettings, make_optimizer
from gpt1_jax.training.step import Batch, Sums, TrainState, make_step, micro_batches

# JAX's default on a GPU or TPU is coarser than float32, torch's is not.
PRECISION = "highest"
# Of a training step that is raced: losses can be compared without dropout alone.
OPTIMIZER = OptimizerSettings(
    optimizer="adamw", learning_rate=1e-4, schedule="constant", warmup=0, weight_decay=0.01
)
NO_DROPOUT: dict[str, float] = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}


def load(folder: Path, dtype: str = "float32") -> gpt1.OpenAIGPTLMHeadModel:
    """Return the model with parameters in ``dtype``, ready; in int8 it is quantized here."""
    stored = "float32" if dtype == "int8" else dtype
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(
        folder, dtype=stored, param_dtype=stored, precision=PRECISION
    )
    if dtype == "int8":
        model = gpt1.quantize(model, "int8")
    jax.block_until_ready(model.params)
    return model


def forward(folder: Path, head: bool, dtype: str = "float32") -> Callable[[np.ndarray], Any]:
    """Return the compiled forward of the language model, or of the transformer alone."""
    model = load(folder, dtype)
    apply, params = gpt1.functional(model if head else model.transformer)

    def run(ids: np.ndarray) -> jax.Array:
        out = apply(params, ids)
        return jax.block_until_ready(out.logits if head else out.last_hidden_state)

    return run


def generate(folder: Path, dtype: str = "float32") -> Callable[[np.ndarray, int], np.ndarray]:
    """Return greedy generation."""
    model = load(folder, dtype)

    def run(prompts: np.ndarray, new: int) -> np.ndarray:
        return gpt1.generate(model, prompts, max_new_tokens=new)

    return run


def score(folder: Path, dtype: str = "float32") -> Callable[[Sequence[str]], list[np.ndarray]]:
    """Return the function from texts to log-probabilities of their tokens, without the first."""
    model, tokenizer = load(folder, dtype), gpt1.Tokenizer.from_pretrained(folder)

    def run(texts: Sequence[str]) -> list[np.ndarray]:
        return [each.log_probs[1:] for each in gpt1.score(model, texts, tokenizer=tokenizer)]

    return run


def predict(folder: Path, dtype: str = "float32") -> Callable[[Sequence[str]], np.ndarray]:
    """Return the function from texts to the probabilities of the classes."""
    stored = "float32" if dtype == "int8" else dtype
    model = gpt1.OpenAIGPTForSequenceClassification.from_pretrained(
        folder, dtype=stored, param_dtype=stored, precision=PRECISION
    )
    if dtype == "int8":
        model = gpt1.quantize(model, "int8")
    tokenizer = gpt1.Tokenizer.from_pretrained(folder)

    def run(texts: Sequence[str]) -> np.ndarray:
        found = gpt1.predict(model, texts, tokenizer=tokenizer, task="classification")
        return np.array([list(row["scores"].values()) for row in found], np.float32)

    return run


def training_batch(ids: np.ndarray) -> Batch:
    """Return ids (B, T) as a step takes them.

    Ours predicts from every token that it reads. torch reads the last one and predicts nothing from
    it: so that both do the same work, a token that does not count follows here.
    """
    weights = np.ones(ids.shape, np.float32)
    weights[:, -1] = 0
    return micro_batches({"tokens": np.pad(ids, ((0, 0), (0, 1))), "weights": weights}, 1)


def train(
    folder: Path,
    optimizer: OptimizerSettings,
    rates: dict[str, float],
    remat: Remat,
    dtype: str = "float32",
) -> Callable[[np.ndarray], float]:
    """Return a training step that returns the loss before it; ``rates`` are those of dropout."""
    fields: dict[str, Any] = dict(rates)
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(
        folder, dtype=dtype, param_dtype="float32", precision=PRECISION, remat=remat, **fields
    )
    structure, params = split(model)
    transform = make_optimizer(optimizer, total_steps=10_000)
    state = TrainState.create(params, transform, seed=0)
    dropout = any(rate > 0 for rate in rates.values())
    del model, params

    def objective(params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Sums]:
        return lm_loss(merge(structure, params), batch, key if dropout else None)

    step = make_step(objective, transform)

    def take(ids: np.ndarray) -> float:
        nonlocal state
        state, measures = step(state, {}, training_batch(ids))
        jax.block_until_ready(state)
        return float(measures["loss"])

    return take
