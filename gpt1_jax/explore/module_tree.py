"""The tree of a model, as torch prints it."""

from collections.abc import Iterator
from typing import Any

from flax import nnx

from gpt1_jax.nn.int8 import Int8Embed, Int8Linear
from gpt1_jax.nn.layers import TiedHead

_LINEAR = "(in_features={0.in_features}, out_features={0.out_features}, bias={0.use_bias})"
_FLAX_LINEAR = "(in_features={0.in_features}, out_features={0.out_features}, use_bias={0.use_bias})"
# What torch prints of a layer. Those that torch does not have keep their names here.
TORCH = {
    nnx.Linear: f"Linear{_LINEAR}",
    TiedHead: f"Linear{_LINEAR}",
    Int8Linear: f"Int8Linear{_LINEAR}",
    nnx.Embed: "Embedding({0.num_embeddings}, {0.features})",
    Int8Embed: "Int8Embed({0.num_embeddings}, {0.features})",
    nnx.LayerNorm: "LayerNorm(({0.num_features},), eps={0.epsilon}, elementwise_affine=True, "
    "bias=True)",
    nnx.Dropout: "Dropout(p={0.rate}, inplace=False)",
}
# The same by Flax's names and arguments.
FLAX = {
    nnx.Linear: f"Linear{_FLAX_LINEAR}",
    TiedHead: f"TiedHead{_FLAX_LINEAR}",
    Int8Linear: f"Int8Linear{_FLAX_LINEAR}",
    nnx.Embed: "Embed(num_embeddings={0.num_embeddings}, features={0.features})",
    Int8Embed: "Int8Embed(num_embeddings={0.num_embeddings}, features={0.features})",
    nnx.LayerNorm: "LayerNorm(num_features={0.num_features}, epsilon={0.epsilon})",
    nnx.Dropout: "Dropout(rate={0.rate})",
}
# transformers has this layer in place of a Linear: its weight is (in, out), as a Flax kernel.
CONV1D = "Conv1D(nf={0.out_features}, nx={0.in_features})"
CONV1D_LABELS = ("c_attn", "c_fc", "c_proj")
# The modules that transformers has in place of functions.
FUNCTIONS = {
    "gelu_new": "NewGELUActivation",
    "relu": "ReLU",
    "silu": "SiLUActivation",
    "tanh": "Tanh",
    "identity": "Identity",
}

# torch's order of the children. A model that was split and merged, as by loading, has lost it.
ORDER = (
    *("transformer", "tokens_embed", "positions_embed", "drop", "h"),
    *("attn", "c_attn", "c_fc", "c_proj", "act", "attn_dropout", "resid_dropout", "dropout"),
    *("ln_1", "mlp", "ln_2"),
    *("lm_head", "score", "multiple_choice_head"),
    *("summary", "activation", "first_dropout", "last_dropout"),
)


def tree(model: nnx.Module, *, flax: bool = False) -> str:
    """Return the modules of a model exactly as ``print(model)`` prints them in transformers.

    Equal neighbours in a list are written once, as ``(0-11): 12 x Block(``. Where a layer lies, as
    on a mesh, does not show. Layers that transformers does not have are printed by their names
    here, with torch's arguments: ``Int8Linear`` and ``Int8Embed`` of a quantized model, and
    ``LoraLinear`` around a layer that has an adapter beside it.

    Args:
        model: any of the models, or one of their modules.
        flax: whether to print Flax's layers, with Flax's names and arguments, in torch's order.
    """
    return "\n".join(_lines(model, flax))


def _lines(module: Any, flax: bool, label: str = "", parent: Any = None) -> list[str]:
    """Return the lines of one module."""
    if not isinstance(module, nnx.Module):  # an activation
        name = module.__name__
        return [f"{name if flax else FUNCTIONS.get(name, name)}()"]
    layer = FLAX.get(type(module)) if flax else _torch_layer(module, label, parent)
    if layer is not None:
        return [layer.format(module)]
    name = "ModuleList" if isinstance(module, nnx.List) and not flax else type(module).__name__
    lines = []
    for child, (first, *rest) in _children(module, flax, label):
        lines += [f"  ({child}): {first}", *(f"  {line}" for line in rest)]
    return [f"{name}(", *lines, ")"] if lines else [f"{name}()"]


def _torch_layer(module: nnx.Module, label: str, parent: Any) -> str | None:
    """Return what torch prints of a layer, as a format; None for other modules."""
    if type(module) is nnx.Linear and label in CONV1D_LABELS:
        return CONV1D
    if type(module) is nnx.Dropout and label in ("first_dropout", "last_dropout"):
        return TORCH[nnx.Dropout] if module.rate else "Identity()"
    embed = getattr(getattr(parent, "transformer", None), "tokens_embed", None)
    if type(module) is TiedHead and isinstance(embed, Int8Embed):
        return TORCH[Int8Linear]  # its weights are the embedding's
    return TORCH.get(type(module))


def _children(module: nnx.Module, flax: bool, outer: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the label and the lines of each child; ``outer`` is the module's own label."""
    if not isinstance(module, nnx.List):
        children = {
            label: child
            for label, child in vars(module).items()
            if isinstance(child, nnx.Module)
            or (callable(child) and not isinstance(child, nnx.Variable))
        }
        known = [label for label in ORDER if label in children]
        for label in (*known, *(label for label in children if label not in ORDER)):
            # The layer inside a LoraLinear is what it was without the adapter.
            role = outer if label == "linear" else label
            yield label, _lines(children[label], flax, role, module)
        return
    blocks = [_lines(child, flax) for child in module]
    start = 0
    for end in range(1, len(blocks) + 1):
        if end == len(blocks) or blocks[end] != blocks[start]:
            first, *rest = blocks[start]
            if end - start > 1:
                yield f"{start}-{end - 1}", [f"{end - start} x {first}", *rest]
            else:
                yield str(start), blocks[start]
            start = end
