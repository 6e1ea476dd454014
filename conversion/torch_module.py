"""A live torch module, both ways; and tensors as numpy arrays, without torch at import."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from conversion import extras
from conversion.config_file import required_architecture
from conversion.layout import ARCHITECTURES, check_not_quantized, tied
from conversion.match import DTYPES, LazyTensor, match_tensors, match_tree
from conversion.tree import Leaf, load_params, same

if TYPE_CHECKING:
    import torch


def from_torch(
    module: "torch.nn.Module", *, leaf: Leaf = same
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the config and the parameters of a GPT-1 of transformers.

    Args:
        module: an ``OpenAIGPTModel`` or one with a head, or a subclass of one. On any device.
        leaf: called with each array; its result goes into the tree.

    Returns:
        ``module.config.to_dict()`` with ``architectures``, and the nested dict of parameters, in
        the module's dtypes. The arrays are copies: training the module further leaves them be.

    Raises:
        TypeError: the module is none of these.
        ValueError: its tensors do not fit its config.
    """
    architecture = _architecture(module)
    config: dict[str, Any] = {**module.config.to_dict(), "architectures": [architecture]}  # pyright: ignore
    for key in ("dtype", "torch_dtype"):
        if config.get(key) is not None:
            config[key] = str(config[key]).removeprefix("torch.")
    found = stored_tensors(module.state_dict(), file="")
    fitted = match_tensors(
        "the torch module", found, config, architecture, config_name="its config"
    )
    return config, load_params(fitted, leaf)


def to_torch(
    config: Mapping[str, Any],
    params: Mapping[str, Any],
    torch_model: "torch.nn.Module | None" = None,
) -> "torch.nn.Module":
    """Copy parameters into a GPT-1 of transformers.

    The names and shapes of the parameters and of the module are checked against ``config`` before
    anything is copied. The copy is in place and keeps the module's ties, device and dtypes: where
    a parameter's dtype differs from the module's, it is cast, as ``Tensor.copy_`` casts.

    Args:
        config: the fields of a config.json; its first architecture is the module's class.
        params: the nested dict of parameters.
        torch_model: the module to fill. Without one, ``transformers.<architecture>`` is made, in
            the parameters' dtype (float32 if they have several) and in evaluation mode, as
            ``from_pretrained`` would leave it.

    Returns:
        The module.

    Raises:
        ImportError: torch or transformers is not installed.
        TypeError: ``torch_model`` is not a GPT-1 of transformers.
        ValueError: the parameters or the module do not fit the config.
    """
    torch = import_torch("to_torch")
    architecture = required_architecture(config)
    check_not_quantized(config, "a torch module")
    leaves = match_tree(params, config, architecture)
    module = _build(config, architecture, leaves) if torch_model is None else torch_model
    if _architecture(module) != architecture:
        raise ValueError(
            f"the torch module is {_architecture(module)}, the config's architecture {architecture}"
        )
    state = module.state_dict(keep_vars=True)
    # Of the module only names and shapes matter: a tensor of any dtype can be copied into.
    found = [replace(one, dtype="float32") for one in stored_tensors(state, file="")]
    match_tensors("the torch module", found, config, architecture, config_name="the config")
    with torch.no_grad():
        for row, one in leaves:
            tensor = _tensor(row.to_torch(one.load()))
            state[row.torch].copy_(tensor)
            # Tied, the head is the same tensor; a module that has lost the tie still gets both.
            head = state.get("lm_head.weight")
            if row.path[-2] == "tokens_embed" and head is not None and tied(config):
                head.copy_(tensor)
    return module


def stored_tensors(state: Mapping[str, "torch.Tensor"], *, file: str) -> list[LazyTensor]:
    """Return the tensors of a state dict, to be read one by one."""

    def stored(name: str, tensor: "torch.Tensor") -> LazyTensor:
        dtype = str(tensor.dtype).removeprefix("torch.")
        return LazyTensor(name, tuple(tensor.shape), dtype, lambda: _array(tensor), file)

    return [stored(name, tensor) for name, tensor in state.items()]


def state_dict(arrays: Mapping[str, np.ndarray]) -> dict[str, "torch.Tensor"]:
    """Torch tensors of arrays, copied."""
    return {name: _tensor(array) for name, array in arrays.items()}


def import_torch(what: str) -> Any:
    """Return the torch module.

    Raises:
        ImportError: it is not installed; ``what`` says what needs it.
    """
    extras.require(what, "torch", extra="torch")
    import torch

    return torch


def _architecture(module: "torch.nn.Module") -> str:
    for parent in type(module).__mro__:
        if parent.__name__ in ARCHITECTURES:
            return parent.__name__
    raise TypeError(
        f"the module is {type(module).__name__}; it must be one of {', '.join(ARCHITECTURES)}"
    )


def _build(config: Mapping[str, Any], architecture: str, leaves: list) -> "torch.nn.Module":
    torch = import_torch("to_torch")
    extras.require("to_torch without a module to fill", "transformers", extra="torch")
    import transformers

    dtypes = {one.dtype for _, one in leaves}
    dtype = getattr(torch, dtypes.pop() if len(dtypes) == 1 else "float32")
    made = getattr(transformers, architecture)(transformers.OpenAIGPTConfig.from_dict(dict(config)))
    return made.to(dtype).eval()


def _array(tensor: "torch.Tensor") -> np.ndarray:
    """Return a copy of a tensor; numpy has no bfloat16, so that goes by its bits."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(DTYPES["bfloat16"]).copy()
    return tensor.numpy().copy()


def _tensor(array: np.ndarray) -> "torch.Tensor":
    """Return a tensor with a copy of the array."""
    import torch

    # A copy, because torch warns of arrays that cannot be written, as JAX's are.
    array = np.array(array, order="C")
    if array.dtype == DTYPES["bfloat16"]:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
