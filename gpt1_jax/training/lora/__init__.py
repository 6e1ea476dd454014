"""LoRA (arXiv:2106.09685): low-rank adapters beside frozen kernels, and peft's files for them."""

from gpt1_jax.training.lora.adapters import (
    LoraSettings,
    adapt,
    init_adapters,
    load_adapters,
    merge_adapters,
    save_adapters,
)
from gpt1_jax.training.lora.parts import ADAPTER, TrainedParts, base_name, split_adapted

__all__ = [
    "ADAPTER",
    "LoraSettings",
    "TrainedParts",
    "adapt",
    "base_name",
    "init_adapters",
    "load_adapters",
    "merge_adapters",
    "save_adapters",
    "split_adapted",
]
