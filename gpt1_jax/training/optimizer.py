"""The optimizer: OpenAI's Adam and schedules, and today's AdamW, as optax transformations.

The two differ in more than their schedules. OpenAI's Adam leaves its moments uncorrected and puts
the correction into the learning rate: epsilon so weighs more in the first steps, and the decay is
corrected along with the rest.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from gpt1_jax.checks import (
    MaybePositive,
    NotNegative,
    Positive,
    Rule,
    check_fields,
    is_integer,
    is_number,
    wrong,
)
from gpt1_jax.pretrained import Params

Optimizer = Literal["adamw", "openai"]
Schedule = Literal["linear", "cosine", "constant"]
LearningRate = Callable[[ArrayLike], jax.Array]

# Up to here float32, which steps are counted in, holds every integer.
MOST_STEPS = 2**24

Decay = Annotated[float, Rule("a number in (0, 1)", lambda b: is_number(b) and 0 < b < 1)]
Warmup = Annotated[
    float,
    Rule(
        "a share of the steps in [0, 1), or an integer number of steps",
        lambda x: is_number(x) and (0 <= x < 1 or (x >= 1 and x % 1 == 0)),
    ),
]

# Whether weight decay falls on a parameter, by the name of its leaf.
DECAY_BY_LEAF = {
    "kernel": True,
    "embedding": True,
    "lora_A": True,
    "lora_B": True,
    "bias": False,
    "scale": False,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The optimizer and its learning-rate schedule.

    Attributes:
        optimizer: optimizer: openai, the Adam that GPT-1 was trained with, or adamw
            (arXiv:1711.05101), as in torch and optax.
        learning_rate: peak learning rate.
        schedule: learning-rate schedule after the warm-up: linear or cosine decay to 0, or
            constant.
        warmup: length of the learning rate's warm-up: below 1 a share of all steps, from 1 on a
            number of steps.
        weight_decay: weight decay: each step takes this share of every matrix and embedding off it,
            times the learning rate; biases and layer norms are left alone.
        max_grad_norm: norm of all gradients together above which they are scaled down to it; None
            turns clipping off.
        b1: Adam's beta 1: decay rate of the running mean of the gradients.
        b2: Adam's beta 2: decay rate of the running mean of the squared gradients.
        eps: Adam's epsilon.

    Raises:
        ValueError: a value out of its range; the message names both.
    """

    optimizer: Optimizer
    learning_rate: Positive
    schedule: Schedule
    warmup: Warmup
    weight_decay: NotNegative = 0.01
    max_grad_norm: MaybePositive = 1.0
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: Positive = 1e-8

    def __post_init__(self) -> None:
        check_fields(self)


# What trains: settings, or a transformation of one's own, which has its schedule in itself.
AnyOptimizer = OptimizerSettings | optax.GradientTransformation


def learning_rate(settings: OptimizerSettings, total_steps: int) -> LearningRate:
    """Return the learning rate as a function of the number of steps taken before.

    For "adamw" the schedules are those of transformers (``get_linear_schedule_with_warmup`` and its
    siblings): the first step has the rate 0, the peak comes after the warm-up, and what follows it
    is spread over the steps left. For "openai" they are the original's, whose decay is spread over
    all steps: with x the share of steps taken before and rise = x / warmup,

    - linear: ``rise * (1 - x)`` while x <= warmup, then ``1 - x``;
    - cosine: ``rise`` while x <= warmup, then ``(1 + cos(pi * x)) / 2``;
    - constant: ``rise`` while x <= warmup, then 1.

    Args:
        settings: of which "openai" keeps a warm-up of a fractional number of steps, and "adamw"
            rounds it up as transformers does.
        total_steps: after which training ends.

    Returns:
        () integer, traced or not -> () float32: what the optimizer multiplies its updates with,
        but for the correction in OpenAI's Adam.

    Raises:
        ValueError: no steps, more than can be counted, or fewer than those of the warm-up.
    """
    if not is_integer(total_steps) or not 1 <= total_steps <= MOST_STEPS:
        raise wrong("total_steps", total_steps, f"an integer in [1, {MOST_STEPS}]")
    warmup = settings.warmup if settings.warmup >= 1 else settings.warmup * total_steps
    if warmup > total_steps:
        raise ValueError(
            f"warmup is {settings.warmup:g} steps, but must be at most total_steps = {total_steps}"
        )
    if settings.optimizer == "openai":
        factor = _openai_schedule(settings.schedule, warmup, total_steps)
    else:
        factor = _schedule(settings.schedule, math.ceil(warmup), total_steps)

    def rate(count: ArrayLike) -> jax.Array:
        step = jnp.asarray(count, jnp.float32)
        return settings.learning_rate * jnp.asarray(factor(step), jnp.float32)

    return rate


def known_rate(optimizer: AnyOptimizer, total_steps: int) -> LearningRate | None:
    """Return the learning rate that settings name; None where it is a transformation's own."""
    if isinstance(optimizer, OptimizerSettings):
        return learning_rate(optimizer, total_steps)
    return None


def describe_optimizer(optimizer: AnyOptimizer) -> dict[str, object]:
    """Return what run.json holds of an optimizer: its settings, if it has any."""
    if isinstance(optimizer, OptimizerSettings):
        return dataclasses.asdict(optimizer)
    return {"optimizer": "an optax transformation"}


def check_rate(settings: AnyOptimizer, total_steps: int) -> None:
    """Check that a run does not consist of a single step whose learning rate is 0.

    Every warm-up begins at 0, so such a run would leave the weights as they are.

    Raises:
        ValueError: it does, or the optimizer is none.
    """
    if isinstance(settings, optax.GradientTransformation):
        return
    if not isinstance(settings, OptimizerSettings):
        raise wrong("optimizer", settings, "OptimizerSettings or a transformation of optax")
    if total_steps == 1 and learning_rate(settings, 1)(0) == 0:
        raise ValueError(
            "the run is a single step, whose learning rate is 0 since the warm-up begins there: "
            "give more epochs, a smaller batch_size, or warmup=0"
        )


def _decay(kind: Schedule, steps: int) -> optax.Schedule:
    """Return what falls from 1 at step 0, to 0 at the last."""
    if kind == "linear":
        return optax.linear_schedule(1.0, 0.0, steps)
    if kind == "cosine":
        return optax.cosine_decay_schedule(1.0, steps)
    return optax.constant_schedule(1.0)


def _schedule(kind: Schedule, warmup: int, total: int) -> optax.Schedule:
    decay = _decay(kind, max(1, total - warmup))
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, 1.0, warmup), decay], [warmup])


def _openai_schedule(kind: Schedule, warmup: float, total: int) -> Callable[[jax.Array], ArrayLike]:
    decay = _decay(kind, total)
    if not warmup:
        return decay

    def factor(step: jax.Array) -> jax.Array:
        # In steps, not in shares of them: so no rounding moves the last step of the warm-up.
        rise = step / warmup
        if kind == "linear":
            return jnp.minimum(rise, 1.0) * decay(step)
        return jnp.where(step <= warmup, rise, decay(step))

    return factor


def make_optimizer(settings: AnyOptimizer, total_steps: int) -> optax.GradientTransformation:
    """Return the optimizer: clip by global norm, Adam, decay, learning rate; or the given one.

    Its parameters are a nested dict with the names of a model's (see ``weight_decay_mask``): all
    of them, or those that are trained. Moments have their dtypes. Clipping is TensorFlow's
    ``clip_by_global_norm``, the original's: gradients above the limit are scaled to norm
    ``max_grad_norm``. (torch's ``clip_grad_norm_`` scales them to a norm lower by 1e-6 relative
    to their own.)

    Raises:
        ValueError: see ``learning_rate``.
    """
    if not isinstance(settings, OptimizerSettings):
        return settings
    make = openai_adam if settings.optimizer == "openai" else optax.adamw
    adam = make(
        learning_rate(settings, total_steps),
        b1=settings.b1,
        b2=settings.b2,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        mask=weight_decay_mask,
    )
    if settings.max_grad_norm is None:
        return adam
    return optax.chain(optax.clip_by_global_norm(settings.max_grad_norm), adam)


def weight_decay_mask(params: Params) -> Params:
    """Return, for every parameter, whether weight decay falls on it.

    It falls on matrices, that is kernels, embeddings and the factors of LoRA, but not on biases and
    gains.

    Args:
        params: a nested dict, of any parameters of any model.

    Returns:
        The same nested dict, of bools.

    Raises:
        ValueError: a leaf whose name is none of these.
    """

    def by_name(path: tuple[Any, ...], _: object) -> bool:
        *_, name = keys = [entry.key for entry in path]
        if name not in DECAY_BY_LEAF:
            raise ValueError(
                f"{'.'.join(keys)} has no rule for weight decay: expected one of "
                f"{', '.join(DECAY_BY_LEAF)} as its name"
            )
        return DECAY_BY_LEAF[name]

    return jax.tree.map_with_path(by_name, params)


class OpenAIAdamState(NamedTuple):
    """Means of the gradients and of their squares, each shaped as the parameters."""

    mu: optax.Updates
    nu: optax.Updates


def scale_by_openai_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Return the transformation of gradients g to ``m / (sqrt(v) + eps)``, without a correction.

    m and v are the running means of g and g^2, which start from 0. ``optax.scale_by_adam`` corrects
    both for that before epsilon is added; here ``openai_adam`` does so afterwards.
    """

    def init(params: optax.Params) -> OpenAIAdamState:
        return OpenAIAdamState(optax.tree.zeros_like(params), optax.tree.zeros_like(params))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, OpenAIAdamState]:
        del params
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment(updates, state.nu, b2, 2)
        scaled = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return scaled, OpenAIAdamState(mu, nu)

    return optax.GradientTransformation(init, update)


def openai_adam(
    learning_rate: optax.Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    mask: Params | Callable[[Params], Params] | None = None,
) -> optax.GradientTransformation:
    """Return the Adam that GPT-1 was trained with (``opt.py`` of finetune-transformer-lm).

    In step t = 1, 2, ... a parameter p goes to ``p - lrt * (m / (sqrt(v) + eps) + decay * p)``,
    where ``lrt = learning_rate(t - 1) * sqrt(1 - b2^t) / (1 - b1^t)``.

    Args:
        learning_rate: of the number of steps taken before.
        b1: decay of m.
        b2: decay of v.
        eps: added after the root.
        weight_decay: on the parameters in ``mask``.
        mask: as ``optax.adamw`` takes it; None is for all.
    """

    def corrected(count: ArrayLike) -> jax.Array:
        step = jnp.asarray(count + 1, jnp.float32)
        # 1 - b^t by expm1: where b is near 1, the difference itself would lose most digits.
        first, second = (-jnp.expm1(step * math.log(b)) for b in (b1, b2))
        return jnp.sqrt(second) / first * learning_rate(count)

    return optax.chain(
        scale_by_openai_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(corrected),
    )
