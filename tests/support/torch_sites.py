"""The activations of transformers' GPT-1 by the names of ours, read and replaced by eager hooks."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch

Edits = Mapping[str, Callable[[Any], Any]]


def torch_capture(model: Any, ids: Any, **inputs: Any) -> dict[str, Any]:
    """Every activation of a language model by its name."""
    found = {}

    def keep(name: str, value: Any) -> Any:
        found[name] = value
        return value

    with torch.no_grad(), _visiting(model, keep):
        model(ids, **inputs)
    return found


def torch_patch(model: Any, ids: Any, edits: Edits, **inputs: Any) -> Any:
    """The logits with what functions make of activations in their place."""

    def edit(name: str, value: Any) -> Any:
        return edits[name](value) if name in edits else value

    with torch.no_grad(), _visiting(model, edit):
        return model(ids, **inputs).logits


@contextlib.contextmanager
def _visiting(model: Any, visit: Callable[[str, Any], Any]) -> Iterator[None]:
    hooks = []

    def after(module: Any, name: str) -> None:
        hooks.append(module.register_forward_hook(lambda _, args, out: visit(name, out)))

    def before(module: Any, name: str) -> None:
        hooks.append(module.register_forward_pre_hook(lambda _, args: (visit(name, args[0]),)))

    def by_heads(attn: Any, name: str) -> None:
        def visit_thirds(_: Any, args: Any, out: Any) -> Any:
            thirds = out.unflatten(-1, (3, attn.n_head, -1)).unbind(-3)
            thirds = [visit(f"{name}.{c}", third) for c, third in zip("qkv", thirds, strict=True)]
            return torch.stack(thirds, -3).flatten(-3)

        def visit_z(_: Any, args: Any) -> Any:
            return (visit(f"{name}.z", args[0].unflatten(-1, (attn.n_head, -1))).flatten(-2),)

        hooks.append(attn.c_attn.register_forward_hook(visit_thirds))
        hooks.append(attn.c_proj.register_forward_pre_hook(visit_z))

    after(model.transformer.drop, "embed")
    for i, block in enumerate(model.transformer.h):
        name = f"h.{i}"
        by_heads(block.attn, f"{name}.attn")
        after(block.attn.attn_dropout, f"{name}.attn.weights")
        after(block.attn.resid_dropout, f"{name}.attn.out")
        before(block.ln_1, f"{name}.attn_sum")
        after(block.ln_1, f"{name}.n")
        after(block.mlp.c_fc, f"{name}.mlp.pre")
        before(block.mlp.c_proj, f"{name}.mlp.act")
        after(block.mlp.dropout, f"{name}.mlp.out")
        before(block.ln_2, f"{name}.mlp_sum")
        after(block.ln_2, f"{name}.out")
    after(model.lm_head, "logits")

    # The scores leave no module: they are what the only softmax of each block is given.
    layers, softmax = iter(range(len(model.transformer.h))), torch.nn.functional.softmax

    def visit_scores(scores: Any, dim: int) -> Any:
        return softmax(visit(f"h.{next(layers)}.attn.scores", scores), dim=dim)

    with mock.patch("torch.nn.functional.softmax", visit_scores):
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
