"""GPT-1's weights, from disk or torch to a nested dict of arrays and back, bit by bit.

    config, params = conversion.read("openai-community/openai-gpt")
    conversion.write("folder", config, params)

Parameters are named as torch names them, ``params["transformer"]["h"]["0"]["attn"]["c_attn"]``,
with Flax's leaves: ``kernel``, ``bias``, ``scale``, ``embedding``. Knows no JAX: the arrays are
numpy's.
"""

from conversion.checkpoint import read, read_architecture, read_config, write
from conversion.config_file import named_architecture
from conversion.hub import push_folder, resolve
from conversion.layout import ARCHITECTURES, ParamSpec, param_specs
from conversion.match import DTYPES, MissingHeadError
from conversion.torch_module import from_torch, to_torch

__all__ = [
    "ARCHITECTURES",
    "DTYPES",
    "MissingHeadError",
    "ParamSpec",
    "from_torch",
    "named_architecture",
    "param_specs",
    "push_folder",
    "read",
    "read_architecture",
    "read_config",
    "resolve",
    "to_torch",
    "write",
]
