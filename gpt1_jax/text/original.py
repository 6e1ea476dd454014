"""The words of a text as GPT-1 was trained on them: ftfy, a standardisation, spaCy's English rules.

transformers 5 splits text otherwise: see ``tokenizer.py``. spaCy's tokenizer is a blank one, rules
only: there is no model to download. ftfy and spaCy are the extra "text".
"""

from __future__ import annotations

import functools
import re
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gpt1_jax.text.offsets import Span, aligned, repaired

if TYPE_CHECKING:  # importing them takes a second, which only this pipeline need pay
    import tokenizers
    from spacy.language import Language
    from spacy.tokens import Doc

NEWLINE = "\n"  # of text, and a word of GPT-1's vocabulary
# Dashes (em, en, horizontal bar), the ellipsis, the acute accent.
_PLAIN = str.maketrans(
    {"\u2014": "-", "\u2013": "-", "\u2015": "-", "\u2026": "...", "\u00b4": "'"}
)
# A run of one of these stands by itself. Full stops, colons and single quotes are spaCy's to judge.
_APART = re.compile(r"""([-~!";?+,()\\/*\[\]{}|_])\1*""")
_SPACE = re.compile(r"[^\S\n]+")
_LINE_BREAK = re.compile(r" ?\n\s*")
# spaCy's strings, which come and go, are the process's, and so may a tokenizer's memory be shared.
_LOCK = threading.Lock()
# Characters of spaCy's suffixes, full stops apart: the longest are units, of 5.
_LONGEST_SUFFIX = 16
# Characters of a run of one sign that spaCy is given; its longest special case has 12.
_SHORT_RUN = 64
# Characters of a run of different signs. The time grows with the square: 10,000 take 0.4 s.
_LONGEST_RUN = 10_000
# All that spaCy may take off an end of a chunk, read from that end: signs, "'s", "US$".
_SIGNS = re.compile(r"(?:[ACSUs]{0,2}\W)*")
# Combining marks are among these, and nothing that English texts have runs of.
_MARKS = re.compile(r"[^\w\s\x00-\u02ff]+")
# Characters of the chunks whose ids are remembered: 25 MB, more than the chunks of forty novels.
_REMEMBERED = 2**20


def check_installed() -> None:
    """Check that ftfy and spaCy are there.

    Raises:
        ImportError: they are not; the message says how to get them.
    """
    from gpt1_jax._conversion import extras  # which `import gpt1_jax.text` does without

    extras.require("the original text pipeline", "ftfy", "spacy", extra="text")


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
    text = _SPACE.sub(" ", text)
    return _LINE_BREAK.sub(f" {NEWLINE} ", text)


def _signs(chunk: str) -> int:
    """Return the most times that spaCy goes through a whole chunk."""
    if _is_one_sign(chunk):
        return 1
    found = map(_SIGNS.match, (chunk, chunk[::-1]))
    ends = sum(match.end() for match in found if match)
    return min(len(chunk), ends + chunk.count(":"))  # the pattern of addresses goes on from colons


def _is_slow(chunk: str) -> bool:
    return len(chunk) > _LONGEST_RUN and _signs(chunk) * len(chunk) > _LONGEST_RUN**2


def _check_chunks(chunks: Sequence[str], written: Sequence[Span], start: int) -> None:
    """Raise a ValueError if spaCy would take too long for a chunk; see ``_prepared``."""
    place = 0
    for chunk in chunks:
        if _is_slow(chunk):
            raise ValueError(
                f"the text has {len(chunk)} characters without white space from character "
                f"{start + written[place][0]} ({chunk[0]!r}) on, {_signs(chunk)} of them signs to "
                "be split off one by one: at this length there may be at most "
                f"{_LONGEST_RUN**2 // len(chunk)}"
            )
        place += 0 if chunk == NEWLINE else len(chunk)


def _check_marks(text: str, start: int) -> None:
    """Raise a ValueError if ftfy would take too long to put combining marks in order."""
    if len(text) <= _LONGEST_RUN:
        return
    for run in _MARKS.finditer(text):
        if len(run[0]) > _LONGEST_RUN and not _is_one_sign(run[0]):
            marks = sum(map(bool, map(unicodedata.combining, run[0])))
            if marks > _LONGEST_RUN:
                raise ValueError(
                    f"the text has {marks} combining marks in a row from character "
                    f"{start + run.start()} ({run[0][0]!r}) on: there may be at most {_LONGEST_RUN}"
                )


def _prepared(text: str, *, tagged: bool = False) -> tuple[list[str], list[Span], list[Span]]:
    """Return the chunks of a text, and where they came from.

    For each of their characters but line breaks, in order: its span, and that of the white space
    before it, (0, 0) where there is none.
    """
    fixed, origins = aligned(text, tagged=tagged)
    plain = [char.translate(_PLAIN) for char in fixed]
    written: list[Span] = []
    gaps: list[Span] = []
    gap: Span | None = None
    for chars, origin in zip(plain, origins, strict=True):
        for char in chars:
            if char.isspace():
                gap = (gap or origin)[0], origin[1]
            else:
                written.append(origin)
                gaps.append(gap or (0, 0))
                gap = None
    chunks = _spaced("".join(plain)).strip().split(" ")
    return [chunk for chunk in chunks if chunk], written, gaps


class OriginalText:
    """Encodes text as that of GPT-1's training was, with the merges of a vocabulary.

    What stands between spaces, a chunk, is split on its own, as by the spaCy of GPT-1's time (2.0);
    spaCy 3 given a whole text looks for smileys such as ":o )" over spaces as well. So the ids of
    chunks can be remembered, up to a bound. Threads may share it.

    Args:
        backend: the vocabulary, its merges, and added tokens, which are found in a text as it is
            written and stand between what is prepared. The unknown token is not one of them:
            OpenAI's code reads ``<unk>`` in a text as any other characters.
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        from tokenizers import Tokenizer

        self._backend = backend
        self._merges = Tokenizer(backend.model)  # without a pipeline: it takes words as they are
        model: Any = backend.model
        self._unk_token: str = model.unk_token
        self._ids: dict[str, list[int]] = {}
        self._remembered = 0

    def encode(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the ids of each text. Texts are without lone surrogates.

        Raises:
            ValueError: a run of signs or of combining marks is longer than what spaCy and ftfy get
                through: their time grows with the square of its length.
        """
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

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[Span], list[int]]:
        """Return the ids of a text, and of each where it came from and the number of its word.

        See ``offsets.aligned`` for the first and the end of what ftfy rewrote. A line break's are
        those of its white space.
        """
        ids: list[int] = []
        spans: list[Span] = []
        words: list[int] = []
        start = 0
        for part, end in self._parts(text):
            known = words[-1] + 1 if words else 0
            is_added = isinstance(part, int)
            located = [(part, 0, (0, end - start))] if is_added else self._located(part, start)
            for id_, word, (first, last) in located:
                ids.append(id_)
                spans.append((start + first, start + last))
                words.append(known + word)
            start = end
        return ids, spans, words

    def _located(self, part: str, start: int) -> Iterator[tuple[int, int, Span]]:
        """Yield each id of a part without added tokens, its word, and its offsets in the part."""
        chunks, written, gaps = _prepared(part)
        _check_chunks(chunks, written, start)
        with _LOCK:
            words = [word for chunk in _words(chunks) for word in chunk]
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
            if len(at) == 1:  # a line break: all that lies between the words beside it
                before, gap, after = written[at[0] - 1], gaps[at[0]], written[at[0]]
                yield id_, number, (min(before[1], gap[0]), max(gap[1], after[0]))
            else:
                yield id_, number, (written[at[first]][0], written[at[last - 1]][1])

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
        start = 0  # of the piece in the text
        for piece in pieces:
            chunks: list[str | int] = []
            for part, end in self._parts(piece, start):
                if isinstance(part, int):
                    chunks.append(part)
                    after_chunk = line_break = tagged = False
                    continue
                found = standardized(part, tagged=tagged).split(" ")
                if max(map(len, found)) > _LONGEST_RUN and any(map(_is_slow, found)):
                    prepared, written, _ = _prepared(part, tagged=tagged)
                    _check_chunks(prepared, written, start + end - len(part))
                for chunk in found:
                    if chunk == NEWLINE:
                        line_break = after_chunk
                    elif chunk:
                        if line_break:
                            chunks.append(NEWLINE)
                        chunks.append(chunk)
                        after_chunk, line_break = True, False
                tagged = tagged or "<" in part
            start += len(piece)
            yield chunks

    def _parts(self, text: str, start: int = 0) -> list[tuple[str | int, int]]:
        """Return added tokens' ids and what lies between them, each with its end in the text."""
        _check_marks(text, start)
        decoder = self._backend.get_added_tokens_decoder().items()
        added = {id_: token for id_, token in decoder if token.content != self._unk_token}
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
    """Return each chunk's words, as written and in lower case; the caller holds the lock."""
    language = _language()
    # What spaCy learns of new words is dropped with the zone: it would be kept for ever.
    with language.memory_zone():
        return [_chunk_words(language.tokenizer, chunk) for chunk in chunks]


def _chunk_words(tokenizer: Callable[[str], Doc], chunk: str) -> list[tuple[str, str]]:
    """Return the words of a chunk, as spaCy has them.

    From a run of one sign it takes one at each end at a time, and copies the rest each time. Only
    at the ends and in the middle can words be others than that sign: so a short run, whose length
    is odd where that of the long one is, has the words of the long one but for signs in between.
    """
    sign, length = chunk[0], len(chunk)
    if length > _SHORT_RUN + 1 and _is_one_sign(chunk):
        short = _SHORT_RUN + length % 2
        words = _pairs(tokenizer(sign * short))
        quarter = _SHORT_RUN // 4
        if len(words) > 3 * quarter and words[quarter][0] == words[-quarter][0] == sign:
            more = [words[quarter]] * ((length - short) // 2)
            return words[:quarter] + more + words[quarter:-quarter] + more + words[-quarter:]
    return _pairs(tokenizer(chunk))


def _is_one_sign(chunk: str) -> bool:
    return chunk.count(chunk[0]) == len(chunk)


def _pairs(document: Doc) -> list[tuple[str, str]]:
    return [(word.text, word.lower_) for word in document]


@functools.cache
def _language() -> Language:
    from spacy.lang.en import English
    from spacy.util import compile_suffix_regex

    language = English()
    tokenizer: Any = language.tokenizer
    pattern = compile_suffix_regex(English.Defaults.suffixes or ())

    def suffix_search(chunk: str) -> re.Match[str] | None:
        # spaCy's patterns of suffixes, a run of full stops apart, match a few characters at the
        # end. It looks for them from the beginning, once for every suffix that it takes off.
        return pattern.search(chunk, max(0, len(chunk.rstrip(".")) - _LONGEST_SUFFIX))

    tokenizer.suffix_search = suffix_search
    return language
