"""Pictures: what they hold, not how they look; files whole or not at all."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.small_models import small_model
from support.small_tokenizer import SIZE, write_small

import gpt1_jax as gpt1
from gpt1_jax.explore import (
    draw_attention,
    draw_logit_lens,
    draw_next_tokens,
    logit_lens,
    next_tokens,
    trace_forward,
)

pytest.importorskip("matplotlib")
PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def model() -> gpt1.OpenAIGPTLMHeadModel:
    return small_model(gpt1.OpenAIGPTLMHeadModel, vocab_size=SIZE)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory, model: gpt1.OpenAIGPTLMHeadModel) -> Any:
    folder = write_small(tmp_path_factory.mktemp("small"))
    return trace_forward(model, gpt1.Tokenizer.from_pretrained(folder), "The thing $1\u4e2d")


def assert_all_is_shown(picture: Any) -> None:
    """Every text lies in the picture, and no title on another."""
    figure = picture.figure
    figure.draw_without_rendering()
    inside = figure.bbox.padded(1)
    titles = [figure._suptitle, *(axes.title for axes in figure.axes)]
    texts = [*figure.texts, *titles]
    for axes in figure.axes:
        texts += axes.texts
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
            texts += [axis.label, *(label for place, label in ticks if low <= place <= high)]
    for text in (text for text in texts if text.get_text() and text.get_visible()):
        box = text.get_window_extent()
        assert inside.contains(*box.min), text
        assert inside.contains(*box.max), text
    boxes = [title.get_window_extent() for title in titles if title.get_text()]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])


def longer(trace: Any, T: int, heads: int = 1) -> Any:
    """A trace of other tokens and heads, which attend to nothing."""
    zeros = np.zeros((2, heads, T, T))
    return dataclasses.replace(
        trace, attentions=zeros, tokens=("throughout</w>",) * T, ids=np.zeros(T, int)
    )


def test_draw_attention_shows_chosen_heads(trace: Any) -> None:
    picture = draw_attention(trace, 1, 0)
    axes, bar = picture.figure.axes
    np.testing.assert_array_equal(axes.images[0].get_array(), trace.attentions[1, 0])
    assert picture.figure.get_suptitle() == "Attention of layer 1, head 0"
    words = [text.get_text() for text in axes.get_yticklabels()]
    assert words == ["the", "th·", "ing", "<unk>", "1", "<unk>"]
    assert "key" in picture.figure.get_supxlabel()
    assert "query" in picture.figure.get_supylabel()
    assert "attention weight" in bar.get_ylabel()
    assert picture._repr_png_().startswith(PNG)
    assert_all_is_shown(picture)
    every = draw_attention(trace, 0)
    assert every.figure.get_suptitle() == "Attention of layer 0"
    *maps, _ = every.figure.axes
    assert [axes.get_title() for axes in maps] == ["head 0", "head 1"]
    assert_all_is_shown(every)
    for layer, head, message in (
        (2, 0, "layer is 2, but must be 0 to 1"),
        (-1, 0, "layer is -1"),
        (0, 2, "head is 2"),
    ):
        with pytest.raises(ValueError, match=message):
            draw_attention(trace, layer, head)


def test_draw_attention_limits_labels_for_large_input(trace: Any) -> None:
    """More heads than fit beside each other, and more tokens than can be named."""
    many = draw_attention(longer(trace, 26, heads=6), 1)
    *maps, _ = many.figure.axes
    assert len(maps) == 6
    named = [bool(axes.get_yticklabels()) for axes in maps]
    assert named == [number % 4 == 0 for number in range(6)]
    assert [bool(axes.get_xticklabels()) for axes in maps] == [False] * 2 + [True] * 4
    assert_all_is_shown(many)
    # Names beside each other do not touch.
    boxes = [label.get_window_extent() for label in maps[-1].get_xticklabels()]
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
    for head in (None, 0):
        picture = draw_attention(longer(trace, 50), 0, head)
        labels = [label.get_text() for label in picture.figure.axes[0].get_xticklabels()]
        assert all(label.isdigit() for label in labels if label and label[0].isascii())
        assert "number of the token" in picture.figure.get_supxlabel()
        assert picture._repr_png_().startswith(PNG)


def test_pictures_escape_dollar_signs(trace: Any) -> None:
    odd = dataclasses.replace(trace, tokens=("$x^{$</w>",) * 6, text="costs $x^{$")
    assert draw_attention(odd, 0)._repr_png_().startswith(PNG)
    assert draw_next_tokens(next_tokens(odd, 2))._repr_png_().startswith(PNG)


def test_draw_next_tokens_plots_probabilities(trace: Any) -> None:
    expected = next_tokens(trace, 4, place=2)
    picture = draw_next_tokens(expected)
    (axes,) = picture.figure.axes
    bars: Any = axes.patches
    widths = [bar.get_width() for bar in bars]
    np.testing.assert_allclose(widths, expected.probabilities)
    assert len(axes.get_yticklabels()) == 4
    title = "The 4 most probable next tokens after\n\u201cThe thing\u201d"
    assert picture.figure.get_suptitle() == title
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("probability", "next token")
    assert_all_is_shown(picture)
    assert all(label.get_text().endswith("%") for label in axes.get_xticklabels())
    # Of a long text the end, and no more bars than can be read.
    long = dataclasses.replace(trace, text="word " * 50 + "the end", spans=((0, 257),) * 6)
    picture = draw_next_tokens(next_tokens(long, SIZE))
    (axes,) = picture.figure.axes
    assert len(axes.patches) == 50
    assert picture.figure.get_suptitle().endswith(" word the end\u201d")
    assert_all_is_shown(picture)


def test_draw_logit_lens_plots_probabilities(model: Any, trace: Any) -> None:
    lens = logit_lens(model, trace)
    picture = draw_logit_lens(lens)
    axes, bar = picture.figure.axes
    np.testing.assert_array_equal(axes.images[0].get_array(), lens.probabilities)
    assert len(axes.texts) == lens.ids.size
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "embedding",
        "layer 0",
        "layer 1",
    ]
    assert "most probable next token" in " ".join(picture.figure.get_suptitle().split())
    assert axes.get_xlabel() == "token that has been read"
    assert bar.get_ylabel() == "probability"
    assert_all_is_shown(picture)


@pytest.mark.parametrize(("T", "places"), [(13, [7, 6]), (500, [12] * 5)])
def test_draw_logit_lens_wraps_long_texts(
    model: Any, trace: Any, T: int, places: list[int]
) -> None:
    """The last places are shown, in rows; the picture says how many there are."""
    lens = logit_lens(model, trace)
    tokens = tuple(f"{number}throughout</w>" for number in range(T))
    shares = np.linspace(0, 1, 3 * T).reshape(3, T)
    trace = dataclasses.replace(trace, tokens=tokens)
    lens = dataclasses.replace(
        lens, trace=trace, tokens=(tokens,) * 3, ids=np.zeros((3, T), int), probabilities=shares
    )
    picture = draw_logit_lens(lens)
    *rows, _ = picture.figure.axes
    parts = [np.asarray(axes.images[0].get_array()) for axes in rows]
    assert [part.shape for part in parts] == [(3, count) for count in places]
    shown = np.concatenate(parts, axis=1)
    np.testing.assert_array_equal(shown, shares[:, -sum(places) :])
    assert ("the last 60 of 500 tokens" in picture.figure.get_suptitle()) == (T == 500)
    assert picture.figure.get_size_inches().max() < 20
    assert_all_is_shown(picture)
    # A long token stays in its cell.
    cell = rows[0].transData.transform([(0, 0), (1, 0)])
    assert rows[0].texts[0].get_window_extent().width < cell[1][0] - cell[0][0]


def test_figure_save_writes_supported_formats_only(trace: Any, tmp_path: Path) -> None:
    picture = draw_attention(trace, 0)
    picture.save(tmp_path / "new" / "picture.PNG")
    assert (tmp_path / "new" / "picture.PNG").read_bytes().startswith(PNG)
    picture.save(tmp_path / "picture.svg")
    assert "<svg" in (tmp_path / "picture.svg").read_text()
    for name in ("picture", "picture.txt"):
        with pytest.raises(ValueError, match=f"{name}: a picture ends in one of"):
            picture.save(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "picture.svg"]
