"""A forward trace against the model's own outputs, and what is told of it against numpy."""

import dataclasses
import functools
import math
import re
import sys
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax
from support.compilations import compilations
from support.small_models import small_model, spoil
from support.small_tokenizer import SIZE, write_small

import gpt1_jax as gpt1
from gpt1_jax.explore import h_0, logit_lens, next_tokens, surprisal, trace_forward
from gpt1_jax.explore.display import show

TEXT = "The thing is a"  # five tokens


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> gpt1.Tokenizer:
    return gpt1.Tokenizer.from_pretrained(write_small(tmp_path_factory.mktemp("small")))


@pytest.fixture(scope="module")
def model() -> gpt1.OpenAIGPTLMHeadModel:
    return small_model(gpt1.OpenAIGPTLMHeadModel, vocab_size=SIZE + 2)


@pytest.fixture(scope="module")
def trace(model: Any, tokenizer: gpt1.Tokenizer) -> Any:
    return trace_forward(model, tokenizer, TEXT)


def test_trace_forward_matches_model_outputs(
    model: Any, tokenizer: gpt1.Tokenizer, trace: Any
) -> None:
    ids = np.array([tokenizer.encode(TEXT)])
    out = model(ids, output_hidden_states=True, output_attentions=True)
    assert trace.ids.tolist() == ids[0].tolist()
    assert trace.tokens == ("the</w>", "th", "ing</w>", "is</w>", "a</w>")
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-6)  # measured: 4.5e-7
    close(trace.hidden_states, [each[0] for each in out.hidden_states])
    close(trace.attentions, [each[0] for each in out.attentions])
    close(trace.log_probs, log_softmax(np.asarray(out.logits[0], np.float64), axis=-1))
    assert trace.vocabulary[-3:] == ("\n</w>", str(SIZE), str(SIZE + 1))
    assert repr(trace) == (
        f"ForwardTrace(5 tokens, hidden_states {trace.hidden_states.shape}, "
        f"attentions {trace.attentions.shape}, log_probs (5, {SIZE + 2}))"
    )


def test_views_of_texts_of_other_lengths_compile_nothing(
    model: Any, tokenizer: gpt1.Tokenizer
) -> None:
    def view(text: str) -> list[int]:
        trace = trace_forward(model, tokenizer, text)
        logit_lens(model, trace)
        h_0(model, trace.ids.tolist())
        return trace.ids.tolist()

    first = view("a")
    with compilations() as compiled:
        others = [view(text) for text in ("a thing", TEXT)]
    assert len({len(ids) for ids in (first, *others)}) == 3
    assert not compiled  # the model's own call compiles some 50 programs for every length


def test_trace_forward_names_a_parameter_that_is_not_finite(tokenizer: gpt1.Tokenizer) -> None:
    model = small_model(gpt1.OpenAIGPTLMHeadModel, vocab_size=SIZE)
    spoil(model, "transformer.h.1.attn.c_proj.kernel")
    with pytest.raises(ValueError, match=r"transformer\.h\.1\.attn\.c_proj\.kernel holds NaN"):
        trace_forward(model, tokenizer, TEXT)


def test_surprisal_matches_log_probs(trace: Any) -> None:
    found = surprisal(trace)
    assert math.isnan(found.bits[0])
    chosen = np.exp(trace.log_probs[np.arange(4), trace.ids[1:]], dtype=np.float64)
    np.testing.assert_allclose(found.bits[1:], -np.log2(chosen), rtol=1e-5)
    assert found.mean == pytest.approx(found.bits[1:].mean())
    assert found.perplexity == pytest.approx(2**found.mean)
    lines = str(found).splitlines()
    assert lines[0] == "      bits    token"
    assert lines[1].split() == ["0", "'the</w>'"]
    assert lines[2].split() == ["1", f"{found.bits[1]:.2f}", "'th'"]
    assert lines[-1] == f"{found.mean:.2f} bits a token, perplexity {found.perplexity:.1f}"
    assert found.coloured().plain == TEXT


def test_surprisal_of_single_token_has_no_mean(model: Any, tokenizer: gpt1.Tokenizer) -> None:
    found = surprisal(trace_forward(model, tokenizer, "a"))
    assert math.isnan(found.mean)
    assert str(found).splitlines()[-1] == "a single token: nothing was expected of it"


def test_surprisal_colours_follow_bits(trace: Any) -> None:
    """The redder, the greater: green and blue fade in the order of the bits."""
    found = surprisal(trace)
    pieces = found.coloured().spans
    assert [TEXT[piece.start : piece.end] for piece in pieces] == ["th", "ing", "is", "a"]
    styles: Any = [piece.style for piece in pieces]
    notes = [f"{bits:.2f} bits" for bits in found.bits[1:]]
    assert [style.meta["note"] for style in styles] == notes
    fades = [-style.bgcolor.triplet.green for style in styles]
    assert np.argsort(fades).tolist() == np.argsort(found.bits[1:]).tolist()
    shown = found._repr_html_()
    assert "bits a token" in shown
    assert all(f'title="{note}"' in shown for note in notes)
    assert "'ing</w>'" not in shown  # no table


def test_next_tokens_are_sorted_by_probability(trace: Any) -> None:
    found = next_tokens(trace, 3)
    order = np.argsort(-trace.log_probs[-1])[:3]
    assert found.ids == tuple(order.tolist())
    assert (found.text, found.after) == (TEXT, "a</w>")
    np.testing.assert_allclose(found.probabilities, np.exp(trace.log_probs[-1, order]))
    everything = next_tokens(trace, 1000, place=0)
    assert len(everything.ids) == SIZE + 2
    assert (everything.text, everything.after) == ("The", "the</w>")
    assert everything.probabilities.sum() == pytest.approx(1, abs=1e-5)
    lines = str(everything).splitlines()
    assert max(map(len, lines)) <= 80
    lengths = [line.count("█") for line in lines]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > 40
    shown = everything._repr_html_().splitlines()
    assert shown[0].count("probability") == 1
    assert [line.count("█") for line in shown[1 : len(lines) + 1]] == lengths
    sure = dataclasses.replace(found, probabilities=np.array([1.0, 0.0, 0.0]))
    assert max(map(len, str(sure).splitlines())) <= 80
    with pytest.raises(ValueError, match="count is 0"):
        next_tokens(trace, 0)
    with pytest.raises(ValueError, match="place is 5, but must be -5 to 4"):
        next_tokens(trace, place=5)


@pytest.mark.parametrize("tied", [True, False])
def test_logit_lens_matches_numpy(tokenizer: gpt1.Tokenizer, tied: bool) -> None:
    model = small_model(gpt1.OpenAIGPTLMHeadModel, vocab_size=SIZE + 2, tie_word_embeddings=tied)
    trace = trace_forward(model, tokenizer, TEXT)
    lens = logit_lens(model, trace)
    # The last layer is what the model itself says.
    np.testing.assert_array_equal(lens.ids[-1], trace.log_probs.argmax(-1))
    np.testing.assert_allclose(lens.probabilities[-1], np.exp(trace.log_probs.max(-1)), rtol=1e-5)
    if tied:
        table: Any = model.transformer.tokens_embed.embedding.get_value()
        logits = trace.hidden_states[1].astype(np.float64) @ np.asarray(table, np.float64).T
        np.testing.assert_array_equal(lens.ids[1], logits.argmax(-1))
        best = np.exp(log_softmax(logits, axis=-1).max(-1))
        # measured: 2e-7
        np.testing.assert_allclose(lens.probabilities[1], best, rtol=1e-5)
    lines = str(lens).splitlines()
    assert [line.split()[0] for line in lines] == ["after", "layer", "layer", "embedding"]
    assert max(map(len, lines)) <= 80
    assert "embedding" in lens._repr_html_()


def test_logit_lens_fits_terminal_width(tokenizer: gpt1.Tokenizer) -> None:
    model = small_model(gpt1.OpenAIGPTLMHeadModel, vocab_size=SIZE + 2, n_positions=64)
    lens = logit_lens(model, trace_forward(model, tokenizer, "the is " * 30))
    lines = str(lens).splitlines()
    assert max(map(len, lines)) <= 80
    # The last places are shown, and dots for those before.
    assert lines[0].split()[1] == "…"
    assert lines[0].split()[-1] == "is"
    assert all(len(line.split()) > 5 for line in lines)
    # A notebook has room for all.
    assert lens._repr_html_().splitlines()[0].split().count("is") == 30


def test_show_prints_colour_only_to_a_terminal(
    trace: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = surprisal(trace)
    show(found, sys.stdout)
    assert capsys.readouterr().out == f"{found}\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    show(found, sys.stdout)
    shown = capsys.readouterr().out
    assert "\x1b[38;2;255;255;255;48;2;" in shown
    # The coloured text, then what is printed elsewhere: the bits are there too.
    text, blank, *table, _ = re.sub(r"\x1b\[[\d;]*m", "", shown).splitlines()
    assert (text, blank, table) == (TEXT, "", str(found).splitlines()[:-1])
    assert shown.endswith(f" bits; {str(found).splitlines()[-1]}\n")
    monkeypatch.setenv("NO_COLOR", "1")
    show(found, sys.stdout)
    assert capsys.readouterr().out == f"{found}\n"


def test_trace_forward_rejects_bad_input(model: Any, tokenizer: gpt1.Tokenizer) -> None:
    with pytest.raises(ValueError, match="the text has 0 tokens, but must have 1 to 8"):
        trace_forward(model, tokenizer, " ")
    with pytest.raises(ValueError, match="the text has 9 tokens"):
        trace_forward(model, tokenizer, "a " * 9)
    several: Any = ["a", "b"]
    with pytest.raises(TypeError, match="text must be a string, not list"):
        trace_forward(model, tokenizer, several)
    headless: Any = small_model(gpt1.OpenAIGPTModel)
    with pytest.raises(ValueError, match="OpenAIGPTModel predicts no tokens"):
        trace_forward(headless, tokenizer, "a")
