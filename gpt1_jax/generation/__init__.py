"""Text from a language model: cached greedy decoding and sampling."""

from gpt1_jax.generation.decode import GenerateOutput, generate
from gpt1_jax.generation.settings import GenerationSettings

__all__ = ["GenerateOutput", "GenerationSettings", "generate"]
