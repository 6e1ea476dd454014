"""Decoded text as a reader expects it."""

import pytest

from gpt1_jax.detokenize import detokenized


@pytest.mark.parametrize(
    ("decoded", "text"),
    [
        ('hello , world ! it \'s a " test " .', 'hello, world! it\'s a "test".'),
        ("i do n't , ca n't . we 're", "i don't, can't. we're"),
        ("don ' t and i ' m", "don't and i'm"),
        ('" wait ... " she said . \n he', '"wait..." she said.\nhe'),
        ("wait . . .", "wait..."),
        ("( a ) [ b ]", "(a) [b]"),
        ("3.5 % of 1 , 000 and 2 . 5", "3.5% of 1,000 and 2.5"),
        ('one " left over', 'one " left over'),
        ('" a \n b "', '" a\nb "'),
        ("", ""),
    ],
)
def test_detokenized(decoded: str, text: str):
    assert detokenized(decoded) == text
