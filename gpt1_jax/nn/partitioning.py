"""Where arrays lie on a mesh of devices, inside a compiled function and outside.

XLA's partitioner splits a program after its inputs. Where it has several ways to do that,
``constrain`` tells it which: the choice is the same for every program, so it
stands in the model. An array that comes from parameters on a mesh knows that mesh. Without a mesh,
and on any mesh that ``sharding.mesh.make_mesh`` did not make, ``constrain`` does nothing.
"""

import math
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

DATA, FSDP, TENSOR = AXES = ("data", "fsdp", "tensor")
ROWS = (DATA, FSDP)  # what the rows of a batch are split over

T = TypeVar("T")

# Of one dimension: an axis of the mesh, several, or None.
Axes = str | tuple[str, ...] | None


def place(array: jax.typing.ArrayLike, sharding: jax.sharding.Sharding) -> jax.Array:
    """Return an array, numpy's or JAX's, on the devices of a sharding: each gets its own shard.

    Where these are of several processes each of them has the array whole, and alike.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def place_like(array: T, own: object) -> T | jax.Array:
    """Return ``array`` on the mesh that ``own`` lies on, unless it lies on a mesh itself."""
    sharding = getattr(own, "sharding", None)
    lies_on_mesh = isinstance(getattr(array, "sharding", None), NamedSharding)
    if lies_on_mesh or not isinstance(sharding, NamedSharding):
        return array
    return place(array if isinstance(array, jax.Array) else np.asarray(array), sharding)


def axis_size(x: jax.Array, axes: Axes) -> int:
    """Return in how many parts the mesh that ``x`` lies on splits along ``axes``; 1 without one."""
    mesh = jax.typeof(x).sharding.mesh
    if mesh.axis_names != AXES or axes is None:
        return 1
    return math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes))


def constrain(x: jax.Array, *axes: Axes, uneven: bool = False) -> jax.Array:
    """Return ``x`` with its dimensions split over axes of the mesh that it lies on.

    Args:
        x: an array, traced.
        axes: what each of its dimensions is split over.
        uneven: whether to split a dimension that does not divide, whose last part is then filled
            up; otherwise it stays whole.
    """
    if axis_size(x, AXES) == 1:
        return x
    fitting = [
        over if uneven or size % axis_size(x, over) == 0 else None
        for over, size in zip(axes, x.shape, strict=True)
    ]
    mesh = jax.typeof(x).sharding.mesh
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*fitting)))
