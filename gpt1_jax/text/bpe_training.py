"""A byte-pair vocabulary of one's own, learned from text in the format of GPT-1's."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from gpt1_jax.checks import INTEGER, at_least, check
from gpt1_jax.text.tokenizer import Tokenizer
from gpt1_jax.text.tokenizer_files import END_OF_WORD, pipeline

UNKNOWN = "<unk>"


def train_tokenizer(texts: Iterable[str], merges: int) -> Tokenizer:
    """Learn byte-pair merges (Sennrich et al., arXiv:1508.07909) from texts.

    The ids lie as GPT-1's do: ``<unk>`` is 0, then come the symbols, the symbols that end a word,
    and the results of the merges in the order in which they were learned. The same texts give the
    same ids.

    Args:
        texts: pieces of text, cut at white space; read once.
        merges: how many pairs to join at most; a small text may hold fewer.

    Raises:
        ValueError: ``merges`` is not a positive number, or the texts hold nothing to learn from.
    """
    from tokenizers import models, trainers

    check("merges", merges, INTEGER, at_least(1))
    words: Counter[str] = Counter()
    for text in texts:
        words.update(text.replace("\n", " ").split(" "))
    backend = pipeline(models.BPE(end_of_word_suffix=END_OF_WORD), UNKNOWN)
    normal = map(backend.normalizer.normalize_str, words)
    letters = sorted(set(chain.from_iterable(normal)) - {" "})
    if not letters:
        raise ValueError("the texts hold no letters to learn a vocabulary from")
    symbols = [UNKNOWN, *letters, *(letter + END_OF_WORD for letter in letters)]
    # Of equally frequent pairs the trainer takes the one whose symbols it has known longest, and
    # that would be chance, but that special tokens come first, and in this order.
    trainer = trainers.BpeTrainer(
        vocab_size=len(symbols) + merges,
        special_tokens=symbols,
        end_of_word_suffix=END_OF_WORD,
        show_progress=False,
    )
    backend.train_from_iterator(words.elements(), trainer)
    learned = json.loads(backend.to_str())["model"]["merges"][:merges]
    tokens = [*symbols, *("".join(pair) for pair in learned)]
    vocabulary = {token: id_ for id_, token in enumerate(dict.fromkeys(tokens))}
    with tempfile.TemporaryDirectory() as folder:
        lines = ["#version: 0.2", *map(" ".join, learned)]
        Path(folder, "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        Path(folder, "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return Tokenizer.from_pretrained(folder)
