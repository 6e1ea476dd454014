"""Dropout on the embeddings as GPT-1 was trained with it: on the tables themselves.

Hugging Face's model, and so the one here, drops elements of the sum of a token's and a position's
vector, anew for each. OpenAI's code drops elements of the tables, once a step: whatever reads a
row, in any sequence of the batch, and the softmax that is tied to the table, sees the same mask.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import unflatten_dict

from gpt1_jax.model import OpenAIGPTLMHeadModel
from gpt1_jax.pretrained import Params, flatten
from gpt1_jax.training.freezing import EMBEDDINGS
from gpt1_jax.training.step import Batch, Objective, Sums
from gpt1_jax.training.task_objective import TaskModel

EmbeddingDropout = Literal["sum", "tables"]


def configure_dropout(
    model: OpenAIGPTLMHeadModel | TaskModel, where: EmbeddingDropout, rate: float
) -> Callable[[Objective], Objective]:
    """Have a model's dropout on the embeddings fall where it should.

    Args:
        model: with a ``transformer``, whose own dropout is on the sum; before it is split.
        where: "sum" leaves it there, "tables" moves it.
        rate: of the dropout.

    Returns:
        What the objective has to be passed through.
    """
    if where == "sum" or not rate:
        return lambda objective: objective
    model.transformer.drop = nnx.Dropout(0.0)
    return functools.partial(with_dropped_tables, rate=rate)


def drop_from_tables(params: Params, rate: float, key: jax.Array) -> Params:
    """Return the parameters with dropout on the embeddings of tokens and of positions.

    Args:
        params: of any of the four models.
        rate: of elements that become 0; the others are divided by 1 - rate.
        key: that the masks are drawn from.
    """
    leaves = flatten(params)
    tables = sorted(path for path in leaves if path[-2] in EMBEDDINGS)
    for path, table_key in zip(tables, jax.random.split(key, len(tables)), strict=True):
        table = leaves[path]
        kept = jax.random.bernoulli(table_key, 1 - rate, table.shape)
        leaves[path] = jnp.where(kept, table / (1 - rate), 0).astype(table.dtype)
    return unflatten_dict(leaves)


def with_dropped_tables(objective: Objective, rate: float) -> Objective:
    """Return the objective of parameters with dropout on the embedding tables.

    The model's own dropout on the sum of embeddings has to be off.
    """

    def dropped(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Sums]:
        table_key, key = jax.random.split(key)
        return objective(drop_from_tables(params, rate, table_key), batch, key)

    return dropped
