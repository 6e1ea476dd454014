"""Rematerialisation: to compute again, in a training's backward pass, what was not kept for it."""

from collections.abc import Callable
from typing import Literal, ParamSpec, TypeVar

import jax

from gpt1_jax.nn.sites import any_requested

P = ParamSpec("P")
T = TypeVar("T")
Remat = Literal["none", "linear", "all"]
LINEAR_OUTPUT = "linear"  # the name of the product of every linear layer
POLICIES = {
    "linear": jax.checkpoint_policies.save_only_these_names(LINEAR_OUTPUT),
    "all": jax.checkpoint_policies.nothing_saveable,
}


def check_remat(remat: Remat) -> Remat:
    """Return ``remat`` if there is such a kind of rematerialisation.

    Raises:
        ValueError: there is not.
    """
    if remat not in ("none", *POLICIES):
        raise ValueError(f"remat is {remat!r}, but must be one of none, {', '.join(POLICIES)}")
    return remat


def rematerialize(block: Callable[P, T], remat: Remat) -> Callable[P, T]:
    """Return ``block`` such that the backward pass computes again what ``remat`` says."""
    if remat == "none" or any_requested():  # a value that is captured must be able to leave it
        return block

    # A function of its own for every call: JAX keeps what it traced by the function, and a module's
    # parameters may have changed since.
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return block(*args, **kwargs)

    return jax.checkpoint(call, policy=POLICIES[remat])


def compiler_options() -> dict[str, str]:
    """Return the ``compiler_options`` with which ``jax.jit`` keeps rematerialisation.

    What is computed again stands behind a barrier, lest the compiler see that it is there already.
    XLA's CPU compiler drops the barriers before it looks for what is twice there, and the memory
    saved is lost again, unless it is told not to.
    """
    if jax.default_backend() != "cpu":
        return {}
    return {"xla_disable_hlo_passes": "cse_barrier_expander"}
