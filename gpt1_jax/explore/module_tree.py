"""The tree of a model, as torch prints it."""

from collections.abc import Iterator
from typing import Any

from flax import nnx

from gpt1_jax.nn.int8 import Int8Embed, Int8Linear
from gpt1_jax.nn.layers import TiedHead

# What torch prints of a layer, by Flax's names.
SHOWN = {
    nnx.Linear: ("in_features", "out_features", "use_bias"),
    TiedHead: ("in_features", "out_features", "use_bias"),
    Int8Linear: ("in_features", "out_features", "use_bias"),
    nnx.Embed: ("num_embeddings", "features"),
    Int8Embed: ("num_embeddings", "features"),
    nnx.LayerNorm: ("num_features", "epsilon"),
    nnx.Dropout: ("rate",),
}

# torch's order of the children. A model that was split and merged, as by loading, has lost it.
ORDER = (
    *("transformer", "tokens_embed", "positions_embed", "drop", "h"),
    *("attn", "c_attn", "c_fc", "c_proj", "act", "attn_dropout", "resid_dropout", "dropout"),
    *("ln_1", "mlp", "ln_2"),
    *("lm_head", "score", "multiple_choice_head"),
    *("summary", "activation", "first_dropout", "last_dropout"),
)


def tree(model: nnx.Module) -> str:
    """Return the modules of a model as torch prints them, with Flax's layers.

    Children stand in torch's order; equal neighbours in a list are written once, as
    ``(0-11): 12 x Block(``.
    """
    return "\n".join(_lines(model))


def _lines(module: Any) -> list[str]:
    """The lines of one module."""
    if not isinstance(module, nnx.Module):  # an activation
        return [f"{module.__name__}()"]
    name = type(module).__name__
    if type(module) in SHOWN:
        shown = ", ".join(f"{field}={getattr(module, field)}" for field in SHOWN[type(module)])
        return [f"{name}({shown})"]
    lines = [f"{name}("]
    for label, (first, *rest) in _children(module):
        lines += [f"  ({label}): {first}", *(f"  {line}" for line in rest)]
    return [*lines, ")"]


def _children(module: nnx.Module) -> Iterator[tuple[str, list[str]]]:
    """Yield the label and the lines of each child."""
    if not isinstance(module, nnx.List):
        children = {
            label: child
            for label, child in vars(module).items()
            if isinstance(child, nnx.Module) or callable(child)
        }
        known = [label for label in ORDER if label in children]
        for label in (*known, *(label for label in children if label not in ORDER)):
            yield label, _lines(children[label])
        return
    blocks = [_lines(child) for child in module]
    start = 0
    for end in range(1, len(blocks) + 1):
        if end == len(blocks) or blocks[end] != blocks[start]:
            first, *rest = blocks[start]
            if end - start > 1:
                yield f"{start}-{end - 1}", [f"{end - start} x {first}", *rest]
            else:
                yield str(start), blocks[start]
            start = end
