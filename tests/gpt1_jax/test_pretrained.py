"""Saving, loading, resizing and the initial weights."""

import copy
import functools
import json
import pickle
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from support.compilations import compilations
from support.small_models import (
    MODELS,
    difference,
    leaves_equal,
    random_ids,
    small_config,
    small_model,
)

import conversion
import gpt1_jax as gpt1

BASE, LM, DOUBLE, CLASSIFIER = MODELS
IDS = random_ids(1, 4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("cls", MODELS)
def test_save_then_load_is_bit_exact(cls: type, dtype: str, tmp_path: Path) -> None:
    model = small_model(cls, param_dtype=dtype, num_labels=3)
    model.save_pretrained(tmp_path / "new" / "folder")
    again = cls.from_pretrained(tmp_path / "new" / "folder")
    assert type(again) is cls
    assert leaves_equal(again.params, model.params)
    assert again.config == model.config
    assert again.dtype == jnp.dtype(dtype)
    saved = json.loads((tmp_path / "new" / "folder" / "config.json").read_text())
    assert saved["architectures"] == [cls.__name__]
    assert saved["dtype"] == dtype


def test_from_pretrained_compiles_nothing_and_jax_takes_what_was_read(tmp_path: Path) -> None:
    small_model(LM).save_pretrained(tmp_path)
    with compilations() as compiled:
        LM.from_pretrained(tmp_path)
        LM.from_pretrained(tmp_path, param_dtype="bfloat16")
    assert not compiled
    # One copy of the weights: the numbers in the file are read into memory that JAX goes on with.
    places: list[tuple[int, jax.Array]] = []

    def leaf(array: np.ndarray) -> jax.Array:
        places.append((array.ctypes.data, jax.device_put(array)))
        return places[-1][1]

    conversion.read(tmp_path, leaf=leaf)
    assert all(place == array.unsafe_buffer_pointer() for place, array in places)


@pytest.mark.parametrize("cls", [LM, DOUBLE])
def test_save_then_load_keeps_untied_head(cls: type, tmp_path: Path) -> None:
    model = small_model(cls, tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    assert leaves_equal(cls.from_pretrained(tmp_path).params, model.params)


def test_save_then_load_in_shards_keeps_logits(tmp_path: Path) -> None:
    model = small_model(LM)
    model.save_pretrained(tmp_path, max_shard_size=2000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = LM.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again(IDS).logits, model(IDS).logits)


def test_from_pretrained_sets_dtype_and_param_dtype(tmp_path: Path) -> None:
    model = small_model(LM)
    model.save_pretrained(tmp_path)
    half = LM.from_pretrained(tmp_path, param_dtype="bfloat16")
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params)
    assert leaves_equal(half.params, rounded)
    assert half.dtype == jnp.bfloat16
    for stored in ("float32", "auto"):
        mixed = LM.from_pretrained(tmp_path, dtype="bfloat16", param_dtype=stored)
        assert leaves_equal(mixed.params, model.params)
        assert mixed.dtype == jnp.bfloat16
    widened = LM.from_pretrained(tmp_path, dtype="float32", param_dtype="bfloat16")
    assert leaves_equal(widened.params, rounded)
    assert widened.dtype == jnp.float32


def test_from_pretrained_keeps_float16_by_default(tmp_path: Path) -> None:
    model = small_model(BASE, param_dtype="float16")
    model.save_pretrained(tmp_path)
    assert leaves_equal(BASE.from_pretrained(tmp_path).params, model.params)
    wide = BASE.from_pretrained(tmp_path, param_dtype="float32")
    expected = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model.params)
    assert leaves_equal(wide.params, expected)
    assert wide.dtype == jnp.float32


def test_from_pretrained_passes_precision_to_layers(tmp_path: Path) -> None:
    small_model(LM).save_pretrained(tmp_path)
    model = LM.from_pretrained(tmp_path, precision="highest")
    assert model.transformer.h[0].attn.precision == "highest"
    assert model.lm_head.precision == "highest"


def test_from_pretrained_overrides_config_fields(tmp_path: Path) -> None:
    small_model(BASE).save_pretrained(tmp_path)
    model = CLASSIFIER.from_pretrained(
        tmp_path, num_labels=3, resid_pdrop=0.0, pad_token_id=1, rngs=nnx.Rngs(0)
    )
    assert (model.config.num_labels, model.config.pad_token_id) == (3, 1)
    assert model.config.resid_pdrop == 0
    assert model.transformer.h[0].mlp.dropout.rate == 0
    assert model.score.kernel.shape == (8, 3)
    logits = model([[2, 3, 1]]).logits
    assert logits is not None
    assert logits.shape == (1, 3)


def test_from_pretrained_rejects_unknown_fields(tmp_path: Path) -> None:
    small_model(BASE).save_pretrained(tmp_path)
    with pytest.raises(TypeError) as error:
        BASE.from_pretrained(tmp_path, n_layers=2, seed=0)
    first, second = str(error.value).splitlines()
    assert first == "from_pretrained() takes no n_layers: did you mean n_layer?"
    assert second == "from_pretrained() takes no seed"


def test_from_pretrained_rejects_fields_that_contradict_weights(tmp_path: Path) -> None:
    small_model(LM).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"n_layer=3 is given, the weights show 2"):
        LM.from_pretrained(tmp_path, n_layer=3)
    with pytest.raises(ValueError, match=r"vocab_size=14 is given, the weights show 13"):
        LM.from_pretrained(tmp_path, vocab_size=14)
    with pytest.raises(ValueError, match=r"n_layer=3 is given, the weights show 2"):
        LM.from_pretrained(tmp_path, num_hidden_layers=3)


@pytest.mark.nightly
@pytest.mark.parametrize("cls", MODELS)
def test_from_pretrained_stores_in_dtype(cls: type, tmp_path: Path) -> None:
    model = small_model(cls)
    model.save_pretrained(tmp_path / "wide")
    half = cls.from_pretrained(tmp_path / "wide", dtype="bfloat16")
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params)
    assert leaves_equal(half.params, rounded)
    assert half.dtype == jnp.bfloat16
    half.save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    wide = cls.from_pretrained(tmp_path / "half", dtype="float32")
    assert leaves_equal(
        wide.params, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half.params)
    )


def test_from_pretrained_refuses_values_beyond_float16(tmp_path: Path) -> None:
    model = small_model(LM)
    layer: Any = model.transformer.h[1].mlp.c_fc
    layer.kernel.set_value(layer.kernel.get_value().at[0, 0].set(7e4))
    layer.bias.set_value(layer.bias.get_value().at[0].set(jnp.inf))  # the file's own
    model.save_pretrained(tmp_path)
    message = r"^float16 is too narrow for values of transformer\.h\.1\.mlp\.c_fc\.kernel$"
    with pytest.raises(ValueError, match=message):
        LM.from_pretrained(tmp_path, dtype="float16")
    assert LM.from_pretrained(tmp_path, dtype="bfloat16").dtype == jnp.bfloat16


@pytest.mark.difference("keywords of from_pretrained")
@pytest.mark.parametrize(
    ("keyword", "value", "instead"),
    [
        ("torch_dtype", "float16", "dtype= is its name"),
        ("device_map", "auto", "JAX puts arrays on its default device, and mesh= splits them over"),
        ("trust_remote_code", True, "no code of a checkpoint is run"),
        (
            "attn_implementation",
            "sdpa",
            'attention= chooses it: "manual" is "eager", "xla" is like',
        ),
        ("use_safetensors", False, "safetensors are read where there are any, else pickles"),
        ("load_in_8bit", True, 'gpt1_jax.quantize(model, "int8") quantizes a loaded model'),
        ("config", small_config(), "give the fields to change by their names, num_labels=3 for e"),
    ],
)
def test_from_pretrained_says_what_replaces_keywords_of_transformers(
    keyword: str, value: Any, instead: str
) -> None:
    message = f"^{re.escape(f'from_pretrained() takes no {keyword}: {instead}')}"
    for load in (LM.from_pretrained, gpt1.from_pretrained):
        with pytest.raises(TypeError, match=message):
            load("demo", **{keyword: value})


def test_from_pretrained_accepts_keywords_without_effect(tmp_path: Path) -> None:
    model = small_model(LM)
    model.save_pretrained(tmp_path)
    again = LM.from_pretrained(
        tmp_path,
        dtype="auto",
        torch_dtype=None,
        device_map=None,
        low_cpu_mem_usage=True,
        trust_remote_code=False,
        attn_implementation="eager",
        use_safetensors=None,
        return_dict=True,
    )
    assert leaves_equal(again.params, model.params)
    assert again.config == model.config


@pytest.mark.difference("choice of the class")
@pytest.mark.parametrize("cls", MODELS)
def test_from_pretrained_chooses_the_class_by_the_folder(cls: type, tmp_path: Path) -> None:
    model = small_model(cls)
    model.save_pretrained(tmp_path / "model")
    again = gpt1.from_pretrained(tmp_path, subfolder="model", param_dtype="bfloat16")
    assert type(again) is cls
    assert {leaf.dtype for leaf in jax.tree.leaves(again.params)} == {jnp.dtype("bfloat16")}
    path = tmp_path / "model" / "config.json"
    for named in (None, ["OpenAIGPTForTokenClassification"]):  # the weights show it
        fields = json.loads(path.read_text()) | {"architectures": named}
        path.write_text(json.dumps(fields))
        again = gpt1.from_pretrained(tmp_path / "model")
        assert type(again) is cls
        assert leaves_equal(again.params, model.params)


def test_from_pretrained_reads_a_folder_inside(tmp_path: Path) -> None:
    model = small_model(LM)
    model.save_pretrained(tmp_path / "deep" / "er")
    again = LM.from_pretrained(tmp_path, subfolder="deep/er")
    assert leaves_equal(again.params, model.params)
    assert gpt1.OpenAIGPTConfig.from_pretrained(tmp_path, subfolder="deep/er") == model.config
    for load in (LM, gpt1.OpenAIGPTConfig, gpt1.Tokenizer):
        with pytest.raises(FileNotFoundError, match=r"has no folder 'absent'"):
            load.from_pretrained(tmp_path, subfolder="absent")
        with pytest.raises(ValueError, match=r"subfolder is '\.\./x'; it must be the path of a f"):
            load.from_pretrained(tmp_path, subfolder="../x")
    with pytest.raises(FileNotFoundError, match="has no folder 'absent'"):
        LM.from_pretrained("demo", subfolder="absent")
    vocabulary = gpt1.Tokenizer.from_pretrained("demo")
    vocabulary.save_pretrained(tmp_path / "words")
    found = gpt1.Tokenizer.from_pretrained(tmp_path, subfolder="words")
    assert len(found) == len(vocabulary)


def test_from_pretrained_starts_from_a_new_head_of_another_size(tmp_path: Path) -> None:
    model = small_model(CLASSIFIER, num_labels=2)
    model.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"num_labels=3 is given, the weights show 2 \(ignore_mism"
    ):
        CLASSIFIER.from_pretrained(tmp_path, num_labels=3, rngs=nnx.Rngs(0))
    message = (
        r"no score.weight of shape \(3, 8\), which .* needs; to start from a new head, pass rn"
    )
    with pytest.raises(ValueError, match=message):
        CLASSIFIER.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    names = {0: "no", 1: "maybe", 2: "yes"}
    load = functools.partial(CLASSIFIER.from_pretrained, tmp_path, ignore_mismatched_sizes=True)
    new = load(id2label=names, label2id={"no": 0, "maybe": 1, "yes": 2}, rngs=nnx.Rngs(0))
    assert leaves_equal(new.params["transformer"], model.params["transformer"])
    assert new.params["score"]["kernel"].shape == (8, 3)
    assert new.config.id2label == names
    assert leaves_equal(load().params, model.params)
    with pytest.raises(ValueError, match="vocab_size=14 is given, the weights show 13"):
        load(vocab_size=14, rngs=nnx.Rngs(0))


@pytest.mark.difference("training mode")
@pytest.mark.parametrize("cls", MODELS)
def test_eval_returns_the_model_and_train_refuses(cls: type) -> None:
    model: Any = small_model(cls)
    before = gpt1.functional(model)[0]
    assert model.eval() is model
    assert model.train(False) is model
    with pytest.raises(
        ValueError, match=r"pass deterministic=False and dropout_key=jax\.random\.key"
    ):
        model.train()
    assert gpt1.functional(model)[0] is before  # nothing is compiled again


@pytest.mark.difference("training mode")
@pytest.mark.parametrize("name", ["to", "half", "state_dict", "set_input_embeddings", "nope"])
def test_model_says_what_replaces_methods_of_torch(name: str) -> None:
    model = small_model(LM)
    right = {
        "to": "JAX puts arrays on its default device, and mesh= splits them over several",
        "half": "from_pretrained(..., dtype=) loads in another dtype",
        "state_dict": "params has them all",
        "set_input_embeddings": "load_params(params) replaces the rows",
    }
    message = f"has no {name}: {right[name]}" if name in right else "has no attribute 'nope'"
    assert not hasattr(model, name)
    with pytest.raises(AttributeError, match=f"^'?OpenAIGPTLMHeadModel'? .*{re.escape(message)}$"):
        getattr(model, name)


@pytest.mark.nightly
@pytest.mark.difference("new heads")
@pytest.mark.parametrize("cls", [DOUBLE, CLASSIFIER])
def test_from_pretrained_initializes_missing_head_from_rngs(cls: type, tmp_path: Path) -> None:
    body = small_model(LM)
    body.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"pass rngs=nnx\.Rngs\(seed\)"):
        cls.from_pretrained(tmp_path)
    model = cls.from_pretrained(tmp_path, rngs=nnx.Rngs(0), num_labels=300)
    assert leaves_equal(model.params["transformer"], body.params["transformer"])
    again = cls.from_pretrained(tmp_path, rngs=nnx.Rngs(0), num_labels=300)
    assert leaves_equal(model.params, again.params)
    other = cls.from_pretrained(tmp_path, rngs=nnx.Rngs(1), num_labels=300)
    name = "score" if cls is CLASSIFIER else "multiple_choice_head"
    assert not leaves_equal(model.params[name], other.params[name])
    if cls is CLASSIFIER:
        # 2400 draws of N(0, 0.02): the deviation of their deviation is 1.4 %.
        assert float(model.score.kernel.get_value().std()) == pytest.approx(0.02, rel=0.07)


def test_from_pretrained_keeps_stored_head_despite_rngs(tmp_path: Path) -> None:
    model = small_model(CLASSIFIER)
    model.save_pretrained(tmp_path)
    assert leaves_equal(CLASSIFIER.from_pretrained(tmp_path, rngs=nnx.Rngs(0)).params, model.params)


@pytest.mark.parametrize(
    ("source", "target"),
    [(BASE, LM), (LM, BASE), (DOUBLE, LM), (CLASSIFIER, LM), (CLASSIFIER, BASE), (BASE, DOUBLE)],
)
def test_from_pretrained_loads_body_of_any_architecture(
    source: type, target: type, tmp_path: Path
) -> None:
    saved = small_model(source)
    saved.save_pretrained(tmp_path)
    loaded = target.from_pretrained(tmp_path, rngs=nnx.Rngs(0))
    body, expected = (m.params.get("transformer", m.params) for m in (loaded, saved))
    assert leaves_equal(body, expected)


def test_from_pretrained_reports_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        LM.from_pretrained(tmp_path / "absent")


def test_from_pretrained_reports_missing_weights(tmp_path: Path) -> None:
    small_config().save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=re.escape(tmp_path.name)):
        LM.from_pretrained(tmp_path)


@pytest.fixture(scope="module")
def double() -> Any:
    return small_model(DOUBLE)


def test_load_params_replaces_every_parameter() -> None:
    model, other = small_model(LM), small_model(LM, seed=1)
    model.load_params(other.params)
    assert leaves_equal(model.params, other.params)


def test_load_params_keeps_model_dtype() -> None:
    model, other = small_model(BASE, param_dtype="bfloat16"), small_model(BASE, seed=1)
    model.load_params(other.params)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), other.params)
    assert leaves_equal(model.params, rounded)


def test_load_params_reports_every_error_and_changes_nothing(double: Any) -> None:
    before = jax.tree.map(np.array, double.params)
    new: Any = flatten_dict(jax.tree.map(lambda leaf: leaf + 1, double.params))
    del new["transformer", "h", "1", "ln_2", "bias"]
    del new["multiple_choice_head", "summary", "kernel"]
    new["lm_head", "kernel"] = jnp.zeros((8, 13))
    new["transformer", "h", "2", "ln_1", "bias"] = jnp.zeros(8)
    new["transformer", "tokens_embed", "embedding"] = jnp.zeros((8, 13))
    new["transformer", "h", "0", "mlp", "c_fc", "bias"] = jnp.float32(0)
    with pytest.raises(ValueError, match="OpenAIGPTDoubleHeadsModel") as caught:
        double.load_params(unflatten_dict(new))
    assert sorted(str(caught.value).splitlines()[1:]) == [
        "! transformer.h.0.mlp.c_fc.bias has shape (), but must have (32,)",
        "! transformer.tokens_embed.embedding has shape (8, 13), but must have (13, 8)",
        "+ lm_head.kernel is unexpected",
        "+ transformer.h.2.ln_1.bias is unexpected",
        "- multiple_choice_head.summary.kernel is missing",
        "- transformer.h.1.ln_2.bias is missing",
    ]
    assert leaves_equal(double.params, before)


def test_load_params_rejects_an_empty_dict(double: Any) -> None:
    with pytest.raises(ValueError, match=r"c_attn\.kernel is missing(.*\n)+\.\.\. and 8 more"):
        double.load_params({})


SHAPES = nnx.eval_shape(lambda: LM(gpt1.OpenAIGPTConfig(), rngs=nnx.Rngs(0)))


def test_num_parameters_matches_published_gpt_1() -> None:
    assert SHAPES.num_parameters() == 116_534_784


def test_num_parameters_counts_heads() -> None:
    body = small_model(BASE).num_parameters()
    E, V = 8, 13
    block = (3 * E * E + 3 * E) + (E * E + E) + (4 * E * E + 4 * E) + (4 * E * E + E) + 4 * E
    assert body == V * E + 8 * E + 2 * block
    assert small_model(LM).num_parameters() == body
    assert small_model(LM, tie_word_embeddings=False).num_parameters() == body + V * E
    assert small_model(DOUBLE).num_parameters() == body + E + 1
    assert small_model(DOUBLE, summary_proj_to_labels=False).num_parameters() == body + E * E + E
    assert small_model(DOUBLE, summary_use_proj=False).num_parameters() == body
    assert small_model(CLASSIFIER, num_labels=3).num_parameters() == body + 3 * E


@pytest.mark.nightly
@pytest.mark.parametrize("deviation", [0.02, 0.5])
def test_initial_weights_follow_initializer_range(deviation: float) -> None:
    config = small_config(
        vocab_size=200,
        n_positions=100,
        n_embd=32,
        n_layer=1,
        num_labels=50,
        tie_word_embeddings=False,
        initializer_range=deviation,
    )

    @jax.jit
    def params() -> Any:
        return LM(config, rngs=nnx.Rngs(0)).params, CLASSIFIER(config, rngs=nnx.Rngs(1)).params

    flat = {str(i): tree for i, tree in enumerate(params())}
    for path, leaf in flatten_dict(flat).items():
        values = np.asarray(leaf)
        if path[-1] == "bias":
            assert not values.any(), path
        elif path[-1] == "scale":
            assert (values == 1).all(), path
        else:
            # At least 1024 draws: the deviation of their deviation is 2.2 %, of their mean 3.1 %.
            assert values.std() == pytest.approx(deviation, rel=0.1), path
            assert abs(values.mean()) <= 0.15 * deviation, path


def test_initial_weights_differ_between_parameters() -> None:
    config = small_config()
    params = jax.jit(lambda: BASE(config, rngs=nnx.Rngs(0)).params)()
    kernels = [
        np.asarray(leaf).ravel()[:64]
        for path, leaf in flatten_dict(params).items()
        if path[-1] in ("kernel", "embedding")
    ]
    assert len({kernel.tobytes() for kernel in kernels}) == len(kernels) == 10


@pytest.mark.nightly
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("cls", [LM, DOUBLE])
def test_resize_to_larger_vocabulary_keeps_rows(cls: type, tied: bool) -> None:
    model = small_model(cls, tie_word_embeddings=tied, initializer_range=0.5)
    before: Any = flatten_dict(jax.tree.map(np.array, model.params))
    model.resize_token_embeddings(300, rngs=nnx.Rngs(0))
    after: Any = flatten_dict(jax.tree.map(np.array, model.params))
    changed: dict[Any, Any] = {("transformer", "tokens_embed", "embedding"): np.asarray}
    if not tied:
        changed["lm_head", "kernel"] = np.transpose
    assert before.keys() == after.keys()
    for path, leaf in after.items():
        if path not in changed:
            np.testing.assert_array_equal(leaf, before[path])
            continue
        rows = changed[path](leaf)
        assert rows.shape == (300, 8)
        np.testing.assert_array_equal(rows[:13], changed[path](before[path]))
        # 2296 draws: the deviation of their deviation is 1.5 %.
        assert rows[13:].std() == pytest.approx(0.5, rel=0.08)
    if not tied:
        table, kernel = (after[path] for path in changed)
        assert not np.array_equal(table[13:], kernel.T[13:])
    assert model.config.vocab_size == 300
    assert model.transformer.config.vocab_size == 300
    assert model.get_input_embeddings().num_embeddings == 300
    assert model([[299, 0]]).logits.shape == (1, 2, 300)


def test_resize_to_smaller_vocabulary_keeps_first_rows() -> None:
    model = small_model(LM)
    before = np.array(model.params["transformer"]["tokens_embed"]["embedding"])
    full = np.asarray(model([[1, 2]]).logits)
    model.resize_token_embeddings(5, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(
        model.params["transformer"]["tokens_embed"]["embedding"], before[:5]
    )
    # Measured: equal.
    assert difference(model([[1, 2]]).logits, full[..., :5]) < 1e-6
    with pytest.raises(ValueError, match=r"input_ids\[0, 0\] is 5, but must be in \[0, 5\)"):
        model([[5]])


def test_resize_works_with_functional_and_save(tmp_path: Path) -> None:
    model = small_model(LM, n_layer=1)
    apply, params = gpt1.functional(model)
    model.resize_token_embeddings(20, rngs=nnx.Rngs(0))
    larger, new_params = gpt1.functional(model)
    assert larger is not apply
    assert larger(new_params, [[19, 1]]).logits.shape == (1, 2, 20)
    assert apply(params, [[12, 1]]).logits.shape == (1, 2, 13)
    model.save_pretrained(tmp_path)
    again = LM.from_pretrained(tmp_path)
    assert again.config.vocab_size == 20
    assert leaves_equal(again.params, model.params)


def test_resize_of_base_model_keeps_dtype() -> None:
    model = small_model(BASE, param_dtype="bfloat16")
    model.resize_token_embeddings(15, rngs=nnx.Rngs(0))
    assert model.params["tokens_embed"]["embedding"].shape == (15, 8)
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype("bfloat16")}


def test_resize_without_rngs_repeats_the_mean() -> None:
    model = small_model(LM, tie_word_embeddings=False, param_dtype="bfloat16")
    table, kernel = (np.asarray(each, np.float64) for each in tables(model))
    resized = model.resize_token_embeddings(14, pad_to_multiple_of=8)
    assert resized is model.get_input_embeddings()
    assert (model.config.vocab_size, model.lm_head.out_features) == (16, 16)
    for old, new in zip((table, kernel.T), tables(model), strict=True):
        rows = np.asarray(new, np.float64) if new.shape[0] == 16 else np.asarray(new, np.float64).T
        np.testing.assert_array_equal(rows[:13], old)
        expected = np.repeat(old.mean(0)[None].astype(jnp.bfloat16), 3, axis=0)
        np.testing.assert_array_equal(rows[13:].astype(jnp.bfloat16), expected)
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    assert model.config.vocab_size == 16
    with pytest.raises(ValueError, match="mean_resizing=False draws the new rows: pass rngs"):
        model.resize_token_embeddings(20, mean_resizing=False)
    with pytest.raises(ValueError, match="pad_to_multiple_of is 0, but must be a positive integer"):
        model.resize_token_embeddings(20, pad_to_multiple_of=0)
    assert model.config.vocab_size == 16


def tables(model: Any) -> tuple[Any, Any]:
    return model.params["transformer"]["tokens_embed"]["embedding"], model.params["lm_head"][
        "kernel"
    ]


def test_get_output_embeddings_returns_the_head() -> None:
    for cls in (LM, DOUBLE):
        model = small_model(cls)
        assert model.get_output_embeddings() is model.lm_head
    for cls in (BASE, CLASSIFIER):
        assert small_model(cls).get_output_embeddings() is None


@pytest.mark.parametrize("size", [0, -1, 2.5, "20"])
def test_resize_rejects_invalid_size(size: Any) -> None:
    model = small_model(LM)
    with pytest.raises(ValueError, match=f"vocab_size is {size!r}, but must be a positive integer"):
        model.resize_token_embeddings(size, rngs=nnx.Rngs(0))
    assert model.config.vocab_size == 13
    assert model.params["transformer"]["tokens_embed"]["embedding"].shape == (13, 8)


GENERATION = "generation_config.json"
# Of another version, in another order, with a field of another library.
HELD = b'{"transformers_version": "4.27.0", "temperature": 0.7, "eos_token_id": [3], "custom": 1}'


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A language model that comes with settings of generation."""
    small_model(LM).save_pretrained(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / GENERATION).write_bytes(HELD)
    return tmp_path / "checkpoint"


def test_generation_config_is_that_of_the_checkpoint(checkpoint: Path) -> None:
    model = LM.from_pretrained(checkpoint)
    expected = {"transformers_version": "4.27.0", "temperature": 0.7, "eos_token_id": [3]}
    assert model.generation_config.to_dict() == {**expected, "custom": 1}
    assert gpt1.OpenAIGPTLMHeadModel.from_pretrained("demo").generation_config == (
        gpt1.GenerationConfig(max_new_tokens=40)
    )


@pytest.mark.difference("files of settings")
@pytest.mark.parametrize("cls", MODELS)
def test_save_pretrained_keeps_the_settings_of_generation(
    cls: type[Any], checkpoint: Path, tmp_path: Path
) -> None:
    """Whole and as they are, in whichever model; where there are none, none are written."""
    cls.from_pretrained(checkpoint, rngs=nnx.Rngs(0)).save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / GENERATION).read_bytes() == HELD
    small_model(cls).save_pretrained(tmp_path / "none")
    assert not (tmp_path / "none" / GENERATION).exists()


def test_save_pretrained_writes_settings_that_were_changed(
    checkpoint: Path, tmp_path: Path
) -> None:
    model = LM.from_pretrained(checkpoint)
    model.generation_config = model.generation_config.updated(max_new_tokens=7, temperature=None)
    model.save_pretrained(tmp_path / "saved")
    expected = {
        "custom": 1,
        "eos_token_id": [3],
        "max_new_tokens": 7,
        "transformers_version": "4.27.0",
    }
    text = (tmp_path / "saved" / GENERATION).read_text()
    assert text == json.dumps(expected, indent=2) + "\n"
    again = LM.from_pretrained(tmp_path / "saved").generation_config
    assert again.to_dict() == model.generation_config.to_dict()


def test_save_pretrained_removes_the_settings_of_another_model(
    checkpoint: Path, tmp_path: Path
) -> None:
    LM.from_pretrained(checkpoint).save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / GENERATION).is_file()
    small_model(LM).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / GENERATION).exists()


def test_conversion_keeps_the_settings_of_generation(checkpoint: Path, tmp_path: Path) -> None:
    config, params = conversion.read(checkpoint)
    for format in ("huggingface", "openai"):
        out = tmp_path / format
        conversion.write(out, config, params, format=format, companions=checkpoint)
        assert (out / GENERATION).read_bytes() == HELD
        assert LM.from_pretrained(out).generation_config.temperature == 0.7


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, nnx.clone, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["copy", "deepcopy", "clone", "pickle"],
)
def test_generation_config_is_kept_by_copies(checkpoint: Path, copied: Any) -> None:
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(checkpoint)
    model.generation_config = gpt1.GenerationConfig(max_new_tokens=7)
    assert copied(model).generation_config.max_new_tokens == 7


@pytest.mark.nightly
def test_generation_config_compiles_nothing_anew() -> None:
    model = small_model(LM)
    names = set(vars(model))
    apply, params = gpt1.functional(model)
    apply(params, IDS)
    gpt1.generate(model, IDS, max_new_tokens=2)
    gpt1.generate(model, IDS, max_new_tokens=2, repetition_penalty=1.5)  # has its own program
    with compilations() as compiled:
        model.generation_config = {"max_new_tokens": 2, "eos_token_id": 3}
        gpt1.generate(model, IDS)
        model.generation_config = gpt1.GenerationConfig(max_new_tokens=2, repetition_penalty=2.0)
        gpt1.generate(model, IDS)
        again, params = gpt1.functional(model)
        again(params, IDS)
    assert compiled == []
    assert again is apply
    assert set(vars(model)) == names


def test_generation_config_that_is_wrong_is_an_error_where_it_is_read(checkpoint: Path) -> None:
    """The model itself works, and takes the file along."""
    for content, message in {
        b"{": "is not JSON",
        b"[]": "must hold a JSON object, not list",
        b'{"max_new_tokens": 0}': "max_new_tokens is 0, but must be at least 1",
    }.items():
        (checkpoint / GENERATION).write_bytes(content)
        model = LM.from_pretrained(checkpoint)
        model(IDS)
        with pytest.raises(ValueError, match=message) as error:
            gpt1.generate(model, IDS)
        assert str(checkpoint / GENERATION) in str(error.value)
        model.save_pretrained(checkpoint)
        assert (checkpoint / GENERATION).read_bytes() == content
    wrong: Any = 3
    with pytest.raises(TypeError, match="generation_config is a int, but must be"):
        small_model(LM).generation_config = wrong
