"""Checks of what a user passes to a model, on the host and before anything is traced.

They run at the outermost call alone: ``model(...)`` and ``apply(...)`` check their arguments, and
``forward``, which both lead to, does not.

Ids are compared with their range here, and masks with 0 and 1, which needs their values. Of an
array whose values are not known, a tracer or a ``ShapeDtypeStruct``, only the shape and the dtype
are checked; an id out of range in it gives NaN (``nn/indices.py``), and another value of a mask a
row of NaN.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gpt1_jax.checks import ForeignKeyword, check_keywords
from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.nn.attention import Cache
from gpt1_jax.nn.losses import IGNORED

ArrayLike = jax.Array | np.ndarray | Sequence[Any]
Arguments = dict[str, Any]
# Arrays whose values are not known.
ABSTRACT = (Tracer, jax.ShapeDtypeStruct)


Model = TypeVar("Model")
Inputs = ParamSpec("Inputs")
Output = TypeVar("Output")


def checked(
    call: Callable[Concatenate[Model, Inputs], Output],
) -> Callable[Concatenate[Model, Inputs], Output]:
    """Return a function that checks the arguments of a model's ``__call__`` and then calls it.

    Its ``__wrapped__`` is the given method, which ``OpenAIGPTPreTrainedModel.forward`` calls.
    """

    @functools.wraps(call)
    def check_and_call(model: Any, *args: Inputs.args, **kwargs: Inputs.kwargs) -> Output:
        arguments = bind_arguments(f"{call.__qualname__}()", call, args, kwargs)
        check_arguments(model.config, classify=model.classifies, **arguments)
        return call(model, **arguments)  # pyright: ignore[reportCallIssue]

    return check_and_call


# What transformers' models are called with, and these are not.
_CACHE = "pass cache=Cache.empty(config, rows, length), and then the cache of each output"
_FOREIGN = {
    "return_dict": ForeignKeyword(
        "the output is a mapping, whose to_tuple() returns the tuple", accepted=(None, True)
    ),
    "past_key_values": ForeignKeyword(_CACHE),
    "use_cache": ForeignKeyword(_CACHE, accepted=(None, False)),
    "cache": ForeignKeyword("this model reads a text as a whole"),
    "head_mask": ForeignKeyword("a head is left out by setting its rows of attn.c_proj to 0"),
}


def bind_arguments(
    function: str,
    call: Callable[..., object],
    args: Sequence[object],
    kwargs: Mapping[str, object],
) -> Arguments:
    """Return the arguments of a model's ``__call__``, but for the model, by their names.

    Args:
        function: what an error calls it.
        call: the ``__call__`` of its class.
        args: by their places after the model.
        kwargs: by their names.

    Raises:
        TypeError: they are not its arguments.
    """
    places, names = _parameters(call)
    if not kwargs.keys() <= names.keys():
        kwargs = check_keywords(function, kwargs, names, _FOREIGN)
    if len(args) > len(places):
        raise TypeError(f"{function} takes {len(places)} arguments by place, but got {len(args)}")
    by_place = dict(zip(places, args, strict=False))
    if twice := by_place.keys() & kwargs.keys():
        raise TypeError(f"{function} got {', '.join(sorted(twice))} by place and by name")
    return {**by_place, **kwargs}


@functools.cache
def _parameters(call: Callable[..., object]) -> tuple[list[str], dict[str, None]]:
    """Return the names of a method's parameters that have a place, and of all that have a name.

    What takes ``**rest``, as a subclass may, takes any argument that a model takes.
    """
    _, *parameters = inspect.signature(call).parameters.values()
    places = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        named += [*_OTHERS, *_CHECKS]
    return places, dict.fromkeys(named)


@dataclasses.dataclass(frozen=True)
class _Call:
    """What an argument has to fit: the model's sizes, the others, and (..., T), the tokens'."""

    config: OpenAIGPTConfig
    classify: bool
    arguments: Arguments
    shape: tuple[int, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        return self.shape[:-1]

    @property
    def tokens(self) -> int:
        return self.shape[-1]


def check_arguments(
    config: OpenAIGPTConfig, *, classify: bool = False, **arguments: object
) -> tuple[int, ...]:
    """Check the arguments of any of the four models.

    Args:
        config: sizes that ids and shapes have to fit.
        classify: whether ``labels`` are those of a classification, not of the next tokens.
        **arguments: the models' own arguments.

    Returns:
        The shape (..., T) of the tokens.

    Raises:
        ValueError: naming the argument, what it is, and what would be right.
    """
    given = {
        name: value
        for name, value in arguments.items()
        # None is a wrong value for these two; for all others it means that they are not given.
        if value is not None or name in ("deterministic", "logits_to_keep")
    }
    call = _Call(config, classify, given, _check_tokens(config, given))
    if classify:
        _check_classified_rows(call)
    for name, check in _CHECKS.items():
        if name in given:
            check(call, given[name])
    _check_dropout(given.get("deterministic", True), given.get("dropout_key"))
    return call.shape


def _check_tokens(config: OpenAIGPTConfig, given: Arguments) -> tuple[int, ...]:
    """Check ``input_ids`` or ``inputs_embeds``; return the shape (..., T) of the tokens."""
    if ("input_ids" in given) == ("inputs_embeds" in given):
        got = "both" if "input_ids" in given else "neither"
        raise ValueError(f"give either input_ids or inputs_embeds, not {got}")
    if "input_ids" in given:
        shape = check_ids("input_ids", given["input_ids"], config.vocab_size, "vocab_size")
    else:
        *rows, width = check_numbers("inputs_embeds", given["inputs_embeds"]).shape or (0,)
        shape = tuple(rows)
        if width != config.n_embd:
            raise ValueError(
                f"inputs_embeds is {width} wide, but must be n_embd = {config.n_embd} wide"
            )
    if not shape or 0 in shape:
        raise ValueError(f"the tokens have shape {shape}, but there must be at least one token")
    if "cache" not in given and config.n_positions < shape[-1]:
        raise ValueError(
            f"{shape[-1]} tokens, but the model has n_positions = {config.n_positions}"
        )
    return shape


def _check_attention_mask(call: _Call, mask: ArrayLike) -> None:
    _check_shape("attention_mask", mask, call.shape, broadcast=False)
    check_mask("attention_mask", mask)


def _check_token_type_ids(call: _Call, ids: ArrayLike) -> None:
    check_ids("token_type_ids", ids, call.config.vocab_size, "vocab_size")
    _check_shape("token_type_ids", ids, call.shape)


def _check_position_ids(call: _Call, ids: ArrayLike) -> None:
    if call.arguments.get("positions_from_mask"):
        raise ValueError("give either position_ids or positions_from_mask=True, not both")
    check_ids("position_ids", ids, call.config.n_positions, "n_positions")
    _check_shape("position_ids", ids, call.shape)


def _check_dropout(deterministic: object, key: object) -> None:
    if not deterministic and key is None:
        raise ValueError("deterministic=False needs a dropout_key: jax.random.key(seed)")
    if deterministic and key is not None:
        raise ValueError("dropout_key draws nothing unless deterministic=False")
    dtype = getattr(key, "dtype", None)
    if key is not None and not _is_any(dtype, jax.dtypes.prng_key, jnp.uint32):
        raise ValueError(f"dropout_key is {key!r}, but must be a key: jax.random.key(seed)")


def _check_num_items(_: _Call, number: object) -> None:
    items = check_numbers("num_items_in_batch", number)
    if items.ndim:
        raise ValueError(f"num_items_in_batch has shape {items.shape}, but must be one number")
    if not isinstance(items, ABSTRACT) and not items > 0:
        raise ValueError(f"num_items_in_batch is {items}, but must be one number above 0")


def _check_classified_rows(call: _Call) -> None:
    if len(call.shape) != 2:
        raise ValueError(f"the tokens have shape {call.shape}, but must be (batch, T)")
    if call.config.pad_token_id is None and call.rows[0] > 1:
        raise ValueError(
            f"{call.rows[0]} rows need config.pad_token_id, to find where each of them ends"
        )


def _check_labels(call: _Call, labels: ArrayLike) -> None:
    if call.classify:
        _check_classes(call.config, labels, call.rows[0])
        return
    check_ids("labels", labels, call.config.vocab_size, "vocab_size", ignored=IGNORED)
    _check_shape("labels", labels, call.shape, broadcast=False)
    kept = call.arguments.get("logits_to_keep", 0)
    if np.ndim(kept) or kept != 0:
        raise ValueError("labels need all logits, so logits_to_keep must be 0")


def _check_logits_to_keep(call: _Call, kept: Any) -> None:
    if np.ndim(kept):
        shape = check_ids("logits_to_keep", kept, call.tokens, "the number of tokens")
        if len(shape) > 1 and shape[:-1] != call.rows:
            right = f"(K,) or ({', '.join(map(str, call.rows))}, K)"
            raise ValueError(f"logits_to_keep has shape {shape}, but must have {right}")
    elif not _is_integer(np.asarray(kept).dtype) or kept < 0:
        raise ValueError(f"logits_to_keep is {kept}, but must be 0 (all) or more, an integer")


def _check_mc_token_ids(call: _Call, places: ArrayLike) -> None:
    check_ids("mc_token_ids", places, call.tokens, "the number of tokens")
    _check_shape("mc_token_ids", places, call.rows, broadcast=False)


def _check_mc_labels(call: _Call, labels: ArrayLike) -> None:
    choices = call.rows[-1] if call.rows else 1
    check_ids("mc_labels", labels, choices, "the number of choices", ignored=IGNORED)
    _check_shape("mc_labels", labels, call.rows[:-1], broadcast=False)


def check_ids(
    name: str,
    ids: ArrayLike,
    size: int,
    size_name: str,
    *,
    ignored: int | None = None,
) -> tuple[int, ...]:
    """Check that ``ids`` are integers in [0, size), or ``ignored``; return their shape."""
    if isinstance(ids, ABSTRACT):
        if not _is_integer(ids.dtype):
            raise ValueError(f"{name} has dtype {ids.dtype}, but must be integer")
        return ids.shape
    values = host_array(name, ids)
    if values.size and not _is_integer(values.dtype):
        raise ValueError(f"{name} has dtype {values.dtype}, but must be integer")
    if values.dtype.kind == "V":  # int4 and its like, which no larger number can be compared with
        values = values.astype(np.int32)
    wrong = (values < 0) | (values >= size)
    if ignored is not None:
        wrong &= values != ignored
    if wrong.any():
        place = _first(wrong)
        also = "" if ignored is None else f", or {ignored}"
        raise ValueError(
            f"{name}{list(place)} is {values[place]}, "
            f"but must be in [0, {size}), {size_name} being {size}{also}"
        )
    return values.shape


def check_mask(name: str, mask: ArrayLike) -> None:
    """Check that a mask holds nothing but 1 for a token and 0 for padding, or bools."""
    array = check_numbers(name, mask)
    if isinstance(array, ABSTRACT) or array.dtype == bool:
        return
    values = np.asarray(array)
    wrong = (values != 0) & (values != 1)
    if wrong.any():
        place = _first(wrong)
        raise ValueError(
            f"{name}{list(place)} is {values[place]}, but must be 1 for a token or 0 for padding"
        )


def check_numbers(name: str, value: object) -> Any:
    """Check that ``value`` is of bools, integers or floats; return it as an array.

    The values of a ``jax.Array`` are not read.
    """
    array = value if isinstance(value, (jax.Array, *ABSTRACT)) else host_array(name, value)
    if not (_is_integer(array.dtype) or _is_any(array.dtype, jnp.bool_, jnp.floating)):
        raise ValueError(f"{name} has dtype {array.dtype}, but must be bool, integer or float")
    return array


def host_array(name: str, value: object) -> np.ndarray:
    """Return ``value`` as numpy's array, unless part of it would be left out or is missing."""
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(f"{name} is a masked array of numpy's, but must be a plain one")
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} has rows of unequal length; pad them and give a mask") from None


def _first(wrong: np.ndarray) -> tuple[int, ...]:
    return tuple(int(places[0]) for places in wrong.nonzero())


def _is_integer(dtype: np.dtype) -> bool:
    return _is_any(dtype, jnp.integer) and dtype.kind != "m"  # to numpy, a timedelta64 is one


def _is_any(dtype: Any, *kinds: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in kinds)


def _check_classes(config: OpenAIGPTConfig, labels: ArrayLike, rows: int) -> None:
    array = check_numbers("labels", labels)
    n, problem = config.num_labels, config.problem_type
    integer = np.issubdtype(array.dtype, np.integer)
    if problem == "single_label_classification" or (problem is None and n > 1 and integer):
        allowed = [(rows,), (rows, 1)]
        check_ids("labels", array, n, "num_labels", ignored=IGNORED)
    else:
        allowed = [(rows, n)] + ([(rows,)] if n == 1 else [])
    if array.shape not in allowed:
        raise ValueError(
            f"labels has shape {array.shape}, but for {rows} rows and num_labels = {n} "
            f"must have {' or '.join(map(str, allowed))}"
        )


def _check_shape(
    name: str, array: ArrayLike, shape: tuple[int, ...], broadcast: bool = True
) -> None:
    """Check ``array`` against (..., T), its rows flattened, or, to broadcast, one row for all."""
    try:
        found = np.shape(array)  # type: ignore[arg-type]
    except ValueError:
        raise ValueError(f"{name} has rows of unequal length, but must have {shape}") from None
    allowed = [shape]
    if shape:
        allowed.append((math.prod(shape[:-1]), shape[-1]))
    if broadcast:
        allowed += [(1, shape[-1]), shape[-1:]]
    if found not in allowed:
        raise ValueError(f"{name} has shape {found}, but must have {shape}")


def _check_cache(call: _Call, cache: Cache) -> None:
    """Check that the cache belongs to this model and batch, and has room."""
    config, rows = call.config, math.prod(call.rows)
    if not isinstance(cache.mask, ABSTRACT):
        check_not_donated(cache)
        check_mask("the cache's mask", cache.mask)
    expected = (rows, config.n_head, cache.length, config.n_embd // config.n_head)
    allowed = (expected, expected[1:]) if rows == 1 else (expected,)
    if len(cache.keys) != config.n_layer or cache.keys[0].shape not in allowed:
        raise ValueError(
            f"the cache holds {len(cache.keys)} layers of {cache.keys[0].shape}, "
            f"but these tokens need {config.n_layer} of {expected}"
        )
    filled = 0 if isinstance(cache.index, ABSTRACT) else int(cache.index)
    if filled + call.tokens > cache.length:
        raise ValueError(
            f"{filled} cached and {call.tokens} new tokens, but the cache has room for "
            f"{cache.length}"
        )
    if "position_ids" not in call.arguments:
        _check_next_positions(call, cache)


def _check_next_positions(call: _Call, cache: Cache) -> None:
    """Check that positions which go on from a cache stay below ``n_positions``."""
    mask, from_mask = (call.arguments.get(n) for n in ("attention_mask", "positions_from_mask"))
    needed = (cache.index, cache.mask, mask) if from_mask else (cache.index,)
    if any(isinstance(value, ABSTRACT) for value in needed):
        return
    cached, new = int(cache.index), call.tokens
    if from_mask:
        counts = (np.asarray(cache.mask)[:, :cached] != 0).sum(axis=-1)
        added = np.full_like(counts, new)
        if mask is not None:
            added = (np.asarray(mask).reshape(len(counts), new) != 0).sum(axis=-1)
        longest = int((counts + added).argmax())
        cached, new = int(counts[longest]), int(added[longest])
    if cached + new > call.config.n_positions:
        raise ValueError(
            f"{cached} cached and {new} new tokens, "
            f"but the model has n_positions = {call.config.n_positions}"
        )


_CHECKS: dict[str, Callable[[_Call, Any], None]] = {
    "attention_mask": _check_attention_mask,
    "token_type_ids": _check_token_type_ids,
    "position_ids": _check_position_ids,
    "cache": _check_cache,
    "num_items_in_batch": _check_num_items,
    "labels": _check_labels,
    "logits_to_keep": _check_logits_to_keep,
    "mc_token_ids": _check_mc_token_ids,
    "mc_labels": _check_mc_labels,
}
# The other arguments: they are checked elsewhere in ``check_arguments``, or may have any value.
_OTHERS = (
    "input_ids",
    "inputs_embeds",
    "positions_from_mask",
    "deterministic",
    "dropout_key",
    "output_attentions",
    "output_hidden_states",
)


def check_not_donated(cache: Cache) -> None:
    """Check that the memory of a cache's arrays was not given to an earlier call."""
    for leaf in jax.tree.leaves(cache):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and leaf.is_deleted():
            raise ValueError(
                "the cache was given to an earlier call, which took its memory (it is donated): "
                "give the cache that this call returned"
            )


def without_device_values(value: object) -> Any:
    """Return a ``ShapeDtypeStruct`` for each ``jax.Array`` of a pytree, to be checked by its shape.

    To read an array's values, the host has to wait until the device has computed them.
    """
    return jax.tree.map(
        lambda leaf: (
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if isinstance(leaf, jax.Array) else leaf
        ),
        value,
    )
