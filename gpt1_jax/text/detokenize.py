"""Words and punctuation between spaces, as GPT-1 writes them, put together as a reader expects."""

import itertools
import re

_CLOSE_UP = (
    # Contractions, as the original pipeline splits them, and as transformers' does.
    (re.compile(r"(?<=\w) (n't|'(?:s|re|ve|ll|d|m))\b"), r"\1"),
    (re.compile(r"(?<=\w) ' (s|t|re|ve|ll|d|m)\b"), r"'\1"),
    (re.compile(r"\b(gon|got) (na|ta)\b"), r"\1\2"),
    (re.compile(r"\. \. \."), "..."),
    (re.compile(r"(?<=\d) ([.,:/]) (?=\d)"), r"\1"),
    (re.compile(r"(?<=[$#]) (?=\d)"), ""),
    (re.compile(r" (?=[.,;:!?)\]}%])"), ""),
    (re.compile(r"(?<=[(\[{]) "), ""),
    (re.compile(r" ?\n ?"), "\n"),
)
_QUOTE = re.compile(r'( ?)"( ?)')
_SAID = (".", ",", "!", "?", "-")  # what stands before a quotation mark that closes


def detokenized(text: str) -> str:
    """Return decoded text with punctuation closed up, quotations included.

    Double quotes open and close in turn within a line. The first one of a line closes where it
    follows what was said, an odd number of them is in the line, and a line before began the
    quotation. Single quotes stay by themselves, since they may be apostrophes.
    """
    for pattern, replacement in _CLOSE_UP:
        text = pattern.sub(replacement, text)
    lines, within = [], False
    for line in text.split("\n"):
        quoted, within = _quoted(line, within)
        lines.append(quoted)
    return "\n".join(lines)


def settled(text: str) -> str:
    """Return the part of ``detokenized(text)`` that no further words can change.

    Args:
        text: decoded; its last word may be unfinished.
    """
    text = _before_last_word(text)
    # With one quotation mark more, those of a line may close that opened.
    pairs = zip(detokenized(text), detokenized(f'{text} "'), strict=False)
    common = "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return _before_last_word(common)  # further words close up to the last one, and to none before


def _before_last_word(text: str) -> str:
    return text[: max(text.rfind(" "), text.rfind("\n"), 0)]


def _quoted(line: str, within: bool) -> tuple[str, bool]:
    """Return a line whose quotation marks are closed up, and whether it ends in a quotation.

    Args:
        line: without its end.
        within: whether a line before began a quotation that has not ended.
    """
    said = line.partition('"')[0].rstrip()
    within = within and line.count('"') % 2 == 1 and said.endswith(_SAID)

    def closed_up(mark: re.Match[str]) -> str:
        nonlocal within
        within = not within
        before, after = mark.groups()
        return f'{before}"' if within else f'"{after}'

    return _QUOTE.sub(closed_up, line), within
