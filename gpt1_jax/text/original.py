"""The words of a text as GPT-1 was trained on them: ftfy, a standardisation, spaCy's English rules.

transformers 5 splits text otherwise: see ``tokenizer.py``. spaCy's tokenizer is a blank one, rules
only: there is no model to download. ftfy and spaCy are the extra "text".
"""

from __future__ import annotations

import functools
import importlib.util
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gpt1_jax.text.offsets import Span, aligned, repaired

if TYPE_CHECKING:  # importing them takes a second, which only this pipeline need pay
    import tokenizers
    from spacy.language import Language

NEWLINE = "\n"  # of text, and a word of GPT-1's vocabulary
# Dashes (em, en, horizontal bar), the ellipsis, the acute accent.
_PLAIN = str.maketrans(
    {"\u2014": "-", "\u2013": "-", "\u2015": "-", "\u2026": "...", "\u00b4": "'"}
)
# A run of one of these stands by itself. Full stops, colons and single quotes are spaCy's to judge.
_APART = re.compile(r"""([-~!";?+,()\\/*\[\]{}|_])\1*""")
_LINE_BREAK = re.compile(r"\s*\n\s*")
_SPACE = re.compile(r"[^\S\n]+")
# spaCy's strings, which come and go, are the process's, and so may a tokenizer's memory be shared.
_LOCK = threading.Lock()
# Characters of the chunks whose ids are remembered: 25 MB, more than the chunks of forty novels.
_REMEMBERED = 2**20


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


def standardized(text: str, *, tagged: bool = False) -> str:
    """Return text with plain dashes and quotes, spaces around punctuation, and single spaces.

    Of a line break, however many newlines and whatever white space it has, one newline is left,
    between spaces. The rules are those of OpenAI's code, after its ``ftfy.fix_text``, except that
    white space at the ends is left to ``OriginalText``, which knows whether a text goes on.

    Args:
        text: or a piece of one.
        tagged: whether an earlier piece of the text holds an HTML tag.
    """
    return _spaced(repaired(text, tagged=tagged).translate(_PLAIN))


def _spaced(text: str) -> str:
    """Only spaces and newlines come and go here: all other characters stay, in their order."""
    text = _APART.sub(r" \g<0> ", text)
    text = _LINE_BREAK.sub(f" {NEWLINE} ", text)
    return _SPACE.sub(" ", text)


class OriginalText:
    """Encodes text as that of GPT-1's training was, with the merges of a vocabulary.

    What stands between spaces, a chunk, is split on its own, as by the spaCy of GPT-1's time (2.0);
    spaCy 3 given a whole text looks for smileys such as ":o )" over spaces as well. So the ids of
    chunks can be remembered, up to a bound. Threads may share it.

    Args:
        backend: the vocabulary, its merges, and added tokens, which are found in a text as it is
            written and stand between what is prepared.
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        from tokenizers import Tokenizer

        self._backend = backend
        self._merges = Tokenizer(backend.model)  # without a pipeline: it takes words as they are
        self._ids: dict[str, list[int]] = {}
        self._remembered = 0

    def encode(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the ids of each text. Texts are without lone surrogates."""
        rows = [next(self._chunks([text])) for text in texts]
        with _LOCK:
            self._learn(chunk for row in rows for chunk in row)
            return [self._joined(row) for row in rows]

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[list[int]]:
        """Yield the ids of a text piece by piece; a piece ends at white space, or is the last."""
        for chunks in self._chunks(pieces):
            with _LOCK:
                self._learn(chunks)
                ids = self._joined(chunks)
            yield ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """Return the ids of a text, and for each the first and the end of what it came from.

        See ``offsets.aligned`` for what ftfy rewrote. A line break's are those of its white
        space.
        """
        ids: list[int] = []
        spans: list[Span] = []
        start = 0
        for part, end in self._parts(text):
            if isinstance(part, int):
                ids.append(part)
                spans.append((start, end))
            else:
                for id_, (first, last) in self._located(part):
                    ids.append(id_)
                    spans.append((start + first, start + last))
            start = end
        return ids, spans

    def _located(self, text: str) -> Iterator[tuple[int, Span]]:
        """Yield each id of a text that holds no added tokens, and its offsets."""
        fixed, origins = aligned(text)
        plain = [char.translate(_PLAIN) for char in fixed]
        # One entry for each character that is not white space: the words hold these, in order.
        written = [
            origin
            for chars, origin in zip(plain, origins, strict=True)
            for char in chars
            if not char.isspace()
        ]
        chunks = _spaced("".join(plain)).strip().split(" ")
        with _LOCK:
            words = [word for chunk in _words(list(filter(None, chunks))) for word in chunk]
        encoding = self._merges.encode([lower for _, lower in words], is_pretokenized=True)
        starts = []  # of each character of each word in lower case, within `written`
        place = 0
        for word, _ in words:
            at = []
            for char in "" if word.isspace() else word:
                at += [place] * len(char.lower())  # one character may become two
                place += 1
            starts.append([*at, place])
        numbers: list[Any] = encoding.word_ids
        for id_, number, (first, last) in zip(encoding.ids, numbers, encoding.offsets, strict=True):
            at = starts[number]
            if len(at) == 1:  # a line break: what lies between the words beside it
                yield id_, (written[at[0] - 1][1], written[at[0]][0])
            else:
                yield id_, (written[at[first]][0], written[at[last - 1]][1])

    def _joined(self, chunks: Iterable[str | int]) -> list[int]:
        ids: list[int] = []
        for chunk in chunks:
            if isinstance(chunk, int):
                ids.append(chunk)
            else:
                ids += self._ids[chunk]
        return ids

    def _learn(self, chunks: Iterable[str | int]) -> None:
        """Find the ids of chunks that are not known."""
        needed = {chunk for chunk in chunks if isinstance(chunk, str)}
        if self._remembered > _REMEMBERED:
            self._ids.clear()
            self._remembered = 0
        new = [chunk for chunk in needed if chunk not in self._ids]
        if not new:
            return
        words = [[lower for _, lower in pairs] for pairs in _words(new)]
        encodings = self._merges.encode_batch_fast(words, is_pretokenized=True)
        self._ids.update(zip(new, (encoding.ids for encoding in encodings), strict=True))
        self._remembered += sum(map(len, new))

    def _chunks(self, pieces: Iterable[str]) -> Iterator[list[str | int]]:
        """Yield for each piece of a text its chunks and the ids of added tokens.

        ``NEWLINE`` stands where a line ends between two chunks: not at an end of the text, nor
        beside an added token.
        """
        after_chunk = line_break = tagged = False
        for piece in pieces:
            chunks: list[str | int] = []
            for part, _ in self._parts(piece):
                if isinstance(part, int):
                    chunks.append(part)
                    after_chunk = line_break = tagged = False
                    continue
                for chunk in standardized(part, tagged=tagged).split(" "):
                    if chunk == NEWLINE:
                        line_break = after_chunk
                    elif chunk:
                        if line_break:
                            chunks.append(NEWLINE)
                        chunks.append(chunk)
                        after_chunk, line_break = True, False
                tagged = tagged or "<" in part
            yield chunks

    def _parts(self, text: str) -> list[tuple[str | int, int]]:
        """The ids of added tokens and what lies between them, each with its end in the text."""
        added = self._backend.get_added_tokens_decoder()
        if not any(token.normalized or token.content in text for token in added.values()):
            return [(text, len(text))]
        parts: list[tuple[str | int, int]] = []
        end = 0
        encoding = self._backend.encode(text, add_special_tokens=False)
        for id_, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
            # The model may find the same id for a piece of a word, or for an unknown character.
            token = added.get(id_)
            if token and (token.normalized or text[first:last].strip() == token.content):
                parts += [(text[end:first], first), (id_, last)]
                end = last
        return [*parts, (text[end:], len(text))]


def _words(chunks: Sequence[str]) -> list[list[tuple[str, str]]]:
    """The words of each chunk, as written and in lower case; whoever calls holds the lock."""
    language = _language()
    tokenizer: Any = language.tokenizer
    # What spaCy learns of new words is dropped with the zone: it would be kept for ever.
    with language.memory_zone():
        return [
            [(word.text, word.lower_) for word in document] for document in tokenizer.pipe(chunks)
        ]


@functools.cache
def _language() -> Language:
    from spacy.lang.en import English

    return English()
