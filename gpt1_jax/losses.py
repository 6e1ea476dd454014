"""Every loss of the four models, in float32 and equal to Hugging Face's.

Labels that are IGNORED count neither in the sum nor in the mean. Where every label is ignored the
mean is NaN, as torch's: a silent zero would hide a batch without labels.
"""

import jax
import jax.numpy as jnp
import optax

from gpt1_jax.dtypes import at_least_float32

IGNORED = -100


def cross_entropy(
    logits: jax.Array, labels: jax.Array, num_items: jax.Array | float | None = None
) -> jax.Array:
    """Return the mean cross-entropy over the labels that are not ``IGNORED``.

    Args:
        logits: (..., C), of any float dtype.
        labels: (...) integer, each in [0, C) or IGNORED.
        num_items: divides the sum in place of the number of labels that count.

    Returns:
        () float32 (float64 for float64 logits), in nats.
    """
    logits = logits.astype(at_least_float32(logits.dtype))
    counted = labels != IGNORED
    # optax returns NaN for a label out of range, so the ignored ones are replaced first.
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counted, labels, 0))
    total = jnp.where(counted, losses, 0).sum()
    count = counted.sum() if num_items is None else jnp.asarray(num_items)
    return total / count.astype(total.dtype)


def causal_lm_loss(
    logits: jax.Array, labels: jax.Array, num_items_in_batch: jax.Array | float | None = None
) -> jax.Array:
    """Return the language-modelling loss: the logits at t against the label at t + 1.

    Args:
        logits: (..., T, V).
        labels: (..., T) integer, usually the input ids; IGNORED where there is nothing to predict.
        num_items_in_batch: where given, the loss is the sum over this batch divided by it, so that
            the losses of several micro-batches add up to the loss of them all.

    Returns:
        () float32, in nats per token.
    """
    return cross_entropy(logits[..., :-1, :], labels[..., 1:], num_items_in_batch)


def classification_loss(
    logits: jax.Array, labels: jax.Array, problem_type: str | None = None
) -> jax.Array:
    """Return the loss of the classification head.

    Args:
        logits: (B, num_labels).
        labels: (B,) classes; (B,) or (B, num_labels) numbers for a regression; (B, num_labels)
            zeros and ones where several classes may hold at once.
        problem_type: "regression" (mean squared error), "single_label_classification"
            (cross-entropy), "multi_label_classification" (binary cross-entropy on logits), or None:
            a regression for one label, else one class for integer labels, else several.

    Returns:
        () float32.
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
