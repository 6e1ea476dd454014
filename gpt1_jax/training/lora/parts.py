"""What is trained of a model with adapters, and what its parameters are while it is trained."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import unflatten_dict

from gpt1_jax.demo import DEMO, resolve
from gpt1_jax.nn.keys import key_of
from gpt1_jax.pretrained import OpenAIGPTPreTrainedModel, Params, flatten
from gpt1_jax.pure import ModelStructure, split
from gpt1_jax.training.freezing import combine_params
from gpt1_jax.training.lora.adapters import (
    FACTORS,
    LoraSettings,
    adapt,
    adapted_modules,
    init_adapters,
)
from gpt1_jax.training.lora.layers import LoraLinear
from gpt1_jax.training.step import Batch, Combine, Objective, Sums

ADAPTER = "adapter"  # the folder beside the merged model


def _unchanged(objective: Objective) -> Objective:
    return objective


@dataclasses.dataclass(frozen=True)
class TrainedParts:
    """The parts of a model in a training.

    Attributes:
        structure: of the model that a step computes with.
        trained: the parameters that are trained.
        frozen: those that are not.
        combine: (trained, frozen) -> the model's parameters.
        combine_to_train: likewise, those of ``structure``; None where they are the same.
        wrap: what the objective has to be passed through.
    """

    structure: ModelStructure[Any]
    trained: Params
    frozen: Params = dataclasses.field(default_factory=dict)
    combine: Combine = combine_params
    combine_to_train: Combine | None = None
    wrap: Callable[[Objective], Objective] = _unchanged


def split_adapted(
    model: OpenAIGPTPreTrainedModel, settings: LoraSettings, seed: int, *, train_heads: bool
) -> TrainedParts:
    """Return the parts of a model of which new adapters are trained.

    Adapters are merged in each step, which is exact and needs no other program than the model's,
    unless there is dropout on their input.

    Args:
        model: of any of the four kinds.
        settings: which kernels to adapt.
        seed: of the adapters.
        train_heads: whether all but the transformer is trained besides.
    """
    structure, params = split(model)
    heads = {name: part for name, part in params.items() if name != "transformer"}
    heads = heads if train_heads else {}
    frozen = {name: part for name, part in params.items() if name not in heads}
    trained = {"adapters": init_adapters(settings, frozen, key_of(seed))}
    if heads:
        trained["heads"] = heads

    def combine(trained: Params, frozen: Params) -> Params:
        return adapt(frozen, trained["adapters"], settings) | trained.get("heads", {})

    if not settings.dropout:
        return TrainedParts(structure, trained, frozen, combine)
    modules = adapted_modules(settings, frozen)

    def combine_to_train(trained: Params, frozen: Params) -> Params:
        parts = unmerged(frozen, trained["adapters"], settings)
        return parts | trained.get("heads", {})

    return TrainedParts(
        _structure_with_dropout(model, modules, settings),
        trained,
        frozen,
        combine,
        combine_to_train,
        functools.partial(_with_keys, modules=modules),
    )


def unmerged(params: Params, adapters: Params, settings: LoraSettings) -> Params:
    """Return the parameters of a model whose adapted layers are ``LoraLinear``, without keys."""
    leaves, factors = flatten(params), flatten(adapters)
    for module in adapted_modules(settings, params):
        for path in [path for path in leaves if path[:-1] == module]:
            leaves[*module, "linear", path[-1]] = leaves.pop(path)
        A, B = (jnp.asarray(factors[*module, name], jnp.float32) for name in FACTORS)
        leaves |= {(*module, "lora_A"): A, (*module, "lora_B"): settings.scale * B}
    return unflatten_dict(leaves)


def replace_layer(
    model: nnx.Module, path: tuple[str, ...], change: Callable[[Any], nnx.Module]
) -> None:
    """Replace the module at a path by what ``change`` makes of it, in place."""
    part: Any = model
    for name in path[:-1]:
        part = part[int(name)] if name.isdigit() else getattr(part, name)
    setattr(part, path[-1], change(getattr(part, path[-1])))


def base_name(model: str | os.PathLike[str]) -> str:
    """Return what an adapter calls the model that it changes, such that peft finds it."""
    return str(resolve(model)) if str(model) == DEMO else str(model)


def _structure_with_dropout(
    model: OpenAIGPTPreTrainedModel, modules: list[tuple[str, ...]], settings: LoraSettings
) -> ModelStructure[Any]:
    """Return the structure of the model whose adapters have dropout on their input."""

    def changed() -> nnx.Module:
        copy = nnx.clone(model)
        # Shapes are no part of a structure.
        empty, key = jnp.zeros((0, 0)), jnp.zeros(2, jnp.uint32)
        for path in modules:
            replace_layer(
                copy,
                path,
                lambda linear: LoraLinear(linear, empty, empty, rate=settings.dropout, key=key),
            )
        return copy

    return ModelStructure(nnx.graphdef(nnx.eval_shape(changed)))


def _with_keys(objective: Objective, modules: list[tuple[str, ...]]) -> Objective:
    """Return the objective of parameters whose adapters get keys of their dropout."""

    def keyed(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Sums]:
        lora_key, key = jax.random.split(key)
        keys = jax.random.split(lora_key, len(modules))
        leaves = flatten(params)
        for module, own in zip(modules, keys, strict=True):
            leaves[*module, "key"] = jax.random.key_data(own)
        return objective(unflatten_dict(leaves), batch, key)

    return keyed
