"""GPT-1 in Flax, equal to PyTorch's: the model, its checkpoints, its tokenizer and generation."""

from gpt1_jax.config import OpenAIGPTConfig
from gpt1_jax.explore.module_tree import tree
from gpt1_jax.generation import GenerateOutput, GenerationConfig, generate, stream
from gpt1_jax.model import (
    OpenAIGPTDoubleHeadsModel,
    OpenAIGPTForSequenceClassification,
    OpenAIGPTLMHeadModel,
    OpenAIGPTModel,
)
from gpt1_jax.nn.attention import Cache
from gpt1_jax.pure import functional
from gpt1_jax.text.tokenizer import Tokenizer

__all__ = [
    "Cache",
    "GenerateOutput",
    "GenerationConfig",
    "OpenAIGPTConfig",
    "OpenAIGPTDoubleHeadsModel",
    "OpenAIGPTForSequenceClassification",
    "OpenAIGPTLMHeadModel",
    "OpenAIGPTModel",
    "Tokenizer",
    "functional",
    "generate",
    "stream",
    "tree",
]
