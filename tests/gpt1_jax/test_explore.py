"""The printed tree and the table of tokens, letter by letter; nearest tokens in a drawn table."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_models import small_config, small_model
from small_tokenizer import write_small

import gpt1_jax as gpt1
from gpt1_jax.explore import nearest, token_table

BLOCK = """\
Block(
  (attn): Attention(
    (c_attn): Linear(in_features=8, out_features=24, use_bias=True)
    (c_proj): Linear(in_features=8, out_features=8, use_bias=True)
    (attn_dropout): Dropout(rate=0.1)
    (resid_dropout): Dropout(rate=0.2)
  )
  (ln_1): LayerNorm(num_features=8, epsilon=1e-05)
  (mlp): MLP(
    (c_fc): Linear(in_features=8, out_features=32, use_bias=True)
    (c_proj): Linear(in_features=32, out_features=8, use_bias=True)
    (act): gelu_new()
    (dropout): Dropout(rate=0.2)
  )
  (ln_2): LayerNorm(num_features=8, epsilon=1e-05)
)"""
BODY = f"""\
OpenAIGPTModel(
  (tokens_embed): Embed(num_embeddings=13, features=8)
  (positions_embed): Embed(num_embeddings=8, features=8)
  (drop): Dropout(rate=0.3)
  (h): List(
    (0-2): 3 x {BLOCK.replace(chr(10), chr(10) + "    ")}
  )
)"""
INDENTED = BODY.replace("\n", "\n  ")
TIED = "(lm_head): TiedLinear(in_features=8, out_features=13, use_bias=False)"
TREES = {
    "OpenAIGPTModel": BODY,
    "OpenAIGPTLMHeadModel": f"""\
OpenAIGPTLMHeadModel(
  (transformer): {INDENTED}
  {TIED}
)""",
    "OpenAIGPTDoubleHeadsModel": f"""\
OpenAIGPTDoubleHeadsModel(
  (transformer): {INDENTED}
  {TIED}
  (multiple_choice_head): OpenAIGPTSequenceSummary(
    (summary): Linear(in_features=8, out_features=1, use_bias=True)
    (activation): identity()
    (first_dropout): Dropout(rate=0.4)
    (last_dropout): Dropout(rate=0.0)
  )
)""",
    "OpenAIGPTForSequenceClassification": f"""\
OpenAIGPTForSequenceClassification(
  (transformer): {INDENTED}
  (score): Linear(in_features=8, out_features=3, use_bias=False)
)""",
}
RATES: dict[str, Any] = {"resid_pdrop": 0.2, "embd_pdrop": 0.3, "summary_first_dropout": 0.4}


def untouched(name: str, **fields: Any) -> Any:
    """A model without values: a tree needs none."""
    config = small_config(n_layer=3, num_labels=3, **RATES, **fields)
    return nnx.eval_shape(lambda: getattr(gpt1, name)(config, rngs=nnx.Rngs(0)))


def printed(name: str, **fields: Any) -> str:
    """The tree of a model just made."""
    config = small_config(n_layer=3, num_labels=3, **RATES, **fields)
    trees: list[str] = []
    nnx.eval_shape(lambda: trees.append(gpt1.tree(getattr(gpt1, name)(config, rngs=nnx.Rngs(0)))))
    return trees[0]


@pytest.mark.parametrize("name", TREES)
def test_the_tree_of_a_new_model(name: str) -> None:
    assert printed(name) == TREES[name]


@pytest.mark.parametrize("name", TREES)
def test_the_tree_of_a_loaded_model_is_the_same(name: str) -> None:
    """Flax itself sorts the names of a model that it has split and merged, as loading does."""
    assert gpt1.tree(untouched(name)) == TREES[name]


def test_an_untied_head_is_a_layer_of_its_own() -> None:
    lines = printed("OpenAIGPTLMHeadModel", tie_word_embeddings=False).splitlines()
    assert lines[-2:] == [
        "  (lm_head): Linear(in_features=8, out_features=13, use_bias=False)",
        ")",
    ]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"afn": "relu"}, "(act): relu()"),
        ({"afn": "swish"}, "(act): silu()"),
        ({"summary_activation": "tanh"}, "(activation): tanh()"),
        ({"summary_use_proj": False}, "(summary): identity()"),
    ],
)
def test_functions_are_shown_by_name(fields: dict[str, Any], line: str) -> None:
    assert line in gpt1.tree(untouched("OpenAIGPTDoubleHeadsModel", **fields))


def test_only_equal_neighbours_are_written_once() -> None:
    model = untouched("OpenAIGPTModel")
    model.h[1].mlp.dropout.rate = 0.5
    text = gpt1.tree(model)
    for label in ("(0): Block(", "(1): Block(", "(2): Block("):
        assert text.count(label) == 1
    assert " x " not in text
    model.h[2].mlp.dropout.rate = 0.5
    assert "    (0): Block(\n" in gpt1.tree(model)
    assert "    (1-2): 2 x Block(\n" in gpt1.tree(model)


def test_one_block_has_no_count() -> None:
    assert "    (0): Block(\n" in gpt1.tree(small_model(gpt1.OpenAIGPTModel, n_layer=1))


def test_the_tree_follows_a_resize() -> None:
    model = small_model(gpt1.OpenAIGPTLMHeadModel, n_layer=1)
    model.resize_token_embeddings(20, rngs=nnx.Rngs(1))
    text = gpt1.tree(model)
    assert "(tokens_embed): Embed(num_embeddings=20, features=8)" in text
    assert "(lm_head): TiedLinear(in_features=8, out_features=20, use_bias=False)" in text


class FakeTokenizer:
    """Knows three tokens."""

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        assert isinstance(ids, list)
        return [{40477: "\n</w>", 481: "the</w>", 5: "a"}[id_] for id_ in ids]


def test_the_table_is_aligned() -> None:
    tokenizer: Any = FakeTokenizer()
    assert token_table(tokenizer, (481, 5, 40477)).splitlines() == [
        "0  'the</w>'  ->    481",
        "1  'a'        ->      5",
        "2  '\\n</w>'   ->  40477",
    ]


def test_every_arrow_stands_in_one_column() -> None:
    """However long a token is when written with its escapes, and however many there are."""

    class Escapes:
        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return ["\n\n\n\n</w>" if id_ % 2 else "aaaa</w>" for id_ in ids]

    tokenizer: Any = Escapes()
    lines = token_table(tokenizer, range(95, 107)).splitlines()
    assert len(lines) == 12
    assert len({line.index("->") for line in lines}) == 1
    assert len({len(line) for line in lines}) == 1
    assert lines[0].startswith(" 0  ")
    assert lines[-1].startswith("11  ")


def test_no_ids_give_an_empty_table() -> None:
    tokenizer: Any = FakeTokenizer()
    assert token_table(tokenizer, []) == ""


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
def test_nearest_tokens(cls: Any, tokenizer: gpt1.Tokenizer) -> None:
    model = with_arrows(cls, tokenizer, {"a": 0, "b": 60, "c": 30, "d": 180})
    found = nearest(model, tokenizer, "a", 2)
    assert [each.token for each in found] == ["c</w>", "b</w>"]
    cosines = np.cos([np.pi / 6, np.pi / 3])
    # measured: 1.6e-8
    np.testing.assert_allclose([each.cosine for each in found], cosines, rtol=0, atol=1e-6)
    everything = nearest(model, tokenizer, "a", 1000)
    assert len(everything) == len(tokenizer) - 1
    assert everything[-1].token == "d</w>"
    assert everything[-1].cosine == pytest.approx(-1)
    # One that points nowhere is at a right angle to all, and is no error.
    assert {each.cosine for each in nearest(model, tokenizer, "e")} == {0}


def test_a_sum_of_words(tokenizer: gpt1.Tokenizer) -> None:
    """Each at length 1; the words themselves are left out. A lone sign is a word."""
    degrees = {"a": 0, "b": 90, "c": 180, "d": 45, "f": -45, "-": 100}
    model = with_arrows(gpt1.OpenAIGPTModel, tokenizer, degrees)
    sums = {"a + b": "d</w>", "a - b": "f</w>", "- c + b": "d</w>", "-": "b</w>"}
    for words, token in sums.items():
        [found] = nearest(model, tokenizer, words, 1)
        assert found.token == token
    assert nearest(model, tokenizer, "a + b", 1)[0].cosine == pytest.approx(1)


def test_a_piece_of_a_word(tokenizer: gpt1.Tokenizer) -> None:
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
def test_words_that_are_none(tokenizer: gpt1.Tokenizer, words: str, message: str) -> None:
    model = with_arrows(gpt1.OpenAIGPTModel, tokenizer, {"a": 0})
    with pytest.raises(ValueError, match=message):
        nearest(model, tokenizer, words)


def test_a_tokenizer_of_another_model(tokenizer: gpt1.Tokenizer) -> None:
    with pytest.raises(ValueError, match=f"knows 13 tokens, but the tokenizer {len(tokenizer)}"):
        nearest(small_model(gpt1.OpenAIGPTModel), tokenizer, "a")
