"""Words and punctuation between spaces, as GPT-1 writes them, put together as a reader expects."""

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

    Double quotes open and close in turn within a line. The first one closes where an odd number of
    them follows what was said: the quotation began in a line before. Single quotes stay by
    themselves, since they may be apostrophes.
    """
    for pattern, replacement in _CLOSE_UP:
        text = pattern.sub(replacement, text)
    return "\n".join(map(_quoted, text.split("\n")))


def _quoted(line: str) -> str:
    """Return a line whose quotation marks are closed up."""
    said = line.partition('"')[0].rstrip()
    within = line.count('"') % 2 == 1 and said.endswith(_SAID)

    def closed_up(mark: re.Match[str]) -> str:
        nonlocal within
        within = not within
        before, after = mark.groups()
        return f'{before}"' if within else f'"{after}'

    return _QUOTE.sub(closed_up, line)
