"""The activations of a model: read them, replace them, switch parts off, in compiled programs.

A site is a name for an activation. ``*`` stands for any part of a name between dots:
``"h.*.attn.z"`` is every block's. GPT-1 is post-norm, so that what TransformerLens calls
``resid_mid`` and ``resid_post`` are states after a layer norm, and the sums before it have names of
their own. B stands for all but the last dimension of the ids, S for the keys.

=================  ==================================  ============  ==============================
site               what it is                          shape         TransformerLens
=================  ==================================  ============  ==============================
embed              tokens and positions, added         B T E         blocks.0.hook_resid_pre
h.N.attn.q, k, v   queries, keys, values               B T N H       blocks.N.attn.hook_q, k, v
h.N.attn.scores    what the softmax takes              B N T S       blocks.N.attn.hook_attn_scores
h.N.attn.weights   what it gives, after dropout        B N T S       blocks.N.attn.hook_pattern
h.N.attn.z         values, mixed by the weights        B T N H       blocks.N.attn.hook_z
h.N.attn.out       what is added to the states         B T E         blocks.N.hook_attn_out
h.N.attn_sum       states + attn.out                   B T E         blocks.N.ln1.hook_in
h.N.n              ln_1 of that                        B T E         blocks.N.hook_resid_mid
h.N.mlp.pre        of the MLP, before its activation   B T 4E        blocks.N.mlp.hook_pre
h.N.mlp.act        after it                            B T 4E        blocks.N.mlp.hook_post
h.N.mlp.out        what is added to n                  B T E         blocks.N.hook_mlp_out
h.N.mlp_sum        n + mlp.out                         B T E         blocks.N.ln2.hook_in
h.N.out            ln_2 of that, the block's output    B T E         blocks.M.hook_resid_pre (1)
logits             of the head                         B T V         unembed.hook_out
=================  ==================================  ============  ==============================

(1) M = N + 1: its block N has no hook_resid_post for this model (4.3.0).

Scores are those after the masks: -1e4 where TransformerLens has -inf, and the lowest number added
at padding. Scores, weights and z are those of GPT-1's formula, whatever the model's ``attention``.
"""

import difflib
import fnmatch
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from gpt1_jax.model import OpenAIGPTModel
from gpt1_jax.nn.attention import Cache
from gpt1_jax.nn.host_arrays import as_array, native, native_leaves
from gpt1_jax.nn.sites import BLOCK_SITES, visiting
from gpt1_jax.nn.validation import Arguments, ArrayLike, check_numbers
from gpt1_jax.pretrained import OpenAIGPTPreTrainedModel, Params
from gpt1_jax.pure import Flags, ModelStructure, merge, split, split_arguments

# Whose values have the queries as their third dimension; all others have the tokens as their
# second.
BY_HEAD = ("attn.scores", "attn.weights")

Edit = ArrayLike | float | Callable[[jax.Array], ArrayLike]


def capture(
    model: OpenAIGPTPreTrainedModel,
    input_ids: ArrayLike | None,
    sites: str | Iterable[str],
    *,
    edits: Mapping[str, Edit] | None = None,
    positions: ArrayLike | int | None = None,
    **inputs: Any,
) -> dict[str, jax.Array]:
    """Return the activations of the sites, in the order in which they arise.

    The function is pure and compiled once for inputs of a shape. It works inside ``jax.jit``,
    ``jax.grad`` and ``jax.vmap``; build the model there from its parameters (``nnx.merge``), or
    else the program holds them as constants.

    Args:
        model: any of the four models.
        input_ids: (..., T), or None where ``inputs`` have ``inputs_embeds``.
        sites: names or patterns of sites, such as "h.0.attn.z" or "h.*.out".
        edits: activations to replace in the same forward, as ``patch`` takes them.
        positions: positions of the tokens to patch, as ``patch`` takes them.
        **inputs: further arguments of the model's call.

    Raises:
        ValueError: a site does not exist; or as the model's call and ``patch``.
    """
    names = match_sites(model, [sites] if isinstance(sites, str) else sites)
    return _run("capture()", model, input_ids, names, edits or {}, positions, inputs)[1]


def patch(
    model: OpenAIGPTPreTrainedModel,
    input_ids: ArrayLike | None,
    edits: Mapping[str, Edit],
    *,
    positions: ArrayLike | int | None = None,
    **inputs: Any,
) -> Any:
    """Return the model's output with other activations in place of its own.

    Pure, compiled and transformed as ``capture``. One program serves all arrays of a shape, and
    all positions of a number. A function is a part of the program: define it once, and give what
    varies as arguments bound by ``jax.tree_util.Partial(function, array)``, which are traced.

    Args:
        model: any of the four models.
        input_ids: (..., T), or None where ``inputs`` have ``inputs_embeds``.
        edits: a dict from names or patterns of sites to an array that broadcasts to the activation,
            or a function that takes the activation and returns such an array.
        positions: the token or tokens whose activations are replaced; negative numbers count from
            the end. By default all tokens. For scores and weights these are the queries.
        **inputs: further arguments of the model's call.

    Raises:
        TypeError: ``edits`` is not a mapping.
        ValueError: a site does not exist or is named by two patterns, an array has another shape,
            or a position is out of range; or as the model's call. A position out of range in a
            ``jax.Array``, whose values are not read, makes the activation NaN.
    """
    return _run("patch()", model, input_ids, (), edits, positions, inputs)[0]


def match_sites(model: OpenAIGPTPreTrainedModel, patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the names of a model's sites that match patterns, in the order of the model.

    Raises:
        ValueError: a pattern matches none.
    """
    names = site_names(model)
    matched = {name for pattern in patterns for name in _matches(pattern, names)}
    return tuple(name for name in names if name in matched)


def site_names(model: OpenAIGPTPreTrainedModel) -> list[str]:
    """Return the names of all sites of a model, in order."""
    layers = range(model.config.n_layer)
    names = ["embed", *(f"h.{layer}.{name}" for layer in layers for name in BLOCK_SITES)]
    return names if isinstance(model, OpenAIGPTModel) else [*names, "logits"]


def _matches(pattern: str, names: Sequence[str]) -> list[str]:
    if not isinstance(pattern, str):
        raise ValueError(f"a site is {pattern!r}, but must be a string such as 'h.0.attn.z'")
    parts = pattern.split(".")
    found = [
        name
        for name in names
        if name.count(".") == len(parts) - 1
        and all(map(fnmatch.fnmatchcase, name.split("."), parts))
    ]
    if found:
        return found
    last = max(int(part) for name in names for part in name.split(".") if part.isdigit())
    if len(parts) > 1 and parts[0] == "h" and parts[1].isdigit() and int(parts[1]) > last:
        right = f"the model has the layers 0 to {last}"
    elif near := difflib.get_close_matches(pattern, names, n=3):
        right = f"did you mean {' or '.join(near)}?"
    else:
        right = f"there are embed, logits, and in every block h.N. {', '.join(BLOCK_SITES)}"
    raise ValueError(f"no site is called {pattern!r}: {right}")


def _run(
    function: str,
    model: OpenAIGPTPreTrainedModel,
    input_ids: ArrayLike | None,
    sites: tuple[str, ...],
    edits: Mapping[str, Edit],
    positions: ArrayLike | int | None,
    inputs: Arguments,
) -> tuple[Any, dict[str, jax.Array]]:
    """Return the output, and the activations of ``sites``."""
    structure, params = split(model)
    arrays, cache, flags = split_arguments(
        function, type(model), model.config, (input_ids,), inputs
    )
    leaves, edited = jax.tree.flatten(by_site(model, edits))
    shape = tokens_shape(arrays)
    if positions is not None:
        positions = _check_positions(positions, shape[-1])
    program = _program(structure, sites, edited, flags, shape)
    out, captured = program(native_leaves(params), arrays, cache, native_leaves(leaves), positions)
    return out, dict(zip(sites, captured, strict=True))


def tokens_shape(arrays: Arguments) -> tuple[int, ...]:
    """Return the shape (..., T) of the tokens."""
    embeds = arrays.get("inputs_embeds")
    return arrays["input_ids"].shape if embeds is None else embeds.shape[:-1]


def by_site(
    model: OpenAIGPTPreTrainedModel, edits: Mapping[str, Edit]
) -> dict[str, ArrayLike | Partial]:
    """Return the edits by the full names of sites, as a pytree whose leaves are arrays."""
    if not isinstance(edits, Mapping):
        raise TypeError(f"edits are a {type(edits).__name__}, but must be a dict by site")
    names, found = site_names(model), {}
    for pattern, edit in edits.items():
        if callable(edit):
            edit = edit if isinstance(edit, Partial) else Partial(edit)
        else:
            edit = check_numbers(f"the value for {pattern}", edit)
        for name in _matches(pattern, names):
            if name in found:
                raise ValueError(f"two of the edits are for {name}: {', '.join(edits)}")
            found[name] = edit
    return found


def _check_positions(positions: ArrayLike | int, tokens: int) -> jax.Array | np.ndarray:
    """Return positions (P,), of numpy's in [-tokens, tokens)."""
    array = check_numbers("positions", positions)
    if not jnp.issubdtype(array.dtype, jnp.integer) or array.ndim > 1:
        got = f"{array.dtype} of shape {array.shape}"
        raise ValueError(f"positions are {got}, but must be an integer or a list of integers")
    if isinstance(array, np.ndarray):  # the values of a jax.Array are never read
        if wrong := array[(array < -tokens) | (array >= tokens)].tolist():
            raise ValueError(f"positions hold {wrong[0]}, but must be {-tokens} to {tokens - 1}")
        return native(array.reshape(-1).astype(np.int32))
    return array.reshape(-1).astype(jnp.int32)


# As many programs are kept as those of ``functional``; a program holds the functions of its edits.
@functools.lru_cache(maxsize=32)
def _program(
    structure: ModelStructure[OpenAIGPTPreTrainedModel],
    sites: tuple[str, ...],
    edited: Any,
    flags: Flags,
    shape: tuple[int, ...],
) -> Callable[..., tuple[Any, list[jax.Array]]]:
    """Return the compiled function that captures and patches.

    Args:
        structure: of the model.
        sites: to capture.
        edited: the tree of the edits.
        flags: of the model's call.
        shape: (..., T), of the tokens.
    """

    @jax.jit
    def run(
        params: Params,
        arrays: Arguments,
        cache: Cache | None,
        leaves: list[jax.Array],
        positions: jax.Array | None,
    ) -> tuple[Any, list[jax.Array]]:
        edits, captured = jax.tree.unflatten(edited, leaves), {}

        def visit(name: str, value: jax.Array) -> jax.Array:
            flat = value.shape
            if name != "logits":  # which has the dimensions of the ids already
                value = value.reshape(*shape[:-1], *flat[1:])
            if name in edits:
                edit = edits[name]
                new = edit(value) if isinstance(edit, Partial) else edit
                value = put(name, value, new, positions, shape)
            if name in sites:
                captured[name] = value
            return value.reshape(flat)

        names = {*sites, *edits}
        arguments = {**arrays, **dict(flags)} | ({} if cache is None else {"cache": cache})
        with visiting({name: functools.partial(visit, name) for name in names}):
            out = merge(structure, params).forward(**arguments)
        return out, [captured[name] for name in sites]

    return run


def put(
    name: str,
    value: jax.Array,
    new: Any,
    positions: jax.Array | None,
    shape: tuple[int, ...],
) -> jax.Array:
    """Return the value of a site with another one in its place, or at its positions."""
    if new is None:  # as hooks of torch return that change a value in place
        raise ValueError(f"the edit of {name} returned None, but must return the new value")
    new = as_array(new)
    try:
        new = jnp.broadcast_to(new.astype(value.dtype), value.shape)
    except ValueError:
        raise ValueError(
            f"the new value of {name} has shape {new.shape}, but must broadcast to {value.shape}"
        ) from None
    if positions is None:
        return new
    *rows, T = shape
    axis = len(rows) + name.endswith(BY_HEAD)
    if value.ndim < len(shape) + 1 or value.shape[axis] != T:
        raise ValueError(f"{name} has shape {value.shape}, where no dimension is of the positions")
    index = jnp.where(positions < 0, positions + T, positions)
    chosen = (jnp.arange(T, dtype=jnp.int32)[:, None] == index[None, :]).any(axis=1)
    chosen = jnp.broadcast_to(chosen.reshape(T, *(1,) * (value.ndim - axis - 1)), value.shape)
    in_range = ((index >= 0) & (index < T)).all()
    return jnp.where(in_range, jnp.where(chosen, new, value), jnp.nan)
