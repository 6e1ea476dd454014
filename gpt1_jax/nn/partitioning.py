"""Where arrays lie on a mesh of devices, inside a compiled function.

XLA's partitioner splits a program after its inputs. Where it has several ways to, ``spread`` tells
it which: the choice is the same for every program, so it stands in the model. An array that comes
of parameters on a mesh knows that mesh; without one, and on any other mesh than
``sharding.mesh.make_mesh`` makes, nothing here does anything.
"""

import math
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

DATA, FSDP, TENSOR = AXES = ("data", "fsdp", "tensor")
ROWS = (DATA, FSDP)  # what the rows of a batch are split over

# Of one dimension: an axis of the mesh, several, or None.
Axes = str | tuple[str, ...] | None


def ways(x: jax.Array, axes: Axes) -> int:
    """Return in how many parts the mesh that ``x`` lies on splits along ``axes``; 1 without one."""
    mesh: Any = jax.typeof(x).sharding.mesh
    if mesh.axis_names != AXES or axes is None:
        return 1
    return math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes))


def spread(x: jax.Array, *axes: Axes, uneven: bool = False) -> jax.Array:
    """Return ``x`` with its dimensions split over axes of the mesh that it lies on.

    Args:
        x: an array, traced.
        axes: what each of its dimensions is split over.
        uneven: whether to split a dimension that does not divide, whose last part is then filled
            up; otherwise it stays whole.
    """
    if ways(x, AXES) == 1:
        return x
    fitting = [
        over if uneven or size % ways(x, over) == 0 else None
        for over, size in zip(axes, x.shape, strict=True)
    ]
    mesh = jax.typeof(x).sharding.mesh
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*fitting)))
