"""Where each character of a repaired text came from, against ftfy and by hand."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt1_jax.text.offsets import aligned

ftfy = pytest.importorskip("ftfy")

PARTS = st.one_of(
    st.sampled_from(
        [
            *("\u201cWait\u2026\u201d", "schÃ¶n", "â€œ", "&amp;", "<p>", "ﬁ", "e\u0301", "\uff11"),
            *("a", "the", " ", "\n", "\r\n", "\r", "\u2028", "\x00", "\x85", "\x1b[31m", "🙂"),
            *("\u2019\u2029\xc3\xa9", "ﬁÃ¶", "\u2029", "\u212b"),
        ]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)


@given(st.lists(PARTS, max_size=12).map("".join))
@example("&amp; <p> &amp;\n&amp;")  # entities are left alone from the first tag's line on
@example("&amp;\n<p>\n&amp;")
@example("\u206c\u292d\u1ab2\u1a18")  # marks change places
@example("\u2019\u2029\xc3\xa9")
@settings(max_examples=200)
def test_aligned_matches_ftfy_with_ordered_spans(text: str):
    fixed, spans = aligned(text)
    assert fixed == ftfy.fix_text(text)
    assert len(spans) == len(fixed)
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert [start for start, _ in spans] == sorted(start for start, _ in spans)
    assert [end for _, end in spans] == sorted(end for _, end in spans)


def test_aligned_maps_characters_to_source_spans():
    def shown(text: str) -> list[tuple[str, str]]:
        fixed, spans = aligned(text)
        return [(char, text[slice(*span)]) for char, span in zip(fixed, spans, strict=True)]

    assert shown("a\nbé") == [("a", "a"), ("\n", "\n"), ("b", "b"), ("é", "é")]
    assert shown("“a”") == [('"', "“"), ("a", "a"), ('"', "”")]
    assert shown("schÃ¶n") == [*zip("sch", "sch", strict=True), ("ö", "Ã¶"), ("n", "n")]
    assert shown("oﬃce “x”") == [
        ("o", "o"),
        *[(char, "ﬃ") for char in "ffi"],
        *zip('ce "x"', "ce “x”", strict=True),
    ]
    # Of as many characters as before, but not each from its own.
    assert shown("ﬁÃ¶") == [("f", "ﬁ"), ("i", "ﬁ"), ("ö", "Ã¶")]
    assert shown("&lt;ﬁ<") == [
        *zip("&lt;", "&lt;", strict=True),
        ("f", "ﬁ"),
        ("i", "ﬁ"),
        ("<", "<"),
    ]
    assert shown("&lt;e\u0301\u0328x\u0301&amp;") == [
        *[("<", "&lt;"), ("ę", "e\u0301\u0328"), ("\u0301", "e\u0301\u0328")],
        *[("x", "x"), ("\u0301", "\u0301"), ("&", "&amp;")],
    ]
    # Each from its own, though the line holds mojibake too.
    assert shown("\u2019\u2029Ã©") == [("'", "\u2019"), ("\n", "\u2029"), ("é", "Ã©")]
    assert shown("ﬁ" + "x" * 2000 + "\x00ﬁ")[-3:] == [("x", "x"), ("f", "ﬁ"), ("i", "ﬁ")]
    # A long line whose repairs are far apart: all between them is one run.
    long = "Ã¶" + "x" * 2000 + "Ã¶"
    fixed, spans = aligned(f"a{long}b")
    assert fixed == "aö" + "x" * 2000 + "öb"
    assert spans[0] == (0, 1)
    assert spans[-1] == (len(long) + 1, len(long) + 2)
    assert set(spans[1:-1]) == {(1, len(long) + 1)}
