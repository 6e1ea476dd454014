"""Embeddings of a drawn table: nearest tokens, and ``h_0`` in two ways."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from support.small_models import random_ids, small_model, spoil
from support.small_tokenizer import write_small

import gpt1_jax as gpt1
from gpt1_jax.explore import embedding, h_0, nearest


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> gpt1.Tokenizer:
    return gpt1.Tokenizer.from_pretrained(write_small(tmp_path_factory.mktemp("small")))


def with_arrows(cls: Any, tokenizer: gpt1.Tokenizer, degrees: Mapping[str, float]) -> Any:
    """A model in whose table words point at angles, the later the longer; others point nowhere."""
    table = np.zeros((len(tokenizer) + 2, 8), np.float32)  # two rows are no token's
    for length, (word, angle) in enumerate(degrees.items(), 1):
        radians = np.deg2rad(angle)
        table[tokenizer.encode(word)[0], :2] = length * np.cos(radians), length * np.sin(radians)
    table[-1] = 1
    model = small_model(cls, vocab_size=len(table))
    body = model if cls is gpt1.OpenAIGPTModel else model.transformer
    body.tokens_embed.embedding.set_value(jnp.asarray(table))
    return model


@pytest.mark.parametrize("cls", [gpt1.OpenAIGPTModel, gpt1.OpenAIGPTLMHeadModel])
def test_nearest_orders_tokens_by_cosine(cls: Any, tokenizer: gpt1.Tokenizer) -> None:
    model = with_arrows(cls, tokenizer, {"a": 0, "b": 60, "c": 30, "d": 180})
    found = nearest(model, tokenizer, "a", 2)
    assert [each.token for each in found] == ["c</w>", "b</w>"]
    cosines = np.cos([np.pi / 6, np.pi / 3])
    # measured: 1.6e-8
    np.testing.assert_allclose([each.cosine for each in found], cosines, rtol=0, atol=1e-6)
    assert str(found).split() == [
        *("cosine", "token", "id"),
        *("0.866", "'c</w>'", str(found[0].id), "0.500", "'b</w>'", str(found[1].id)),
    ]
    assert found._repr_html_().split(">")[2].split()[:3] == ["cosine", "token", "id</span"]
    everything = nearest(model, tokenizer, "a", 1000)
    assert len(everything) == len(tokenizer) - 1
    assert everything[-1].token == "d</w>"
    assert everything[-1].cosine == pytest.approx(-1)
    # One that points nowhere is at a right angle to all, and is no error.
    assert {each.cosine for each in nearest(model, tokenizer, "e")} == {0}


def test_nearest_evaluates_word_arithmetic(tokenizer: gpt1.Tokenizer) -> None:
    """Each at length 1; the words themselves are left out. A lone sign is a word."""
    degrees = {"a": 0, "b": 90, "c": 180, "d": 45, "f": -45, "-": 100}
    model = with_arrows(gpt1.OpenAIGPTModel, tokenizer, degrees)
    sums = {"a + b": "d</w>", "a - b": "f</w>", "- c + b": "d</w>", "-": "b</w>"}
    for words, token in sums.items():
        [found] = nearest(model, tokenizer, words, 1)
        assert found.token == token
    assert nearest(model, tokenizer, "a + b", 1)[0].cosine == pytest.approx(1)


@pytest.mark.nightly
def test_nearest_names_embeddings_that_are_not_finite(tokenizer: gpt1.Tokenizer) -> None:
    model = with_arrows(gpt1.OpenAIGPTModel, tokenizer, {"a": 0})
    spoil(model, "tokens_embed.embedding", np.inf, row=0)
    with pytest.raises(ValueError, match=r"not finite, because the parameter tokens_embed\.embed"):
        nearest(model, tokenizer, "a")


def test_nearest_accepts_subword_tokens(tokenizer: gpt1.Tokenizer) -> None:
    model = with_arrows(gpt1.OpenAIGPTModel, tokenizer, {"a": 0})
    for piece in ("pres", "ing</w>", "<unk>"):
        found = nearest(model, tokenizer, piece, 1000)
        assert piece not in [each.token for each in found]
        assert len(found) == len(tokenizer) - 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "give a word"),
        ("a b", "must be words with"),
        ("a +", "must be words with"),
        ("a + + b", "must be words with"),
        ("thing", "'thing' is not a single token but 'th' 'ing</w>'"),
        ("\u4e2d", "is not a single token"),
        ("\x00", "is not a single token but none"),
    ],
)
def test_nearest_rejects_invalid_words(tokenizer: gpt1.Tokenizer, words: str, message: str) -> None:
    model = with_arrows(gpt1.OpenAIGPTModel, tokenizer, {"a": 0})
    with pytest.raises(ValueError, match=message):
        nearest(model, tokenizer, words)


def test_nearest_rejects_mismatched_tokenizer(tokenizer: gpt1.Tokenizer) -> None:
    with pytest.raises(ValueError, match=f"knows 13 tokens, but the tokenizer {len(tokenizer)}"):
        nearest(small_model(gpt1.OpenAIGPTModel), tokenizer, "a")


def test_embedding_returns_row_by_word_or_id(tokenizer: gpt1.Tokenizer) -> None:
    model = with_arrows(gpt1.OpenAIGPTLMHeadModel, tokenizer, {"a": 0, "b": 90})
    found = embedding(model, tokenizer, "b")
    assert (found.token, found.id) == ("b</w>", tokenizer.encode("b")[0])
    np.testing.assert_allclose(found.values, [0, 2, *[0] * 6], atol=1e-6)
    assert embedding(model, tokenizer, found.id).token == "b</w>"
    head, values = repr(found).split("\n")
    assert head == f"'b</w>'  id {found.id}  shape (8,)  length 2.0000"
    assert values.split()[1] == "2."
    with pytest.raises(ValueError, match="'thing' is not a single token"):
        embedding(model, tokenizer, "thing")
    with pytest.raises(ValueError, match=f"id {len(tokenizer)} is out of range"):
        embedding(model, tokenizer, len(tokenizer))


@pytest.mark.nightly
@pytest.mark.parametrize("cls", [gpt1.OpenAIGPTModel, gpt1.OpenAIGPTForSequenceClassification])
def test_h_0_product_matches_lookup(cls: Any) -> None:
    model = small_model(cls)
    ids = random_ids(5)
    found = h_0(model, ids.tolist())
    body = model if cls is gpt1.OpenAIGPTModel else model.transformer
    tokens, positions = (
        np.asarray(table.embedding.get_value())
        for table in (body.tokens_embed, body.positions_embed)
    )
    np.testing.assert_array_equal(found.look_up, tokens[ids] + positions[:5])
    np.testing.assert_array_equal(found.product, found.look_up)
    assert found.difference == 0
    assert repr(found) == "h_0 (5, 8): U W_e + W_p and the look-up differ by 0.0"
    wrong: Any
    for wrong in ([[1]], [1.5], "abc"):
        with pytest.raises(TypeError):
            h_0(model, wrong)


@pytest.mark.parametrize(
    ("ids", "message"),
    [([], "there are no ids"), ([13], "input_ids"), ([1] * 9, "9")],
)
def test_h_0_rejects_invalid_ids(ids: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        h_0(small_model(gpt1.OpenAIGPTModel), ids)


def test_embedding_of_a_word_does_without_special_tokens(
    tokenizer: gpt1.Tokenizer, tmp_path: Path
) -> None:
    fields = {"bos_token": "<s>", "add_bos_token": True}
    write_small(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
    adds = gpt1.Tokenizer.from_pretrained(tmp_path)
    assert len(adds.encode("b")) == 2
    model = with_arrows(gpt1.OpenAIGPTModel, tokenizer, {"a": 0, "b": 90})
    assert embedding(model, adds, "b").id == embedding(model, tokenizer, "b").id
