"""GPT-1's weights, from disk or torch to a nested dict of arrays and back, bit by bit.

    config, params = conversion.read("openai-community/openai-gpt")
    conversion.write("folder", config, params)

Parameters are named as torch names them, ``params["transformer"]["h"]["0"]["attn"]["c_attn"]``,
with Flax's leaves: ``kernel``, ``bias``, ``scale``, ``embedding``. Knows no JAX: the arrays are
numpy's.
"""

from conversion.checkpoint import read, read_config, write
from conversion.config_file import named_architecture
from conversion.hub import resolve
from conversion.layout import ARCHITECTURES, Parameter, layout
from conversion.match import DTYPES, HeadMissing
from conversion.torch_module import from_torch, to_torch

__all__ = [
    "ARCHITECTURES",
    "DTYPES",
    "HeadMissing",
    "Parameter",
    "from_torch",
    "layout",
    "named_architecture",
    "read",
    "read_config",
    "resolve",
    "to_torch",
    "write",
]
