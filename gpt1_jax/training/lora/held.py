"""Adapters that a model holds by their names, of which one at most is in use.

In a model of floats the one in use is merged: its kernels are W + scale A B, and what is compiled
for the model serves it with every adapter. The kernels W are kept beside, once for all adapters.
Weights in int8 stay as they are, and the adapter's product is added to theirs (``LoraLinear``).
"""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from gpt1_jax._conversion import match
from gpt1_jax.nn.int8 import Int8Linear
from gpt1_jax.nn.partitioning import place_like
from gpt1_jax.pretrained import ADAPTERS, Leaves, OpenAIGPTPreTrainedModel, Params, flatten
from gpt1_jax.quantization import is_quantized
from gpt1_jax.training.lora.adapters import (
    FACTORS,
    LoraSettings,
    adapted_modules,
    load_adapters,
    merge_adapters,
)
from gpt1_jax.training.lora.layers import LoraLinear
from gpt1_jax.training.lora.parts import replace_layer

EMBEDDING = ("tokens_embed", "embedding")
HEAD = ("lm_head", "kernel")
MERGE_FIRST = "merge it into the model in floats, and quantize the result"


@dataclasses.dataclass(frozen=True)
class _Adapter:
    """An adapter in memory.

    Attributes:
        settings: the rank and the targets, with a scale of 1.
        factors: ``lora_A``, and ``lora_B`` times the scale, in float32.
        saved: the parameters that replace the model's own.
    """

    settings: LoraSettings
    factors: Params
    saved: Leaves


@dataclasses.dataclass
class HeldAdapters:
    """What a model holds of its adapters.

    Attributes:
        adapters: by their names.
        base: the parameters of the model alone that some adapter changes; in int8 the layers.
        active: the name of the one in use; None if there is none.
        last: the name of the one that was in use before all were disabled.
    """

    adapters: dict[str, _Adapter] = dataclasses.field(default_factory=dict)
    base: dict[tuple[str, ...], Any] = dataclasses.field(default_factory=dict)
    active: str | None = None
    last: str | None = None

    def choose(self, name: str | None) -> str:
        """Return the name if there is such an adapter; None stands for the last one.

        Raises:
            ValueError: there is none.
        """
        name = self.last if name is None else name
        if name not in self.adapters:
            there = ", ".join(map(repr, self.adapters)) or "none"
            raise ValueError(f"there is no adapter {name!r}; loaded are {there}")
        return name


def held_by(model: OpenAIGPTPreTrainedModel) -> HeldAdapters:
    """Return what a model holds of its adapters."""
    return ADAPTERS.get(model) or HeldAdapters()


def load(model: OpenAIGPTPreTrainedModel, folder: str | os.PathLike[str], name: str) -> None:
    """Load an adapter into a model under a name, and use it.

    Raises:
        OSError: the folder has no adapter.
        ValueError: the name is taken, or the adapter does not fit the model.
    """
    held = held_by(model)
    if name in held.adapters:
        raise ValueError(f"there is an adapter {name!r} already: choose another adapter_name")
    settings, factors, saved = load_adapters(folder)
    before = held.active
    use(model, None)  # so that the model is the base
    try:
        adapter = _fitting(model, settings, factors, flatten(saved), folder)
    except ValueError:
        use(model, before)
        raise
    held = held_by(model)
    held.adapters[name] = adapter
    ADAPTERS[model] = held
    use(model, name)


def use(model: OpenAIGPTPreTrainedModel, name: str | None) -> None:
    """Use the adapter of a name alone, or none."""
    held = held_by(model)
    if name == held.active:
        return
    if held.active is not None:
        _restore(model, held)
    if name is not None:
        adapter = held.adapters[name]
        if is_quantized(model):
            _add(model, adapter, held)
        else:
            _merge(model, adapter, held)
        held.last = name
    held.active = name
    ADAPTERS[model] = held  # which a change of parameters has dropped


def delete(model: OpenAIGPTPreTrainedModel, name: str) -> None:
    """Forget an adapter; one that is in use is taken out of the model first."""
    held = held_by(model)
    name = held.choose(name)
    if name == held.active:
        use(model, None)
    del held.adapters[name]


def _fitting(
    model: OpenAIGPTPreTrainedModel,
    settings: LoraSettings,
    factors: Params,
    saved: Leaves,
    folder: str | os.PathLike[str],
) -> _Adapter:
    """Return the adapter for a model that uses none, if it fits."""
    shapes = model.shapes
    if is_quantized(model):
        # As the layers would be in floats.
        for path in [path for path in shapes if path[-1] == "qvalue"]:
            leaf = "embedding" if path[-2] == "tokens_embed" else "kernel"
            shape = shapes.pop(path)
            shapes[*path[:-1], leaf] = shape if leaf == "embedding" else shape[::-1]
    for path, leaf in saved.items():
        if (*path[:-1], "qvalue") in model.shapes:
            raise ValueError(
                f"{folder} replaces {'.'.join(path)}, which is int8 here: {MERGE_FIRST}"
            )
        if path[-2:] == EMBEDDING and path in shapes:  # of another number of tokens perhaps
            tokens = leaf.shape[:1]
            shapes[path] = (*tokens, *shapes[path][1:])
            if HEAD in shapes:
                shapes[HEAD] = (*shapes[HEAD][:1], *tokens)
    kind, faults = type(model).__name__, []
    for path, leaf in saved.items():
        dotted, shape = ".".join(path), shapes.get(path)
        if shape is None:
            faults.append(f"+ {dotted} is unexpected")
        elif leaf.shape != shape:
            faults.append(f"! {dotted} has shape {leaf.shape}, but must have {shape}")
    modules = {path[:-1] for path in flatten(factors)}
    for module in sorted(modules):
        A, B = (flatten(factors)[*module, factor] for factor in FACTORS)
        expected, dotted = shapes.get((*module, "kernel")), ".".join(module)
        if expected is None:
            faults.append(f"+ {dotted} is unexpected")
        elif (A.shape[0], B.shape[1]) != expected:
            found = A.shape[0], B.shape[1]
            faults.append(f"! {dotted} has shape {found}, but must have {expected}")
    abstract = {path: jax.ShapeDtypeStruct(s, jnp.float32) for path, s in shapes.items()}
    if not faults:
        missing = set(adapted_modules(settings, unflatten_dict(abstract))) - modules
        faults = [f"- {'.'.join(module)} is missing" for module in sorted(missing)]
    if faults:
        first = f"{folder} is an adapter of another model than this {kind}:"
        raise ValueError("\n".join([first, *match.first_faults(faults)]))

    def scaled(path: tuple[str, ...], leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf, np.float32)
        return leaf if path[-1] == "lora_A" else np.float32(settings.scale) * leaf

    return _Adapter(
        # Adapters that differ in the scale alone share what is compiled.
        LoraSettings(
            rank=settings.rank, alpha=settings.rank, target_modules=settings.target_modules
        ),
        unflatten_dict(
            {path: jnp.asarray(scaled(path, leaf)) for path, leaf in flatten(factors).items()}
        ),
        saved,
    )


def _merge(model: OpenAIGPTPreTrainedModel, adapter: _Adapter, held: HeldAdapters) -> None:
    """Put an adapter into a model of floats that uses none, and keep what it replaces."""
    own = model._variables()
    modules = {path[:-1] for path in flatten(adapter.factors)}
    kernels = {(*module, "kernel"): own[*module, "kernel"].get_value() for module in modules}
    changed = {*kernels, *adapter.saved}
    resized = [path for path in adapter.saved if path[-2:] == EMBEDDING]
    if HEAD in own and resized:
        changed.add(HEAD)
    held.base = {path: own[path].get_value() for path in changed}
    merged = flatten(merge_adapters(unflatten_dict(kernels), adapter.factors, adapter.settings))
    if resized:
        _resize(model, adapter.saved[resized[0]].shape[0])
    _set(model, {**merged, **adapter.saved})


def _add(model: OpenAIGPTPreTrainedModel, adapter: _Adapter, held: HeldAdapters) -> None:
    """Put an adapter beside the int8 layers of a model, and keep what it replaces."""
    own, factors = model._variables(), flatten(adapter.factors)
    held.base = {path: own[path].get_value() for path in adapter.saved}
    _set(model, adapter.saved)
    for module in sorted({path[:-1] for path in factors}):
        A, B = (factors[*module, name] for name in FACTORS)

        def wrap(layer: Int8Linear, A: Any = A, B: Any = B) -> LoraLinear:
            return LoraLinear(layer, A, B)

        replace_layer(model, module, wrap)
        held.base[module] = None  # the layer itself has it


def _restore(model: OpenAIGPTPreTrainedModel, held: HeldAdapters) -> None:
    """Take the adapter in use out of a model."""
    arrays = {path: leaf for path, leaf in held.base.items() if leaf is not None}
    for path in held.base.keys() - arrays.keys():
        replace_layer(model, path, lambda layer: layer.linear)
    for path, leaf in arrays.items():
        if path[-2:] == EMBEDDING:
            _resize(model, leaf.shape[0])
    _set(model, arrays)
    held.base = {}


def _resize(model: OpenAIGPTPreTrainedModel, tokens: int) -> None:
    if tokens != model.config.vocab_size:
        model.resize_token_embeddings(tokens)


def _set(model: OpenAIGPTPreTrainedModel, leaves: Leaves) -> None:
    own = model._variables()
    for path, leaf in leaves.items():
        variable = own[path]
        placed = place_like(leaf, variable.get_value())
        variable.set_value(jnp.asarray(placed, variable.dtype))
