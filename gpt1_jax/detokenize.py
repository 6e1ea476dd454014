"""Words and punctuation between spaces, as GPT-1 writes them, put together as a reader expects."""

import re

_CLOSE_UP = (
    # Contractions, as the original pipeline splits them, and as transformers' does.
    (re.compile(r"(?<=\w) (n't|'(?:s|re|ve|ll|d|m))\b"), r"\1"),
    (re.compile(r"(?<=\w) ' (s|t|re|ve|ll|d|m)\b"), r"'\1"),
    (re.compile(r"\. \. \."), "..."),
    (re.compile(r"(?<=\d) ([.,]) (?=\d)"), r"\1"),
    (re.compile(r" (?=[.,;:!?)\]}%])"), ""),
    (re.compile(r"(?<=[(\[{]) "), ""),
    (re.compile(r" ?\n ?"), "\n"),
)
_QUOTED = re.compile(r'" ?([^"\n]*?) ?"')


def detokenized(text: str) -> str:
    """Return decoded text with punctuation closed up, quotations included.

    Double quotes open and close in turn within a line; a single one left over stays by itself.
    """
    for pattern, replacement in _CLOSE_UP:
        text = pattern.sub(replacement, text)
    return _QUOTED.sub(r'"\1"', text)
