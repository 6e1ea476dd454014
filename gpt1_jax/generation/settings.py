"""What a user may ask of generation, checked as a whole before any work."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from gpt1_jax.config import OpenAIGPTConfig


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """How to choose the next tokens; Hugging Face's names.

    Attributes:
        max_new_tokens: how many tokens to add to each prompt at most.
        do_sample: draw the next token (True) or take the likeliest (False).
        temperature: divides the logits before they are sampled from.
        top_k: sample from the so many likeliest tokens; None for all.
        top_p: sample from the likeliest tokens that together have this probability.
        seed: of the draws; row i of a batch draws with seed + i, so that a row can be had again
            alone. 0 by default.
        eos_token_id: the token, or tokens, that end a text; None for none.
        pad_token_id: what follows the end of a text in an array; by default the (first) end token.
    """

    max_new_tokens: int = 20
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None
    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        _require(isinstance(self.do_sample, bool), "do_sample", self.do_sample, "True or False")
        for name in ("max_new_tokens", "top_k", "seed", "pad_token_id"):
            value = getattr(self, name)
            _require(_is_integer(value, name != "max_new_tokens"), name, value, "an integer")
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            _require(np.isreal(value) and np.ndim(value) == 0, name, value, "a number")
        ends = np.atleast_1d(() if self.eos_token_id is None else self.eos_token_id)
        integers = ends.size == 0 or np.issubdtype(ends.dtype, np.integer)
        _require(integers, "eos_token_id", self.eos_token_id, "an id or several")
        _require(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "at least 1")
        # Beyond these, logits divided by it leave float32's range.
        in_range = 1e-6 <= self.temperature <= 1e6
        _require(in_range, "temperature", self.temperature, "in [1e-06, 1e+06]")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]")
        _require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "at least 1, or None")
        _require(
            self.seed is None or 0 <= self.seed < 2**32, "seed", self.seed, "in [0, 2**32), or None"
        )
        if not self.do_sample:
            for name, off in (
                ("temperature", 1.0),
                ("top_k", None),
                ("top_p", 1.0),
                ("seed", None),
            ):
                value = getattr(self, name)
                _require(value == off, name, value, "left alone unless do_sample is True")

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        if self.eos_token_id is None:
            return ()
        return tuple(np.atleast_1d(self.eos_token_id).tolist())

    def check_for(self, config: OpenAIGPTConfig, longest_prompt: int) -> None:
        """Check the settings against a model and its longest prompt.

        Raises:
            ValueError: the texts would not fit in the model's positions, or an id is out of range.
        """
        if longest_prompt + self.max_new_tokens > config.n_positions:
            raise ValueError(
                f"a prompt of {longest_prompt} tokens and max_new_tokens = {self.max_new_tokens} "
                f"are more than the model's n_positions = {config.n_positions}"
            )
        V = config.vocab_size
        for id_ in self.eos_token_ids:
            _require(0 <= id_ < V, "eos_token_id", id_, f"in [0, {V})")
        if self.pad_token_id is not None:
            _require(0 <= self.pad_token_id < V, "pad_token_id", self.pad_token_id, f"in [0, {V})")


def _require(condition: bool, name: str, value: object, right: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {value!r}, but must be {right}")


def _is_integer(value: object, may_be_none: bool) -> bool:
    if value is None:
        return may_be_none
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
