"""Checks of what a user passes to a model, on the host and before anything is traced.

Ids are compared with their range here, and masks with 0 and 1, which needs their values. Of an
array whose values are not known, a tracer or a ``ShapeDtypeStruct``, only the shape and the dtype
are checked; an id out of range in it gives NaN (``nn/indices.py``), and another value of a mask a
row of NaN.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.nn.attention import Cache
from gpt1_jax.nn.losses import IGNORED

ArrayLike = jax.Array | np.ndarray | Sequence[Any]
# Arrays whose values are not known.
ABSTRACT = (Tracer, jax.ShapeDtypeStruct)


def check_arguments(
    config: OpenAIGPTConfig,
    *,
    input_ids: ArrayLike | None = None,
    attention_mask: ArrayLike | None = None,
    token_type_ids: ArrayLike | None = None,
    position_ids: ArrayLike | None = None,
    inputs_embeds: ArrayLike | None = None,
    output_attentions: bool | None = None,
    output_hidden_states: bool | None = None,
    positions_from_mask: bool = False,
    cache: Cache | None = None,
    deterministic: bool = True,
    dropout_key: jax.Array | None = None,
    labels: ArrayLike | None = None,
    classify: bool = False,
    logits_to_keep: Any = 0,
    num_items_in_batch: jax.Array | float | None = None,
    mc_token_ids: ArrayLike | None = None,
    mc_labels: ArrayLike | None = None,
) -> tuple[int, ...]:
    """Check the arguments of any of the four models.

    All but ``config`` (sizes that ids and shapes have to fit) and ``classify`` (whether ``labels``
    are those of a classification, not of the next tokens) are the models' own arguments.

    Returns:
        The shape (..., T) of the tokens.

    Raises:
        ValueError: naming the argument, what it is, and what would be right.
    """
    del output_attentions, output_hidden_states  # any value will do
    if (input_ids is None) == (inputs_embeds is None):
        got = "neither" if input_ids is None else "both"
        raise ValueError(f"give either input_ids or inputs_embeds, not {got}")
    if input_ids is not None:
        shape = check_ids("input_ids", input_ids, config.vocab_size, "vocab_size")
    else:
        *rows, width = _check_numbers("inputs_embeds", inputs_embeds).shape or (0,)
        shape = tuple(rows)
        if width != config.n_embd:
            raise ValueError(
                f"inputs_embeds is {width} wide, but must be n_embd = {config.n_embd} wide"
            )
    if not shape or 0 in shape:
        raise ValueError(f"the tokens have shape {shape}, but there must be at least one token")
    *rows, T = shape
    if cache is None and config.n_positions < T:
        raise ValueError(f"{T} tokens, but the model has n_positions = {config.n_positions}")
    if attention_mask is not None:
        _check_shape("attention_mask", attention_mask, shape, broadcast=False)
        check_mask("attention_mask", attention_mask)
    if token_type_ids is not None:
        check_ids("token_type_ids", token_type_ids, config.vocab_size, "vocab_size")
        _check_shape("token_type_ids", token_type_ids, shape)
    if position_ids is not None:
        if positions_from_mask:
            raise ValueError("give either position_ids or positions_from_mask=True, not both")
        check_ids("position_ids", position_ids, config.n_positions, "n_positions")
        _check_shape("position_ids", position_ids, shape)
    if cache is not None:
        _check_cache(config, cache, math.prod(rows), T)
        if position_ids is None:
            _check_positions(config, cache, T, attention_mask, positions_from_mask)
    if not deterministic and dropout_key is None:
        raise ValueError("deterministic=False needs a dropout_key: jax.random.key(seed)")
    if deterministic and dropout_key is not None:
        raise ValueError("dropout_key draws nothing unless deterministic=False")
    if dropout_key is not None:
        _check_key(dropout_key)
    if num_items_in_batch is not None:
        items = _check_numbers("num_items_in_batch", num_items_in_batch)
        if items.ndim:
            raise ValueError(f"num_items_in_batch has shape {items.shape}, but must be one number")
        if not isinstance(items, ABSTRACT) and not items > 0:
            raise ValueError(f"num_items_in_batch is {items}, but must be one number above 0")

    if classify:
        if len(shape) != 2:
            raise ValueError(f"the tokens have shape {shape}, but must be (batch, T)")
        if config.pad_token_id is None and rows[0] > 1:
            raise ValueError(
                f"{rows[0]} rows need config.pad_token_id, to find where each of them ends"
            )
        if labels is not None:
            _check_classes(config, labels, rows[0])
    elif labels is not None:
        check_ids("labels", labels, config.vocab_size, "vocab_size", ignored=IGNORED)
        _check_shape("labels", labels, shape, broadcast=False)
        if np.ndim(logits_to_keep) or logits_to_keep != 0:
            raise ValueError("labels need all logits, so logits_to_keep must be 0")
    if np.ndim(logits_to_keep):
        positions: Any = logits_to_keep
        kept = check_ids("logits_to_keep", positions, T, "the number of tokens")
        if len(kept) > 1 and kept[:-1] != tuple(rows):
            right = f"(K,) or ({', '.join(map(str, rows))}, K)"
            raise ValueError(f"logits_to_keep has shape {kept}, but must have {right}")
    elif not _is_integer(np.asarray(logits_to_keep).dtype) or logits_to_keep < 0:
        raise ValueError(
            f"logits_to_keep is {logits_to_keep}, but must be 0 (all) or more, an integer"
        )
    if mc_token_ids is not None:
        check_ids("mc_token_ids", mc_token_ids, T, "the number of tokens")
        _check_shape("mc_token_ids", mc_token_ids, tuple(rows), broadcast=False)
    if mc_labels is not None:
        choices = rows[-1] if rows else 1
        check_ids("mc_labels", mc_labels, choices, "the number of choices", ignored=IGNORED)
        _check_shape("mc_labels", mc_labels, tuple(rows[:-1]), broadcast=False)
    return shape


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
    values = _host_array(name, ids)
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
    array = _check_numbers(name, mask)
    if isinstance(array, ABSTRACT) or array.dtype == bool:
        return
    values = np.asarray(array)
    wrong = (values != 0) & (values != 1)
    if wrong.any():
        place = _first(wrong)
        raise ValueError(
            f"{name}{list(place)} is {values[place]}, but must be 1 for a token or 0 for padding"
        )


def _check_numbers(name: str, value: Any) -> Any:
    """Check that ``value`` is of bools, integers or floats; return it as an array.

    The values of a ``jax.Array`` are not read.
    """
    array = value if isinstance(value, (jax.Array, *ABSTRACT)) else _host_array(name, value)
    if not (_is_integer(array.dtype) or _is_any(array.dtype, jnp.bool_, jnp.floating)):
        raise ValueError(f"{name} has dtype {array.dtype}, but must be bool, integer or float")
    return array


def _host_array(name: str, value: Any) -> np.ndarray:
    """Return ``value`` as numpy's array, unless part of it would be left out or is missing."""
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(f"{name} is a masked array of numpy's, but must be a plain one")
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} has rows of unequal length; pad them and give a mask") from None


def _first(wrong: np.ndarray) -> tuple[int, ...]:
    return tuple(int(places[0]) for places in wrong.nonzero())


def _is_integer(dtype: Any) -> bool:
    return _is_any(dtype, jnp.integer) and dtype.kind != "m"  # to numpy, a timedelta64 is one


def _is_any(dtype: Any, *kinds: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in kinds)


def _check_key(key: Any) -> None:
    dtype = getattr(key, "dtype", None)
    if dtype is None or not _is_any(dtype, jax.dtypes.prng_key, jnp.uint32):
        raise ValueError(f"dropout_key is {key!r}, but must be a key: jax.random.key(seed)")


def _check_classes(config: OpenAIGPTConfig, labels: ArrayLike, rows: int) -> None:
    array = _check_numbers("labels", labels)
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


def _check_cache(config: OpenAIGPTConfig, cache: Cache, rows: int, tokens: int) -> None:
    """Check that the cache belongs to this model and batch, and has room."""
    if not isinstance(cache.mask, ABSTRACT):
        check_not_donated(cache)
        check_mask("the cache's mask", cache.mask)
    expected = (rows, config.n_head, cache.length, config.n_embd // config.n_head)
    if len(cache.keys) != config.n_layer or cache.keys[0].shape != expected:
        raise ValueError(
            f"the cache holds {len(cache.keys)} layers of {cache.keys[0].shape}, "
            f"but these tokens need {config.n_layer} of {expected}"
        )
    filled = 0 if isinstance(cache.index, ABSTRACT) else int(cache.index)
    if filled + tokens > cache.length:
        raise ValueError(
            f"{filled} cached and {tokens} new tokens, but the cache has room for {cache.length}"
        )


def _check_positions(
    config: OpenAIGPTConfig,
    cache: Cache,
    tokens: int,
    attention_mask: ArrayLike | None,
    positions_from_mask: bool,
) -> None:
    """Check that positions which go on from a cache stay below ``n_positions``."""
    needed = (cache.index, cache.mask, attention_mask) if positions_from_mask else (cache.index,)
    if any(isinstance(value, ABSTRACT) for value in needed):
        return
    cached, new = int(cache.index), tokens
    if positions_from_mask:
        counts = (np.asarray(cache.mask)[:, :cached] != 0).sum(axis=-1)
        if attention_mask is not None:
            added = (np.asarray(attention_mask).reshape(len(counts), tokens) != 0).sum(axis=-1)
        else:
            added = np.full_like(counts, tokens)
        longest = int((counts + added).argmax())
        cached, new = int(counts[longest]), int(added[longest])
    if cached + new > config.n_positions:
        raise ValueError(
            f"{cached} cached and {new} new tokens, "
            f"but the model has n_positions = {config.n_positions}"
        )


def check_not_donated(cache: Cache) -> None:
    """Check that the memory of a cache's arrays was not given to an earlier call."""
    for leaf in jax.tree.leaves(cache):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and leaf.is_deleted():
            raise ValueError(
                "the cache was given to an earlier call, which took its memory (it is donated): "
                "give the cache that this call returned"
            )


def without_device_values(value: Any) -> Any:
    """Return a ``ShapeDtypeStruct`` for each ``jax.Array`` of a pytree, to be checked by its shape.

    To read an array's values, the host has to wait until the device has computed them.
    """
    return jax.tree.map(
        lambda leaf: (
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if isinstance(leaf, jax.Array) else leaf
        ),
        value,
    )
