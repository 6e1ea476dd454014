"""Many runs of a model, each with one activation patched, in one compiled call."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from gpt1_jax.checks import INTEGER, POSITIVE_INTEGER, at_least, check, check_keywords
from gpt1_jax.explore.activations import by_site, put, site_names, tokens_shape
from gpt1_jax.explore.forward_trace import LanguageModel, check_head
from gpt1_jax.model import Block, OpenAIGPTModel, lm_logits, select_positions
from gpt1_jax.nn.attention import Mask
from gpt1_jax.nn.dtypes import at_least_float32
from gpt1_jax.nn.host_arrays import native_leaves
from gpt1_jax.nn.sites import BLOCK_SITES, Visits, scope, visiting
from gpt1_jax.nn.validation import Arguments, ArrayLike
from gpt1_jax.pretrained import Params
from gpt1_jax.pure import Flags, ModelStructure, merge, split, split_arguments

INPUTS = (
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "inputs_embeds",
    "positions_from_mask",
)


def sweep(
    model: LanguageModel,
    input_ids: ArrayLike | None,
    edits: Mapping[str, Callable[..., ArrayLike]],
    count: int,
    *,
    batch_size: int | None = None,
    metric: Callable[[jax.Array], Any] | None = None,
    logits_to_keep: int = 1,
    **inputs: Any,
) -> dict[str, Any]:
    """Patch one site after the other, each in ``count`` ways, and return the logits of each run.

    One compiled call patches every layer at every position, or switches every head off::

        def remove_head(z, head):
            return jnp.where((jnp.arange(n_head) == head)[:, None], 0, z)

        logits = gpt1.sweep(model, input_ids, {"h.*.attn.z": remove_head}, n_head)

    A block is computed only for those runs that are patched in it or before it, so that this takes
    about half as long as all runs from their beginning. It is pure, compiled and transformed as
    ``capture``.

    Args:
        model: with a language-modelling head.
        input_ids: (..., T), or None where ``inputs`` have ``inputs_embeds``.
        edits: for sites other than logits, by names or patterns, a function that takes the
            activation and k, a () int32, and returns what stands in its place in the k-th run.
            As in ``patch``, arrays that vary from call to call are bound by ``Partial``.
        count: the number of runs for each site: k is 0 to count - 1.
        batch_size: how many runs for each site are computed at a time, by default all. The
            most memory is that of a forward of as many times the rows.
        metric: a function of a run's logits (..., K, V), whose value is returned in their place;
            what ``Partial`` binds to it is traced, as of an edit.
        logits_to_keep: the number K of positions whose logits are computed, from the last one; 0
            for all.
        **inputs: ``attention_mask``, ``token_type_ids``, ``position_ids``, ``inputs_embeds`` and
            ``positions_from_mask`` of the model's call.

    Returns:
        For each site, in the model's order, the logits (count, ..., K, V) or those values.

    Raises:
        ValueError: a model without such a head, an edit that is not a function, or as ``patch``.
    """
    check_head(model)
    check("count", count, POSITIVE_INTEGER)
    check("batch_size", count if batch_size is None else batch_size, POSITIVE_INTEGER)
    check("logits_to_keep", logits_to_keep, INTEGER, at_least(0))
    check_keywords("sweep()", inputs, INPUTS, {})
    if not edits:
        raise ValueError("the edits are empty, but must be for one site at least")
    for pattern, edit in edits.items():
        if not callable(edit):
            raise ValueError(f"the edit of {pattern} must be a function of the activation and k")
    structure, params = split(model)
    arrays, _, flags = split_arguments("sweep()", type(model), model.config, (input_ids,), inputs)
    chosen = by_site(model, edits)
    if "logits" in chosen:
        raise ValueError("sweep() patches what comes before the logits, not the logits themselves")
    if metric is not None and not isinstance(metric, Partial):
        metric = Partial(metric)
    leaves, traced = jax.tree.flatten((chosen, metric))
    shape, size = tokens_shape(arrays), batch_size or count
    program = _program(structure, traced, flags, shape, count, size, logits_to_keep)
    found = program(native_leaves(params), arrays, native_leaves(leaves))
    return {name: found[name] for name in site_names(model) if name in found}


@functools.lru_cache(maxsize=32)
def _program(
    structure: ModelStructure[LanguageModel],
    traced: Any,
    flags: Flags,
    shape: tuple[int, ...],
    count: int,
    batch_size: int,
    logits_to_keep: int,
) -> Callable[..., dict[str, Any]]:
    """Return the compiled function of a sweep.

    Args:
        structure: of the model.
        traced: the tree of the edits and the metric.
        flags: of the model's call.
        shape: (..., T), of the tokens.
        count: see ``sweep``, as the others.
        batch_size: how many runs at a time.
        logits_to_keep: the number of positions.
    """

    @jax.jit
    def run(params: Params, arrays: Arguments, leaves: list[jax.Array]) -> dict[str, Any]:
        model = merge(structure, params)
        padding = arrays.get("attention_mask")
        if padding is not None:
            padding = padding.reshape(-1, shape[-1]).astype(at_least_float32(model.dtype))
        states = _states(model.transformer, {**arrays, **dict(flags)})
        edits, metric = jax.tree.unflatten(traced, leaves)

        names = [name for name in site_names(model) if name in edits]
        # A loop over sites and, for each, over a few of its runs at a time.
        ks = jnp.arange(-(-count // batch_size) * batch_size, dtype=jnp.int32)
        ks = jnp.minimum(ks, count - 1).reshape(-1, batch_size)
        turns = jnp.repeat(jnp.arange(len(names), dtype=jnp.int32), len(ks))

        def some(turn_and_ks: tuple[jax.Array, jax.Array]) -> Any:
            turn, ks = turn_and_ks
            x = _patched_states(model.transformer, edits, names, turn, ks, states, padding, shape)
            logits = lm_logits(model, select_positions(x, logits_to_keep))
            logits = logits.reshape(len(ks), *shape[:-1], *logits.shape[1:])
            return logits if metric is None else jax.vmap(metric)(logits)

        found = jax.lax.map(some, (turns, jnp.tile(ks, (len(names), 1))))

        def runs_of(site: int) -> Any:
            return jax.tree.map(
                lambda leaf: leaf.reshape(len(names), -1, *leaf.shape[2:])[site, :count], found
            )

        return {name: runs_of(site) for site, name in enumerate(names)}

    return run


def _states(body: OpenAIGPTModel, arguments: Arguments) -> list[jax.Array]:
    """Return the states (B, T, E) before every block, and after the last one."""
    states = []

    def keep(state: jax.Array) -> jax.Array:
        states.append(state)
        return state

    outputs = [f"h.{i}.out" for i in range(len(body.h))]
    with visiting(dict.fromkeys(["embed", *outputs], keep)):
        body.forward(**arguments)
    return states


def _patched_states(
    body: OpenAIGPTModel,
    edits: Mapping[str, Partial],
    names: list[str],
    turn: jax.Array,
    ks: jax.Array,
    states: list[jax.Array],
    padding: jax.Array | None,
    shape: tuple[int, ...],
) -> jax.Array:
    """Return the states (K * B, T, E) after the last block of K runs, all patched at one site.

    Args:
        body: the transformer.
        edits: by the names of sites.
        names: of these sites, in the model's order.
        turn: () which of them is patched.
        ks: (K,) the numbers of the runs.
        states: see ``_states``; of the run that is not patched.
        padding: (B, T) the attention mask.
        shape: (..., T), of the tokens.
    """
    mask = None if padding is None else jnp.tile(padding, (len(ks), 1))
    mask = Mask.build(mask, shape[-1], None)

    def unpatched(state: jax.Array) -> jax.Array:
        return jnp.tile(state, (len(ks), 1, 1))

    def edit(name: str, value: jax.Array) -> jax.Array:
        def edit_run(run: jax.Array, k: jax.Array) -> jax.Array:
            return put(name, run, edits[name](run, k), None, shape)

        def edit_runs(value: jax.Array) -> jax.Array:
            runs = value.reshape(len(ks), *shape[:-1], *value.shape[1:])
            return jax.vmap(edit_run)(runs, ks).reshape(value.shape)

        return jax.lax.cond(turn == names.index(name), edit_runs, lambda value: value, value)

    x, begun = unpatched(states[0]), int("embed" in edits)  # sites so far
    if begun:
        x = edit("embed", x)
    for i, block in enumerate(body.h):
        *inner, output = (f"h.{i}.{site}" for site in BLOCK_SITES)
        visits = {name: functools.partial(edit, name) for name in inner if name in edits}

        def run_block(
            x: jax.Array, i: int = i, block: Block = block, visits: Visits = visits
        ) -> jax.Array:
            with scope(f"h.{i}"), visiting(visits):
                return block(x, mask, need_weights=False)[0]

        # Only the runs that are patched in this block or before it differ after it.
        begun += len(visits)
        x = jax.lax.cond(turn < begun, run_block, lambda x, i=i: unpatched(states[i + 1]), x)
        if output in edits:
            x = edit(output, x)
            begun += 1
    return x
