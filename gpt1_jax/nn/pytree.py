"""Frozen dataclasses that JAX traces field by field."""

import dataclasses
from collections.abc import Iterable
from typing import TypeVar, dataclass_transform

import jax

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def pytree_dataclass(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass and a pytree whose leaves are its fields.

    ``jax.tree_util.register_dataclass`` would do the same, but the tree structures that it makes
    compare equal for any two classes with as many fields, although their hashes differ (jaxlib
    0.10.2 to 0.12.0). ``jax.jit`` finds its programs by both: about one time in a hundred, where
    the hashes share a slot, it ran the program of the other class.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]
    keys = [jax.tree_util.GetAttrKey(name) for name in names]

    def flatten(value: T) -> tuple[tuple[object, ...], None]:
        return tuple(getattr(value, name) for name in names), None

    def flatten_with_keys(value: T) -> tuple[tuple[tuple[object, object], ...], None]:
        return tuple(zip(keys, flatten(value)[0], strict=True)), None

    def unflatten(_: None, children: Iterable[object]) -> T:
        return cls(*children)

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
