"""Text from a language model: greedy decoding, sampling and beam search, on a cache."""

from gpt1_jax.generation.generate import GenerateOutput, generate
from gpt1_jax.generation.settings import GenerationSettings
from gpt1_jax.generation.stream import stream

__all__ = ["GenerateOutput", "GenerationSettings", "generate", "stream"]
