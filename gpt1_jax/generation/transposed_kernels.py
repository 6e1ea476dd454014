"""Kernels of linear layers held as (outputs, inputs): a CPU multiplies few rows by them faster.

``nn/matmul.py`` says why. Transposing a kernel costs as much as several decoding steps, and the
memory of a second kernel. It is therefore done once for a model, when several rows are first
decoded, and kept. Which processors gain by it was measured (docs/performance.md); the
environment variable ``GPT1_TRANSPOSED_KERNELS`` overrules that.
"""

import dataclasses
import functools
import os
import re
import weakref
from pathlib import Path

import jax
from flax import nnx
from flax.traverse_util import unflatten_dict

from gpt1_jax.model import OpenAIGPTLMHeadModel
from gpt1_jax.nn.matmul import MAX_ROWS, dot_general, dot_general_transposed
from gpt1_jax.pretrained import Params, flatten
from gpt1_jax.pure import ModelStructure, merge

Structure = ModelStructure[OpenAIGPTLMHeadModel]

VARIABLE, CHOICES = "GPT1_TRANSPOSED_KERNELS", ("auto", "always", "never")


@dataclasses.dataclass(frozen=True)
class _Kept:
    """What was made of a model.

    Attributes:
        source: the model's structure.
        structure: the same, but for layers that read their kernels transposed.
        kernels: of these layers by path, as the model has them and transposed; none at first.
    """

    source: Structure
    structure: Structure
    kernels: dict[tuple[str, ...], tuple[weakref.ref[jax.Array], jax.Array] | None]

    @classmethod
    def build(cls, source: Structure, params: Params) -> "_Kept":
        """Find the layers, and have them read their kernels transposed."""
        model = merge(source, params)
        kernels = {}
        for path, node in nnx.iter_graph(model):
            if isinstance(node, nnx.Linear) and node.dot_general is dot_general:
                node.dot_general = dot_general_transposed
                kernels[(*map(str, path), "kernel")] = None
        return cls(source, ModelStructure(nnx.graphdef(model)), kernels)


_kept: weakref.WeakKeyDictionary[OpenAIGPTLMHeadModel, _Kept] = weakref.WeakKeyDictionary()


def should_transpose(model: OpenAIGPTLMHeadModel, rows: int) -> bool:
    """Return whether to decode so many rows at a time with transposed kernels.

    Raises:
        ValueError: the environment variable has another value than its three.
    """
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in CHOICES:
        raise ValueError(f"{VARIABLE} is {choice!r}, but must be one of {', '.join(CHOICES)}")
    # In half precision both forms are alike.
    if not 1 < rows <= MAX_ROWS or model.dtype.itemsize == 2 or choice == "never":
        return False
    # Kernels that are split over devices are split for the products as they are.
    devices = model.transformer.positions_embed.embedding.get_value().devices()
    on_cpu = [device.platform for device in devices] == ["cpu"]
    return on_cpu and (choice == "always" or _processor_gains())


@functools.cache
def _processor_gains(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether this processor multiplies faster so: all measured ones but AMD's Zen 5."""
    try:
        text = cpuinfo.read_text()
    except OSError:  # not Linux
        return True
    zen_5 = re.search(r"^cpu family\s*: 26$", text, re.MULTILINE)
    return "AuthenticAMD" not in text or zen_5 is None


def transpose_kernels(
    model: OpenAIGPTLMHeadModel, structure: Structure, params: Params
) -> tuple[Structure, Params]:
    """Return what ``split`` gave for a model, with the kernels of its blocks transposed."""
    kept = _kept.get(model)
    if kept is None or kept.source != structure:
        kept = _kept[model] = _Kept.build(structure, params)
    leaves = flatten(params)
    for path, found in kept.kernels.items():
        if found is None or found[0]() is not leaves[path]:
            found = kept.kernels[path] = weakref.ref(leaves[path]), _transpose(leaves[path])
        leaves[path] = found[1]
    return kept.structure, unflatten_dict(leaves)


@jax.jit
def _transpose(kernel: jax.Array) -> jax.Array:
    return kernel.T
