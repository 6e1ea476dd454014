"""Kernels of linear layers held as (outputs, inputs): a CPU multiplies few rows by them faster.

``nn/matmul.py`` says why. Transposing a kernel costs as much as several decoding steps, and the
memory of a second kernel. It is therefore done once for a model, when several rows are first
decoded, and kept.
"""

import weakref
from typing import Any

import jax
from flax import nnx
from flax.traverse_util import unflatten_dict

from gpt1_jax.nn.matmul import MAX_ROWS, dot_general, dot_general_transposed
from gpt1_jax.pretrained import OpenAIGPTPreTrainedModel, Params, flatten

# Of a model, by path: a kernel that it had, and its transpose.
_kept: weakref.WeakKeyDictionary[
    OpenAIGPTPreTrainedModel,
    dict[tuple[str, ...], tuple[weakref.ref[jax.Array], jax.Array]],
] = weakref.WeakKeyDictionary()


def should_transpose(model: OpenAIGPTPreTrainedModel, params: Params, rows: int) -> bool:
    """Return whether decoding so many rows at a time is faster with transposed kernels."""
    kernels = [leaf for path, leaf in flatten(params).items() if _is_kernel(path)]
    # Kernels that are split over devices are split for the products as they are.
    devices = {device for leaf in kernels for device in leaf.devices()}
    on_cpu = len(devices) == 1 and devices.pop().platform == "cpu"
    # In half precision both forms are alike.
    return on_cpu and 1 < rows <= MAX_ROWS and model.dtype.itemsize > 2


def transpose_kernels(model: OpenAIGPTPreTrainedModel, params: Params) -> Params:
    """Return the parameters of a model with the kernels of its blocks transposed.

    ``with_transposed_kernels`` makes a model of them.
    """
    kept = _kept.setdefault(model, {})
    leaves = flatten(params)
    for path, leaf in leaves.items():
        if _is_kernel(path):
            source, kernel = kept.get(path, (None, leaf))
            if source is None or source() is not leaf:
                kernel = _transpose(leaf)
                kept[path] = weakref.ref(leaf), kernel
            leaves[path] = kernel
    return unflatten_dict(leaves)


def with_transposed_kernels(model: Any) -> Any:
    """Return a model that was merged with transposed kernels, which its layers now read as such."""
    for _, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Linear) and node.dot_general is dot_general:
            node.kernel.set_value(node.kernel.get_value().T)
            node.dot_general = dot_general_transposed
    return model


def _is_kernel(path: tuple[str, ...]) -> bool:
    return "h" in path and path[-1] == "kernel"


@jax.jit
def _transpose(kernel: jax.Array) -> jax.Array:
    return kernel.T
