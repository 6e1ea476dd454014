"""Decoded text as a reader expects it."""

import pytest

from gpt1_jax.text.detokenize import detokenized


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
        ('one " left over', 'one "left over'),
        ('" one . \n two , " he said . " three . "', '"one.\ntwo," he said. "three."'),
        ("cost $ 5 & 50 % , # 1 at 9 : 30", "cost $5 & 50%, #1 at 9:30"),
        ("gon na , got ta", "gonna, gotta"),
        ("1 / 2", "1/2"),
        ("the boys ' house", "the boys ' house"),
        ("", ""),
    ],
)
def test_detokenized_restores_natural_spacing(decoded: str, text: str):
    assert detokenized(decoded) == text
