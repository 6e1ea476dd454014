"""Schedules, OpenAI's Adam against numpy in float64, masks and the checks of settings."""

import math
import re
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from support.small_models import MODELS, difference, small_model

from gpt1_jax.pretrained import flatten
from gpt1_jax.training.optimizer import (
    MOST_STEPS,
    OptimizerSettings,
    check_rate,
    learning_rate,
    make_optimizer,
    openai_adam,
    weight_decay_mask,
)

SCHEDULES = ("linear", "cosine", "constant")
STEPS = 50
MOST = 400  # one shape for all lengths of a run, so that operations are compiled once


def make_settings(**fields: Any) -> OptimizerSettings:
    base: dict[str, Any] = {
        "optimizer": "openai",
        "learning_rate": 1e-2,
        "schedule": "linear",
        "warmup": 0.1,
    }
    return OptimizerSettings(**{**base, **fields})


def make_params() -> dict[str, Any]:
    """A matrix, a table and vectors, N(0, 1)."""
    rng = np.random.default_rng(0)
    return {
        "tokens_embed": {"embedding": rng.standard_normal((5, 4), np.float32)},
        "c_fc": {
            "kernel": rng.standard_normal((4, 3), np.float32),
            "bias": rng.standard_normal(3, np.float32),
        },
        "ln_1": {"scale": rng.standard_normal(4, np.float32)},
    }


def make_gradients(params: Any) -> list[Any]:
    """One tree a step, with global norms from 0.03 to 30."""
    rng = np.random.default_rng(1)

    def draw(size: np.float32) -> Any:
        return jax.tree.map(lambda p: size * rng.standard_normal(p.shape, np.float32), params)

    return [draw(np.float32(10.0 ** rng.uniform(-2, 1))) for _ in range(STEPS)]


def openai_factor(kind: str, x: float, warmup: float) -> float:
    """The schedules of OpenAI's opt.py."""
    s = 1 if x <= warmup else 0
    rise = x / warmup if s else 0.0
    if kind == "linear":
        return (s * rise + (1 - s)) * (1 - x)
    if kind == "cosine":
        return s * rise + (1 - s) * (0.5 * (1 + math.cos(math.pi * x)))
    return s * rise + (1 - s)


def numpy_openai_adam(params: Any, gradients: list[Any], settings: OptimizerSettings) -> Any:
    """OpenAI's Adam in float64, from REFERENCE's formula: the parameters after all steps."""
    b1, b2, eps, l2 = settings.b1, settings.b2, settings.eps, settings.weight_decay
    p: list[Any] = [np.float64(leaf) for leaf in jax.tree.leaves(params)]
    m: list[Any] = [0 * leaf for leaf in p]
    v: list[Any] = [0 * leaf for leaf in p]
    for tt, tree in enumerate(gradients, start=1):
        g = [np.float64(leaf) for leaf in jax.tree.leaves(tree)]
        if settings.max_grad_norm is not None:
            norm = math.sqrt(sum((leaf**2).sum() for leaf in g))
            g = [leaf * settings.max_grad_norm / max(norm, settings.max_grad_norm) for leaf in g]
        lrt = settings.learning_rate * math.sqrt(1 - b2**tt) / (1 - b1**tt)
        lrt *= openai_factor(settings.schedule, (tt - 1) / len(gradients), settings.warmup)
        for i, leaf in enumerate(g):
            m[i] = b1 * m[i] + (1 - b1) * leaf
            v[i] = b2 * v[i] + (1 - b2) * leaf**2
            decay = l2 * p[i] if leaf.ndim > 1 else 0.0
            p[i] = p[i] - lrt * (m[i] / (np.sqrt(v[i]) + eps) + decay)
    return jax.tree.unflatten(jax.tree.structure(params), p)


@pytest.mark.nightly
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_openai_adam_matches_numpy(
    schedule: Any, weight_decay: float, max_grad_norm: float | None
) -> None:
    settings = make_settings(
        schedule=schedule, weight_decay=weight_decay, max_grad_norm=max_grad_norm
    )
    params = make_params()
    gradients = make_gradients(params)
    expected = numpy_openai_adam(params, gradients, settings)
    optimizer = make_optimizer(settings, STEPS)

    @jax.jit
    def step(params: Any, state: Any, gradient: Any) -> Any:
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    ours, state = params, optimizer.init(params)
    for gradient in gradients:
        ours, state = step(ours, state, gradient)
    pairs = zip(*map(jax.tree.leaves, (ours, expected, params)), strict=True)
    for leaf, expected_leaf, first in pairs:
        assert leaf.dtype == jnp.float32
        assert difference(leaf, expected_leaf) <= 1e-6  # measured: 4.7e-7
        assert np.abs(expected_leaf - first).max() > 0.04  # a change that would be seen


@pytest.mark.nightly
@settings(max_examples=50)
@given(st.sampled_from(SCHEDULES), st.integers(1, MOST), st.data())
def test_learning_rate_matches_openai_schedules(kind: Any, total: int, data: st.DataObject) -> None:
    """Every step of any run; warm-ups of whole and of broken numbers of steps."""
    quarters = data.draw(st.integers(1, 4 * total - 1))
    share = quarters / (4 * total)
    settings = make_settings(schedule=kind, warmup=share)
    ours = learning_rate(settings, total)(np.arange(MOST))[:total]
    assert ours.dtype == jnp.float32
    # The last step of the warm-up is told exactly, so that no rounding of shares matters here.
    expected = [
        openai_factor(kind, t / total, max(share, t / total) if 4 * t <= quarters else 0.0)
        for t in range(total)
    ]
    np.testing.assert_allclose(ours / 1e-2, expected, rtol=0, atol=1e-6)  # measured: 1.4e-7


@pytest.mark.parametrize("kind", SCHEDULES)
def test_learning_rate_warmup_in_steps_equals_share(kind: Any) -> None:
    total = 1000
    steps, share = (
        learning_rate(make_settings(schedule=kind, warmup=warmup), total)(np.arange(total))
        for warmup in (20, 0.02)
    )
    np.testing.assert_array_equal(steps, share)


@pytest.mark.parametrize("optimizer", ["adamw", "openai"])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_learning_rate_starts_at_peak_without_warmup(optimizer: Any, kind: Any) -> None:
    total = 8
    settings = make_settings(optimizer=optimizer, schedule=kind, warmup=0)
    x = np.arange(total + 1) / total
    expected = {"linear": 1 - x, "cosine": (1 + np.cos(np.pi * x)) / 2, "constant": 0 * x + 1}
    ours = learning_rate(settings, total)(np.arange(total + 1))
    np.testing.assert_allclose(ours / 1e-2, expected[kind], rtol=0, atol=1e-6)


@pytest.mark.parametrize("warmup", [0, 1, 7, 40, 0.1, 0.26])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_learning_rate_matches_transformers(kind: Any, warmup: float) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    total = 40
    steps = warmup if warmup >= 1 else math.ceil(warmup * total)
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    arguments = {"num_warmup_steps": steps}
    if kind != "constant":
        arguments["num_training_steps"] = total
    make = getattr(transformers, f"get_{kind}_schedule_with_warmup")
    scheduler, expected = make(theirs, **arguments), []
    for _ in range(total):
        expected.append(theirs.param_groups[0]["lr"])
        theirs.step()
        scheduler.step()
    settings = make_settings(optimizer="adamw", schedule=kind, warmup=warmup)
    ours = learning_rate(settings, total)(np.arange(total))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6 * 1e-2)  # measured: 1.3e-7 * 1e-2


@pytest.mark.parametrize("optimizer", ["adamw", "openai"])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_learning_rate_of_one_step_is_float32_scalar(optimizer: Any, kind: Any) -> None:
    """Whatever a count is, traced or not, the rate is a float32 scalar."""
    rate = learning_rate(make_settings(optimizer=optimizer, schedule=kind), 20)
    rates = [rate(7), rate(np.int64(7)), rate(jnp.int32(7)), jax.jit(rate)(jnp.int32(7))]
    assert all(value.dtype == jnp.float32 and value.shape == () for value in rates)
    np.testing.assert_allclose(rates, rate(np.arange(20))[7], rtol=3e-7)


@pytest.mark.parametrize("step", [1, 2, 10, 10**2, 10**3, 10**4, 10**5, 10**6])
def test_openai_adam_bias_correction_holds_for_a_million_steps(step: int) -> None:
    """The step a gradient of 1 gives at step t, from moments of 0."""
    optimizer = openai_adam(lambda count: jnp.float32(1), eps=1e-8, weight_decay=0)
    params = {"bias": jnp.zeros(())}
    state = optax.tree.set(optimizer.init(params), count=jnp.int32(step - 1))
    updates: Any = optimizer.update({"bias": jnp.ones(())}, state, params)[0]
    expected = -math.sqrt(1 - 0.999**step) / (1 - 0.9**step) * 0.1 / (math.sqrt(0.001) + 1e-8)
    np.testing.assert_allclose(updates["bias"], expected, rtol=5e-7)  # measured: 1.9e-7


@pytest.mark.parametrize("cls", MODELS)
def test_weight_decay_mask_selects_matrices(cls: Any) -> None:
    """By name here, by rank in the original."""
    params = small_model(cls, num_labels=2, tie_word_embeddings=False).params
    mask = weight_decay_mask(params)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    assert flatten(mask) == {path: leaf.ndim > 1 for path, leaf in flatten(params).items()}
    assert {path[-1] for path in flatten(params)} == {"kernel", "embedding", "bias", "scale"}


def test_weight_decay_mask_selects_lora_factors() -> None:
    adapter = {"c_attn": {"lora_A": jnp.ones((2, 8)), "lora_B": jnp.ones((24, 2))}}
    assert weight_decay_mask(adapter) == {"c_attn": {"lora_A": True, "lora_B": True}}


def test_weight_decay_mask_rejects_unknown_parameter() -> None:
    params = {"h": {"0": {"weight": jnp.ones((2, 2))}}}
    right = "kernel, embedding, lora_A, lora_B, bias, scale"
    with pytest.raises(
        ValueError,
        match=rf"^h\.0\.weight has no rule for weight decay: expected one of {right} as its name$",
    ) as e:
        weight_decay_mask(params)
    with pytest.raises(ValueError, match=re.escape(str(e.value))):
        make_optimizer(make_settings(), 10).init(params)


@pytest.mark.nightly
@pytest.mark.parametrize("optimizer", ["adamw", "openai"])
def test_make_optimizer_decays_only_matrices(optimizer: Any) -> None:
    """Without gradients matrices shrink, and biases and gains keep their bits."""
    settings = make_settings(
        optimizer=optimizer, schedule="constant", warmup=0, weight_decay=0.5, learning_rate=0.1
    )
    params = make_params()
    made = make_optimizer(settings, 10)
    zeros = jax.tree.map(jnp.zeros_like, params)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam is not strict
        updates, _ = made.update(zeros, made.init(params), params)
    moved: Any = optax.apply_updates(params, updates)
    after = flatten(moved)
    # OpenAI's Adam corrects the decay with the rest.
    correction = math.sqrt(1 - 0.999) / (1 - 0.9) if optimizer == "openai" else 1.0
    for path, leaf in flatten(params).items():
        if path[-1] in ("kernel", "embedding"):
            np.testing.assert_allclose(after[path], leaf * (1 - 0.05 * correction), rtol=1e-6)
        else:
            np.testing.assert_array_equal(after[path], leaf)


@pytest.mark.parametrize("optimizer", ["adamw", "openai"])
def test_make_optimizer_state_holds_only_arrays(optimizer: Any) -> None:
    """Moments in the dtype and shape of the parameters, and int32 counts: what a file can hold."""
    params = make_params()
    made = make_optimizer(make_settings(optimizer=optimizer), 10)
    leaves = jax.tree.leaves(made.init(params))
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    moments = sorted(leaf.shape for leaf in leaves if leaf.dtype == jnp.float32)
    assert moments == sorted(2 * [leaf.shape for leaf in jax.tree.leaves(params)])
    counts = [leaf for leaf in leaves if leaf.dtype != jnp.float32]
    assert counts
    assert all(leaf.dtype == jnp.int32 and leaf.shape == () for leaf in counts)


NUMBER = "a number above 0"
SHARE = "a share of the steps in [0, 1), or an integer number of steps"
WRONG: list[tuple[str, Any, str]] = [
    ("optimizer", "sgd", '"adamw" or "openai"'),
    ("schedule", "step", '"linear" or "cosine" or "constant"'),
    ("learning_rate", 0, NUMBER),
    ("learning_rate", -1e-3, NUMBER),
    ("learning_rate", math.nan, NUMBER),
    ("learning_rate", "1e-3", NUMBER),
    ("learning_rate", True, NUMBER),
    ("eps", 0.0, NUMBER),
    ("eps", math.inf, NUMBER),
    ("b1", 1, "a number in (0, 1)"),
    ("b2", 0, "a number in (0, 1)"),
    ("weight_decay", -0.1, "a number, at least 0"),
    ("weight_decay", None, "a number, at least 0"),
    ("max_grad_norm", 0.0, "a number above 0, or None"),
    ("max_grad_norm", math.nan, "a number above 0, or None"),
    ("warmup", -1, SHARE),
    ("warmup", 1.5, SHARE),
    ("warmup", math.inf, SHARE),
]


@pytest.mark.parametrize(("name", "value", "right"), WRONG)
def test_optimizer_settings_reject_invalid_values(name: str, value: Any, right: str) -> None:
    message = re.escape(f"{name} is {value!r}, but must be {right}")
    with pytest.raises(ValueError, match=f"^{message}$"):
        make_settings(**{name: value})


@pytest.mark.parametrize("total", [0, -3, 2.5, MOST_STEPS + 1])
def test_make_optimizer_rejects_invalid_total_steps(total: Any) -> None:
    message = rf"^total_steps is {total}, but must be an integer in \[1, 16777216\]$"
    with pytest.raises(ValueError, match=message):
        make_optimizer(make_settings(), total)


@pytest.mark.parametrize("optimizer", ["adamw", "openai"])
def test_make_optimizer_rejects_warmup_beyond_total_steps(optimizer: Any) -> None:
    settings = make_settings(optimizer=optimizer, warmup=2000)
    message = "^warmup is 2000 steps, but must be at most total_steps = 500$"
    with pytest.raises(ValueError, match=message):
        make_optimizer(settings, 500)


@pytest.mark.parametrize("optimizer", ["openai", "adamw"])
def test_check_rate_refuses_a_single_step_of_rate_0(optimizer: Any) -> None:
    rises = make_settings(optimizer=optimizer, warmup=0.002)
    with pytest.raises(ValueError, match="is a single step, whose learning rate is 0 since"):
        check_rate(rises, 1)
    check_rate(rises, 2)
    check_rate(make_settings(optimizer=optimizer, warmup=0), 1)
    assert learning_rate(rises, 2)(0) == 0 < learning_rate(rises, 2)(1)
