"""One step of training, compiled: gradients over micro-batches, and an update of the state."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Self, cast

import jax
import jax.numpy as jnp
import optax

from gpt1_jax.nn.keys import key_of, wrap_key_data
from gpt1_jax.nn.pytree import pytree_dataclass
from gpt1_jax.nn.remat import compiler_options
from gpt1_jax.pretrained import Params
from gpt1_jax.sharding.mesh import constrain_like, param_shardings
from gpt1_jax.training.freezing import combine_params

Batch = Mapping[str, Any]
Sums = dict[str, jax.Array]
# (parameters, batch, key of dropout) -> the sum that is minimised, and {"weight": what divides it,
# ...: other sums to report}: so micro-batches of unequal weight add up to the whole batch.
Objective = Callable[[Params, Batch, jax.Array], tuple[jax.Array, Sums]]
# (trained, frozen) -> the model's parameters.
Combine = Callable[[Params, Params], Params]


@pytree_dataclass
class TrainState:
    """All that a step changes.

    Attributes:
        step: () int32, steps taken.
        params: the trained parameters.
        opt_state: of the optimizer.
        key: the key data of dropout, the same all along: each step folds its number in.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    key: jax.Array

    @classmethod
    def create(cls, params: Params, optimizer: optax.GradientTransformation, seed: int) -> Self:
        """Return the state before the first step, with buffers of its own, which may be donated."""
        params = jax.tree.map(jnp.array, params)
        key = jax.random.key_data(key_of(seed))
        return cls(jnp.zeros((), jnp.int32), params, optimizer.init(params), key)


def micro_batches(batch: Batch, accumulate: int) -> Batch:
    """Split every array (B, ...) of a batch into (accumulate, B / accumulate, ...)."""
    return {
        name: array.reshape(accumulate, len(array) // accumulate, *array.shape[1:])
        for name, array in batch.items()
    }


def make_step(
    objective: Objective, optimizer: optax.GradientTransformation, combine: Combine = combine_params
) -> Callable[[TrainState, Params, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Return the compiled step: (state, frozen, batch) -> the next state, and its measures.

    The state is donated: the one given must not be used again. ``frozen`` are the parameters that
    are not trained, and the batch's arrays are (micro-batches, rows, ...), see ``micro_batches``.
    The gradient is that of the mean loss over the whole batch, however it is split; only dropout
    draws other masks.

    The measures are ``loss``, the mean over the batch, so are the objective's other sums, and
    ``grad_norm``, the gradients' global norm before clipping; all () float32.
    """

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=compiler_options())
    def step(
        state: TrainState, frozen: Params, batch: Batch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        def loss_of(params: Params, micro: Batch, key: jax.Array) -> tuple[jax.Array, Sums]:
            return objective(combine(params, frozen), micro, key)

        # (trained, batch, key) -> ((loss, sums), gradients)
        gradients_of = jax.value_and_grad(loss_of, has_aux=True)

        def add(carry: Any, inputs: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, carry, gradients_of(state.params, *inputs)), None

        count = len(next(iter(batch.values())))
        key = jax.random.fold_in(wrap_key_data(state.key), state.step)
        keys = jax.random.split(key, count)
        first = {name: array[0] for name, array in batch.items()}
        if count == 1:
            (loss, sums), gradients = gradients_of(state.params, first, keys[0])
        else:
            shapes = jax.eval_shape(loss_of, state.params, first, keys[0])
            start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            zeros = jax.tree.map(jnp.zeros_like, state.params)
            carry, _ = jax.lax.scan(add, (start, zeros), (dict(batch), keys))
            (loss, sums), gradients = carry
        weight = sums.pop("weight")
        gradients = jax.tree.map(lambda g: g / weight.astype(g.dtype), gradients)
        measures = {name: total / weight for name, total in {"loss": loss, **sums}.items()}
        measures["grad_norm"] = optax.tree.norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = cast(Params, optax.apply_updates(state.params, updates))
        state = TrainState(state.step + 1, params, opt_state, state.key)
        return constrain_like(state, param_shardings), measures

    return step
