"""The losses against float64 numpy, and the laws they obey."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt1_jax.losses import IGNORED, causal_lm_loss, classification_loss, cross_entropy

# float32 against float64, relative. Measured: 3e-7, and 8e-7 between two orders of the classes.
TOLERANCE = 3e-6


compiled_cross_entropy = jax.jit(cross_entropy)
compiled_lm_loss = jax.jit(causal_lm_loss)


def nats(logits: Any, labels: Any) -> np.ndarray:
    """The cross-entropy of each label that counts, in float64."""
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    logits, labels = logits[labels != IGNORED], labels[labels != IGNORED]
    largest = logits.max(-1, keepdims=True)
    logs = logits - largest - np.log(np.exp(logits - largest).sum(-1, keepdims=True))
    return -np.take_along_axis(logs, labels[..., None], -1)[..., 0]


@st.composite
def batches(draw: st.DrawFn, rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Logits (B, 4, 5) and labels (B, 4), some ignored, at least one that counts when shifted."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    B = draw(st.sampled_from([1, 3])) if rows is None else rows
    logits = rng.standard_normal((B, 4, 5)) * draw(st.sampled_from([0.1, 1.0, 10.0]))
    labels = rng.integers(0, 5, (B, 4))
    labels[rng.random((B, 4)) < 0.4] = IGNORED
    labels[:, -1] = rng.integers(0, 5, B)
    return logits.astype(np.float32), labels.astype(np.int32)


@given(batches())
def test_cross_entropy_is_the_mean_over_the_labels_that_count(batch: Any) -> None:
    logits, labels = batch
    loss = compiled_cross_entropy(logits, labels)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    np.testing.assert_allclose(loss, nats(logits, labels).mean(), rtol=TOLERANCE, atol=TOLERANCE)


@given(batches())
def test_the_language_modelling_loss_compares_logits_with_the_next_label(batch: Any) -> None:
    logits, labels = batch
    loss = compiled_lm_loss(logits, labels)
    expected = nats(logits[:, :-1], labels[:, 1:]).mean()
    np.testing.assert_allclose(loss, expected, rtol=TOLERANCE, atol=TOLERANCE)


@given(batches(rows=4), st.integers(1, 3))
def test_the_losses_of_micro_batches_add_up_to_the_loss_of_all(batch: Any, cut: int) -> None:
    logits, labels = batch
    count = np.float32((labels[:, 1:] != IGNORED).sum())
    parts = [
        compiled_lm_loss(logits[part], labels[part], count)
        for part in (slice(cut), slice(cut, None))
    ]
    whole = compiled_lm_loss(logits, labels)
    np.testing.assert_allclose(float(parts[0] + parts[1]), float(whole), rtol=TOLERANCE)


@given(batches(), st.floats(-50, 50, width=32))
def test_a_constant_added_to_the_logits_changes_nothing(batch: Any, shift: float) -> None:
    logits, labels = batch
    loss = compiled_cross_entropy(logits, labels)
    shifted = compiled_cross_entropy(logits + np.float32(shift), labels)
    # The shifted logits themselves are rounded to 4e-6 near 64. Measured: 4e-6.
    np.testing.assert_allclose(float(shifted), float(loss), atol=2e-5, rtol=0)


@given(batches(), st.permutations(range(5)))
def test_renaming_the_classes_changes_nothing(batch: Any, names: list[int]) -> None:
    logits, labels = batch
    renamed = np.where(labels == IGNORED, IGNORED, np.take(names, labels, mode="clip"))
    moved = np.empty_like(logits)
    moved[..., names] = logits
    np.testing.assert_allclose(
        float(compiled_cross_entropy(moved, renamed.astype(np.int32))),
        float(compiled_cross_entropy(logits, labels)),
        rtol=TOLERANCE,
        atol=TOLERANCE,
    )


def test_the_number_of_items_replaces_the_number_of_labels() -> None:
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((6, 5)), jnp.float32)
    labels = jnp.asarray([0, 1, IGNORED, 3, 4, IGNORED])
    total = nats(logits, labels).sum()
    for number in (7, 7.0, jnp.int32(7), jnp.float32(7)):
        np.testing.assert_allclose(
            cross_entropy(logits, labels, number), total / 7, rtol=TOLERANCE, err_msg=repr(number)
        )


def test_labels_that_are_all_ignored_give_nan() -> None:
    labels = jnp.full(3, IGNORED)
    assert np.isnan(cross_entropy(jnp.ones((3, 5)), labels))
    assert np.isnan(causal_lm_loss(jnp.ones((3, 5)), jnp.asarray([1, IGNORED, IGNORED])))
    # Divided by the labels of a larger batch it is 0: a micro-batch may have none of its own.
    assert cross_entropy(jnp.ones((3, 5)), labels, 4) == 0


def test_ignored_labels_have_no_gradient() -> None:
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.standard_normal((3, 5)), jnp.float32)
    labels = jnp.asarray([2, IGNORED, 4])
    gradient = np.asarray(jax.grad(cross_entropy)(logits, labels))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = (probabilities - np.eye(5)[[2, 0, 4]]) / 2
    expected[1] = 0
    assert not gradient[1].any()
    np.testing.assert_allclose(gradient, expected, atol=TOLERANCE)


@pytest.mark.parametrize("ignored", [1e4, float("inf")])
def test_ignored_logits_may_be_anything(ignored: float) -> None:
    logits = jnp.zeros((2, 5)).at[1, 0].set(ignored)
    labels = jnp.asarray([2, IGNORED])
    np.testing.assert_allclose(cross_entropy(logits, labels), np.log(5), rtol=TOLERANCE)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_widened_before_the_loss(dtype: str) -> None:
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((6, 50)) * 5, dtype)
    labels = jnp.arange(6)
    loss = cross_entropy(logits, labels)
    assert loss.dtype == jnp.float32
    expected = nats(np.asarray(logits, np.float64), labels).mean()
    np.testing.assert_allclose(loss, expected, rtol=TOLERANCE)


def test_large_logits_do_not_overflow() -> None:
    logits = jnp.asarray([[1e4, 0.0, -1e4], [-1e38, 1e38, 0.0]])
    np.testing.assert_allclose(cross_entropy(logits, jnp.asarray([2, 1])), 1e4, rtol=TOLERANCE)


def test_float64_stays_float64() -> None:
    with jax.enable_x64(True):
        logits = jnp.asarray(np.random.default_rng(0).standard_normal((6, 5)), jnp.float64)
        labels = jnp.asarray([0, 1, IGNORED, 3, 4, 2])
        loss = cross_entropy(logits, labels)
        assert loss.dtype == jnp.float64
        # Measured: 2.2e-16.
        np.testing.assert_allclose(loss, nats(logits, labels).mean(), rtol=1e-14)


RNG = np.random.default_rng(1)
LOGITS = RNG.standard_normal((4, 3)).astype(np.float32)
CLASSES = np.asarray([0, 2, IGNORED, 1])
SEVERAL = (RNG.random((4, 3)) < 0.5).astype(np.float32)
NUMBERS = RNG.standard_normal((4, 3)).astype(np.float32)


def squared(logits: np.ndarray, targets: np.ndarray) -> Any:
    return ((logits.astype(np.float64) - targets) ** 2).mean()


def binary(logits: np.ndarray, targets: np.ndarray) -> Any:
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return -(targets * np.log(probabilities) + (1 - targets) * np.log(1 - probabilities)).mean()


@pytest.mark.parametrize(
    ("logits", "labels", "problem_type", "expected"),
    [
        (LOGITS, CLASSES, "single_label_classification", nats(LOGITS, CLASSES).mean()),
        (LOGITS, CLASSES, None, nats(LOGITS, CLASSES).mean()),
        (LOGITS, CLASSES[:, None], None, nats(LOGITS, CLASSES).mean()),
        (LOGITS, CLASSES.astype(np.int8), None, nats(LOGITS, CLASSES).mean()),
        (LOGITS, SEVERAL, "multi_label_classification", binary(LOGITS, SEVERAL)),
        (LOGITS, SEVERAL, None, binary(LOGITS, SEVERAL)),
        (LOGITS, SEVERAL.astype(int), "multi_label_classification", binary(LOGITS, SEVERAL)),
        (LOGITS, NUMBERS, "regression", squared(LOGITS, NUMBERS)),
        (LOGITS[:, :1], NUMBERS[:, 0], "regression", squared(LOGITS[:, :1], NUMBERS[:, :1])),
        (LOGITS[:, :1], NUMBERS[:, 0], None, squared(LOGITS[:, :1], NUMBERS[:, :1])),
        (LOGITS[:, :1], NUMBERS[:, :1], None, squared(LOGITS[:, :1], NUMBERS[:, :1])),
        (LOGITS[:, :1], CLASSES, None, squared(LOGITS[:, :1], CLASSES[:, None])),
        (LOGITS[:, :1], SEVERAL[:, :1], "multi_label_classification", None),
    ],
)
def test_the_classification_loss(
    logits: np.ndarray, labels: np.ndarray, problem_type: str | None, expected: Any
) -> None:
    if expected is None:
        expected = binary(logits, labels)
    loss = classification_loss(jnp.asarray(logits), jnp.asarray(labels), problem_type)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    np.testing.assert_allclose(loss, expected, rtol=TOLERANCE)


def test_a_regression_on_half_precision_logits_is_float32() -> None:
    logits = jnp.asarray(LOGITS[:, :1], jnp.bfloat16)
    loss = classification_loss(logits, jnp.asarray(NUMBERS[:, 0]))
    assert loss.dtype == jnp.float32
    widened = np.asarray(logits, np.float32)
    np.testing.assert_allclose(loss, squared(widened, NUMBERS[:, :1]), rtol=TOLERANCE)
