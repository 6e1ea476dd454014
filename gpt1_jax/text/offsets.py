"""Which characters of a raw text each character came from, once ftfy has repaired the text."""

import difflib
import functools
import re

Span = tuple[int, int]  # the first character and the one after the last

_COMPARED = 1000  # characters: difflib takes up to the square of their number
# An HTML entity, or a character with the combining marks after it.
_UNIT = re.compile(
    r"&#?[0-9A-Za-z]{1,24};|.[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]{0,30}",
    re.DOTALL,
)


def repaired(text: str, *, tagged: bool) -> str:
    """Return a piece of a text as ``ftfy.fix_text`` has it within the whole.

    Args:
        text: the piece.
        tagged: whether the text holds an HTML tag before it: from the first one on, ftfy leaves
            entities alone.
    """
    import ftfy

    return ftfy.fix_text(text, unescape_html=False if tagged else "auto")


def aligned(text: str, *, tagged: bool = False) -> tuple[str, list[Span]]:
    """Return ``repaired(text)``, and for each of its characters where that came from.

    What ftfy repairs by itself, a character (curly quotes, ligatures, line breaks), an HTML entity
    or a letter with its accents, is the origin of all that it becomes. Elsewhere (mojibake), all
    that replaces a run of characters has that run.

    Both the starts and the ends of the spans never decrease, and no span is empty.

    Args:
        text: a text or a piece of one.
        tagged: as for ``repaired``.
    """
    import ftfy

    fixed: list[str] = []
    spans: list[Span] = []
    start = 0
    longest = ftfy.TextFixerConfig().max_decode_length
    # As fix_text goes through it: by lines, and long ones in parts.
    while start < len(text):
        line_end = text.find("\n", start) + 1 or len(text)
        line = text[start : min(line_end, start + longest)]
        new = repaired(line, tagged=tagged)
        fixed.append(new)
        tagged = tagged or "<" in line
        origins = _origins(line, new, tagged=tagged)
        spans += ((start + first, start + end) for first, end in origins)
        start += len(line)
    return "".join(fixed), spans


def _origins(old: str, new: str, *, tagged: bool) -> list[Span]:
    """Where each character of ``new`` came from in ``old``."""
    if old == new:
        return _one_by_one(0, len(old))
    alone = ""
    origins: list[Span] = []
    for unit in _UNIT.finditer(old):
        repaired = _alone(unit[0], tagged)
        alone += repaired
        origins += (
            _one_by_one(*unit.span()) if repaired == unit[0] else [unit.span()] * len(repaired)
        )
    if alone == new:
        return origins
    # What is left is what ftfy makes of several of these together.
    first = _common(alone, new)
    rest = _common(alone[first:][::-1], new[first:][::-1])
    changed, repaired = alone[first : len(alone) - rest], new[first : len(new) - rest]
    blocks = [("replace", 0, len(changed), 0, len(repaired))]
    if max(len(changed), len(repaired)) <= _COMPARED:
        blocks = difflib.SequenceMatcher(None, changed, repaired, autojunk=False).get_opcodes()
    spans = origins[:first]
    for kind, start, end, new_start, new_end in blocks:
        run = origins[first + start : first + end]
        if kind != "equal":
            # Something new, such as a mark in another place, belongs to the character before it.
            run = run or origins[max(0, first + start - 1) :][:1] or [(0, len(old))]
            run = [(run[0][0], run[-1][1])] * (new_end - new_start)
        spans += run
    return spans + origins[len(origins) - rest :]


@functools.lru_cache(maxsize=4096)
def _alone(unit: str, tagged: bool) -> str:
    """What ftfy makes of a character, an entity or a letter with its accents by itself."""
    return repaired(unit, tagged=tagged)


def _one_by_one(start: int, end: int) -> list[Span]:
    return [(place, place + 1) for place in range(start, end)]


def _common(one: str, other: str) -> int:
    """Return the number of characters that both begin with."""
    length = min(len(one), len(other))
    return next((i for i in range(length) if one[i] != other[i]), length)
