"""Activation patching: every layer at every position, and every head removed."""

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.tree_util import Partial

import gpt1_jax as gpt1
from benchmarks.peers import OURS, hugging_face, lens
from benchmarks.peers.lens import Patching
from benchmarks.quiet import quiet
from benchmarks.suite import DEFAULTS, Options, Suite, open_suite, show_seconds
from benchmarks.timing import cores, interleave

TOKENS, QUICK = 32, 4
TASKS = ("restore", "remove heads")
HOOKS, LENS = "transformers", "TransformerLens"
TOLERANCE = 1e-5  # of a logit, relative to the largest


def activations(
    options: tyro.conf.OmitArgPrefixes[Options] = DEFAULTS,
    tokens: int | None = None,
    transformer_lens: Annotated[Path | None, tyro.conf.arg(metavar="PYTHON")] = None,
) -> dict[str, Any]:
    """Race two sweeps of patches over one text; all must find the same logits.

    "restore" puts the state of another text before every block at every position, one at a time;
    "remove heads" sets what each head reads to 0, in turn. This package does either in one call,
    transformers' model in a loop of forwards with a hook, and TransformerLens in a loop of its own.

    Args:
        options: of every suite; the peer is transformers.
        tokens: of the text, 32 by default.
        transformer_lens: the Python of an environment with TransformerLens, which then takes part.

    Returns:
        What is written to the file.

    Raises:
        ValueError: an option is wrong, or someone finds other logits; the message says which.
    """
    tokens = tokens or (QUICK if options.quick else TOKENS)
    for name in options.peers:
        if name not in (OURS, HOOKS):
            raise ValueError(f"{name!r} is no peer in activations; the peer is {HOOKS}")
    if options.memory:
        raise ValueError("activations measures no memory")
    options = dataclasses.replace(options, peers=(OURS, *(options.peers or (HOOKS,))))
    with (
        open_suite("forward", options, name="activations") as suite,
        contextlib.ExitStack() as stack,
    ):
        model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(suite.folder)
        loaded: dict[str, Patching] = {OURS: _ours(model)}
        if HOOKS in suite.peers:
            with quiet():
                loaded[HOOKS] = _hooks(suite.folder)
        if transformer_lens is not None:
            child = lens.start(transformer_lens, suite.folder, cores())
            loaded[LENS], versions = stack.enter_context(child)
            suite.record["environment"][LENS] = versions
        clean, corrupted = suite.ids(2, tokens)[:, None]
        logits = gpt1.capture(model, corrupted, "logits", logits_to_keep=1)["logits"]
        for task in TASKS:
            _race(suite, loaded, task, clean, corrupted, int(logits.argmax()))
        return suite.record


def _race(
    suite: Suite,
    loaded: dict[str, Patching],
    task: str,
    clean: np.ndarray,
    corrupted: np.ndarray,
    token: int,
) -> None:
    found = {}

    def run(name: str) -> None:
        found[name] = np.asarray(loaded[name](task, clean, corrupted, token))

    run(OURS)  # compiles
    runs = {name: functools.partial(run, name) for name in loaded}
    seconds = interleave(runs, suite.rounds)
    largest = np.abs(found[OURS]).max()
    errors = {}
    for name, logits in found.items():
        errors[name] = float(np.abs(logits - found[OURS]).max() / largest)
        if not errors[name] <= TOLERANCE:
            raise ValueError(f"{name} finds other logits than {OURS}: by {errors[name]:.1e}")
    number, tokens = found[OURS].size, clean.shape[-1]
    title = f"{task}: {number} runs of {tokens} tokens; medians of {suite.rounds} rounds"
    show_seconds(title, seconds, {})
    suite.add(case={"task": task, "tokens": tokens, "runs": number}, errors=errors, seconds=seconds)


def _last_logit(token: jax.Array, logits: jax.Array) -> jax.Array:
    return logits[0, -1, token]


def _restore(state: jax.Array, value: jax.Array, position: jax.Array) -> jax.Array:
    return jnp.where((jnp.arange(value.shape[-2]) == position)[:, None], state, value)


def _remove_head(z: jax.Array, head: jax.Array) -> jax.Array:
    return jnp.where((jnp.arange(z.shape[-2]) == head)[:, None], 0, z)


def _ours(model: gpt1.OpenAIGPTLMHeadModel) -> Patching:
    layers = range(model.config.n_layer)
    befores = ["embed", *(f"h.{layer}.out" for layer in layers[:-1])]

    def run(task: str, clean: np.ndarray, corrupted: np.ndarray, token: int) -> np.ndarray:
        if task == "restore":
            states = gpt1.capture(model, clean, befores)
            edits = {name: Partial(_restore, state) for name, state in states.items()}
            count = clean.shape[-1]
        else:
            edits, count = {"h.*.attn.z": _remove_head}, model.config.n_head
        metric = Partial(_last_logit, token)
        found = gpt1.sweep(model, corrupted, edits, count, metric=metric)
        return np.stack([np.asarray(each) for each in found.values()])

    return run


def _hooks(folder: Path) -> Patching:
    import torch

    model = hugging_face.load(folder)
    blocks, heads = model.transformer.h, model.config.n_head

    def states_of(ids: Any) -> list[Any]:
        found: list[Any] = []
        hooks = [
            block.register_forward_pre_hook(lambda _, args: found.append(args[0]))
            for block in blocks
        ]
        model(ids)
        for hook in hooks:
            hook.remove()
        return found

    def run(task: str, clean: np.ndarray, corrupted: np.ndarray, token: int) -> np.ndarray:
        clean_ids, ids = (torch.from_numpy(ids).long() for ids in (clean, corrupted))
        count = ids.shape[-1] if task == "restore" else heads
        logits = np.empty((len(blocks), count), np.float32)
        with torch.inference_mode():
            states = states_of(clean_ids)
            for layer, k in np.ndindex(logits.shape):

                def edit(_: Any, args: Any, state: Any = states[layer], k: int = k) -> Any:
                    value = args[0].clone()
                    if task == "restore":
                        value[:, k] = state[:, k]
                    else:
                        value.unflatten(-1, (heads, -1))[:, :, k] = 0
                    return (value, *args[1:])

                block = blocks[layer]
                patched = block if task == "restore" else block.attn.c_proj
                hook = patched.register_forward_pre_hook(edit)
                logits[layer, k] = model(ids).logits[0, -1, token]
                hook.remove()
        return logits

    return run
