"""Pictures: what they hold, not how they look; files whole or not at all."""

import dataclasses
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


def test_draw_attention_shows_chosen_heads(trace: Any) -> None:
    picture = draw_attention(trace, 1, 0)
    axes, bar = picture.figure.axes
    np.testing.assert_array_equal(axes.images[0].get_array(), trace.attentions[1, 0])
    assert axes.get_title() == "layer 1, head 0"
    words = [text.get_text() for text in axes.get_yticklabels()]
    assert words == ["the", "th·", "ing", "<unk>", "1", "<unk>"]
    assert bar.get_ylabel() == "share"
    assert picture._repr_png_().startswith(PNG)
    every = draw_attention(trace, 0).figure.axes
    assert [axes.get_title() for axes in every[:-1]] == ["layer 0, head 0", "layer 0, head 1"]
    for layer, head, message in (
        (2, 0, "layer is 2, but must be 0 to 1"),
        (-1, 0, "layer is -1"),
        (0, 2, "head is 2"),
    ):
        with pytest.raises(ValueError, match=message):
            draw_attention(trace, layer, head)


def test_draw_attention_limits_labels_for_large_input(trace: Any) -> None:
    """More heads than fit beside each other, and more tokens than can be named."""
    many = dataclasses.replace(trace, attentions=np.tile(trace.attentions, (1, 5, 1, 1)))
    *maps, _ = draw_attention(many, 1).figure.axes
    assert len(maps) == 10
    named = [bool(axes.get_yticklabels()) for axes in maps]
    assert named == [number % 4 == 0 for number in range(10)]
    assert [bool(axes.get_xticklabels()) for axes in maps] == [False] * 6 + [True] * 4
    long = dataclasses.replace(trace, attentions=np.zeros((1, 1, 50, 50)), tokens=("the</w>",) * 50)
    for head in (None, 0):
        picture = draw_attention(long, 0, head)
        assert not picture.figure.axes[0].get_xticklabels()
        assert picture._repr_png_().startswith(PNG)


def test_draw_attention_escapes_dollar_signs(trace: Any) -> None:
    odd = dataclasses.replace(trace, tokens=("$x^{$</w>",) * 6)
    assert draw_attention(odd, 0)._repr_png_().startswith(PNG)


def test_draw_next_tokens_plots_probabilities(trace: Any) -> None:
    expected = next_tokens(trace, 4)
    (axes,) = draw_next_tokens(expected).figure.axes
    bars: Any = axes.patches
    widths = [bar.get_width() for bar in bars]
    np.testing.assert_allclose(widths, expected.probabilities)
    assert len(axes.get_yticklabels()) == 4


def test_draw_logit_lens_plots_probabilities(model: Any, trace: Any) -> None:
    lens = logit_lens(model, trace)
    axes, _ = draw_logit_lens(lens).figure.axes
    np.testing.assert_array_equal(axes.images[0].get_array(), lens.probabilities)
    assert len(axes.texts) == lens.ids.size
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "embedding",
        "layer 0",
        "layer 1",
    ]


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
