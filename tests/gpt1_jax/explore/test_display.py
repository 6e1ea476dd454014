"""Colours, by their computed contrasts (WCAG 2): on light and dark pages, and on a terminal."""

import itertools
import re

import hypothesis.strategies as st
import pytest
from hypothesis import given
from rich.color_triplet import ColorTriplet
from rich.style import Style

from gpt1_jax.explore.display import BLUE, GREY, PALETTE, RED, mark, token_styles

RGB = tuple[float, float, float]
WHITE, BLACK = (255.0, 255.0, 255.0), (0.0, 0.0, 0.0)
# Background and text of pages: plain, JupyterLab's dark theme, GitHub's dark theme.
PAGES = ((WHITE, BLACK), ((17, 17, 17), (221, 221, 221)), ((13, 17, 23), (230, 237, 243)))
SHARES = [number / 20 for number in range(21)]
READABLE = 4.5  # what WCAG asks of text


def luminance(colour: RGB) -> float:
    channels = [x / 255 / 12.92 if x < 11 else ((x / 255 + 0.055) / 1.055) ** 2.4 for x in colour]
    return sum(x * weight for x, weight in zip(channels, (0.2126, 0.7152, 0.0722), strict=True))


def contrast(one: RGB, other: RGB) -> float:
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def shown(style: Style) -> RGB:
    """The background on a terminal."""
    assert style.bgcolor is not None
    assert style.bgcolor.triplet is not None
    return style.bgcolor.triplet


def on_page(style: Style, page: RGB) -> RGB:
    """The background in HTML: what the page shows through it."""
    found = re.fullmatch(r"background-color: rgba\((.*)\)", style.meta["css"])
    assert found
    *colour, opacity = map(float, found[1].split(","))
    red, green, blue = (x * opacity + y * (1 - opacity) for x, y in zip(colour, page, strict=True))
    return red, green, blue


@pytest.mark.parametrize("colour", [RED, BLUE])
@pytest.mark.parametrize(("page", "text"), PAGES)
def test_mark_in_html_stands_out_more_the_greater_its_share(
    colour: ColorTriplet, page: RGB, text: RGB
) -> None:
    marked = [on_page(mark(share, colour), page) for share in SHARES]
    assert marked[0] == page
    assert all(contrast(each, text) > READABLE for each in marked)
    apart = [contrast(each, page) for each in marked]
    assert apart == sorted(apart)
    assert apart[-1] > 1.9


@pytest.mark.parametrize("colour", [RED, BLUE])
def test_mark_on_a_terminal_is_never_bright_for_a_small_share(colour: ColorTriplet) -> None:
    assert mark(0.0, colour).bgcolor is None
    marks = [shown(mark(share, colour)) for share in SHARES[1:]]
    assert all(contrast(each, WHITE) > READABLE for each in marks)  # the text is white
    # It is hue that grows, and not light: a terminal may be dark or light.
    assert all(contrast(each, GREY) < 1.35 for each in marks)
    assert marks[-1] == colour


@given(ids=st.lists(st.integers(0, 20), max_size=30))
def test_token_styles_tell_neighbours_apart(ids: list[int]) -> None:
    styles = token_styles(ids, ["note"] * len(ids), unknown=0)
    colours = [shown(style) for style in styles]
    assert all(a != b for a, b in itertools.pairwise(colours))
    assert all(contrast(colour, BLACK) > READABLE for colour in colours)  # the text is black
    for place, (id_, colour) in enumerate(zip(ids, colours, strict=True)):
        pure = PALETTE[id_ % len(PALETTE)] if id_ else RED
        # The colour is the token's own, but after a neighbour that has it.
        assert colour == pure or colours[place - 1] == pure
        if colour != pure:
            assert contrast(colour, pure) > 1.35
