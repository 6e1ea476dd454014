"""The losses against float64 numpy, and the laws they obey."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from gpt1_jax.nn.losses import (
    IGNORED,
    causal_lm_loss,
    chunked_cross_entropy,
    classification_loss,
    cross_entropy,
)

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
def test_cross_entropy_averages_over_unignored_labels(batch: Any) -> None:
    logits, labels = batch
    loss = compiled_cross_entropy(logits, labels)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    np.testing.assert_allclose(loss, nats(logits, labels).mean(), rtol=TOLERANCE, atol=TOLERANCE)


@given(batches())
def test_causal_lm_loss_predicts_the_next_label(batch: Any) -> None:
    logits, labels = batch
    loss = compiled_lm_loss(logits, labels)
    expected = nats(logits[:, :-1], labels[:, 1:]).mean()
    np.testing.assert_allclose(loss, expected, rtol=TOLERANCE, atol=TOLERANCE)


@given(batches(rows=4), st.integers(1, 3))
def test_causal_lm_loss_sums_over_micro_batches(batch: Any, cut: int) -> None:
    logits, labels = batch
    count = np.float32((labels[:, 1:] != IGNORED).sum())
    parts = [
        compiled_lm_loss(logits[part], labels[part], count)
        for part in (slice(cut), slice(cut, None))
    ]
    whole = compiled_lm_loss(logits, labels)
    np.testing.assert_allclose(float(parts[0] + parts[1]), float(whole), rtol=TOLERANCE)


@given(batches(), st.floats(-50, 50, width=32))
def test_cross_entropy_is_invariant_to_logit_shift(batch: Any, shift: float) -> None:
    logits, labels = batch
    loss = compiled_cross_entropy(logits, labels)
    shifted = compiled_cross_entropy(logits + np.float32(shift), labels)
    # The shifted logits themselves are rounded to 4e-6 near 64. Measured: 4e-6.
    np.testing.assert_allclose(float(shifted), float(loss), atol=2e-5, rtol=0)


@given(batches(), st.permutations(range(5)))
def test_cross_entropy_is_invariant_to_class_order(batch: Any, names: list[int]) -> None:
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


def test_cross_entropy_divides_by_given_item_count() -> None:
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((6, 5)), jnp.float32)
    labels = jnp.asarray([0, 1, IGNORED, 3, 4, IGNORED])
    total = nats(logits, labels).sum()
    for number in (7, 7.0, jnp.int32(7), jnp.float32(7)):
        np.testing.assert_allclose(
            cross_entropy(logits, labels, number), total / 7, rtol=TOLERANCE, err_msg=repr(number)
        )


@pytest.mark.nightly
def test_losses_are_nan_when_all_labels_are_ignored() -> None:
    labels = jnp.full(3, IGNORED)
    assert np.isnan(cross_entropy(jnp.ones((3, 5)), labels))
    assert np.isnan(causal_lm_loss(jnp.ones((3, 5)), jnp.asarray([1, IGNORED, IGNORED])))
    # Divided by the labels of a larger batch it is 0: a micro-batch may have none of its own.
    assert cross_entropy(jnp.ones((3, 5)), labels, 4) == 0


@pytest.mark.nightly
def test_cross_entropy_gradient_is_zero_at_ignored_labels() -> None:
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
def test_cross_entropy_disregards_ignored_logits(ignored: float) -> None:
    logits = jnp.zeros((2, 5)).at[1, 0].set(ignored)
    labels = jnp.asarray([2, IGNORED])
    np.testing.assert_allclose(cross_entropy(logits, labels), np.log(5), rtol=TOLERANCE)


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_cross_entropy_upcasts_half_precision(dtype: str) -> None:
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((6, 50)) * 5, dtype)
    labels = jnp.arange(6)
    loss = cross_entropy(logits, labels)
    assert loss.dtype == jnp.float32
    expected = nats(np.asarray(logits, np.float64), labels).mean()
    np.testing.assert_allclose(loss, expected, rtol=TOLERANCE)


def test_cross_entropy_does_not_overflow() -> None:
    logits = jnp.asarray([[1e4, 0.0, -1e4], [-1e38, 1e38, 0.0]])
    np.testing.assert_allclose(cross_entropy(logits, jnp.asarray([2, 1])), 1e4, rtol=TOLERANCE)


def test_cross_entropy_keeps_float64() -> None:
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


@pytest.mark.nightly
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
def test_classification_loss_matches_numpy(
    logits: np.ndarray, labels: np.ndarray, problem_type: str | None, expected: Any
) -> None:
    if expected is None:
        expected = binary(logits, labels)
    loss = classification_loss(jnp.asarray(logits), jnp.asarray(labels), problem_type)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    np.testing.assert_allclose(loss, expected, rtol=TOLERANCE)


def test_classification_loss_upcasts_regression_logits() -> None:
    logits = jnp.asarray(LOGITS[:, :1], jnp.bfloat16)
    loss = classification_loss(logits, jnp.asarray(NUMBERS[:, 0]))
    assert loss.dtype == jnp.float32
    widened = np.asarray(logits, np.float32)
    np.testing.assert_allclose(loss, squared(widened, NUMBERS[:, :1]), rtol=TOLERANCE)


N, V, E = 7, 11, 4
TOKENS = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@st.composite
def tokens(draw: st.DrawFn) -> TOKENS:
    """States (N, E), a table (V, E), labels (N,) and weights (N,), some 0."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = rng.random(N) * (rng.random(N) < 0.7)
    scale = draw(st.sampled_from([0.1, 1.0, 10.0]))
    states, table = rng.standard_normal((N, E)) * scale, rng.standard_normal((V, E))
    return states, table, rng.integers(0, V, N).astype(np.int32), weights


@functools.partial(jax.jit, static_argnames="chunk")
def chunked(
    states: jax.Array, table: jax.Array, labels: jax.Array, weights: jax.Array, chunk: int
) -> Any:
    """The loss, its gradients in states, table and weights, and the loss as it is without them."""

    def loss(states: jax.Array, table: jax.Array, weights: jax.Array) -> jax.Array:
        return chunked_cross_entropy(states, table, labels, weights, chunk=chunk)

    arguments = states, table, weights
    return *jax.value_and_grad(loss, argnums=(0, 1, 2))(*arguments), loss(*arguments)


@jax.jit
def plain(states: jax.Array, table: jax.Array, labels: jax.Array, weights: jax.Array) -> Any:
    """The same by the whole logits, differentiated by JAX."""

    def loss(states: jax.Array, table: jax.Array, weights: jax.Array) -> jax.Array:
        logs = jax.nn.log_softmax(states @ table.T)
        return -(weights * jnp.take_along_axis(logs, labels[:, None], axis=-1)[:, 0]).sum()

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1, 2))(states, table, weights)
    return value, gradients, value


@pytest.mark.nightly
@given(tokens(), st.sampled_from([1, 3, 7, 512]))
def test_chunked_cross_entropy_matches_full_loss_in_float64(batch: TOKENS, chunk: int) -> None:
    with jax.enable_x64(True):
        arrays = [jnp.asarray(array) for array in batch]
        ours, expected = chunked(*arrays, chunk=chunk), plain(*arrays)
    for found, right in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert found.dtype == jnp.float64
        # Measured: 2.1e-15 relative to the largest of an array.
        np.testing.assert_allclose(found, right, rtol=1e-13, atol=1e-13)


@pytest.mark.nightly
@given(tokens(), st.sampled_from([1, 3, 7, 512]))
def test_chunked_cross_entropy_matches_full_loss_in_float32(batch: TOKENS, chunk: int) -> None:
    arrays = [jnp.asarray(array, jnp.float32 if array.dtype == float else None) for array in batch]
    ours, expected = chunked(*arrays, chunk=chunk), plain(*arrays)
    for found, right in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert found.dtype == jnp.float32
        # Relative to the largest of an array. Measured: 1.5e-6, of the
        # gradient in the weights.
        np.testing.assert_allclose(found, right, atol=1e-5 * max(1, np.abs(right).max()))


@pytest.mark.parametrize("label", [-1, V, -100])
def test_chunked_cross_entropy_is_nan_for_labels_out_of_range(label: int) -> None:
    rng = np.random.default_rng(0)
    states, table = (jnp.asarray(rng.random(shape), jnp.float32) for shape in ((N, E), (V, E)))
    labels = jnp.zeros(N, jnp.int32).at[2].set(label)
    value, _, without_gradients = chunked(states, table, labels, jnp.ones(N), chunk=3)
    assert np.isnan([value, without_gradients]).all()


@pytest.mark.nightly
def test_chunked_cross_entropy_passes_gradient_check() -> None:
    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.integers(0, V, N), jnp.int32)
    with jax.enable_x64(True):
        check_grads(
            jax.jit(lambda a, b, c: chunked_cross_entropy(a, b, labels, c, chunk=3)),
            [jnp.asarray(rng.standard_normal(shape)) for shape in ((N, E), (V, E), (N,))],
            order=1,
            modes=["rev"],
        )


def test_chunked_cross_entropy_upcasts_loss_but_not_gradients() -> None:
    rng = np.random.default_rng(0)
    states = jnp.asarray(rng.standard_normal((N, E)), jnp.bfloat16)
    table = jnp.asarray(rng.standard_normal((V, E)), jnp.bfloat16)
    labels = jnp.asarray(rng.integers(0, V, N), jnp.int32)
    weights = jnp.ones(N, jnp.float32)
    value, gradients, _ = chunked(states, table, labels, weights, chunk=3)
    assert value.dtype == jnp.float32
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    wide = states.astype(jnp.float32), table.astype(jnp.float32)
    right, expected, _ = plain(*wide, labels, weights)
    np.testing.assert_allclose(value, right, rtol=TOLERANCE)
    for found, exact in zip(gradients, expected, strict=True):
        # A bfloat16 has 8 bits: relative to the largest. Measured: 0.0036.
        error = np.abs(np.asarray(found, np.float32) - exact).max() / np.abs(exact).max()
        assert error < 0.01


def memory(compiled: jax.stages.Compiled) -> int:
    """The bytes that a program needs besides its arguments and results."""
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def test_chunked_cross_entropy_never_stores_all_logits() -> None:
    tokens, classes, width, chunk = 512, 1024, 8, 32
    shapes = [(tokens, width), (classes, width), (tokens,), (tokens,)]
    arrays = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in zip(shapes, ["float32", "float32", "int32", "float32"], strict=True)
    ]
    logits = tokens * classes * 4
    compiled = chunked.lower(*arrays, chunk=chunk).compile()
    program = str(compiled.as_text())
    assert f"{tokens},{classes}]" not in program
    assert f"{chunk},{classes}]" in program
    # Measured: 0.13 of the logits, which is two chunks; the plain loss takes 3.
    assert memory(compiled) < logits / 4
    assert memory(plain.lower(*arrays).compile()) >= logits
