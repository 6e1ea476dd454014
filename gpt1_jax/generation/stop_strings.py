"""Texts that end with a string: looked for on the host, between compiled calls."""

from collections.abc import Sequence

import numpy as np

from gpt1_jax.generation.decode import DecodeProgress
from gpt1_jax.text.tokenizer import Tokenizer


class StopStrings:
    """Says where texts end with one of the stop strings; see ``decode``'s ``ended``.

    A string counts from where it reaches into the new tokens, so it may begin in the prompt.

    Args:
        tokenizer: whose text the strings are looked for in.
        prompts: (T,) int32 each, one a row.
        stop_strings: of at least one character each.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompts: Sequence[np.ndarray], stop_strings: Sequence[str]
    ):
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.stop_strings = stop_strings
        self.beginnings = tokenizer.batch_decode(prompts)
        self.searched = [0] * len(prompts)

    def __call__(self, progress: DecodeProgress) -> np.ndarray:
        """(B,) number of new tokens up to and with the one that completes a string, or -1."""
        found = np.full(len(self.prompts), -1)
        for row, length in enumerate(progress.lengths):
            if length <= self.searched[row]:
                continue  # it has ended, and other rows go on
            if self._stops(row, progress.tokens[row, :length]):
                counts = range(self.searched[row] + 1, length + 1)
                found[row] = next(n for n in counts if self._stops(row, progress.tokens[row, :n]))
            self.searched[row] = int(length)
        return found

    def _stops(self, row: int, new: np.ndarray) -> bool:
        text = self.tokenizer.decode(np.concatenate([self.prompts[row], new]))
        begin = len(self.beginnings[row])
        return any(text.find(s, max(0, begin - len(s) + 1)) >= 0 for s in self.stop_strings)
