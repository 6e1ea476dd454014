"""Dataclasses as pytrees: what tells them apart, and their keys."""

import itertools
from typing import Any

import jax
import numpy as np

import gpt1_jax as gpt1
from gpt1_jax import outputs
from gpt1_jax.generation import beam, decode, processors
from gpt1_jax.nn import attention
from gpt1_jax.nn.pytree import pytree_dataclass
from gpt1_jax.training import step


@pytree_dataclass
class First:
    """Two fields."""

    a: Any
    b: Any


@pytree_dataclass
class Second:
    """Two fields, as the first has."""

    a: Any
    b: Any


def test_pytree_dataclass_structures_of_two_classes_differ() -> None:
    """JAX's own registration makes them equal, and jit may then run the wrong program."""
    assert jax.tree.structure(First(1, 2)) != jax.tree.structure(Second(1, 2))
    assert jax.tree.structure(First(1, 2)) == jax.tree.structure(First(3, 4))


def test_pytree_dataclass_round_trips_with_attribute_keys() -> None:
    value = First({"x": np.ones(2)}, (1, None))
    assert isinstance(jax.tree.map(lambda leaf: leaf, value), First)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(value)]
    assert paths == [".a['x']", ".b[0]"]


def test_every_registered_class_has_a_structure_of_its_own() -> None:
    modules = (attention, outputs, processors, decode, beam, step)
    classes = {
        cls
        for module in modules
        for cls in vars(module).values()
        if isinstance(cls, type) and "__dataclass_fields__" in vars(cls)
    }
    made = {}
    for cls in classes:
        value: Any = object.__new__(cls)
        for name in cls.__dataclass_fields__:
            object.__setattr__(value, name, 0)
        structure = jax.tree.structure(value)
        if structure != jax.tree.structure(0):  # a plain dataclass is a leaf
            made[cls] = structure
    assert {gpt1.Cache, outputs.CausalLMOutput, processors.MinP, step.TrainState} <= made.keys()
    for one, other in itertools.combinations(made.values(), 2):
        assert one != other
