"""Prompts as users give them, and as the compiled functions take them: on the host, in numpy."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gpt1_jax.checks import is_integer, wrong
from gpt1_jax.nn.validation import ArrayLike, check_ids, check_mask

# Prompts are read in pieces, each in one forward pass: at most so many tokens of a row, fewer where
# there are many rows, see ``chunk``.
PREFILL_CHUNK = 32
# Several such pieces are read at once while they are no more tokens, all rows together. A forward
# of 16, 32, 64, 128 and 256 tokens takes 1.9, 1.4, 1.1, 1.0 and 0.9 ms a token on two cores,
# however they are divided into rows.
PREFILL_TOKENS = 128
SHORTEST = 32  # below this, room that stays unused costs less than another compilation


class Prompt(NamedTuple):
    """What a text begins with.

    Attributes:
        ids: (T,) int32.
        embeds: (T, E), to be read in place of the embeddings of the ids, if any.
        hidden: whether stop strings may not begin in the ids; with ``embeds``, whether the ids
            stand for nothing, since only embeddings were given.
        types: (T + 1,) int32, the type of each token, and then that of the new ones, if they have
            types.
    """

    ids: np.ndarray
    embeds: np.ndarray | None = None
    hidden: bool = False
    types: np.ndarray | None = None


def read_prompts(
    vocab_size: int,
    input_ids: ArrayLike | None,
    attention_mask: ArrayLike | None,
    padding: int | None = None,
    token_type_ids: ArrayLike | None = None,
    new_token_type_id: int | Sequence[int | None] | None = None,
) -> tuple[list[Prompt], np.ndarray | None]:
    """Return the prompts without padding, and, where they have one width, as they were given.

    Args:
        vocab_size: V.
        input_ids: (T,) or (batch, T) integers, or a list of prompts of any lengths.
        attention_mask: of the same shape, 0 where a prompt is padding.
        padding: without a mask, and in prompts of one width, the id that is padding; None for none.
        token_type_ids: of the same shape, if the tokens have types.
        new_token_type_id: the type of the new tokens, or one a prompt; where it is None, that of a
            prompt's last token.

    Raises:
        ValueError: an empty batch or prompt, shapes that do not fit, or ids out of range.
    """
    if input_ids is None:
        raise ValueError("give prompts: input_ids, a text, or inputs_embeds")
    if isinstance(input_ids, Mapping):
        names = ", ".join(map(repr, input_ids))
        raise ValueError(f"input_ids is a mapping of {names}: give its items, as **batch does")
    try:
        rows = [np.asarray(row) for row in input_ids]
        masks = None if attention_mask is None else [np.asarray(row) for row in attention_mask]
    except (TypeError, ValueError):
        raise ValueError("input_ids and attention_mask must be lists or arrays of rows") from None
    if rows and all(row.ndim == 0 for row in rows):  # one prompt
        rows, masks = [np.asarray(rows)], None if masks is None else [np.asarray(masks)]
    if not rows:
        raise ValueError("input_ids holds no prompt")
    shapes = [row.shape for row in rows]
    if any(len(shape) != 1 for shape in shapes):
        raise ValueError(f"the prompts have shapes {shapes}, but each must be (T,)")
    if masks is not None and [mask.shape for mask in masks] != shapes:
        raise ValueError(
            f"attention_mask has rows of {[mask.shape for mask in masks]}, but must have {shapes}"
        )
    for i, mask in enumerate(masks or ()):
        check_mask(f"attention_mask[{i}]", mask)
    if masks is None and padding is not None and len(set(shapes)) == 1:
        masks = [row != padding for row in rows]
    types = _read_types(vocab_size, shapes, token_type_ids, new_token_type_id)
    prompts = []
    for i, row in enumerate(rows):
        if row.size:
            check_ids(f"prompt {i}", row, vocab_size, "vocab_size")
        is_text = np.ones(row.shape, bool) if masks is None else masks[i] != 0
        prompt = row[is_text]
        if not prompt.size:
            raise ValueError(f"prompt {i} is empty, but must have at least one token")
        prompts.append(Prompt(prompt.astype(np.int32)))
        if types is not None:
            given, new = types[i]
            own = given[is_text]
            own = np.append(own, own[-1] if new is None else new).astype(np.int32)
            prompts[i] = prompts[i]._replace(types=own)
    if len(set(shapes)) > 1:
        return prompts, None
    return prompts, np.stack(rows).astype(np.int32)


def _read_types(
    vocab_size: int,
    shapes: Sequence[tuple[int, ...]],
    token_type_ids: ArrayLike | None,
    new_token_type_id: int | Sequence[int | None] | None,
) -> list[tuple[np.ndarray, int | None]] | None:
    """Return for each prompt the types of its tokens and of the new ones; see ``read_prompts``."""
    if token_type_ids is None:
        if new_token_type_id is not None:
            raise ValueError("new_token_type_id has no effect without token_type_ids")
        return None
    try:
        types = [np.asarray(row) for row in token_type_ids]
    except (TypeError, ValueError):
        raise ValueError("token_type_ids must be a list or an array of rows") from None
    if types and all(row.ndim == 0 for row in types):  # of one prompt
        types = [np.asarray(types)]
    if [row.shape for row in types] != list(shapes):
        raise ValueError(
            f"token_type_ids has rows of {[row.shape for row in types]}, but must have {shapes}"
        )
    for i, row in enumerate(types):
        if row.size:
            check_ids(f"token_type_ids[{i}]", row, vocab_size, "vocab_size")
    if isinstance(new_token_type_id, Sequence | np.ndarray):
        new = list(new_token_type_id)
    else:
        new = [new_token_type_id] * len(types)
    if len(new) != len(types) or not all(
        each is None or (is_integer(each) and 0 <= each < vocab_size) for each in new
    ):
        right = f"an id in [0, {vocab_size}), or one a prompt"
        raise wrong("new_token_type_id", new_token_type_id, right)
    return list(zip(types, new, strict=True))


def align(prompts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Pad prompts on the left to one width that is read in whole pieces.

    Args:
        prompts: (T,) int32 each.

    Returns:
        (B, width) int32, where width - 1 is a multiple of ``chunk(B)``, since all tokens but
        the last are read before a token is chosen; and (B,) int32, the slot each prompt starts at.
    """
    width = 1 + pieces(max(map(len, prompts)) - 1, len(prompts))
    tokens = np.zeros((len(prompts), width), np.int32)
    start = np.asarray([width - len(prompt) for prompt in prompts], np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, start[row] :] = prompt
    return tokens, start


def chunk(rows: int) -> int:
    """Return how many tokens of each of so many rows the smallest piece has: 32, 16 or 8.

    What is padding in it is read for nothing; with 64 tokens of all rows together, or with 8 of
    each, a smaller one would take as long.
    """
    return min(PREFILL_CHUNK, 1 << max(8, 64 // rows).bit_length() - 1)


def pieces(length: int, rows: int) -> int:
    """Return ``length`` rounded up to whole pieces of so many rows."""
    return -(-length // chunk(rows)) * chunk(rows)


def bucket(length: int) -> int:
    """Return ``length`` rounded up to a power of two, so that few lengths are compiled."""
    return max(SHORTEST, 1 << max(0, length - 1).bit_length())


def most_slots(n_positions: int) -> int:
    """Return the most slots that a cache can use: pieces of padding may come before the text."""
    return pieces(n_positions, 1) + PREFILL_CHUNK


def append_new_tokens(
    prompts: Sequence[np.ndarray],
    given: np.ndarray | None,
    new: np.ndarray,
    lengths: np.ndarray,
) -> np.ndarray | list[np.ndarray]:
    """Return texts in the form their prompts came in.

    Args:
        prompts: the ids of those that ``read_prompts`` returned.
        given: what it returned.
        new: (B, T) int32 the tokens after the prompts; B a multiple of the number of prompts.
        lengths: (B,) how many of these belong to each text.

    Returns:
        (B, width + T) int32 if the prompts had one width, else a list of rows without padding.
    """
    each = len(new) // len(prompts)
    if given is not None:
        return np.concatenate([np.repeat(given, each, axis=0), new], axis=1)
    return [
        np.concatenate([prompts[i // each], row[:length]])
        for i, (row, length) in enumerate(zip(new, lengths, strict=True))
    ]
