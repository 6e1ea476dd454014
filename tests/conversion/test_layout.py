import numpy as np
import pytest

from conversion import ARCHITECTURES, param_specs

BASE, LM_HEAD, DOUBLE_HEADS, CLASSIFICATION = ARCHITECTURES
TINY = {"n_layer": 1, "n_embd": 4, "n_head": 2, "n_positions": 3, "vocab_size": 5}


def test_param_specs_lists_body_tensors():
    rows = [
        (row.torch, row.path[-1], row.shape, row.openai_shape) for row in param_specs(TINY, BASE)
    ]
    assert rows == [
        ("positions_embed.weight", "embedding", (3, 4), (3, 4)),
        ("tokens_embed.weight", "embedding", (5, 4), (5, 4)),
        ("h.0.attn.c_attn.weight", "kernel", (4, 12), (1, 4, 12)),
        ("h.0.attn.c_attn.bias", "bias", (12,), (12,)),
        ("h.0.attn.c_proj.weight", "kernel", (4, 4), (1, 4, 4)),
        ("h.0.attn.c_proj.bias", "bias", (4,), (4,)),
        ("h.0.ln_1.weight", "scale", (4,), (4,)),
        ("h.0.ln_1.bias", "bias", (4,), (4,)),
        ("h.0.mlp.c_fc.weight", "kernel", (4, 16), (1, 4, 16)),
        ("h.0.mlp.c_fc.bias", "bias", (16,), (16,)),
        ("h.0.mlp.c_proj.weight", "kernel", (16, 4), (1, 16, 4)),
        ("h.0.mlp.c_proj.bias", "bias", (4,), (4,)),
        ("h.0.ln_2.weight", "scale", (4,), (4,)),
        ("h.0.ln_2.bias", "bias", (4,), (4,)),
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_param_specs_paths_match_torch_names(architecture):
    for row in param_specs(TINY | {"tie_word_embeddings": False}, architecture):
        assert row.path[:-1] == tuple(row.torch.split("."))[:-1]
        assert row.torch.endswith("bias") == (row.path[-1] == "bias")
        in_body = row.openai_shape is not None
        assert row.torch.startswith("transformer.") == (in_body and architecture != BASE)


def test_param_specs_defaults_to_gpt1():
    rows = param_specs({}, LM_HEAD)
    assert sum(int(np.prod(row.shape)) for row in rows) == 116_534_784
    assert len(rows) == 146
    assert [row.openai_shape for row in rows[:3]] == [(512, 768), (40478, 768), (1, 768, 2304)]
    assert rows[2].path == ("transformer", "h", "0", "attn", "c_attn", "kernel")


def heads(config, architecture):
    rows = param_specs(TINY | config, architecture)
    return [
        (row.torch, row.shape, row.torch_shape, row.transposed)
        for row in rows
        if row.openai_shape is None
    ]


def test_param_specs_lists_heads_by_architecture():
    untied = {"tie_word_embeddings": False}
    lm_head = ("lm_head.weight", (4, 5), (5, 4), True)
    summary = "multiple_choice_head.summary."
    weight, bias = (summary + "weight", (4, 1), (1, 4), True), (summary + "bias", (1,), (1,), False)
    assert heads(untied, BASE) == []
    assert heads({}, LM_HEAD) == []
    assert heads(untied, LM_HEAD) == [lm_head]
    assert heads({}, DOUBLE_HEADS) == [weight, bias]
    assert heads(untied, DOUBLE_HEADS) == [lm_head, weight, bias]
    assert heads({"summary_use_proj": False}, DOUBLE_HEADS) == []
    # Hugging Face sets num_labels to 1 there.
    assert heads({"num_labels": 7}, DOUBLE_HEADS) == [weight, bias]
    assert heads({"summary_proj_to_labels": False}, DOUBLE_HEADS) == [
        (summary + "weight", (4, 4), (4, 4), True),
        (summary + "bias", (4,), (4,), False),
    ]
    assert heads(untied, CLASSIFICATION) == [("score.weight", (4, 2), (2, 4), True)]


@pytest.mark.parametrize(
    ("config", "labels"),
    [
        ({}, 2),
        ({"id2label": None}, 2),
        ({"id2label": {"0": "a"}}, 1),
        ({"num_labels": 5, "id2label": {"0": "a"}}, 5),
        ({"num_labels": None, "id2label": {0: "a", 1: "b", 2: "c"}}, 3),
    ],
)
def test_param_specs_infers_num_labels(config, labels):
    assert param_specs(TINY | config, CLASSIFICATION)[-1].shape == (4, labels)


def test_param_specs_accepts_size_aliases():
    aliases = {
        "num_hidden_layers": 1,
        "hidden_size": 4,
        "num_attention_heads": 2,
        "max_position_embeddings": 3,
        "vocab_size": 5,
    }
    assert param_specs(aliases, BASE) == param_specs(TINY, BASE)
    with pytest.raises(ValueError, match="n_embd is 4, hidden_size is 8; keep n_embd alone"):
        param_specs(TINY | {"hidden_size": 8}, BASE)


@pytest.mark.parametrize("value", [0, -1, True, "12", 1.5, None, [4]])
@pytest.mark.parametrize(
    "field", ["n_layer", "n_embd", "n_head", "n_positions", "vocab_size", "hidden_size"]
)
def test_param_specs_names_invalid_size(field, value):
    config = {name: n for name, n in TINY.items() if (name, field) != ("n_embd", "hidden_size")}
    with pytest.raises(ValueError, match=f"^{field} is ") as error:
        param_specs(config | {field: value}, BASE)
    assert str(error.value) == f"{field} is {value!r}; it must be a positive integer"


@pytest.mark.parametrize(
    ("field", "value", "architecture"),
    [
        ("num_labels", 0, CLASSIFICATION),
        ("num_labels", True, CLASSIFICATION),
        ("id2label", {}, CLASSIFICATION),
        ("id2label", ["a"], CLASSIFICATION),
        ("tie_word_embeddings", 1, LM_HEAD),
        ("tie_word_embeddings", None, DOUBLE_HEADS),
        ("summary_use_proj", "yes", DOUBLE_HEADS),
        ("summary_proj_to_labels", 0, DOUBLE_HEADS),
    ],
)
def test_param_specs_names_invalid_head_field(field, value, architecture):
    param_specs(TINY, architecture)
    with pytest.raises(ValueError, match=f"^{field} is ") as error:
        param_specs(TINY | {field: value}, architecture)
    assert str(error.value).startswith(f"{field} is {value!r}; it must be ")


def test_param_specs_requires_n_head_to_divide_n_embd():
    with pytest.raises(ValueError, match="n_embd is 4 and n_head 3; n_embd must be a multiple"):
        param_specs(TINY | {"n_head": 3}, BASE)


def test_param_specs_rejects_unknown_architecture():
    with pytest.raises(ValueError, match="'GPT2Model'; it must be one of OpenAIGPTModel, "):
        param_specs(TINY, "GPT2Model")


def test_param_specs_limits_sizes_to_32_bits():
    with pytest.raises(ValueError, match=r"^vocab_size is 2147483648; it must be below 2\*\*31$"):
        param_specs({"vocab_size": 2**31}, LM_HEAD)
