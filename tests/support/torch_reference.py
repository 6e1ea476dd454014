"""The reference: Hugging Face's models in torch with random weights, and their twins in Flax."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import torch
import transformers
from flax import nnx

import conversion
import gpt1_jax as gpt1
from gpt1_jax.pretrained import OpenAIGPTPreTrainedModel


@contextlib.contextmanager
def computing_in(dtype: str) -> Iterator[None]:
    """Allow float64, in which Flax's own layer norm is not strict about promotion."""
    x64 = dtype == "float64"
    with (
        jax.enable_x64(x64),
        jax.numpy_dtype_promotion("standard" if x64 else "strict"),
    ):
        yield


def torch_model(architecture: str, seed: int = 0, **fields: Any) -> Any:
    """A model of transformers whose every parameter is random, biases and gains too."""
    torch.manual_seed(seed)
    model = getattr(transformers, architecture)(transformers.OpenAIGPTConfig(**fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or ".ln_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:  # wide enough for attention and logits to be far from uniform
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def flax_model(reference: Any, dtype: str = "float32") -> Any:
    """The Flax model with the weights of a torch model, computing in ``dtype``."""
    config, params = conversion.from_torch(reference.float())
    cls: type[OpenAIGPTPreTrainedModel] = getattr(gpt1, type(reference).__name__)
    gpt_config = gpt1.OpenAIGPTConfig.from_dict(config)
    model = nnx.eval_shape(lambda: cls(gpt_config, rngs=nnx.Rngs(0), param_dtype=dtype))
    model.load_params(params)
    reference.to(getattr(torch, dtype))
    return model


def to_torch(value: Any) -> Any:
    """Numpy integers as torch's int64; other values as they are."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.astype(np.int64) if value.dtype.kind == "i" else value)
    return value


def to_numpy(value: Any) -> np.ndarray:
    """A torch or JAX array in numpy."""
    return value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def largest_difference(ours: Any, theirs: Any) -> float:
    """The largest difference of two arrays, relative to the largest value where that is above 1."""
    ours, theirs = to_numpy(ours).astype(np.float64), to_numpy(theirs).astype(np.float64)
    assert ours.shape == theirs.shape, f"{ours.shape} against {theirs.shape}"
    if not theirs.size:
        return 0.0
    return float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))


def first_differing_module(
    ours: Any, theirs: Any, mask: Any, tolerance: float, inputs: dict[str, Any]
) -> str | None:
    """Give every Flax module what the torch module of its name got, in order of execution.

    Returns:
        The first module whose output differs, with the difference; None where none does.
    """
    calls: list[tuple[str, Any, Any]] = []
    hooks = [
        module.register_forward_hook(
            lambda _, args, out, name=name: calls.append((name, args[0], out))
        )
        for name, module in theirs.named_modules()
        if name and not isinstance(module, torch.nn.Dropout | torch.nn.ModuleList)
    ]
    with torch.no_grad():
        theirs(**{name: to_torch(value) for name, value in inputs.items()})
    for hook in hooks:
        hook.remove()
    for name, argument, expected in calls:
        module = ours
        for part in name.split("."):
            module = module[int(part)] if part.isdigit() else getattr(module, part)
        x = to_numpy(argument)
        x = x.astype(np.int32) if x.dtype.kind == "i" else jax.numpy.asarray(x)
        kind = type(module).__name__
        if kind in ("OpenAIGPTModel", "OpenAIGPTSequenceSummary"):
            continue  # compared whole, by their outputs
        if kind == "TiedHead":
            got = module(x, ours.transformer.tokens_embed.embedding.get_value())
        elif kind in ("Attention", "Block"):
            got, expected = module(x, mask)[0], expected[0]
        else:
            got = module(x)
        difference = largest_difference(got, expected)
        if not difference <= tolerance:
            return f"{name}: differs by {difference:.2e}, more than {tolerance:.0e}"
    return None
