"""What a fine-tuned model says of many examples: like lengths together, in few programs.

Metrics and predictions are made of the same logits, which this computes.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from gpt1_jax.pretrained import Params
from gpt1_jax.pure import ModelStructure, merge
from gpt1_jax.scoring import COMPILATION
from gpt1_jax.sharding.mesh import batch_shardings, gather, mesh_of, round_up_to_mesh, shard
from gpt1_jax.training.data.tasks import Example, collate, padded_length
from gpt1_jax.training.step import Batch
from gpt1_jax.training.task_objective import TaskModel, prediction_loss, task_outputs


class BatchOutputs(NamedTuple):
    """What a model says of the examples of a batch.

    Attributes:
        numbers: of the examples, (B,) integer.
        logits: of the classes or choices, or the predicted numbers, (B, C) float32.
        loss: the task's own loss, summed over the examples.
    """

    numbers: np.ndarray
    logits: np.ndarray
    loss: float


def forward_batches(
    structure: ModelStructure[TaskModel],
    params: Params,
    examples: Sequence[Example],
    *,
    batch_size: int,
) -> Iterator[BatchOutputs]:
    """Yield the outputs of examples, a batch at a time, the longest examples first.

    Args:
        structure: of the model.
        params: of the model, on one device or on a mesh.
        examples: of one task.
        batch_size: examples that are computed at once, at most.
    """
    if not examples:
        return
    lengths = np.array([max(map(len, example.sequences)) for example in examples])
    # The longest first: if memory does not suffice for them, that shows at once.
    order = np.argsort(-lengths, kind="stable")
    rows = min(batch_size, 1 << (len(examples) - 1).bit_length())  # calls of few share programs
    n_positions, n_embd = params["transformer"]["positions_embed"]["embedding"].shape
    # Compiling takes as long for a narrow model, in which time it reads more tokens.
    compilation = COMPILATION * (768 / n_embd) ** 2
    mesh = mesh_of(params)
    padded_rows = rows if mesh is None else round_up_to_mesh(mesh, rows)
    T = padded_length(int(lengths.max()), n_positions)
    for start in range(0, len(examples), rows):
        shorter = min(-(-int(lengths[order[start]]) // 8) * 8, n_positions)
        # Shorter batches follow where they spare more padding than another compilation is worth.
        if (T - shorter) * (len(examples) - start) * len(examples[0].sequences) >= compilation:
            T = shorter
        numbers = order[start : start + rows]
        batch: Batch = collate(
            [examples[i] for i in numbers], n_positions=n_positions, rows=padded_rows, length=T
        )
        if mesh is not None:
            batch = shard(batch, batch_shardings(mesh, batch))
        logits, loss = _outputs(structure, params, batch)
        logits = np.asarray(logits if mesh is None else gather(logits))[: len(numbers)]
        yield BatchOutputs(numbers, logits, float(loss))


def forward(
    structure: ModelStructure[TaskModel],
    params: Params,
    examples: Sequence[Example],
    *,
    batch_size: int,
) -> tuple[np.ndarray, float]:
    """Return the logits (N, C) of all examples in their order, and the mean of their losses.

    Args:
        structure: see ``forward_batches``, as the others.
        params: likewise.
        examples: likewise; at least one.
        batch_size: likewise.
    """
    batches = list(forward_batches(structure, params, examples, batch_size=batch_size))
    logits = np.concatenate([batch.logits for batch in batches])
    in_order = np.empty_like(logits)
    in_order[np.concatenate([batch.numbers for batch in batches])] = logits
    return in_order, sum(batch.loss for batch in batches) / len(examples)


@functools.partial(jax.jit, static_argnames="structure")
def _outputs(
    structure: ModelStructure[TaskModel], params: Params, batch: Batch
) -> tuple[jax.Array, jax.Array]:
    logits = task_outputs(merge(structure, params), batch)
    return logits, prediction_loss(logits, batch)
