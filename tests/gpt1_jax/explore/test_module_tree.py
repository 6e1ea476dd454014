"""The printed tree, letter by letter."""

from typing import Any

import pytest
from flax import nnx
from support.small_models import small_config, small_model

import gpt1_jax as gpt1

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
TIED = "(lm_head): TiedHead(in_features=8, out_features=13, use_bias=False)"
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
def test_tree_of_new_model_matches_expected_text(name: str) -> None:
    assert printed(name) == TREES[name]


@pytest.mark.parametrize("name", TREES)
def test_tree_of_loaded_model_matches_new_model(name: str) -> None:
    """Flax itself sorts the names of a model that it has split and merged, as loading does."""
    assert gpt1.tree(untouched(name)) == TREES[name]


def test_tree_shows_untied_head_as_linear() -> None:
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
def test_tree_shows_functions_by_name(fields: dict[str, Any], line: str) -> None:
    assert line in gpt1.tree(untouched("OpenAIGPTDoubleHeadsModel", **fields))


def test_tree_collapses_only_equal_adjacent_blocks() -> None:
    model = untouched("OpenAIGPTModel")
    model.h[1].mlp.dropout.rate = 0.5
    text = gpt1.tree(model)
    for label in ("(0): Block(", "(1): Block(", "(2): Block("):
        assert text.count(label) == 1
    assert " x " not in text
    model.h[2].mlp.dropout.rate = 0.5
    assert "    (0): Block(\n" in gpt1.tree(model)
    assert "    (1-2): 2 x Block(\n" in gpt1.tree(model)


def test_tree_omits_count_for_one_block() -> None:
    assert "    (0): Block(\n" in gpt1.tree(small_model(gpt1.OpenAIGPTModel, n_layer=1))


def test_tree_shows_resized_vocabulary() -> None:
    model = small_model(gpt1.OpenAIGPTLMHeadModel, n_layer=1)
    model.resize_token_embeddings(20, rngs=nnx.Rngs(1))
    text = gpt1.tree(model)
    assert "(tokens_embed): Embed(num_embeddings=20, features=8)" in text
    assert "(lm_head): TiedHead(in_features=8, out_features=20, use_bias=False)" in text
