"""What a model says of a batch of examples, and its loss: pure, for use inside a compiled step.

Dimensions: B examples, S sequences of each (1, both orders of a similarity, or the choices),
T tokens, E ``n_embd``, C outputs of the head.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from gpt1_jax.model import OpenAIGPTDoubleHeadsModel, OpenAIGPTForSequenceClassification
from gpt1_jax.nn.layers import dropout, split_key
from gpt1_jax.nn.losses import IGNORED, chunked_cross_entropy, cross_entropy
from gpt1_jax.training.step import Sums

# (logits (B, C), labels (B,)) -> the loss of each example (B,): traced, in float32.
ExampleLoss = Callable[[jax.Array, jax.Array], jax.Array]
TaskModel = OpenAIGPTDoubleHeadsModel | OpenAIGPTForSequenceClassification
Batch = Mapping[str, jax.Array | np.ndarray]  # as tasks.collate makes it


def task_outputs(
    model: TaskModel,
    batch: Batch,
    dropout_key: jax.Array | None = None,
    *,
    classifier_dropout: float = 0.1,
) -> jax.Array:
    """Return the logits of the classes or choices, or the predicted number.

    Args:
        model: as ``pure.merge`` returns it, configured by ``Task.configure``.
        batch: see ``tasks.collate``; rows of any weight.
        dropout_key: that every dropout mask is drawn from; None for no dropout.
        classifier_dropout: the rate on the state before the head, in place of the config's
            ``summary_first_dropout``. The choices of an example share the mask.

    Returns:
        (B, C) classes, (B, 1) numbers or (B, S) choices, float32.
    """
    body_key, head_key = split_key(dropout_key, 2)
    states = _states(model, batch, body_key)
    return _head(model, states, batch["classify_at"], classifier_dropout, head_key)


def task_loss(
    model: TaskModel,
    batch: Batch,
    dropout_key: jax.Array | None = None,
    *,
    lm_weight: float,
    classifier_dropout: float = 0.1,
    label_smoothing: float = 0.0,
    class_weights: np.ndarray | None = None,
    example_loss: ExampleLoss | None = None,
) -> tuple[jax.Array, Sums]:
    """Return the loss of a batch as a sum, so that micro-batches add up, and what divides it.

    The loss of an example is the cross-entropy of its class or choice, the squared error of its
    number, or the mean of the binary cross-entropies of its labels, plus ``lm_weight`` times the
    auxiliary language-modelling loss: the mean over its sequences of the mean cross-entropy of
    their tokens after the first (the paper's equation 5; the means are those of OpenAI's code).

    With ``class_weights`` the loss of an example, the auxiliary one included, counts as often as
    the weight of its class says: the mean over a batch, however it is split, is the weighted mean
    of torch's ``CrossEntropyLoss(weight, label_smoothing)``.

    Args:
        model: see ``task_outputs``, as the next two and ``classifier_dropout``.
        batch: rows of weight 0 count neither in the sum nor in the number.
        dropout_key: that every dropout mask is drawn from; None for no dropout.
        lm_weight: 0 leaves the language-modelling loss out.
        classifier_dropout: the rate before the head.
        label_smoothing: of classes and choices, how much of the target is spread over all of them.
        class_weights: (C,) float32 above 0, of classes; None for 1 each.
        example_loss: in place of the task's own loss, and of the last two.

    Returns:
        () float32, the sum over the examples; and ``weight``, the number of examples, or the sum
        of their weights; with ``lm_weight`` the two parts of the loss too, ``task_loss`` and
        ``lm_loss``, each a sum.
    """
    body_key, head_key = split_key(dropout_key, 2)
    states = _states(model, batch, body_key)
    logits = _head(model, states, batch["classify_at"], classifier_dropout, head_key)
    weight = jnp.asarray(batch["weight"], logits.dtype)
    if class_weights is not None:
        weight *= jnp.asarray(class_weights)[batch["label"]]
    if example_loss is not None:
        task = jnp.asarray(batch["weight"], logits.dtype) @ _checked(example_loss, logits, batch)
    elif label_smoothing or class_weights is not None:
        task = _weighted_loss(logits, batch, label_smoothing, class_weights)
    else:
        task = prediction_loss(logits, batch)
    sums = {"weight": weight.sum()}
    if not lm_weight:
        return task, sums
    lm = _lm_loss(model, states, {**batch, "weight": weight})
    return task + lm_weight * lm, {**sums, "task_loss": task, "lm_loss": lm}


def _checked(example_loss: ExampleLoss, logits: jax.Array, batch: Batch) -> jax.Array:
    losses = jnp.asarray(example_loss(logits, jnp.asarray(batch["label"])))
    if losses.shape != logits.shape[:1]:
        raise ValueError(
            f"loss returned an array of shape {losses.shape}, but must return the loss of each of "
            f"{len(logits)} examples, of shape {logits.shape[:1]}"
        )
    # A row that fills up may have any loss, NaN too.
    return jnp.where(batch["weight"] > 0, losses.astype(logits.dtype), 0)


def _weighted_loss(
    logits: jax.Array, batch: Batch, smoothing: float, class_weights: np.ndarray | None
) -> jax.Array:
    """Return the cross-entropy of smoothed targets and weighted classes, summed: (B, C) -> ().

    As in torch, each class has its weight in the part of the target that is spread, too.
    """
    C = logits.shape[-1]
    targets = (1 - smoothing) * jax.nn.one_hot(batch["label"], C) + smoothing / C  # (B, C)
    losses = -targets * jax.nn.log_softmax(logits)
    losses = losses.sum(axis=-1) if class_weights is None else losses @ jnp.asarray(class_weights)
    return jnp.asarray(batch["weight"], logits.dtype) @ losses


def prediction_loss(logits: jax.Array, batch: Batch) -> jax.Array:
    """Return the loss of what ``task_outputs`` says, without the language model's: a sum, ().

    The cross-entropy of a class or choice, the squared error of a number, the mean of the binary
    cross-entropies of any number of classes, of rows that weigh.
    """
    label, weight = batch["label"], jnp.asarray(batch["weight"], logits.dtype)
    if label.ndim == 2:
        targets = jnp.asarray(label, logits.dtype)
        return weight @ optax.sigmoid_binary_cross_entropy(logits, targets).mean(axis=-1)
    if jnp.issubdtype(label.dtype, jnp.floating):
        return weight @ optax.squared_error(logits[:, 0], label.astype(logits.dtype))
    return cross_entropy(logits, jnp.where(weight > 0, label, IGNORED), num_items=1)


def _states(model: TaskModel, batch: Batch, dropout_key: jax.Array | None) -> jax.Array:
    """Return the states (B, S, T, E).

    There is no mask: pads come after the tokens, which do not see what follows them.
    """
    return model.transformer.forward(
        batch["input_ids"], deterministic=dropout_key is None, dropout_key=dropout_key
    ).last_hidden_state


def _head(
    model: TaskModel,
    states: jax.Array,
    classify_at: jax.Array | np.ndarray,
    classifier_dropout: float,
    dropout_key: jax.Array | None,
) -> jax.Array:
    """(B, S, T, E) and the places (B, S) that are read -> (B, C), or (B, S) for choices."""
    x = jnp.take_along_axis(states, classify_at[:, :, None, None], axis=2)[:, :, 0]  # (B, S, E)
    drop = nnx.Dropout(classifier_dropout, broadcast_dims=(1,))
    if isinstance(model, OpenAIGPTDoubleHeadsModel):
        head = model.multiple_choice_head
        return head.activation(head.summary(dropout(drop, x, dropout_key)))[:, :, 0]
    x = x.sum(axis=1, keepdims=True)
    return model.score(dropout(drop, x, dropout_key))[:, 0]


def _lm_loss(model: TaskModel, states: jax.Array, batch: Batch) -> jax.Array:
    """Return the language-modelling losses of the examples, summed: (B, S, T, E) -> ()."""
    B, S, T, E = states.shape
    last = batch["classify_at"][:, :, None]  # (B, S, 1)
    weight = batch["weight"][:, None, None]
    mean = weight / (S * jnp.maximum(last, 1)).astype(weight.dtype)
    weights = jnp.where(jnp.arange(T)[None, None] < last, mean, 0)
    # The last column comes round from the first, and weighs nothing.
    labels = jnp.roll(batch["input_ids"], -1, axis=-1)
    table = model.transformer.tokens_embed.embedding.get_value()
    return chunked_cross_entropy(
        states.reshape(B * S * T, E),
        table.astype(model.dtype),
        labels.reshape(-1),
        weights.reshape(-1),
        precision=model.transformer.h[0].attn.precision,
    )
