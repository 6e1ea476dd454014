"""Stop strings as a table: what each token adds to the part of a string that a text ends with.

A text is the pieces of its tokens, one after the other, with a space wherever a word ends and
another token follows. So whether it holds a string can be found out token by token, on the device,
by Aho and Corasick's automaton (https://doi.org/10.1145/360825.360855): its state is the longest
beginning of a stop string that the text ends with.

Dimensions: S states, V vocabulary.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from gpt1_jax.checks import short
from gpt1_jax.generation.prompts import Prompt
from gpt1_jax.nn.pytree import pytree_dataclass
from gpt1_jax.text.tokenizer import Tokenizer
from gpt1_jax.text.tokenizer_files import END_OF_WORD

# Of all stop strings together: the table has two int32 a character for each token of the
# vocabulary, 324 MB for this many at full size.
MAX_CHARACTERS = 1000
FEWEST = 16  # below this, states that stay unused cost less than another compilation


@pytree_dataclass
class StopStrings:
    """Says where texts end with one of the stop strings.

    A string counts from where it reaches into the new tokens, so it may begin in the prompt.

    Attributes:
        table: (S, V) int32, for each state and token twice the next state, and 1 more where the
            token completes a string.
    """

    table: np.ndarray | jax.Array

    @classmethod
    def build(cls, tokenizer: Tokenizer, stop_strings: Sequence[str], vocab_size: int) -> Self:
        """Build for strings of at least one character each.

        Raises:
            ValueError: a string that no text of these tokens holds, too many characters, or a
                vocabulary that does not say where words end.
        """
        vocabulary = tokenizer.get_vocab()
        if not any(token.endswith(END_OF_WORD) for token in vocabulary):
            raise ValueError(
                f"stop_strings needs a vocabulary like GPT-1's, whose tokens end words with "
                f"{END_OF_WORD}; eos_token_id ends texts of other vocabularies"
            )
        if sum(map(len, stop_strings)) > MAX_CHARACTERS:
            raise ValueError(
                f"stop_strings have {sum(map(len, stop_strings))} characters in all, but must have "
                f"at most {MAX_CHARACTERS}"
            )
        pieces = _pieces(vocabulary, vocab_size)
        return cls(_table(tuple(stop_strings), pieces))

    def after(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """Return the states (B,) int32 after prompts."""
        states = []
        for prompt in prompts:
            state = 0
            for token in () if prompt.hidden else prompt.ids:
                state = int(self.table[state, token]) >> 1  # what the prompt alone holds is no end
            states.append(state)
        return np.asarray(states, np.int32)

    def next(self, state: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(...) states and the tokens after them -> the next states, and bool whether they end."""
        entry = jnp.asarray(self.table)[state, token]
        return entry >> 1, (entry & 1).astype(bool)


def possible(tokenizer: Tokenizer, stop_strings: Sequence[str], vocab_size: int) -> list[str]:
    """Return those of the strings that a text of these tokens can hold."""
    pieces = _pieces(tokenizer.get_vocab(), vocab_size)
    return [text for text in stop_strings if _can_occur(text, pieces)]


def _pieces(vocabulary: Mapping[str, int], vocab_size: int) -> tuple[str | None, ...]:
    """Return the text of each id, with a space at the end of a word; None for unknown ids."""
    pieces: list[str | None] = [None] * vocab_size
    for token, index in vocabulary.items():
        if index < vocab_size:
            pieces[index] = token.replace(END_OF_WORD, " ")
    return tuple(pieces)


def _can_occur(text: str, pieces: Sequence[str | None]) -> bool:
    """Return whether a text of such pieces can hold ``text``."""
    joined = "\0".join(["", *(piece for piece in pieces if piece), ""])
    if text in joined:
        return True
    n = len(text)
    # Where a piece can end within the text: the first of them, or one that follows another.
    borders = {end for end in range(1, n) if text[:end] + "\0" in joined}
    for begin in range(1, n):
        if begin in borders:
            inner = range(begin + 1, n)
            borders.update(end for end in inner if f"\0{text[begin:end]}\0" in joined)
    return any("\0" + text[begin:] in joined for begin in borders)


def _automaton(
    stop_strings: Sequence[str], characters: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what each character makes of the beginning of a string that a text ends with.

    Returns:
        (N, characters + 1) int32, the next state; the last column stands for all other characters.
        State 0 is that of no beginning, and N a power of two, so that few sizes compile. (N,) bool,
        states in which a string is whole; and those where it is one of white space alone.
    """
    beginnings = sorted({text[:n] for text in stop_strings for n in range(len(text) + 1)})
    number = {text: state for state, text in enumerate(beginnings)}
    N = max(FEWEST, 1 << (len(beginnings) - 1).bit_length())
    go = np.zeros((N, len(characters) + 1), np.int32)
    whole, blank = np.zeros(N, bool), np.zeros(N, bool)
    for text, state in number.items():
        found = [stop for stop in stop_strings if text.endswith(stop)]
        whole[state], blank[state] = bool(found), any(map(str.isspace, found))
        for column, character in enumerate(characters):
            longer = text + character
            go[state, column] = next(
                number[longer[n:]] for n in range(len(longer) + 1) if longer[n:] in number
            )
    return go, whole, blank


@functools.lru_cache(maxsize=8)
def _table(stop_strings: tuple[str, ...], pieces: tuple[str | None, ...]) -> np.ndarray:
    """Return ``StopStrings.table``.

    The space after a word is part of the text once another token follows. So a string that ends
    with it is completed by that token, whichever it is: such states stand in the second half. But
    a string of white space alone asks for the end of a word, which is there already.

    Raises:
        ValueError: a string that no text of these pieces holds.
    """
    for text in stop_strings:
        if not _can_occur(text, pieces):
            raise ValueError(
                f"stop_strings has {short(text)}, which no text of this tokenizer holds; a decoded "
                "text is lower-case and has spaces around words and punctuation"
            )
    characters = sorted(set("".join(stop_strings) + " "))
    go, whole, blank = _automaton(stop_strings, characters)
    half = len(go)
    is_known = np.array([piece is not None for piece in pieces])
    ends_word = np.array([bool(piece) and piece[-1] == " " for piece in pieces])
    bodies = [piece[:-1] if piece and piece[-1] == " " else piece or "" for piece in pieces]
    codes = np.frombuffer("".join(bodies).encode("utf-32-le"), np.uint32)
    columns = np.full(0x110000, len(characters), np.int16)
    columns[[ord(character) for character in characters]] = np.arange(len(characters))
    lengths = np.array(list(map(len, bodies)))
    first = np.cumsum(lengths) - lengths
    # A token a row here, and of the tokens those first that are as long.
    order = np.argsort(-lengths, kind="stable")
    states = np.repeat(np.arange(half, dtype=np.int32)[None], len(pieces), axis=0)
    ends = np.zeros(states.shape, bool)
    for place in range(lengths.max(initial=0)):
        longer = order[: np.count_nonzero(lengths > place)]
        column = columns[codes[first[longer] + place]]
        moved = go.take(states[longer] * go.shape[1] + column[:, None])
        states[longer] = moved
        ends[longer] |= whole.take(moved)
    spaced = go[:, characters.index(" ")].take(states[ends_word])
    ends[ends_word] |= blank.take(spaced)
    states[ends_word] = spaced + half * whole.take(spaced)
    table = np.concatenate([2 * states + ends, 2 * states + 1], axis=1).T.copy()
    # An id that the tokenizer does not know adds nothing.
    table[:, ~is_known] = 2 * np.arange(2 * half, dtype=np.int32)[:, None]
    return table
