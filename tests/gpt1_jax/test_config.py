"""The configuration: what it accepts, and what it keeps of a file."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpt1_jax as gpt1

Config = gpt1.OpenAIGPTConfig


def made(fields: dict[str, Any]) -> gpt1.OpenAIGPTConfig:
    return Config(**fields)


# A config.json as the published checkpoint's: old fields, and none of the newer ones.
PUBLISHED = {
    "afn": "gelu",
    "architectures": ["OpenAIGPTLMHeadModel"],
    "attn_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "openai-gpt",
    "n_ctx": 512,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 512,
    "n_special": 0,
    "predict_special_tokens": True,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 40478,
}
KEPT = ("architectures", "n_ctx", "n_special", "predict_special_tokens", "task_specific_params")


def test_config_defaults_match_published_gpt_1() -> None:
    config = Config()
    assert (config.vocab_size, config.n_positions) == (40478, 512)
    assert (config.n_embd, config.n_layer, config.n_head, config.n_inner) == (768, 12, 12, 3072)
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.1, 0.1, 0.1)
    assert (config.layer_norm_epsilon, config.initializer_range) == (1e-5, 0.02)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (None, None, None)
    assert config.afn == "gelu"
    assert config.tie_word_embeddings
    assert config == Config.from_dict(PUBLISHED)


POSITIVE = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "num_labels")
RATES = (
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "summary_first_dropout",
    "summary_last_dropout",
)
NUMBERS = ("layer_norm_epsilon", "initializer_range")
FLAGS = (
    "summary_use_proj",
    "summary_proj_to_labels",
    "tie_word_embeddings",
    "output_attentions",
    "output_hidden_states",
)
WRONG: list[tuple[str, Any, str]] = [
    *((n, v, "a positive integer") for n in POSITIVE for v in (0, -1, 2.0, True, "12", None)),
    *((n, v, "a dropout rate in [0, 1)") for n in RATES for v in (-0.1, 1, 1.5, True, "0.1", None)),
    *((n, float("nan"), "a dropout rate in [0, 1)") for n in RATES),
    *((n, v, "a finite number, at least 0") for n in NUMBERS for v in (-1e-9, True, "1", None)),
    *((n, float(v), "a finite number, at least 0") for n in NUMBERS for v in ("inf", "nan")),
    *((n, 10**400, "a finite number, at least 0") for n in NUMBERS),  # beyond every float
    *((n, v, "true or false") for n in FLAGS for v in (0, 1, "true", None)),
    *((n, 2**31, "below 2**31") for n in POSITIVE),
    ("n_layer", 10_001, "at most 10000"),
    ("n_head", 7, "a divisor of n_embd = 768"),
    ("afn", "gelu_fast", "one of 'gelu', 'gelu_new', 'relu', 'silu', 'swish'"),
    ("afn", None, "one of 'gelu'"),
    ("afn", ["gelu"], "one of 'gelu'"),
    ("summary_type", "attn", "one of 'cls_index', 'last', 'first', 'mean'"),
    ("summary_activation", "relu", "one of 'tanh', or None"),
    ("problem_type", "multi_label", "one of 'regression', 'single_label_classification'"),
    *((n, v, "a token id, or None") for n in ("pad_token_id", "bos_token_id") for v in (1.0, "0")),
    ("pad_token_id", True, "a token id, or None"),
    ("pad_token_id", (1, 2), "a token id, or None"),
    ("eos_token_id", [1, "2"], "a token id, or None"),
    ("eos_token_id", [1, None], "a token id, or None"),
    ("eos_token_id", 1.5, "a token id, or None"),
]


@pytest.mark.parametrize(("name", "value", "right"), WRONG)
def test_config_rejects_invalid_values(name: str, value: Any, right: str) -> None:
    shown = tuple(value) if name == "eos_token_id" and isinstance(value, list) else value
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        made({name: value})
    assert str(caught.value).startswith(f"{name} is {shown!r}, but must be {right}")


@pytest.mark.parametrize("name", [*POSITIVE, *RATES, *NUMBERS, *FLAGS])
def test_config_from_pretrained_rejects_invalid_values(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "openai-gpt", name: "many"}))
    with pytest.raises(ValueError, match=f"{name} is 'many'"):
        Config.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"resid_pdrop": 0, "summary_last_dropout": 0.999},
        {"layer_norm_epsilon": 0, "initializer_range": 1},
        {"pad_token_id": -1, "bos_token_id": 10**6, "eos_token_id": (0, 5)},
        {"n_embd": 1, "n_head": 1, "n_layer": 1, "vocab_size": 1, "n_positions": 1},
        *({"afn": name} for name in ("gelu", "gelu_new", "relu", "silu", "swish")),
    ],
)
def test_config_keeps_unusual_values(fields: dict[str, Any]) -> None:
    config = made(fields)
    assert {name: getattr(config, name) for name in fields} == fields


def test_config_makes_numbers_of_numpy_plain() -> None:
    config = made({"n_layer": np.int64(3), "resid_pdrop": np.float32(0.5)})
    assert config == Config(n_layer=3, resid_pdrop=0.5)
    assert json.loads(json.dumps(config.to_dict()))["n_layer"] == 3


def test_config_rejects_unknown_arguments() -> None:
    with pytest.raises(
        TypeError, match=r"^OpenAIGPTConfig\(\) takes no n_layers: .* mean n_layer\?"
    ):
        made({"n_layers": 2})


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("max_position_embeddings", "n_positions"),
        ("hidden_size", "n_embd"),
        ("num_attention_heads", "n_head"),
        ("num_hidden_layers", "n_layer"),
    ],
)
def test_config_reads_aliases_but_does_not_write_them(alias: str, name: str) -> None:
    config = Config.from_dict({alias: 24})
    assert config == made({name: 24})
    assert getattr(config, alias) == 24
    fields = config.to_dict()
    assert fields[name] == 24
    assert alias not in fields


@pytest.mark.parametrize("fields", [{"hidden_size": 24}, {"num_hidden_layers": 3, "n_head": 4}])
def test_config_constructor_takes_aliases_as_transformers(fields: dict[str, int]) -> None:
    transformers = pytest.importorskip("transformers")
    ours, theirs = made(fields), transformers.OpenAIGPTConfig(**fields)
    names = ("n_embd", "n_head", "n_layer", "n_positions")
    aliases = ("hidden_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings")
    for name in (*names, *aliases):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.replace(**fields) == dataclasses.replace(ours, n_head=ours.n_head) == ours
    with pytest.raises(ValueError, match="n_embd is 48, hidden_size is 24: two names"):
        made({"hidden_size": 24, "n_embd": 48})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_labels": 3},
        {"id2label": {0: "no", 1: "maybe", 2: "yes"}, "label2id": {"no": 0, "maybe": 1, "yes": 2}},
        {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}},
    ],
)
def test_config_names_labels_as_transformers(fields: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours, theirs = made(fields), transformers.OpenAIGPTConfig(**fields)
    ours.save_pretrained(tmp_path)
    for config in (ours, Config.from_pretrained(tmp_path), Config().replace(**fields)):
        assert config.num_labels == theirs.num_labels
        assert config.id2label == theirs.id2label
        assert config.label2id == theirs.label2id
    assert transformers.OpenAIGPTConfig.from_pretrained(tmp_path).id2label == theirs.id2label


@pytest.mark.difference("frozen configurations")
def test_config_rejects_a_number_of_labels_that_has_other_names() -> None:
    with pytest.raises(ValueError, match="num_labels is 3, but must be 2, as id2label has names"):
        made({"num_labels": 3, "id2label": {0: "no", 1: "yes"}})
    named = made({"id2label": {0: "no", 1: "yes"}})
    assert dataclasses.replace(named, num_labels=3).id2label[2] == "LABEL_2"


@pytest.mark.difference("frozen configurations")
def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().n_layer = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_config_equality_and_hash_ignore_extra_fields() -> None:
    one, other = Config.from_dict({**PUBLISHED, "n_layer": 3}), Config(n_layer=3)
    assert one.extra != other.extra
    assert one == other
    assert hash(one) == hash(other)
    assert len({one, other, made({"n_layer": 3, "eos_token_id": [1]})}) == 2


@pytest.mark.parametrize("field", dataclasses.fields(Config), ids=lambda field: field.name)
def test_config_equality_compares_every_field_but_extra(field: dataclasses.Field) -> None:
    others = {
        "afn": "relu",
        "summary_type": "mean",
        "summary_activation": "tanh",
        "problem_type": "regression",
        "n_head": 6,
    }
    value: Any = field.default
    if field.name == "extra":
        changed: Any = {"n_ctx": 4}
    elif field.name in others:
        changed = others[field.name]
    elif isinstance(value, bool):
        changed = not value
    elif value is None:
        changed = 3
    else:
        changed = value * 2 if value else 0.5
    same = dataclasses.replace(Config(), **{field.name: changed}) == Config()
    assert same == (field.name == "extra")


def test_config_round_trip_keeps_unknown_fields(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    config = Config.from_pretrained(tmp_path)
    config.save_pretrained(tmp_path / "new" / "folder")
    saved = json.loads((tmp_path / "new" / "folder" / "config.json").read_text())
    assert {name: saved[name] for name in PUBLISHED} == PUBLISHED
    again = Config.from_pretrained(tmp_path / "new" / "folder")
    assert again == config
    assert {name: again.extra[name] for name in KEPT} == {name: PUBLISHED[name] for name in KEPT}


def test_config_round_trip_keeps_every_field(tmp_path: Path) -> None:
    config = Config(
        vocab_size=11,
        n_positions=5,
        n_embd=6,
        n_layer=1,
        n_head=3,
        afn="swish",
        resid_pdrop=0.2,
        embd_pdrop=0.3,
        attn_pdrop=0.4,
        layer_norm_epsilon=1e-3,
        initializer_range=0.5,
        summary_type="mean",
        summary_use_proj=False,
        summary_activation="tanh",
        summary_proj_to_labels=False,
        summary_first_dropout=0.5,
        summary_last_dropout=0.6,
        num_labels=4,
        problem_type="regression",
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=(3, 4),
        tie_word_embeddings=False,
        output_attentions=True,
        output_hidden_states=True,
        extra={"n_special": 40},
    )
    unchanged = [f.name for f in dataclasses.fields(Config) if getattr(config, f.name) == f.default]
    assert not unchanged, "a default would hide a field that is not written"
    config.save_pretrained(tmp_path)
    again = Config.from_pretrained(tmp_path)
    assert again == config
    assert again.extra["n_special"] == 40
    assert again.to_dict() == config.to_dict()


def test_config_save_pretrained_replaces_the_file(tmp_path: Path) -> None:
    Config().save_pretrained(tmp_path)
    Config(n_layer=3).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert Config.from_pretrained(tmp_path).n_layer == 3


def test_config_save_pretrained_keeps_old_file_on_failure(tmp_path: Path) -> None:
    Config(n_layer=3).save_pretrained(tmp_path)
    with pytest.raises(TypeError):
        Config(extra={"unwritable": {1, 2}}).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert Config.from_pretrained(tmp_path).n_layer == 3


def test_config_to_dict_returns_an_independent_dict() -> None:
    config = Config.from_dict({**PUBLISHED, "id2label": {"0": "no", "1": "yes"}})
    config.to_dict()["n_layer"] = 99
    assert config.to_dict()["n_layer"] == 12
    assert config.to_dict()["id2label"] == {"0": "no", "1": "yes"}


def test_config_from_dict_counts_label_names() -> None:
    names = {"0": "no", "1": "maybe", "2": "yes"}
    config = Config.from_dict({"id2label": names, "label2id": {"no": 0, "maybe": 1, "yes": 2}})
    assert config.num_labels == 3
    fields = config.to_dict()
    assert fields["id2label"] == names
    assert fields["label2id"] == {"no": 0, "maybe": 1, "yes": 2}
    assert "num_labels" not in fields
    assert Config.from_dict(fields) == config


def test_config_from_dict_renames_labels_if_count_differs() -> None:
    config = Config.from_dict({"id2label": {"0": "no", "1": "yes"}, "num_labels": 3})
    fields = config.to_dict()
    assert config.num_labels == 3
    assert fields["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert fields["label2id"] == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    assert Config.from_dict(fields).num_labels == 3


def test_config_to_dict_writes_several_eos_ids_as_a_list() -> None:
    config = Config.from_dict({"eos_token_id": [3, 4]})
    assert config.eos_token_id == (3, 4)
    assert config == Config(eos_token_id=(3, 4))
    assert config.to_dict()["eos_token_id"] == [3, 4]
    assert Config(eos_token_id=3).to_dict()["eos_token_id"] == 3


def test_config_rejects_other_model_types(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model_type is 'gpt2'.*'openai-gpt'"):
        Config.from_dict({"model_type": "gpt2"})
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r"config\.json.*'gpt2'.*'openai-gpt'"):
        Config.from_pretrained(tmp_path)


def test_config_from_pretrained_reports_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path.name} has no config\.json"):
        Config.from_pretrained(tmp_path)


@pytest.mark.parametrize("path", ["./absent", "absent/absent/absent"])
def test_config_from_pretrained_reports_missing_folder(path: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        Config.from_pretrained(tmp_path / path)


@pytest.mark.parametrize(("text", "fault"), [("{'n_layer': 1}", "not JSON"), ("[]", "JSON object")])
def test_config_from_pretrained_rejects_malformed_file(
    text: str, fault: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.json.*{fault}"):
        Config.from_pretrained(tmp_path)


def test_config_rejects_conflicting_aliases(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"n_layer": 2, "num_hidden_layers": 3}')
    with pytest.raises(ValueError, match="n_layer is 2, num_hidden_layers is 3"):
        Config.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="n_layer is 2, num_hidden_layers is 3"):
        Config.from_dict({"n_layer": 2, "num_hidden_layers": 3})


@pytest.mark.parametrize("names", [5, ["a", "b"], "ab"])
def test_from_dict_rejects_labels_that_are_not_an_object(names: Any) -> None:
    with pytest.raises(ValueError, match=r"^id2label is .*, but must be an object$"):
        gpt1.OpenAIGPTConfig.from_dict({"id2label": names})


def test_config_errors_have_a_limited_length() -> None:
    with pytest.raises(
        ValueError, match=r"^afn is 'x{499} \.\.\. \(100002 characters\), but must be"
    ):
        gpt1.OpenAIGPTConfig(afn="x" * 100_000)
