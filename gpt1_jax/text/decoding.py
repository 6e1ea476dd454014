"""Ids that are decoded: what they must be, and what a reader of the text should know."""

import warnings
from collections.abc import Sized

import numpy as np


def checked_ids(ids: object) -> np.ndarray:
    """One sequence of ids, or a single id, as an array (T,).

    Raises:
        ValueError: not integers, not one sequence, or a negative id.
    """
    values = np.asarray(ids)
    if values.ndim > 1:
        several = "one sequence; batch_decode takes several"
        raise ValueError(f"ids have shape {values.shape}, but must be {several}")
    if values.size and values.dtype.kind not in "iu":
        raise ValueError(f"ids have dtype {values.dtype}, but must be integers")
    if values.size and values.min() < 0:
        raise ValueError(f"id {values.min()} is out of range: an id must be at least 0")
    return values.reshape(-1)


def warn_of_unknown_ids(tokenizer: Sized, vocab_size: int) -> None:
    """Warn where a model may choose ids that the tokenizer does not know.

    By default Python shows it once: it always comes from here, with the same words.

    Args:
        tokenizer: what is to decode the ids.
        vocab_size: the model's.
    """
    if vocab_size > len(tokenizer):
        warnings.warn(
            f"the model has {vocab_size} ids, and the tokenizer tokens for the first "
            f"{len(tokenizer)}: decoded text leaves the others out",
            stacklevel=1,
        )


def warn_of_clean_up(clean_up_tokenization_spaces: bool | None) -> None:
    """Warn, in the name of the caller's caller, where True has no effect."""
    if clean_up_tokenization_spaces:
        warnings.warn(
            "clean_up_tokenization_spaces has no effect on byte-pair tokens: detokenize closes "
            "punctuation up",
            stacklevel=3,
        )
