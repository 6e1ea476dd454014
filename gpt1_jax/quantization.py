"""Quantize a model to int8: a quarter of float32's memory, and less time on most processors.

The method is dynamic quantization: weights are rounded once, with a scale for each output channel,
activations at run time, with a scale for each token, and products are summed in int32
(``nn/int8.py``). Attention's own products, softmax, layer norms, biases and the position embeddings
stay what they are.
"""

from typing import Any, Literal, TypeVar

from flax import nnx

from gpt1_jax.nn.int8 import Int8Embed, Int8Linear
from gpt1_jax.pretrained import OpenAIGPTPreTrainedModel
from gpt1_jax.sharding.mesh import mesh_of, shard_model

Model = TypeVar("Model", bound=OpenAIGPTPreTrainedModel)

Mode = Literal["int8"]


def quantize(model: Model, mode: Mode = "int8", *, head: bool = True) -> Model:
    """Return a quantized copy of a model, which is used and saved like any other.

    The copy cannot be trained. The given model is unchanged and can be deleted.

    Args:
        model: any of the four models.
        mode: "int8", the only mode.
        head: whether the token embedding, which is the LM head too unless that is untied, becomes
            int8 as well as the blocks. It is a third of GPT-1's parameters.

    Returns:
        A model of the same class, which computes in the same dtype.

    Raises:
        TypeError: ``model`` or ``head`` is something else.
        ValueError: the mode is unknown, or the model is quantized already or has other layers than
            GPT-1's.
    """
    if not isinstance(model, OpenAIGPTPreTrainedModel):
        raise TypeError(f"model is a {type(model).__name__}, but must be one of gpt1_jax's models")
    if mode != "int8":
        raise ValueError(f"mode is {mode!r}, but must be 'int8'")
    if not isinstance(head, bool):
        raise TypeError(f"head is {head!r}, but must be True or False")
    if is_quantized(model):
        raise ValueError("the model is int8 already: quantize the model that it was made of")
    quantized = quantize_layers(nnx.clone(model), head=head)
    if mesh := mesh_of(model.params):
        shard_model(quantized, mesh)
    return quantized


def is_quantized(model: OpenAIGPTPreTrainedModel) -> bool:
    """Return whether a model is int8; adapters may be in use over its weights."""
    return any(isinstance(module, Int8Linear) for _, module in nnx.iter_modules(model))


def quantized_if(model: Model, mode: Mode | None) -> Model:
    """Return the quantized model, or for no mode the model itself."""
    return model if mode is None else quantize(model, mode)


def quantize_layers(model: Model, *, head: bool) -> Model:
    """Replace the layers of a model in place, and return it; its parameters may be traced.

    Raises:
        ValueError: a layer is not the one that GPT-1 has.
    """
    body: Any = _body(model)
    for i, block in enumerate(body.h):
        for part, name in (
            (block.attn, "c_attn"),
            (block.attn, "c_proj"),
            (block.mlp, "c_fc"),
            (block.mlp, "c_proj"),
        ):
            layer = getattr(part, name)
            if type(layer) is not nnx.Linear:
                raise ValueError(
                    f"{name} of block {i} is a {type(layer).__name__}, but only nnx.Linear can be "
                    "quantized"
                )
            setattr(part, name, Int8Linear(layer))
    if head:
        body.tokens_embed = Int8Embed(body.tokens_embed)
        lm_head = getattr(model, "lm_head", None)
        if isinstance(lm_head, nnx.Linear):
            model.lm_head = Int8Linear(lm_head)
    return model


def quantize_as_config(model: Model) -> Model:
    """Replace the layers of a model in place where its config.json says that weights are int8."""
    from gpt1_jax._conversion import layout

    int8 = layout.quantization(model.config.to_dict())
    return model if int8 is None else quantize_layers(model, head=int8.head)


def quantization_config(model: OpenAIGPTPreTrainedModel) -> dict[str, object]:
    """Return what the config.json of an int8 model has in addition; nothing of another."""
    from gpt1_jax._conversion import layout

    if not is_quantized(model):
        return {}
    int8 = layout.Quantization(head=isinstance(_body(model).tokens_embed, Int8Embed))
    return {"quantization_config": int8.to_dict()}


def _body(model: OpenAIGPTPreTrainedModel) -> Any:
    return getattr(model, "transformer", model)
