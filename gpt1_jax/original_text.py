"""The words of a text as GPT-1 was trained on them: ftfy, a standardisation, spaCy's English rules.

transformers 5 splits text otherwise: see ``tokenizer.py``. spaCy's tokenizer is a blank one, rules
only: there is no model to download. ftfy and spaCy are the extra "text".
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing them takes a second, which only this pipeline need pay
    import tokenizers
    from spacy.tokenizer import Tokenizer as WordTokenizer

NEWLINE = "\n"  # of text, and a word of GPT-1's vocabulary
# Dashes (em, en, horizontal bar), the ellipsis, the acute accent.
_PLAIN = str.maketrans(
    {"\u2014": "-", "\u2013": "-", "\u2015": "-", "\u2026": "...", "\u00b4": "'"}
)
# A run of one of these stands by itself. Full stops, colons and single quotes are spaCy's to judge.
_APART = re.compile(r"""([-~!";?+,()\\/*\[\]{}|_])\1*""")
_LINE_BREAK = re.compile(r"\s*\n\s*")
_SPACE = re.compile(r"[^\S\n]+")


def check_installed() -> None:
    """Check that ftfy and spaCy are there.

    Raises:
        ImportError: they are not; the message says how to get them.
    """
    missing = [name for name in ("ftfy", "spacy") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"the original text pipeline needs {' and '.join(missing)}: "
            'pip install "gpt1-jax[text]"'
        )


def standardized(text: str) -> str:
    """Return text with plain dashes and quotes, spaces around punctuation, and single spaces.

    Of a line break, however many newlines and whatever white space it has, one newline is left,
    between spaces. The rules are those of OpenAI's code, after its ``ftfy.fix_text``.
    """
    import ftfy

    text = ftfy.fix_text(text).translate(_PLAIN)
    text = _APART.sub(r" \g<0> ", text)
    text = _LINE_BREAK.sub(f" {NEWLINE} ", text)
    return _SPACE.sub(" ", text).strip()


def words(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield the words of each text in lower case; a line break is a word, ``NEWLINE``."""
    for document in _word_tokenizer().pipe(map(standardized, texts)):
        # White space that spaCy keeps as a word is a line break with the space after it.
        yield [NEWLINE if word.is_space else word.lower_ for word in document]


def encode(backend: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of texts.

    Args:
        backend: the vocabulary, its merges, and added tokens, which are found in a text as it is
            written and stand between what is prepared.
        texts: without lone surrogates.
    """
    from tokenizers import Tokenizer

    added = backend.get_added_tokens_decoder()
    found = [_pieces(backend, added, text) for text in texts]
    plain = [piece for pieces in found for piece in pieces if isinstance(piece, str)]
    # The model alone, which takes a word as it is.
    encoded = iter(
        Tokenizer(backend.model).encode_batch_fast(list(words(plain)), is_pretokenized=True)
    )
    return [
        [
            id_
            for piece in pieces
            for id_ in (next(encoded).ids if isinstance(piece, str) else [piece])
        ]
        for pieces in found
    ]


def _pieces(
    backend: tokenizers.Tokenizer, added: Mapping[int, tokenizers.AddedToken], text: str
) -> list[str | int]:
    """Return the text in pieces: the ids of added tokens, and what lies between them."""
    if not any(token.normalized or token.content in text for token in added.values()):
        return [text]
    pieces: list[str | int] = []
    end = 0
    encoding = backend.encode(text, add_special_tokens=False)
    for id_, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
        # The model may find the same id for a piece of a word, or for an unknown character.
        token = added.get(id_)
        if token and (token.normalized or text[first:last].strip() == token.content):
            pieces += [text[end:first], id_]
            end = last
    return [*pieces, text[end:]]


@functools.cache
def _word_tokenizer() -> WordTokenizer:
    from spacy.lang.en import English

    return English().tokenizer
