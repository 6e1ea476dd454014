"""The printed tree, letter by letter: what transformers prints, and Flax's names."""

from typing import Any

import jax.numpy as jnp
import pytest
from flax import nnx
from support.small_models import SIZES, small_config, small_model

import gpt1_jax as gpt1
from gpt1_jax.sharding.mesh import make_mesh, shard_model
from gpt1_jax.training.lora.layers import LoraLinear

BLOCK = """\
Block(
  (attn): Attention(
    (c_attn): Conv1D(nf=24, nx=8)
    (c_proj): Conv1D(nf=8, nx=8)
    (attn_dropout): Dropout(p=0.1, inplace=False)
    (resid_dropout): Dropout(p=0.2, inplace=False)
  )
  (ln_1): LayerNorm((8,), eps=1e-05, elementwise_affine=True, bias=True)
  (mlp): MLP(
    (c_fc): Conv1D(nf=32, nx=8)
    (c_proj): Conv1D(nf=8, nx=32)
    (act): NewGELUActivation()
    (dropout): Dropout(p=0.2, inplace=False)
  )
  (ln_2): LayerNorm((8,), eps=1e-05, elementwise_affine=True, bias=True)
)"""
BODY = f"""\
OpenAIGPTModel(
  (tokens_embed): Embedding(13, 8)
  (positions_embed): Embedding(8, 8)
  (drop): Dropout(p=0.3, inplace=False)
  (h): ModuleList(
    (0-2): 3 x {BLOCK.replace(chr(10), chr(10) + "    ")}
  )
)"""
INDENTED = BODY.replace("\n", "\n  ")
TIED = "(lm_head): Linear(in_features=8, out_features=13, bias=False)"
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
    (summary): Linear(in_features=8, out_features=1, bias=True)
    (activation): Identity()
    (first_dropout): Dropout(p=0.4, inplace=False)
    (last_dropout): Identity()
  )
)""",
    "OpenAIGPTForSequenceClassification": f"""\
OpenAIGPTForSequenceClassification(
  (transformer): {INDENTED}
  (score): Linear(in_features=8, out_features=3, bias=False)
)""",
}
FLAX_BLOCK = """\
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
FLAX_TREE = f"""\
OpenAIGPTDoubleHeadsModel(
  (transformer): OpenAIGPTModel(
    (tokens_embed): Embed(num_embeddings=13, features=8)
    (positions_embed): Embed(num_embeddings=8, features=8)
    (drop): Dropout(rate=0.3)
    (h): List(
      (0-2): 3 x {FLAX_BLOCK.replace(chr(10), chr(10) + "      ")}
    )
  )
  (lm_head): TiedHead(in_features=8, out_features=13, use_bias=False)
  (multiple_choice_head): OpenAIGPTSequenceSummary(
    (summary): Linear(in_features=8, out_features=1, use_bias=True)
    (activation): identity()
    (first_dropout): Dropout(rate=0.4)
    (last_dropout): Dropout(rate=0.0)
  )
)"""
RATES: dict[str, Any] = {"resid_pdrop": 0.2, "embd_pdrop": 0.3, "summary_first_dropout": 0.4}


def untouched(name: str, **fields: Any) -> Any:
    """A model without values: a tree needs none."""
    config = small_config(**{"n_layer": 3, "num_labels": 3, **RATES, **fields})
    return nnx.eval_shape(lambda: getattr(gpt1, name)(config, rngs=nnx.Rngs(0)))


def printed(name: str, **fields: Any) -> str:
    """The tree of a model just made."""
    config = small_config(**{"n_layer": 3, "num_labels": 3, **RATES, **fields})
    trees: list[str] = []
    nnx.eval_shape(lambda: trees.append(gpt1.tree(getattr(gpt1, name)(config, rngs=nnx.Rngs(0)))))
    return trees[0]


@pytest.mark.parametrize("name", TREES)
def test_tree_of_new_model_matches_expected_text(name: str) -> None:
    assert printed(name) == TREES[name]


OTHERS: tuple[dict[str, Any], ...] = (
    {"afn": "relu", "summary_activation": "tanh"},
    {"afn": "silu", "summary_use_proj": False, "n_layer": 1},
    {"afn": "swish", "summary_proj_to_labels": False, "tie_word_embeddings": False},
    {"layer_norm_epsilon": 1e-12, "resid_pdrop": 0, "summary_last_dropout": 0.5},
)


@pytest.mark.parametrize("name", TREES)
def test_tree_matches_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    all_parts = name == "OpenAIGPTDoubleHeadsModel"
    for fields in ({}, *(OTHERS if all_parts else ())):
        config = transformers.OpenAIGPTConfig(
            **{**SIZES, "n_layer": 3, "num_labels": 3, **RATES, **fields}
        )
        if all_parts:
            config.num_labels = 1
        theirs = str(getattr(transformers, name)(config))
        assert gpt1.tree(untouched(name, **fields)) == theirs
        if not fields:
            assert theirs == TREES[name]


def test_tree_has_flax_names_on_request() -> None:
    assert gpt1.tree(untouched("OpenAIGPTDoubleHeadsModel"), flax=True) == FLAX_TREE


def test_tree_of_parts_matches_the_whole() -> None:
    block = untouched("OpenAIGPTModel").h[0]
    assert gpt1.tree(block) == BLOCK
    assert gpt1.tree(block.mlp.c_fc) == "Linear(in_features=8, out_features=32, bias=True)"
    head = untouched("OpenAIGPTLMHeadModel").lm_head
    assert gpt1.tree(head) == "Linear(in_features=8, out_features=13, bias=False)"


def test_tree_of_quantized_model_names_its_own_layers() -> None:
    """Elsewhere it is the tree of the floats; so is that of a model on a mesh."""
    model = small_model(gpt1.OpenAIGPTLMHeadModel)
    whole = gpt1.tree(model)
    expected = (
        whole.replace(
            "Conv1D(nf=24, nx=8)", "Int8Linear(in_features=8, out_features=24, bias=True)"
        )
        .replace("Conv1D(nf=8, nx=8)", "Int8Linear(in_features=8, out_features=8, bias=True)")
        .replace("Conv1D(nf=32, nx=8)", "Int8Linear(in_features=8, out_features=32, bias=True)")
        .replace("Conv1D(nf=8, nx=32)", "Int8Linear(in_features=32, out_features=8, bias=True)")
    )
    assert gpt1.tree(gpt1.quantize(model, head=False)) == expected
    expected = expected.replace("(tokens_embed): Embedding(", "(tokens_embed): Int8Embed(")
    expected = expected.replace("(lm_head): Linear(", "(lm_head): Int8Linear(")
    assert gpt1.tree(gpt1.quantize(model)) == expected
    shard_model(model, make_mesh("data=1"))
    assert gpt1.tree(model) == whole


def test_tree_keeps_layers_with_an_adapter() -> None:
    model = small_model(gpt1.OpenAIGPTModel, n_layer=1)
    attn: Any = model.h[0].attn
    attn.c_attn = LoraLinear(attn.c_attn, jnp.zeros((8, 2)), jnp.zeros((2, 24)))
    assert """
        (c_attn): LoraLinear(
          (dropout): Dropout(p=0.0, inplace=False)
          (linear): Conv1D(nf=24, nx=8)
        )
""" in gpt1.tree(model)


@pytest.mark.parametrize("name", TREES)
def test_tree_of_loaded_model_matches_new_model(name: str) -> None:
    """Flax itself sorts the names of a model that it has split and merged, as loading does."""
    assert gpt1.tree(untouched(name)) == TREES[name]


def test_tree_shows_untied_head_as_linear() -> None:
    lines = printed("OpenAIGPTLMHeadModel", tie_word_embeddings=False).splitlines()
    assert lines[-2:] == [
        "  (lm_head): Linear(in_features=8, out_features=13, bias=False)",
        ")",
    ]
    lines = gpt1.tree(untouched("OpenAIGPTLMHeadModel", tie_word_embeddings=False), flax=True)
    assert "(lm_head): Linear(in_features=8, out_features=13, use_bias=False)" in lines


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"afn": "relu"}, "(act): ReLU()"),
        ({"afn": "swish"}, "(act): SiLUActivation()"),
        ({"summary_activation": "tanh"}, "(activation): Tanh()"),
        ({"summary_use_proj": False}, "(summary): Identity()"),
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
    assert "(tokens_embed): Embedding(20, 8)" in text
    assert "(lm_head): Linear(in_features=8, out_features=20, bias=False)" in text
