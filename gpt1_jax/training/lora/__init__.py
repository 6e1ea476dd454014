"""LoRA (arXiv:2106.09685): low-rank adapters beside frozen kernels, and peft's files for them."""

from gpt1_jax.training.lora.adapters import (
    LoraSettings,
    adapt,
    init_adapters,
    load_adapters,
    merge_adapters,
    save_adapters,
)

__all__ = [
    "LoraSettings",
    "adapt",
    "init_adapters",
    "load_adapters",
    "merge_adapters",
    "save_adapters",
]
