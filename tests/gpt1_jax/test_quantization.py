"""Models in int8: what they compute, keep and refuse."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from support.compilations import compilations
from support.small_models import MODELS, difference, leaves_equal, random_ids, small_model

import conversion
import gpt1_jax as gpt1
from gpt1_jax.explore.embeddings import h_0
from gpt1_jax.nn.int8 import Int8Embed, Int8Linear
from gpt1_jax.pretrained import saved_config
from gpt1_jax.quantization import is_quantized

LM = gpt1.OpenAIGPTLMHeadModel
SIZES: dict[str, Any] = {"vocab_size": 50, "n_embd": 32, "n_head": 4, "n_positions": 16}
IDS = random_ids(2, 6, size=50)
WEIGHTS = "model.int8.safetensors"


def float_model(cls: Any = LM, **fields: Any) -> Any:
    return small_model(cls, **{**SIZES, "pad_token_id": 0, **fields})


def output(model: Any, ids: np.ndarray = IDS) -> np.ndarray:
    if type(model) is gpt1.OpenAIGPTDoubleHeadsModel:
        ids = ids[:, None]
    return np.asarray(model(ids)[0], np.float32)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """The root of the mean square of the error, relative to that of the values."""
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))


@pytest.mark.nightly
@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("cls", MODELS)
def test_quantize_keeps_the_class_and_nearly_the_output(cls: Any, tied: bool, head: bool) -> None:
    model = float_model(cls, tie_word_embeddings=tied)
    before = jax.tree.map(np.asarray, model.params)
    quantized = gpt1.quantize(model, head=head)
    assert type(quantized) is cls
    assert is_quantized(quantized)
    assert not is_quantized(model)
    assert leaves_equal(model.params, before)
    # Measured: 0.7 to 4.8 %.
    assert 1e-3 < relative_error(output(quantized), output(model)) < 0.06
    body = getattr(quantized, "transformer", quantized)
    assert isinstance(body.tokens_embed, Int8Embed) is head
    if hasattr(quantized, "lm_head") and not tied:
        assert isinstance(quantized.lm_head, Int8Linear) is head


@pytest.mark.parametrize("cls", MODELS)
def test_params_of_a_quantized_model_match_param_specs(cls: Any) -> None:
    model = gpt1.quantize(float_model(cls))
    specs = conversion.param_specs(saved_config(model), cls.__name__)
    leaves: Any = flatten_dict(model.params)
    assert {row.path: row.shape for row in specs} == {p: x.shape for p, x in leaves.items()}
    assert {row.path for row in specs if row.dtype == "int8"} == {
        path for path, leaf in leaves.items() if leaf.dtype == jnp.int8
    }


def test_quantize_makes_gpt1_at_most_0_3_times_as_large() -> None:
    def nbytes(make: Any) -> int:
        shapes = nnx.eval_shape(make).params
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))

    def model() -> Any:
        return LM(gpt1.OpenAIGPTConfig(), rngs=nnx.Rngs(0))

    assert nbytes(lambda: gpt1.quantize(model())) < 0.3 * nbytes(model)


@pytest.mark.nightly
def test_functional_of_quantized_models_shares_its_compilation() -> None:
    first, second = (gpt1.quantize(float_model(seed=seed)) for seed in (0, 1))
    apply, params = gpt1.functional(first)
    # Sums in another order round otherwise, and now and then an activation to the next integer.
    assert relative_error(np.asarray(apply(params, IDS).logits), output(first)) < 2e-3
    with compilations() as found:
        apply, params = gpt1.functional(second)
        apply(params, IDS)
    assert not found


@pytest.mark.nightly
@pytest.mark.parametrize("head", [True, False])
def test_generate_of_a_quantized_model_matches_its_forward(head: bool) -> None:
    model = gpt1.quantize(float_model(), head=head)
    ids = np.pad(IDS[:1], [(0, 0), (0, 5)])
    for t in range(6, 11):  # padded, so that one program does: no token sees those after it
        ids[:, t] = output(model, ids)[:, t - 1].argmax(-1)
    np.testing.assert_array_equal(gpt1.generate(model, IDS[:1], max_new_tokens=5), ids)
    assert (gpt1.generate(model, IDS, max_new_tokens=5)[0] == ids[0]).all()
    drafted = gpt1.generate(model, IDS[:1], max_new_tokens=5, prompt_lookup_num_tokens=2)
    np.testing.assert_array_equal(drafted, ids)


@pytest.mark.nightly
@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"do_sample": True, "seed": 1}])
def test_generate_of_a_quantized_model_takes_settings(settings: dict[str, Any]) -> None:
    model = gpt1.quantize(float_model())
    found = gpt1.generate(model, [[1, 2, 3], [4, 5]], max_new_tokens=4, **settings)
    assert [len(row) for row in found] == [7, 6]


@pytest.mark.nightly
def test_quantize_keeps_bfloat16() -> None:
    model = float_model(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    quantized = gpt1.quantize(model)
    out = quantized(IDS, output_hidden_states=True)
    assert out.hidden_states[1].dtype == jnp.bfloat16
    assert out.logits.dtype == jnp.float32
    assert relative_error(np.asarray(out.logits), output(model)) < 0.05


def test_quantize_leaves_ids_out_of_range_not_finite() -> None:
    apply, params = gpt1.functional(gpt1.quantize(float_model()))
    logits = apply(params, jnp.asarray([[1, 50], [1, 2]])).logits
    assert np.isnan(logits[0, 1]).all()
    assert np.isfinite(logits[1]).all()


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("cls", MODELS)
def test_save_pretrained_of_a_quantized_model_is_read_back(
    cls: Any, head: bool, tmp_path: Path
) -> None:
    model = gpt1.quantize(float_model(cls), head=head)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", WEIGHTS]
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["quantization_config"] == {"quant_method": "gpt1-jax-int8", "head": head}
    assert fields["dtype"] == "float32"
    for read in (cls.from_pretrained(tmp_path), gpt1.from_pretrained(tmp_path)):
        assert type(read) is cls
        assert leaves_equal(read.params, model.params)
        np.testing.assert_array_equal(output(read), output(model))
    again = tmp_path / "again"
    read.save_pretrained(again)
    assert (again / WEIGHTS).read_bytes() == (tmp_path / WEIGHTS).read_bytes()


def test_from_pretrained_of_int8_keeps_scales_in_float32(tmp_path: Path) -> None:
    model = gpt1.quantize(float_model())
    model.save_pretrained(tmp_path)
    half: Any = LM.from_pretrained(tmp_path, dtype="bfloat16")
    leaves: Any = flatten_dict(half.params)
    for path, leaf in leaves.items():
        own: Any = flatten_dict(model.params)[path]
        int8 = (*path[:-1], "qvalue") in flatten_dict(model.params)
        if path[-1] == "qvalue" or (path[-1] == "scale" and int8):
            assert leaf.dtype == own.dtype
            np.testing.assert_array_equal(leaf, own)
        else:
            assert leaf.dtype == jnp.bfloat16
    assert relative_error(output(half), output(model)) < 0.05


def test_save_pretrained_of_a_quantized_model_in_shards(tmp_path: Path) -> None:
    model = gpt1.quantize(float_model())
    model.save_pretrained(tmp_path, max_shard_size=20_000)
    assert (tmp_path / "model.int8.safetensors.index.json").is_file()
    assert leaves_equal(LM.from_pretrained(tmp_path).params, model.params)
    float_model().save_pretrained(tmp_path)  # which replaces them all
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert not is_quantized(LM.from_pretrained(tmp_path))


def test_from_pretrained_reads_the_body_of_an_int8_model(tmp_path: Path) -> None:
    model = gpt1.quantize(float_model())
    model.save_pretrained(tmp_path)
    body = gpt1.OpenAIGPTModel.from_pretrained(tmp_path)
    assert leaves_equal(body.params, model.params["transformer"])


def test_quantize_rejects_what_it_cannot_do() -> None:
    model: Any = float_model()
    with pytest.raises(ValueError, match="mode is 'int4', but must be 'int8'"):
        gpt1.quantize(model, "int4")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="is int8 already: quantize the model that it was made of"):
        gpt1.quantize(gpt1.quantize(model))
    model.transformer.h[1].mlp.c_fc = nnx.Dropout(0.1)
    with pytest.raises(ValueError, match=r"c_fc of block 1 is a Dropout, but only nnx.Linear"):
        gpt1.quantize(model)


def test_quantized_model_rejects_what_needs_floats(tmp_path: Path) -> None:
    model = gpt1.quantize(float_model())
    with pytest.raises(ValueError, match="int8: resize the model that it was quantized from"):
        model.resize_token_embeddings(60)
    floats = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model.params)
    with pytest.raises(ValueError, match=r"c_attn\.qvalue is float32, but must be int8"):
        model.load_params(floats)
    given: Any
    for given, words in (
        ({"format": "openai"}, "OpenAI's format takes floats alone"),
        ({"safe_serialization": False}, r"pytorch_model\.bin takes floats alone"),
    ):
        with pytest.raises(ValueError, match=f"the weights are int8, and {words}: use the check"):
            conversion.write(tmp_path / "out", saved_config(model), model.params, **given)
    assert not (tmp_path / "out").exists()


def test_from_pretrained_names_int8_weights_that_are_wrong(tmp_path: Path) -> None:
    gpt1.quantize(float_model()).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    fields = json.loads(config.read_text())

    def load(quantization_config: object) -> None:
        said = {**fields, "quantization_config": quantization_config}
        config.write_text(json.dumps(said))
        LM.from_pretrained(tmp_path)

    unmarked = "the weights are int8, but config.json has no quantization_config with"
    for marker in (None, "int8", {"quant_method": "gptq"}):
        with pytest.raises(ValueError, match=unmarked) as raised:
            load(marker)
        assert "c_attn.weight is int8, expected float32 or bfloat16" in str(raised.value)
    method = fields["quantization_config"]["quant_method"]
    with pytest.raises(ValueError, match="the embedding is int8, against quantization_config's"):
        load({"quant_method": method, "head": False})
    wrong = "quantization_config of config.json is wrong: head is 'yes'; it must be true or false"
    with pytest.raises(ValueError, match=wrong):
        load({"quant_method": method, "head": "yes"})
    float_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="says that the weights are int8, not floats"):
        load({"quant_method": method, "head": True})


@pytest.mark.parametrize("compiled", [False, True])
def test_quantized_model_has_no_gradient(compiled: bool) -> None:
    """It would be that of the scales alone."""
    model = gpt1.quantize(float_model())
    apply, params = gpt1.functional(model)
    ids = np.array([[3, 1, 2]])

    def loss(embeds: jax.Array) -> jax.Array:
        if compiled:
            return apply(params, inputs_embeds=embeds, labels=ids).loss
        return model(inputs_embeds=embeds, labels=ids).loss

    with pytest.raises(ValueError, match="an int8 model has no gradient: differentiate the model"):
        jax.grad(loss)(jnp.ones((1, 3, 32)))
    with pytest.raises(ValueError, match="an int8 model has no gradient"):
        jax.grad(lambda params: apply(params, ids, labels=ids).loss, allow_int=True)(params)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("demo", {}, "model is a str, but must be one of gpt1_jax's models"),
        (None, {"head": "no"}, "head is 'no', but must be True or False"),
    ],
)
def test_quantize_rejects_other_types(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        gpt1.quantize(float_model() if model is None else model, **options)


def test_commands_know_int8_weights(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    gpt1.quantize(float_model()).save_pretrained(tmp_path)
    status, out, _ = run("tree", tmp_path)
    assert status == 0
    assert "Int8Linear" in out
    assert f"{LM.from_pretrained(tmp_path).num_parameters():,} parameters" in out
    status, _, err = run("plan", "cpu", "--model", tmp_path)
    assert (status, err) == (
        2,
        f"gpt1: the weights of {tmp_path} are int8, and gpt1 plan takes floats alone: use the "
        "checkpoint that they were quantized from\n",
    )
    target = tmp_path / "half"
    status, _, err = run("convert", "demo", target, "--quantize", "int8", "--dtype", "bfloat16")
    assert (status, err) == (0, "")
    params = LM.from_pretrained(target).params
    assert params["transformer"]["h"]["0"]["ln_1"]["scale"].dtype == jnp.bfloat16
    file = tmp_path / "text.txt"
    file.write_text("a b c\n" * 100)
    status, _, err = run("pretrain", file, "--out", tmp_path / "out", "--model", target)
    assert status == 2
    assert f"the weights of {target} are int8, and training takes floats alone" in err


def test_tree_and_embeddings_of_a_quantized_model() -> None:
    model = gpt1.quantize(float_model())
    assert "(c_attn): Int8Linear(in_features=32, out_features=96, bias=True)" in gpt1.tree(model)
    found = h_0(model, [1, 2, 3])
    assert difference(found.product, found.look_up) < 1e-6
