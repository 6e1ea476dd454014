"""What a run of the model has to do at least, and the sizes of the tiny model."""

import dataclasses
from typing import Any

import gpt1_jax as gpt1

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
TINY: dict[str, Any] = {
    "vocab_size": 101,
    "n_positions": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
}


@dataclasses.dataclass(frozen=True)
class Roofline:
    """What a run has to do at least.

    Attributes:
        tokens: that it reads or writes.
        flops: floating-point operations of its matrix products.
        weights: numbers that it reads once.
    """

    tokens: int
    flops: float
    weights: float

    @classmethod
    def forward(
        cls, config: gpt1.OpenAIGPTConfig, batch: int, queries: int, keys: int, head: bool
    ) -> "Roofline":
        """Return the work of ``queries`` new tokens a row, of ``keys`` with those before them.

        Every query is multiplied with all keys, as everyone here does; half of that is masked.
        """
        E, V = config.n_embd, config.vocab_size
        weights = config.n_layer * (4 * E * E + 2 * E * config.n_inner) + head * V * E
        rows = batch * queries
        scores = config.n_layer * 2 * E * keys
        # Of keys and values in a cache, those of earlier tokens are read.
        cache = config.n_layer * 2 * E * (keys - queries) * batch
        return cls(rows, 2.0 * rows * (weights + scores), weights + cache)
