"""GPT-1 in Flax, equal to PyTorch's: the model, its checkpoints, its tokenizer and generation.

Each name is imported when it is first used, so that ``import gpt1_jax`` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt1_jax.config import OpenAIGPTConfig
    from gpt1_jax.explore.activations import capture, patch
    from gpt1_jax.explore.module_tree import tree
    from gpt1_jax.explore.sweeps import sweep
    from gpt1_jax.explore.text_embeddings import embed
    from gpt1_jax.generation.api import GenerateOutput, generate
    from gpt1_jax.generation.processors import GenerationState
    from gpt1_jax.generation.streaming import stream
    from gpt1_jax.generation_config import GenerationConfig
    from gpt1_jax.model import (
        OpenAIGPTDoubleHeadsModel,
        OpenAIGPTForSequenceClassification,
        OpenAIGPTLMHeadModel,
        OpenAIGPTModel,
        from_pretrained,
    )
    from gpt1_jax.nn.attention import Cache
    from gpt1_jax.pure import functional
    from gpt1_jax.quantization import quantize
    from gpt1_jax.scoring import Score, score
    from gpt1_jax.text.tokenizer import Tokenizer
    from gpt1_jax.training.predict import predict

__version__ = "0.1.0"

# Where each name is defined.
_MODULES = {
    "Cache": "nn.attention",
    "GenerateOutput": "generation.api",
    "GenerationConfig": "generation_config",
    "GenerationState": "generation.processors",
    "OpenAIGPTConfig": "config",
    "OpenAIGPTDoubleHeadsModel": "model",
    "OpenAIGPTForSequenceClassification": "model",
    "OpenAIGPTLMHeadModel": "model",
    "OpenAIGPTModel": "model",
    "Score": "scoring",
    "Tokenizer": "text.tokenizer",
    "capture": "explore.activations",
    "embed": "explore.text_embeddings",
    "from_pretrained": "model",
    "functional": "pure",
    "generate": "generation.api",
    "patch": "explore.activations",
    "predict": "training.predict",
    "quantize": "quantization",
    "score": "scoring",
    "stream": "generation.streaming",
    "sweep": "explore.sweeps",
    "tree": "explore.module_tree",
}

__all__ = [
    "Cache",
    "GenerateOutput",
    "GenerationConfig",
    "GenerationState",
    "OpenAIGPTConfig",
    "OpenAIGPTDoubleHeadsModel",
    "OpenAIGPTForSequenceClassification",
    "OpenAIGPTLMHeadModel",
    "OpenAIGPTModel",
    "Score",
    "Tokenizer",
    "__version__",
    "capture",
    "embed",
    "from_pretrained",
    "functional",
    "generate",
    "patch",
    "predict",
    "quantize",
    "score",
    "stream",
    "sweep",
    "tree",
]


def __getattr__(name: str) -> object:
    """Import a public name (PEP 562)."""
    if name in _MODULES:
        value = getattr(importlib.import_module(f"gpt1_jax.{_MODULES[name]}"), name)
        globals()[name] = value  # found without this function from now on
        return value
    raise AttributeError(f"module 'gpt1_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
