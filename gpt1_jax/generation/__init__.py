"""Text from a language model: greedy decoding, sampling and beam search, on a cache."""

from gpt1_jax.generation.api import GenerateOutput, generate
from gpt1_jax.generation.streaming import stream
from gpt1_jax.generation_config import GenerationConfig

__all__ = ["GenerateOutput", "GenerationConfig", "generate", "stream"]
