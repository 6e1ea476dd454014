"""Frozen dataclasses that JAX traces field by field."""

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T")


def static() -> Any:
    """Return a field of a ``pytree_dataclass`` that is not traced: functions, for example.

    Its value must be hashable; another one compiles anew.
    """
    return dataclasses.field(metadata={"static": True})


@dataclass_transform(frozen_default=True, field_specifiers=(static,))
def pytree_dataclass(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass and a pytree whose leaves are its fields, ``static`` apart.

    ``jax.tree_util.register_dataclass`` would do the same, but the tree structures that it makes
    compare equal for any two classes with as many fields, although their hashes differ (jaxlib
    0.10.2 to 0.12.0). ``jax.jit`` finds its programs by both: about one time in a hundred, where
    the hashes share a slot, it ran the program of the other class.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
    names = [field.name for field in fields if not field.metadata.get("static")]
    static_names = [field.name for field in fields if field.metadata.get("static")]
    keys = [jax.tree_util.GetAttrKey(name) for name in names]

    def values(instance: T, names: Iterable[str]) -> tuple[Any, ...]:
        return tuple(getattr(instance, name) for name in names)

    def flatten(instance: T) -> tuple[tuple[object, ...], tuple[object, ...]]:
        return values(instance, names), values(instance, static_names)

    def flatten_with_keys(
        instance: T,
    ) -> tuple[tuple[tuple[object, object], ...], tuple[object, ...]]:
        children, statics = flatten(instance)
        return tuple(zip(keys, children, strict=True)), statics

    def unflatten(statics: tuple[object, ...], children: Iterable[object]) -> T:
        traced = zip(names, children, strict=True)
        return cls(**dict(traced), **dict(zip(static_names, statics, strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
