"""Scores of texts: windows, contexts, words, batches and errors, against plain numpy in float64."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from support.compilations import compilations
from support.small_models import SIZES, difference, numpy_logits, random_ids, small_model, spoil
from support.small_tokenizer import SIZE, write_small
from support.vocabularies import write_bert

import gpt1_jax as gpt1
from gpt1_jax import scoring
from gpt1_jax.explore import surprisal
from gpt1_jax.pure import split
from gpt1_jax.scoring import batch_shapes, spread

T, V = SIZES["n_positions"], SIZES["vocab_size"]
MODEL = small_model(gpt1.OpenAIGPTLMHeadModel)
TEXT_MODEL = small_model(gpt1.OpenAIGPTLMHeadModel, vocab_size=SIZE, n_positions=64)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def slow_log_probs(ids: np.ndarray, first: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Each token's log-probability and whether it is the likeliest, token by token."""
    log_probs, greedy = np.full(len(ids), np.nan), np.zeros(len(ids), bool)
    end = min(T, len(ids) - 1)  # of the window that scores token i
    for i in range(first, len(ids)):
        if i > end:
            end = min(end + stride, len(ids) - 1)
        own = log_softmax(numpy_logits(split(MODEL)[1], ids[None, max(0, end - T) : i]))[0, -1]
        log_probs[i], greedy[i] = own[ids[i]], own.argmax() == ids[i]
    return log_probs, greedy


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> gpt1.Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    return gpt1.Tokenizer.from_pretrained(write_small(folder))


@settings(max_examples=400)
@given(st.integers(1, 12), st.integers(2, 60), st.data())
def test_windows_score_each_token_once(n_positions: int, count: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, n_positions))
    first = data.draw(st.integers(1, n_positions))
    scored: list[int] = []
    for start, stop, counted in spread(first, count, n_positions, stride):
        assert 0 <= start < stop <= count - 1
        assert start == 0 or stop - start == n_positions
        assert start < counted <= stop
        assert not scored or stop + 1 - counted <= stride
        scored += range(counted, stop + 1)
    assert scored == list(range(first, count))


@pytest.mark.smoke
@pytest.mark.parametrize("stride", [None, 1, 3, T])
def test_score_equals_numpy(stride: int | None) -> None:
    texts = [random_ids(n, seed=n) for n in (1, 2, 5, 8, 9, 10, 17, 23)]
    contexts = [0, 1, None, 3, 8, 0, None, 5]
    with jax.numpy_rank_promotion("raise"):
        scores = gpt1.score(MODEL, texts, contexts, stride=stride)
    for text, context, found in zip(texts, contexts, scores, strict=True):
        log_probs, greedy = slow_log_probs(text, max(1, context or 0), stride or T // 2)
        assert found.ids.tolist() == text.tolist()
        assert np.isnan(found.log_probs).tolist() == np.isnan(log_probs).tolist()
        assert difference(np.nan_to_num(found.log_probs), np.nan_to_num(log_probs)) < 1e-5
        assert found.is_greedy.tolist() == greedy.tolist()
        assert (found.tokens, found.spans, found.context_tokens) == ((), (), context or 0)


def test_score_reads_bos_before_the_first_token() -> None:
    text = random_ids(10)
    (found,) = gpt1.score(MODEL, [text], bos_token_id=7)
    log_probs, _ = slow_log_probs(np.array([7, *text]), 1, T // 2)
    assert found.ids.tolist() == text.tolist()
    assert difference(found.log_probs, log_probs[1:]) < 1e-5
    assert found.num_scored == 10


def test_score_context_of_ids_goes_before_the_text() -> None:
    ids = random_ids(7)
    (apart,) = gpt1.score(MODEL, [ids[4:].tolist()], [ids[:4].tolist()])
    (counted,) = gpt1.score(MODEL, [ids], [4])
    assert apart.ids.tolist() == ids.tolist()
    np.testing.assert_array_equal(apart.log_probs, counted.log_probs)
    assert np.isnan(apart.log_probs).tolist() == [True] * 4 + [False] * 3


def test_score_does_not_depend_on_the_batch() -> None:
    texts = [random_ids(n, seed=n) for n in (3, 30, 8, 12)]
    together = gpt1.score(MODEL, texts, batch_tokens=16)
    for text, found in zip(texts, together, strict=True):
        (alone,) = gpt1.score(MODEL, [text])
        assert difference(np.nan_to_num(found.log_probs), np.nan_to_num(alone.log_probs)) < 1e-5


@pytest.mark.nightly
def test_score_compiles_a_program_for_each_length(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(gpt1.OpenAIGPTLMHeadModel, n_positions=80, n_layer=1)
    texts = [random_ids(n % 150 + 2, seed=n) for n in range(0, 1500, 37)]
    shapes: list[tuple[int, int]] = []
    score_batch = scoring._score_batch

    def recorded(*arguments: Any) -> Any:
        shapes.append(arguments[-1])
        return score_batch(*arguments)

    monkeypatch.setattr(scoring, "_score_batch", recorded)
    monkeypatch.setattr(scoring, "COMPILATION", 64)
    split(model)
    with compilations() as found:
        gpt1.score(model, texts, batch_tokens=200)
    lengths = {length for _, length in shapes}
    assert len(found) == len(set(shapes)) == len(lengths)
    assert len(lengths) >= 3
    with compilations() as found:
        gpt1.score(model, texts[::-1], batch_tokens=200)
    assert not found


@settings(max_examples=300)
@given(st.lists(st.integers(1, 70), max_size=80).map(lambda n: n * 9), st.integers(1, 600))
def test_batch_shapes_hold_all_windows_by_few_lengths(lengths: list[int], tokens: int) -> None:
    lengths.sort(reverse=True)
    shapes = list(batch_shapes(lengths, 70, tokens))
    assert len(set(shapes)) == len({length for _, length in shapes})
    begin = 0
    for rows, length in shapes:
        assert rows == 1 or rows * length <= tokens
        assert lengths[begin] <= length <= 70
        begin += rows
    assert begin >= len(lengths)
    assert begin == 0 or begin - shapes[-1][0] < len(lengths)


@pytest.mark.parametrize(("longest", "most"), [(30, 1.2), (100, 1.16)])
def test_batch_shapes_compute_little_padding(longest: int, most: float) -> None:
    lengths = sorted(np.random.default_rng(0).integers(3, longest, 1000).tolist(), reverse=True)
    computed = sum(rows * length for rows, length in batch_shapes(lengths, 512, 4096))
    assert computed < most * sum(lengths)


def test_batch_shapes_take_windows_of_one_length_at_once() -> None:
    assert list(batch_shapes([6] * 192, 512, 192 * 8)) == [(192, 8)]


@pytest.mark.nightly
@pytest.mark.parametrize(
    "kind", ["bfloat16", "float16", "int8", "untied", "double_heads", "chunks"]
)
def test_score_of_other_models_equals_their_logits(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = gpt1.OpenAIGPTDoubleHeadsModel if kind == "double_heads" else gpt1.OpenAIGPTLMHeadModel
    dtype = kind if kind.endswith("float16") else None
    model: Any = small_model(cls, dtype=dtype, tie_word_embeddings=kind != "untied", n_layer=1)
    if kind == "int8":
        model = gpt1.quantize(model)
    if kind == "chunks":
        monkeypatch.setattr(scoring, "CHUNK", 3)  # which divides nothing
    ids = random_ids(8)
    apply, params = gpt1.functional(model)
    logits = np.asarray(apply(params, ids[None, None]).logits, np.float64).reshape(8, V)
    expected = np.take_along_axis(log_softmax(logits[:-1]), ids[1:, None], axis=-1)[:, 0]
    (found,) = gpt1.score(model, [ids])
    assert difference(found.log_probs[1:], expected) < (0.02 if dtype else 1e-5)


SENTENCES: Sequence[tuple[str, str, list[str], list[str]]] = [
    # context, text, words, words that stand between white space
    ("", "The press is in.", ["The", "press", "is", "in", "."], ["The", "press", "is", "in."]),
    ("", "pressing, thing", ["pressing", ",", "thing"], ["pressing,", "thing"]),
    ("the", " 'is' - in", ["'", "is", "'", "-", "in"], ["'is'", "-", "in"]),
    ("the press", "ing is", ["ing", "is"], ["ing", "is"]),
    ("", "\u00e9a  \u4e2d b!?", ["\u00e9a", "\u4e2d", "b", "!", "?"], ["\u00e9a", "\u4e2d", "b!?"]),
]


@pytest.mark.parametrize(("context", "text", "own", "joined"), SENTENCES)
def test_score_words(
    tokenizer: gpt1.Tokenizer, context: str, text: str, own: list[str], joined: list[str]
) -> None:
    (found,) = gpt1.score(TEXT_MODEL, [text], [context], tokenizer=tokenizer)
    assert found.ids.tolist() == tokenizer.encode(context + text)
    raw = context + text
    assert found.raw_text == raw
    for words, expected in ((found.words, own), (found.split_words(join_punctuation=True), joined)):
        assert [word.text for word in words] == expected
        assert [raw[slice(*word.span)] for word in words] == expected
        total = sum(word.log_prob for word in words)
        if context:
            assert total == pytest.approx(found.sum)
        else:
            assert np.isnan(words[0].log_prob)


@settings(max_examples=300)
@given(st.text("the press\u00e9\u4e2d\u201c'-.\n  ", max_size=9), st.text("thing.,' ", max_size=9))
def test_score_words_hold_each_token_once(
    tokenizer: gpt1.Tokenizer, context: str, text: str
) -> None:
    text = f"{text} e"
    (found,) = scoring._tokenize([text], [context], tokenizer, SIZE)
    found.log_probs[found.context_tokens :] = np.arange(len(found.ids) - found.context_tokens)
    raw = context + text
    whole = [match.span() for match in re.finditer(r"\S+", raw) if match.end() > len(context)]
    joined = [word.span for word in found.split_words(join_punctuation=True)]
    assert [end for _, end in joined] == [end for _, end in whole]
    assert [start for start, _ in joined[1:]] == [start for start, _ in whole[1:]]
    for words in (found.words, found.split_words(join_punctuation=True)):
        assert sum(word.log_prob for word in words) == found.sum
        assert all(raw[slice(*word.span)] == word.text for word in words)
    for word, following in itertools.pairwise(found.words):
        assert word.span[1] <= following.span[0]
        assert len(word.text) == 1 or not set(word.text) & set("\u201c'-.,")


def test_score_token_across_the_border_belongs_to_the_text(tokenizer: gpt1.Tokenizer) -> None:
    (found,) = gpt1.score(TEXT_MODEL, ["e press"], ["is th"], tokenizer=tokenizer)
    assert found.tokens[:2] == ("is</w>", "the</w>")
    assert found.context_tokens == 1
    assert not np.isnan(found.log_probs[1:]).any()


def test_score_characters_are_those_of_the_text(tokenizer: gpt1.Tokenizer) -> None:
    # "\u00c9" is cleaned to "e" and the two spaces fall away, but the raw text is what counts.
    texts, contexts = ["th\u00c9  press", " is a", "the is a"], [None, "the press", 1]
    found = gpt1.score(TEXT_MODEL, texts, contexts, tokenizer=tokenizer)
    assert [each.characters for each in found] == [10, 5, 5]
    raw_text = texts[0]
    assert found[0].raw_text == raw_text
    assert [raw_text[slice(*word.span)] for word in found[0].words] == ["th\u00c9", "press"]
    (ids,) = gpt1.score(TEXT_MODEL, [[1, 2]], tokenizer=tokenizer)
    assert (ids.characters, len(ids.tokens)) == (None, 2)
    assert np.isnan(ids.bits_per_character)
    with pytest.raises(ValueError, match="words need texts: ids were scored"):
        ids.split_words()
    with pytest.raises(ValueError, match="surprisal needs the score of a text"):
        surprisal(ids)


def test_score_measures(tokenizer: gpt1.Tokenizer) -> None:
    (found,) = gpt1.score(TEXT_MODEL, ["the press is"], tokenizer=tokenizer)
    scored = found.log_probs[1:].astype(np.float64)
    assert found.sum == pytest.approx(scored.sum())
    assert found.mean == pytest.approx(scored.mean())
    assert found.perplexity == pytest.approx(np.exp(-scored.mean()))
    assert found.bits_per_character == pytest.approx(-scored.sum() / np.log(2) / 12)
    np.testing.assert_allclose(found.surprisal[1:], -scored / np.log(2), rtol=1e-6)
    (single,) = gpt1.score(TEXT_MODEL, ["the"], tokenizer=tokenizer)
    assert single.sum == 0.0
    assert np.isnan([single.mean, single.perplexity, single.bits_per_character]).all()


def test_score_of_no_texts_is_empty() -> None:
    assert gpt1.score(MODEL, []) == []


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([[1, 13]], {}, r"text 0\[1\] is 13, but must be in \[0, 13\), vocab_size being 13"),
        ([[1], []], {}, "text 1 has no tokens"),
        ([[1]], {"contexts": [1]}, r"context 0 is 1, but must be in \[0, 1\), the text's tokens"),
        ([[1]], {"contexts": [[1] * 9]}, "context 0 has 9 tokens, but .* n_positions = 8"),
        ([[1]], {"contexts": []}, "there are 1 texts, but 0 contexts"),
        ([[[1]]], {}, r"text 0 has shape \(1, 1\), but must be \(T,\)"),
        ([1, 2], {}, r"text 0 has shape \(\), but must be \(T,\)"),
        (["a"], {"contexts": "b"}, "contexts is a single string, but must be a list of texts"),
        ([[1.5]], {}, "text 0 has dtype float64, but must be integer"),
        ([[1, 2]], {"stride": 9}, r"stride is 9, but must be an integer in \[1, 8\]"),
        ([[1, 2]], {"batch_tokens": 0}, "batch_tokens is 0, but must be at least 1"),
        ([[1, 2]], {"bos_token_id": 13}, r"bos_token_id is 13, but must be an integer in \[0, 13"),
        ("the", {}, "texts is a single string, but must be a list of texts"),
        (["the", [1]], {}, "texts and contexts must be all strings or all ids, but are mixed"),
        (["the"], {}, "texts are strings, which need a tokenizer"),
    ],
)
def test_score_refuses(texts: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        gpt1.score(MODEL, texts, **options)


def test_score_refuses_a_text_of_the_template_alone(tmp_path: Path) -> None:
    tokenizer = gpt1.Tokenizer.from_pretrained(write_bert(tmp_path))
    assert len(tokenizer.encode("  ")) == 2  # [CLS] [SEP]
    model = small_model(gpt1.OpenAIGPTLMHeadModel, vocab_size=len(tokenizer))
    for texts, contexts in ((["  "], None), ([" "], ["hello"])):
        with pytest.raises(ValueError, match="text 0 has no tokens"):
            gpt1.score(model, texts, contexts, tokenizer=tokenizer)


def test_score_refuses_a_model_without_a_head_or_with_nan() -> None:
    body: Any = small_model(gpt1.OpenAIGPTModel)
    with pytest.raises(TypeError, match="must have a language-modelling head"):
        gpt1.score(body, [[1, 2]])
    model = small_model(gpt1.OpenAIGPTLMHeadModel)
    spoil(model, "transformer.h.0.mlp.c_fc.bias")
    with pytest.raises(ValueError, match=r"logits are not finite.*h\.0\.mlp\.c_fc\.bias"):
        gpt1.score(model, [[1, 2]])
