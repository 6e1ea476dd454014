"""Every loss of the four models, in float32 and equal to Hugging Face's.

Labels that are IGNORED count neither in the sum nor in the mean. Where every label is ignored the
mean is NaN, as torch's: a silent zero would hide a batch without labels.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Integer

from gpt1_jax.nn.dtypes import at_least_float32
from gpt1_jax.nn.host_arrays import as_array
from gpt1_jax.nn.indices import gather_indices
from gpt1_jax.nn.int8 import QArray, int8_matmul
from gpt1_jax.nn.matmul import logits_matmul
from gpt1_jax.nn.partitioning import ROWS, axis_size, constrain

IGNORED = -100

Pair = tuple[jax.Array, jax.Array]


def cross_entropy(
    logits: Float[Array, "*rows C"],
    labels: Integer[Array, "*rows"],
    num_items: jax.typing.ArrayLike | None = None,
) -> Float[Array, ""]:
    """Return the mean cross-entropy over the labels that are not ``IGNORED``.

    Args:
        logits: of any float dtype.
        labels: each in [0, C) or IGNORED; any other gives NaN.
        num_items: divides the sum in place of the number of labels that count.

    Returns:
        The loss in nats, in float32 (float64 for float64 logits).
    """
    logits = logits.astype(at_least_float32(logits.dtype))
    counted = labels != IGNORED
    # A label out of range gives NaN, so the ignored ones are replaced first.
    labels = gather_indices(jnp.where(counted, labels, 0), logits.shape[-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    total = jnp.where(counted, losses, 0).sum()
    count = counted.sum() if num_items is None else as_array(num_items)
    return total / count.astype(total.dtype)


def causal_lm_loss(
    logits: Float[Array, "*rows T V"],
    labels: Integer[Array, "*rows T"],
    num_items_in_batch: jax.typing.ArrayLike | None = None,
) -> Float[Array, ""]:
    """Return the language-modelling loss: the logits at t against the label at t + 1.

    Args:
        logits: of any float dtype.
        labels: usually the input ids; IGNORED where there is nothing to predict.
        num_items_in_batch: where given, the loss is the sum over this batch divided by it, so that
            the losses of several micro-batches add up to the loss of them all.

    Returns:
        The loss in nats per token, in float32.
    """
    return cross_entropy(logits[..., :-1, :], labels[..., 1:], num_items_in_batch)


def chunked_cross_entropy(
    states: Float[Array, "N E"],
    table: Float[Array, "V E"] | QArray,
    labels: Integer[Array, "N"],
    weights: Float[Array, "N"],
    *,
    chunk: int = 512,
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, ""]:
    """Return the weighted sum of the cross-entropies of ``states @ table.T``.

    The logits of a training batch, and as large a gradient, are most of its memory. Here they exist
    for one chunk of the tokens at a time, and once: a chunk's gradient is taken while its logits
    are there. Otherwise the loss is what ``cross_entropy`` makes of the whole logits.

    Args:
        states: in the dtype of the computation.
        table: in the same dtype; or in int8, which has no gradient.
        labels: each in [0, V); any other gives NaN.
        weights: 0 for a label that does not count, 1 / count for a mean.
        chunk: the most tokens whose logits exist at once; changes no more than the rounding.
        precision: of the matrix products.

    Returns:
        The sum in nats, in float32 (float64 for float64 states).
    """
    # On a mesh every device goes through the tokens that it has, and sums are added at the end.
    shards = axis_size(states, ROWS)
    shards = shards if len(labels) % shards == 0 else 1
    N = len(labels) // shards
    num_chunks = max(1, -(-N // chunk))
    size = -(-N // num_chunks)  # as even as can be: the last chunk is filled up, with weight 0

    def chunks(x: jax.Array) -> jax.Array:
        """(shards * N, ...) -> (shards, num_chunks, size, ...)."""
        x = constrain(x.reshape(shards, N, *x.shape[1:]), ROWS, *[None] * x.ndim)
        filled = jnp.pad(x, [(0, 0), (0, num_chunks * size - N)] + [(0, 0)] * (x.ndim - 2))
        return filled.reshape(shards, num_chunks, size, *x.shape[2:])

    weights = weights.astype(at_least_float32(states.dtype))
    states, labels, weights = map(chunks, (states, labels, weights))
    if shards == 1:
        return _sum_of_chunks(states[0], table, labels[0], weights[0], precision)
    sums = jax.vmap(lambda *inputs: _sum_of_chunks(*inputs, precision), in_axes=(0, None, 0, 0))
    return sums(states, table, labels, weights).sum()


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _sum_of_chunks(
    states: Float[Array, "C N E"],
    table: Float[Array, "V E"] | QArray,
    labels: Integer[Array, "C N"],
    weights: Float[Array, "C N"],
    precision: jax.lax.PrecisionLike,
) -> Float[Array, ""]:
    def add(total: jax.Array, chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        x, labels, weights = chunk
        if isinstance(table, QArray):
            logits = int8_matmul(x, table)
        else:
            logits = logits_matmul(x, table, precision)
        losses, _ = _losses(logits, labels)
        return total + weights @ losses, None

    total, _ = jax.lax.scan(add, jnp.zeros((), weights.dtype), (states, labels, weights))
    return total


def _sum_and_gradients(
    states: Float[Array, "C N E"],
    table: Float[Array, "V E"],
    labels: Integer[Array, "C N"],
    weights: Float[Array, "C N"],
    precision: jax.lax.PrecisionLike,
) -> tuple[Float[Array, ""], tuple[Array, ...]]:
    """Return the sum, and its gradients, which are all that the backward pass needs."""
    product = functools.partial(
        jax.lax.dot_general, precision=precision, preferred_element_type=weights.dtype
    )

    def add(carry: Pair, chunk: tuple[jax.Array, ...]) -> tuple[Pair, Pair]:
        total, d_table = carry
        x, labels, weights = chunk
        losses, probabilities = _losses(logits_matmul(x, table, precision), labels)
        expected = jax.nn.one_hot(labels, len(table), dtype=weights.dtype)
        d_logits = (weights[:, None] * (probabilities - expected)).astype(x.dtype)
        d_x = product(d_logits, table, (((1,), (0,)), ((), ()))).astype(x.dtype)
        d_table += product(d_logits, x, (((0,), (0,)), ((), ())))
        return (total + weights @ losses, d_table), (d_x, losses)

    start = jnp.zeros((), weights.dtype), jnp.zeros(table.shape, weights.dtype)
    (total, d_table), (d_states, losses) = jax.lax.scan(add, start, (states, labels, weights))
    return total, (d_states, d_table.astype(table.dtype), losses)


def _scaled(
    precision: jax.lax.PrecisionLike, gradients: tuple[jax.Array, ...], g: jax.Array
) -> tuple[jax.Array | None, ...]:
    d_states, d_table, d_weights = (g.astype(d.dtype) * d for d in gradients)
    return d_states, d_table, None, d_weights


_sum_of_chunks.defvjp(_sum_and_gradients, _scaled)


def _losses(
    logits: Float[Array, "N V"], labels: Integer[Array, "N"]
) -> tuple[Float[Array, "N"], Float[Array, "N V"]]:
    """Return the cross-entropies and the probabilities."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    exponentials = jnp.exp(shifted)
    sums = exponentials.sum(axis=-1, keepdims=True)
    places = gather_indices(labels, logits.shape[-1])[:, None]
    at_labels = jnp.take_along_axis(shifted, places, axis=-1)
    return (jnp.log(sums) - at_labels)[:, 0], exponentials / sums


def classification_loss(
    logits: Float[Array, "B C"], labels: jax.Array, problem_type: str | None = None
) -> Float[Array, ""]:
    """Return the loss of the classification head.

    Args:
        logits: of C labels.
        labels: (B,) classes; (B,) or (B, C) numbers for a regression; (B, C) zeros and ones where
            several classes may hold at once.
        problem_type: "regression" (mean squared error), "single_label_classification"
            (cross-entropy), "multi_label_classification" (binary cross-entropy on logits), or None:
            a regression for one label, else one class for integer labels, else several.

    Returns:
        The loss in float32.
    """
    num_labels = logits.shape[-1]
    logits = logits.astype(at_least_float32(logits.dtype))
    if problem_type is None:
        if num_labels == 1:
            problem_type = "regression"
        elif jnp.issubdtype(labels.dtype, jnp.integer):
            problem_type = "single_label_classification"
        else:
            problem_type = "multi_label_classification"
    if problem_type == "single_label_classification":
        return cross_entropy(logits, labels.reshape(-1))
    targets = labels.astype(logits.dtype).reshape(logits.shape)
    if problem_type == "regression":
        return optax.squared_error(logits, targets).mean()
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean()
