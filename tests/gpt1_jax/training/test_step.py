"""The compiled step: micro-batches, dropout, donation, mixed precision, and one compilation."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.compilations import compilations
from support.small_models import SIZES, difference, leaves_equal, random_ids, small_model

import gpt1_jax as gpt1
from gpt1_jax.nn.losses import IGNORED, cross_entropy
from gpt1_jax.pure import merge, split
from gpt1_jax.training.lm_objective import lm_loss
from gpt1_jax.training.optimizer import OptimizerSettings, make_optimizer
from gpt1_jax.training.step import Sums, TrainState, make_step, micro_batches

T = SIZES["n_positions"]
LM = gpt1.OpenAIGPTLMHeadModel
small = functools.partial(small_model, LM, n_layer=1)
TOKENS = random_ids(4, T + 1)
# Of which one row counts 8 tokens and one a single token, so that no two micro-batches weigh alike.
WEIGHTS = (np.arange(T) < np.array([[8], [3], [1], [5]])).astype(np.float32)
BATCH = {"tokens": TOKENS, "weights": WEIGHTS}
# Large enough to move weights far, and linear in the gradients where they are not clipped.
MOMENTUM = optax.chain(optax.clip_by_global_norm(5.0), optax.sgd(0.1, momentum=0.9))


def objective_of(model: Any) -> Any:
    structure, _ = split(model)

    def objective(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Sums]:
        return lm_loss(merge(structure, params), batch, dropout_key=None)

    return objective


def noisy_line(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Sums]:
    """A loss that compiles fast: of a line through points, with noise in place of dropout."""
    noise = 0.1 * jax.random.normal(key, batch["y"].shape)
    line = params["line"]
    errors = batch["x"] @ line["kernel"] + line["bias"] + noise - batch["y"]
    return (errors**2).sum(), {"weight": jnp.full((), len(errors), jnp.float32)}


LINE = {"line": {"kernel": jnp.ones((3,)), "bias": jnp.zeros((1,))}}


def points(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(8, 3)).astype("f4"), "y": rng.normal(size=8).astype("f4")}


def openai(**fields: Any) -> optax.GradientTransformation:
    base: dict[str, Any] = {"learning_rate": 1e-2, "schedule": "constant", "warmup": 0}
    return make_optimizer(OptimizerSettings(optimizer="openai", **{**base, **fields}), 100)


@pytest.mark.nightly
def test_step_gradient_matches_plain_mean_loss() -> None:
    """Of the whole logits at once: neither in chunks nor in micro-batches."""
    model = small()
    structure, params = split(model)

    def mean_loss(params: Any) -> jax.Array:
        logits = merge(structure, params).forward(TOKENS[:, :-1]).logits
        return cross_entropy(logits, jnp.where(WEIGHTS > 0, TOKENS[:, 1:], IGNORED))

    loss, gradients = jax.jit(jax.value_and_grad(mean_loss))(params)
    step = make_step(objective_of(model), optax.sgd(1.0))
    state, measures = step(
        TrainState.create(params, optax.sgd(1.0), 0), {}, micro_batches(BATCH, 1)
    )
    ours = jax.tree.map(jnp.subtract, params, state.params)
    errors = jax.tree.map(difference, ours, gradients)
    assert max(jax.tree.leaves(errors)) <= 1e-6  # measured: 6.7e-8
    norm = np.sqrt(sum((np.float64(g) ** 2).sum() for g in jax.tree.leaves(gradients)))
    np.testing.assert_allclose(measures["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(measures["grad_norm"], norm, rtol=1e-6)
    assert int(state.step) == 1


@pytest.mark.nightly
def test_step_accumulation_matches_full_batch_update() -> None:
    model = small()
    params = split(model)[1]
    step = make_step(objective_of(model), MOMENTUM)

    def run(accumulate: int) -> Any:
        state, losses = TrainState.create(params, MOMENTUM, 0), []
        for number in range(3):
            batch = {name: np.roll(array, number, axis=0) for name, array in BATCH.items()}
            state, measures = step(state, {}, micro_batches(batch, accumulate))
            losses.append(measures)
        return {"params": state.params, "opt_state": state.opt_state, "measures": losses}

    whole, *others = map(run, (1, 2, 4))
    moved = jax.tree.map(difference, whole["params"], params)
    assert min(jax.tree.leaves(moved)) > 1e-3  # a change that would be seen
    for ours in others:
        errors = jax.tree.map(difference, ours, whole)
        assert max(jax.tree.leaves(errors)) <= 2e-6  # measured: 1.2e-7


def test_micro_batches_keep_row_order() -> None:
    halves = micro_batches(BATCH, 2)
    assert halves["tokens"].shape == (2, 2, T + 1)
    np.testing.assert_array_equal(halves["tokens"][1], TOKENS[2:])
    np.testing.assert_array_equal(halves["weights"][0], WEIGHTS[:2])


@pytest.mark.nightly
@pytest.mark.parametrize("accumulate", [1, 2])
def test_step_donates_its_state(accumulate: int) -> None:
    state = TrainState.create(LINE, openai(), 0)
    step = make_step(noisy_line, openai())
    later, _ = step(state, {}, micro_batches(points(0), accumulate))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    # The parameters that the state was made of are the caller's still.
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((LINE, later)))


@pytest.mark.nightly
@pytest.mark.parametrize("accumulate", [1, 2])
def test_step_dropout_varies_by_step_and_is_reproducible(accumulate: int) -> None:
    still = optax.sgd(0.0)  # so that nothing but the noise differs from step to step
    step = make_step(noisy_line, still)
    batch = micro_batches(points(0), accumulate)

    def losses(seed: int) -> list[float]:
        state, found = TrainState.create(LINE, still, seed), []
        for _ in range(3):
            state, measures = step(state, {}, batch)
            found.append(float(measures["loss"]))
        return found

    first = losses(0)
    assert losses(0) == first
    assert len({*first, *losses(1)}) == 6
    # The state after a step is all that the next ones depend on.
    state, _ = step(TrainState.create(LINE, still, 0), {}, batch)
    copied = jax.tree.map(jnp.array, state)
    assert float(step(copied, {}, batch)[1]["loss"]) == first[1]


def test_step_draws_separate_dropout_per_micro_batch() -> None:
    """The key's own number as the loss: no two are equal, in a step or between steps."""

    def objective(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Sums]:
        draw = jax.random.uniform(key)
        return batch["place"] @ jnp.full(1, draw) + 0 * params["bias"], {"weight": jnp.ones(())}

    step = make_step(objective, optax.sgd(0.0))
    draws = set()
    for place in range(4):
        batch = {"place": np.eye(4, dtype=np.float32)[place][:, None]}
        state = TrainState.create({"bias": jnp.zeros(())}, optax.sgd(0.0), 0)
        for _ in range(2):
            state, measures = step(state, {}, batch)
            draws.add(float(measures["loss"]))
    assert len(draws) == 8


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("optimizer", ["openai", "adamw"])
def test_step_compiles_once(optimizer: Any, accumulate: int) -> None:
    settings = OptimizerSettings(
        optimizer=optimizer, learning_rate=0.1, schedule="linear", warmup=2
    )
    made = make_optimizer(settings, 10)
    state = TrainState.create(LINE, made, 0)
    step = make_step(noisy_line, made)
    with compilations() as found, jax.numpy_dtype_promotion("standard"):  # for optax's Adam
        for seed in range(4):
            state, _ = step(state, {}, micro_batches(points(seed), accumulate))
    assert len(found) == 1


@pytest.mark.nightly
def test_step_keeps_float32_weights_in_bfloat16() -> None:
    model = small(dtype="bfloat16")
    params = split(model)[1]
    state = TrainState.create(params, openai(), 0)
    kinds = [(leaf.dtype, leaf.shape) for leaf in jax.tree.leaves(state)]
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    step = make_step(objective_of(model), openai())
    losses = []
    for _ in range(20):
        state, measures = step(state, {}, micro_batches(BATCH, 1))
        assert all(measure.dtype == jnp.float32 for measure in measures.values())
        losses.append(float(measures["loss"]))
    assert [(leaf.dtype, leaf.shape) for leaf in jax.tree.leaves(state)] == kinds
    assert losses[-1] < 0.7 * losses[0]  # measured: 0.36
    # Small updates are not lost, as they would be in bfloat16's 8 bits.
    updated = jax.tree.leaves(state.params)
    assert any((leaf != leaf.astype(jnp.bfloat16).astype(jnp.float32)).any() for leaf in updated)


def test_step_leaves_frozen_parameters_unchanged() -> None:
    trained, frozen = ({"line": {name: LINE["line"][name]}} for name in ("kernel", "bias"))
    step = make_step(noisy_line, MOMENTUM)
    batch = micro_batches(points(0), 2)
    whole, expected = step(TrainState.create(LINE, MOMENTUM, 0), {}, batch)
    part, measures = step(TrainState.create(trained, MOMENTUM, 0), frozen, batch)
    assert jax.tree.structure(part.params) == jax.tree.structure(trained)
    assert not frozen["line"]["bias"].is_deleted()
    assert leaves_equal(measures["loss"], expected["loss"])
    assert measures["grad_norm"] < expected["grad_norm"]
    assert difference(whole.params["line"]["bias"], LINE["line"]["bias"]) > 0.01
    assert difference(part.params["line"]["kernel"], LINE["line"]["kernel"]) > 0.01


def test_train_state_copies_its_parameters() -> None:
    params = {"kernel": np.ones((2, 3), np.float32)}
    state = TrainState.create(params, openai(), 5)
    assert leaves_equal(state.params, params)
    params["kernel"][:] = 7
    assert leaves_equal(state.params, {"kernel": np.ones((2, 3), np.float32)})
    assert (state.step.dtype, int(state.step)) == (jnp.int32, 0)
    assert leaves_equal(state.key, jax.random.key_data(jax.random.key(5)))
