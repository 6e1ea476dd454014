"""Names for the activations of a model, each one word where the value arises.

``site(name, value)`` returns ``value``. Only inside ``visiting`` does a function see the value and
may put another in its place: ``gpt1_jax.explore.activations`` traces programs of its own so. The
programs of everyone else hold nothing of it.
"""

import contextlib
import types
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar

import jax

# For the full names of sites: takes the value, and returns the one to go on with.
Visits = Mapping[str, Callable[[jax.Array], jax.Array]]
NONE: Visits = types.MappingProxyType({})

# What arises in every block, in order. Their full names begin with the block: "h.0.attn.q".
BLOCK_SITES = (
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.scores",
    "attn.weights",
    "attn.z",
    "attn.out",
    "attn_sum",
    "n",
    "mlp.pre",
    "mlp.act",
    "mlp.out",
    "mlp_sum",
    "out",
)

_visits: ContextVar[Visits] = ContextVar("visits", default=NONE)
_scope: ContextVar[str] = ContextVar("scope", default="")


def site(name: str, value: jax.Array) -> jax.Array:
    """Return ``value``, an activation that is called ``name`` here, unless it is visited."""
    if not requested(name):
        return value
    visit = _visits.get()[_scope.get() + name]
    with visiting(NONE):  # a model that ``visit`` calls is another one
        return visit(value)


def requested(*names: str) -> bool:
    """Return whether a value of one of these names is visited here."""
    return any(_scope.get() + name in _visits.get() for name in names)


def any_requested() -> bool:
    """Return whether a value of any name is visited."""
    return bool(_visits.get())


@contextlib.contextmanager
def scope(name: str) -> Iterator[None]:
    """Begin the names of the sites inside with ``name`` and a dot."""
    token = _scope.set(f"{name}.")
    try:
        yield
    finally:
        _scope.reset(token)


@contextlib.contextmanager
def visiting(visits: Visits) -> Iterator[None]:
    """Visit the sites inside: each function sees a value, and returns the one to go on with.

    A program that is traced inside holds what they do, so it must not be kept for others.
    """
    token = _visits.set(visits)
    try:
        yield
    finally:
        _visits.reset(token)
