"""Which characters of a raw text each character came from, once ftfy has repaired the text."""

import difflib

Span = tuple[int, int]  # the first character and the one after the last

_COMPARED = 1000  # characters: difflib takes up to the square of their number


def repaired(text: str, *, tagged: bool) -> str:
    """Return a piece of a text as ``ftfy.fix_text`` has it within the whole.

    Args:
        text: the piece.
        tagged: whether the text holds an HTML tag before it: from the first one on, ftfy leaves
            entities alone.
    """
    import ftfy

    return ftfy.fix_text(text, unescape_html=False if tagged else "auto")


def aligned(text: str) -> tuple[str, list[Span]]:
    """Return ``ftfy.fix_text(text)``, and for each of its characters where that came from.

    Of a line that ftfy leaves as it is, or whose characters it replaces one by one (curly quotes),
    each character has its own origin. Where ftfy makes more or fewer of them (mojibake, ligatures,
    HTML entities, combining accents), all that replace a run of characters have that run.
    """
    import ftfy

    fixed: list[str] = []
    spans: list[Span] = []
    start = 0
    tagged = False
    longest = ftfy.TextFixerConfig().max_decode_length
    # As fix_text goes through it: by lines, and long ones in parts.
    while start < len(text):
        line_end = text.find("\n", start) + 1 or len(text)
        line = text[start : min(line_end, start + longest)]
        new = repaired(line, tagged=tagged)
        tagged = tagged or "<" in line
        fixed.append(new)
        spans += ((start + first, start + end) for first, end in _origins(line, new))
        start += len(line)
    return "".join(fixed), spans


def _origins(old: str, new: str) -> list[Span]:
    """Where each character of ``new`` came from in ``old``."""
    if len(new) == len(old):
        return _one_by_one(0, len(new))
    first = _common(old, new)
    rest = _common(old[first:][::-1], new[first:][::-1])
    changed, repaired = old[first : len(old) - rest], new[first : len(new) - rest]
    blocks = [("replace", 0, len(changed), 0, len(repaired))]
    if max(len(changed), len(repaired)) <= _COMPARED:
        blocks = difflib.SequenceMatcher(None, changed, repaired, autojunk=False).get_opcodes()
    spans = _one_by_one(0, first)
    for _, start, end, new_start, new_end in blocks:
        start, end = first + start, first + end
        if start == end and old:  # something new, such as a mark in another place: the one before
            start, end = max(0, start - 1), max(1, end)
        if end - start == new_end - new_start:
            spans += _one_by_one(start, end)
        else:
            spans += [(start, end)] * (new_end - new_start)
    return spans + _one_by_one(len(old) - rest, len(old))


def _one_by_one(start: int, end: int) -> list[Span]:
    return [(place, place + 1) for place in range(start, end)]


def _common(one: str, other: str) -> int:
    """The number of characters that both begin with."""
    length = min(len(one), len(other))
    return next((i for i in range(length) if one[i] != other[i]), length)
