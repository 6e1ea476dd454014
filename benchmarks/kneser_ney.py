"""An interpolated Kneser-Ney n-gram model over a checkpoint's tokens: what a neural one must beat.

The modified form of Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language
Modeling" (1999), section 3.4.2. Of a context h and a token w, seen c(h w) times,

    p(w | h) = max(0, c(h w) - D(c(h w))) / c(h .) + backoff(h) p(w | h without its first token)

where c(h .) is the sum over w, and ``backoff(h)`` what the discounts took, so that all sums to one.
Only the longest n-grams are counted as they are; a shorter one counts the different tokens that it
follows. Below a single token lies the uniform distribution, which knows every token.
"""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import tyro

import gpt1_jax as gpt1

# What small or odd data gets, whose counts give no discounts (KenLM's --discount_fallback).
FALLBACK = (0.5, 1.0, 1.5)


@dataclasses.dataclass(frozen=True)
class _Order:
    """The n-grams of one length n that occur, of whose numbers g one of length n + 1 is made.

    Attributes:
        keys: int64 (N,), ascending: an n-gram g of the number h of its first n - 1 tokens and its
            last token w is at keys[g] = h * vocab_size + w.
        share: float64 (N + 1,): an n-gram's count less its discount, as a part of its context's.
        backoff: float64, one for each (n - 1)-gram, and one more.

    The last of ``share`` and ``backoff`` is what the number -1 stands for, an n-gram that does not
    occur: no share, and all left to the shorter context.
    """

    keys: np.ndarray
    share: np.ndarray
    backoff: np.ndarray

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Return the numbers of the n-grams with these keys, -1 for those that do not occur."""
        numbers = np.searchsorted(self.keys, keys)
        numbers[numbers == len(self.keys)] = 0
        return np.where(self.keys[numbers] == keys, numbers, -1)


@dataclasses.dataclass(frozen=True)
class KneserNey:
    """A fitted model.

    Attributes:
        vocab_size: token ids are below it.
        orders: the n-grams of one token, of two, and so on.
    """

    vocab_size: int
    orders: tuple[_Order, ...]

    @classmethod
    def fit(cls, ids: np.ndarray, vocab_size: int, order: int = 5) -> Self:
        """Count the n-grams of a text.

        Args:
            ids: integers (T,).
            vocab_size: token ids are below it.
            order: the length of the longest n-grams.

        Raises:
            ValueError: ids that are none, fewer than ``order`` of them, or an order below 1.
        """
        ids = _checked(ids, vocab_size)
        if order < 1:
            raise ValueError(f"order is {order}, but must be at least 1")
        if len(ids) < order:
            raise ValueError(f"{len(ids)} tokens hold no n-gram of the order {order}")
        # numbers[n][t] is the number of the n-gram that starts at t; the empty one has number 0.
        numbers, keys = [np.zeros(len(ids) + 1, np.int64)], []
        for n in range(1, order + 1):
            starts = len(ids) - n + 1
            found, inverse = np.unique(
                numbers[-1][:starts] * vocab_size + ids[n - 1 :], return_inverse=True
            )
            keys.append(found)
            numbers.append(inverse)

        orders = []
        for n in range(1, order + 1):
            size = len(keys[n - 1])
            if n == order:
                counts = np.bincount(numbers[n], minlength=size)
            else:
                # One place of each (n + 1)-gram; the n-gram that ends it starts a token later.
                place = np.empty(len(keys[n]), np.int64)
                place[numbers[n + 1]] = np.arange(len(numbers[n + 1]))
                counts = np.bincount(numbers[n][place + 1], minlength=size)
            discounts = np.array((0.0, *_discounts(counts)))[np.minimum(counts, 3)]
            contexts = 1 if n == 1 else len(keys[n - 2])
            context = keys[n - 1] // vocab_size
            total = np.bincount(context, counts, contexts)
            taken = np.bincount(context, discounts, contexts)
            # A context without successors, as at the end of the text, leaves all to a shorter one.
            dead_end = total == 0
            total[dead_end] = taken[dead_end] = 1
            share = (counts - discounts) / total[context]
            backoff = taken / total
            orders.append(_Order(keys[n - 1], np.append(share, 0.0), np.append(backoff, 1.0)))
        return cls(vocab_size, tuple(orders))

    def log_probs(self, ids: np.ndarray) -> np.ndarray:
        """Return the log-probability of each token after those before it.

        Args:
            ids: integers (T,).

        Returns:
            Natural logarithms, float64 (T,). A token's context is the ``order - 1`` tokens before
            it, or as many as there are: the first one has none.

        Raises:
            ValueError: ids that are none.
        """
        ids = _checked(ids, self.vocab_size)
        probs = np.full(len(ids), 1 / self.vocab_size)
        context = np.zeros(len(ids), np.int64)  # of the token at t, the number of the empty one
        for n, order in enumerate(self.orders, start=1):
            # Tokens from n - 1 on have the n - 1 tokens before them for a context.
            found = order.find(context * self.vocab_size + ids[n - 1 :])
            probs[n - 1 :] = order.share[found] + order.backoff[context] * probs[n - 1 :]
            context = found[:-1]
        return np.log(probs)


def _discounts(counts: np.ndarray) -> tuple[float, float, float]:
    """Return what is taken from an n-gram seen once, twice, and more often.

    Estimated from how many n-grams are seen once to four times (Chen and Goodman, section 3.4.2),
    unless there are none, or the estimates would leave an unseen token no probability.
    """
    n = np.bincount(counts, minlength=5)[1:5].astype(float)
    if not n.all():
        return FALLBACK
    y = n[0] / (n[0] + 2 * n[1])
    discounts = tuple(i - (i + 1) * y * n[i] / n[i - 1] for i in (1, 2, 3))
    in_range = all(0 < discount <= i for i, discount in enumerate(discounts, start=1))
    return discounts if in_range else FALLBACK


def _checked(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    ids = np.asarray(ids)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"ids must be integers (T,), not {ids.dtype} {ids.shape}")
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(f"the id {wrong} is not in [0, {vocab_size})")
    return ids.astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Score:
    """How well a text is predicted.

    Attributes:
        tokens: how many it has.
        characters: how many it has, white space included.
        nats: minus the sum of its tokens' log-probabilities.
    """

    tokens: int
    characters: int
    nats: float

    @property
    def perplexity(self) -> float:
        """Per token: it compares models with the same tokens."""
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_character(self) -> float:
        """It compares models with any tokens."""
        return self.nats / math.log(2) / self.characters


def kneser_ney(
    model: Annotated[Path, tyro.conf.arg(metavar="FOLDER")],
    train: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE...")],
    test: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE...")],
    order: int = 5,
) -> list[Score]:
    """Predict texts with an n-gram model over a checkpoint's tokens.

    Args:
        model: whose tokenizer it is; nothing else of it is read.
        train: texts, UTF-8, to count n-grams in.
        test: texts to predict.
        order: the length of the longest n-grams.

    Returns:
        The score of each test file.
    """
    tokenizer = gpt1.Tokenizer.from_pretrained(model)
    texts = np.concatenate([_encode(tokenizer, _read(file)) for file in train])
    print(f"{len(train)} files to train on: {len(texts)} tokens", flush=True)
    fitted = KneserNey.fit(texts, len(tokenizer), order)
    scores = []
    for file in test:
        text = _read(file)
        ids = _encode(tokenizer, text)
        score = Score(len(ids), len(text), -fitted.log_probs(ids).sum())
        print(
            f"{file}: {score.tokens} tokens, {score.characters} characters, "
            f"perplexity {score.perplexity:.2f} per token, "
            f"{score.bits_per_character:.4f} bits per character",
            flush=True,
        )
        scores.append(score)
    return scores


def _read(file: Path) -> str:
    try:
        text = file.read_bytes().decode()  # read_text would make one character of "\r\n"
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8") from None
    if not text.strip():
        raise ValueError(f"{file} is empty")
    return text


def _encode(tokenizer: gpt1.Tokenizer, text: str) -> np.ndarray:
    """Return the ids (T,) of a text, line by line: to the tokenizer a newline is white space."""
    lines = tokenizer(text.split("\n"), add_special_tokens=False).input_ids
    return np.fromiter(itertools.chain.from_iterable(lines), np.int32)
