"""A model as a pure, compiled function and its parameters as a plain nested dict."""

import dataclasses
import functools
import operator
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import unflatten_dict

from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.model import OpenAIGPTModel
from gpt1_jax.nn.attention import Cache
from gpt1_jax.nn.host_arrays import native, native_leaves
from gpt1_jax.nn.int8 import Int8Embed, Int8Linear
from gpt1_jax.nn.partitioning import AXES, TENSOR, axis_size, constrain
from gpt1_jax.nn.validation import (
    Arguments,
    bind_arguments,
    check_arguments,
    check_not_donated,
    without_device_values,
)
from gpt1_jax.pretrained import OpenAIGPTPreTrainedModel, Params, check_params, flatten

Model = TypeVar("Model", bound=OpenAIGPTPreTrainedModel)
Fields = Callable[[Any], Mapping[Any, object]]

Flags = tuple[tuple[str, object], ...]

# What chooses the function that is compiled, in place of being an input of it.
FLAGS = ("output_attentions", "output_hidden_states", "positions_from_mask", "deterministic")


class Apply(Protocol):
    """A model's forward as a function of its parameters: ``out = apply(params, input_ids, ...)``.

    It takes what the model's own call takes and returns the same output. Flags, and an int
    ``logits_to_keep``, choose what is compiled; everything else is traced. A ``cache`` is donated:
    its buffers become the returned cache's, and the one given must not be read again.
    """

    def __call__(self, params: Params, *args: object, **kwargs: object) -> Any:
        """Return the model's output with these parameters."""
        ...


def functional(model: OpenAIGPTPreTrainedModel) -> tuple[Apply, Params]:
    """Split a model into a pure function and its parameters.

    ``apply`` can be called as it is and inside ``jax.jit``, ``jax.grad`` and the like. Models of
    equal configuration and numerics share one ``apply`` and its compilations.

    Shapes and dtypes are checked before ``apply`` runs, and so are the values of numpy arrays,
    lists and numbers. The values of a ``jax.Array`` are never read, so that a loop runs ahead of
    the device: there, ids, positions and labels out of range, masks of other values than 0 and 1,
    and tokens beyond a cache's end give NaN.

    Args:
        model: any of the four models.

    Returns:
        ``apply`` and ``params``, a plain nested dict: see ``OpenAIGPTPreTrainedModel.params``.
    """
    structure, params = split(model)
    shapes = tuple((path, leaf.shape) for path, leaf in flatten(params).items())
    return _apply(structure, type(model), model.config, shapes), params


class ModelStructure(Generic[Model]):
    """What a model is apart from its parameters: hashable, and so a static argument of ``jax.jit``.

    Those of equal models are equal, so that these share what is compiled. Flax's GraphDef, which it
    holds, takes a millisecond to hash: it is done once.
    """

    def __init__(self, graphdef: nnx.GraphDef[Model]):
        self.graphdef = graphdef
        self._hash = hash(graphdef)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, ModelStructure)
            and self._hash == other._hash
            and self.graphdef == other.graphdef
        )


@dataclasses.dataclass(frozen=True)
class _Prepared(Generic[Model]):
    """What ``split`` has found out about a model.

    Attributes:
        structure: of the model.
        parts: see ``_contents``.
        ids: likewise.
        paths: of each parameter, and its number among the model's variables.
    """

    structure: ModelStructure[Model]
    parts: list[object]
    ids: list[int]
    paths: list[tuple[tuple[str, ...], int]]

    def is_of(self, parts: list[object], ids: list[int]) -> bool:
        """Return whether a model with these ``_contents`` still has this structure."""
        same_length = len(parts) == len(self.parts)
        return same_length and ids == self.ids and all(map(operator.is_, parts, self.parts))


_prepared: weakref.WeakKeyDictionary[OpenAIGPTPreTrainedModel, _Prepared[Any]] = (
    weakref.WeakKeyDictionary()
)


def split(model: Model) -> tuple[ModelStructure[Model], Params]:
    """Return a model's structure and its parameters: what ``merge`` takes.

    The structure is found once for a model, and again after any change but one of values.
    """
    parts, ids, variables = _contents(model)
    prepared = _prepared.get(model)
    if prepared is None or not prepared.is_of(parts, ids):
        graphdef, state = nnx.split(model)
        numbers = {id(variable): number for number, variable in enumerate(variables)}
        paths = []
        for path, variable in nnx.to_flat_state(state):
            name = tuple(map(str, path))
            if id(variable) not in numbers:
                raise ValueError(f"{'.'.join(name)} is a plain array, but must be an nnx.Param")
            paths.append((name, numbers[id(variable)]))
        prepared = _Prepared(ModelStructure(graphdef), parts, ids, paths)
        _prepared[model] = prepared
    values = {path: _value(variables[number]) for path, number in prepared.paths}
    return prepared.structure, unflatten_dict(values)


def _value(variable: nnx.Variable[jax.Array]) -> jax.Array:
    """Return ``variable.get_value()``, which takes 30 times as long for a plain array."""
    if variable.ref or "on_get_value" in variable.get_metadata():
        return variable.get_value()
    return variable.get_raw_value()


def _contents(
    model: OpenAIGPTPreTrainedModel,
) -> tuple[list[object], list[int], list[nnx.Variable[jax.Array]]]:
    """Return what a model consists of, in an order that follows from its attributes.

    Returns:
        The types of its modules and variables, with names and values of their attributes and
        metadata; the ids of these modules and variables, which are not to be kept alive; and the
        variables. Of two models, or of one at two times, whose first two are identical, Flax's
        GraphDefs are equal.
    """
    parts: list[object] = []
    ids: list[int] = []
    variables: list[nnx.Variable[jax.Array]] = []
    seen: set[int] = set()

    def visit(node: Any, fields_of: Fields) -> None:
        ids.append(id(node))
        if id(node) in seen:  # one module, or one variable, in two places
            return
        seen.add(id(node))
        parts.append(type(node))
        if fields_of is nnx.Variable.get_metadata:
            variables.append(node)
        for name, value in fields_of(node).items():
            parts.append(name)
            if inner := _fields_of(type(value)):
                visit(value, inner)
            else:
                parts.append(value)

    visit(model, vars)
    return parts, ids, variables


@functools.cache  # by class, since Flax's own isinstance takes longer than all else here
def _fields_of(cls: type) -> Fields | None:
    """Return what gives the fields of such a node of a model; None for a mere value."""
    if issubclass(cls, nnx.Variable):
        return nnx.Variable.get_metadata
    if issubclass(cls, nnx.Pytree):
        return vars
    if issubclass(cls, (list, tuple)):
        return lambda items: dict(enumerate(items))
    return dict if issubclass(cls, dict) else None


def merge(structure: ModelStructure[Model], params: Params) -> Model:
    """Return the model of ``structure`` with ``params``: for use inside a compiled function."""
    # Flax indexes the blocks by integers.
    flat = {
        tuple(int(key) if key.isdigit() else key for key in path): leaf
        for path, leaf in flatten(params).items()
    }
    model = nnx.merge(structure.graphdef, nnx.State(unflatten_dict(flat)))
    if any(axis_size(leaf, AXES) > 1 for leaf in flat.values()):
        _lay_out(model)
    return model


def first_non_finite(params: Params) -> str | None:
    """Return the name of the first parameter that holds NaN or inf; None if there is none."""
    for path, leaf in flatten(params).items():
        if not jnp.isfinite(leaf).all():
            return ".".join(path)
    return None


def not_finite(what: str, params: Params) -> ValueError:
    """Return the error that ``what`` a model computed is not finite, with the reason.

    Args:
        what: a plural, such as "the logits".
        params: of the model; read here, since to read them at every load would take longer.
    """
    name = first_non_finite(params)
    if name is not None:
        return ValueError(f"{what} are not finite, because the parameter {name} holds NaN or inf")
    return ValueError(
        f"{what} are not finite, though all parameters are: a dtype of a wider range, bfloat16 or "
        "float32, may help"
    )


def _lay_out(model: nnx.Module) -> None:
    """Lay the tables of a model on a mesh out as it computes with them: each device its own tokens.

    They are kept in parts that are equal. Here, once a call, since look-up and head share a table.
    """
    for _, node in nnx.iter_graph(model):
        if isinstance(node, OpenAIGPTModel):
            embed = node.tokens_embed
            _split_rows(embed.qvalue if isinstance(embed, Int8Embed) else embed.embedding)
        elif isinstance(getattr(node, "lm_head", None), Int8Linear):
            _split_rows(node.lm_head.qvalue)
        elif isinstance(getattr(node, "lm_head", None), nnx.Linear):
            kernel = node.lm_head.kernel
            columns = constrain(kernel.get_value(), TENSOR, None)
            kernel.set_value(constrain(columns, None, TENSOR, uneven=True))


def _split_rows(table: nnx.Param[jax.Array]) -> None:
    # Together over fsdp first, or XLA would copy the whole table to every device.
    rows = constrain(table.get_value(), None, TENSOR)
    table.set_value(constrain(rows, TENSOR, None, uneven=True))


@functools.lru_cache(maxsize=32)
def _apply(
    structure: ModelStructure[OpenAIGPTPreTrainedModel],
    cls: type[OpenAIGPTPreTrainedModel],
    config: OpenAIGPTConfig,
    shapes: tuple[tuple[tuple[str, ...], tuple[int, ...]], ...],
) -> Apply:
    function = f"apply() of {cls.__name__}"

    @functools.partial(jax.jit, static_argnames="flags", donate_argnames="cache")
    def run(params: Params, arrays: Arguments, cache: Cache | None, flags: Flags):
        # Parameters of other shapes are traced anew, so this costs nothing where they fit.
        check_params(cls.__name__, dict(shapes), flatten(params))
        arguments = {**arrays, **dict(flags)}
        if cache is not None:
            arguments["cache"] = cache
        return merge(structure, params).forward(**arguments)

    def apply(params: Params, *args: object, **kwargs: object) -> object:
        arrays, cache, flags = split_arguments(function, cls, config, args, kwargs)
        return run(native_leaves(params), arrays, cache, flags)

    return apply


def split_arguments(
    function: str,
    cls: type[OpenAIGPTPreTrainedModel],
    config: OpenAIGPTConfig,
    args: Sequence[object],
    kwargs: Mapping[str, object],
) -> tuple[Arguments, Cache | None, Flags]:
    """Check the arguments of a model's call; return arrays, the cache, and flags.

    Args:
        function: what an error calls it.
        cls: of the model.
        config: of the model.
        args: by their places after the model.
        kwargs: by their names.
    """
    arguments = bind_arguments(function, cls.__call__, args, kwargs)
    cache = arguments.get("cache")
    if cache is not None:
        check_not_donated(cache)
    check_arguments(config, classify=cls.classifies, **_to_check(arguments))
    arguments.pop("cache", None)
    arrays, flags = {}, []
    for name, value in arguments.items():
        if value is None:
            continue
        if name in FLAGS:
            flags.append((name, bool(value)))
        elif name == "logits_to_keep" and np.ndim(value) == 0:
            flags.append((name, int(value)))
        else:
            arrays[name] = value if isinstance(value, jax.Array) else native(np.asarray(value))
    return arrays, native_leaves(cache), tuple(flags)


def _to_check(arguments: Arguments) -> Arguments:
    """Return the arguments, of arrays on a device, unless they are flags, without the values."""

    def is_flag(name: str, value: Any) -> bool:
        return name in FLAGS or (name == "logits_to_keep" and np.ndim(value) == 0)

    def to_check(value: object) -> object:
        if isinstance(value, Cache):  # only these two of its many arrays are looked into
            index, mask = without_device_values((value.index, value.mask))
            return dataclasses.replace(value, index=index, mask=mask)
        return without_device_values(value) if isinstance(value, jax.Array) else value

    return {
        name: value if is_flag(name, value) else to_check(value)
        for name, value in arguments.items()
    }
