"""Decoded text as a reader expects it."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from gpt1_jax.text.detokenize import detokenized, settled


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
        # A text begins no quotation that it did not open, and may end within one.
        ("he turned , \" i do n't", "he turned, \"i don't"),
        ('" one . \n he said , " two . "', '"one.\nhe said, "two."'),
        ('" one . "\n two , " three', '"one."\ntwo, "three'),
        ("cost $ 5 & 50 % , # 1 at 9 : 30", "cost $5 & 50%, #1 at 9:30"),
        ("gon na , got ta", "gonna, gotta"),
        ("1 / 2", "1/2"),
        ("the boys ' house", "the boys ' house"),
        ("", ""),
    ],
)
def test_detokenized_restores_natural_spacing(decoded: str, text: str):
    assert detokenized(decoded) == text


WORDS = ("he", "said", "do", "n't", "'", "s", '"', ",", ".", "\n", "(", ")", "5", "$", "gon", "na")


@given(st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join), st.data())
def test_settled_text_is_not_changed_by_what_follows(text: str, data: st.DataObject) -> None:
    so_far = text[: data.draw(st.integers(0, len(text)))]
    assert detokenized(text).startswith(settled(so_far))


def test_settled_text_lags_by_two_words_where_nothing_is_open() -> None:
    assert settled("he said , \" i do n't know") == 'he said, "i'
    assert settled("he said , \" i do n't know it") == "he said, \"i don't"
    # Whether a mark of a later line closes is known at the line's end.
    assert settled('" one \n two , " three four five') == '"one'
    assert settled('" one \n two , " three four \n five six') == '"one\ntwo," three four'
