"""A model as a pure function: its parameters, what it compiles and when, and training with it."""

import functools
import gc
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from support.compilations import compilations
from support.small_models import (
    MODELS,
    difference,
    leaves_equal,
    random_ids,
    small_config,
    small_model,
    spoil,
)

import conversion
import gpt1_jax as gpt1
from gpt1_jax import pure
from gpt1_jax.pure import first_non_finite, merge, not_finite, split

LM = gpt1.OpenAIGPTLMHeadModel
IDS = random_ids(2, 4)


def count(call: Callable[[], Any]) -> int:
    with compilations() as found:
        call()
    return len(found)


def test_compilations_counts_each_compilation() -> None:
    double = jax.jit(lambda x: x * 2)
    x = np.ones(3, np.float32)
    assert count(lambda: double(x)) == 1
    assert count(lambda: double(x)) == 0
    assert count(lambda: double(x[:2])) == 1


@pytest.mark.nightly
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("cls", MODELS)
def test_params_match_param_specs(cls: Any, tied: bool) -> None:
    model = small_model(cls, tie_word_embeddings=tied, num_labels=3)
    _, params = gpt1.functional(model)
    rows = conversion.param_specs(model.config.to_dict(), cls.__name__)
    leaves: Any = flatten_dict(params)
    shapes = {".".join(path): leaf.shape for path, leaf in leaves.items()}
    assert shapes == {".".join(row.path): row.shape for row in rows}
    torch_names = {
        name.replace("kernel", "weight").replace("scale", "weight").replace("embedding", "weight")
        for name in shapes
    }
    assert torch_names == {row.torch for row in rows}


def test_params_are_a_plain_nested_dict() -> None:
    _, params = gpt1.functional(small_model(LM))

    def check(node: Any) -> None:
        if isinstance(node, jax.Array):
            return
        assert type(node) is dict
        assert all(type(key) is str for key in node)
        for child in node.values():
            check(child)

    check(params)
    assert params["transformer"]["h"]["0"]["attn"]["c_attn"]["kernel"].shape == (8, 24)
    assert "lm_head" not in params


@pytest.mark.nightly
def test_merge_keeps_order_of_more_than_ten_blocks() -> None:
    """As strings, "10" comes before "2"."""
    model = small_model(gpt1.OpenAIGPTModel, n_layer=11, n_embd=2, n_head=1)
    params = model.params
    assert list(params["h"]) == [str(i) for i in range(11)]
    merged = merge(split(model)[0], params)
    for i, block in enumerate(merged.h):
        np.testing.assert_array_equal(block.ln_1.scale, params["h"][str(i)]["ln_1"]["scale"])
    assert leaves_equal(merged.params, params)


def replace_mlp(model: LM) -> None:
    model.transformer.h[1].mlp = small_model(LM, afn="relu").transformer.h[1].mlp


def untie_head(model: LM) -> None:
    model.lm_head = nnx.Linear(8, 13, use_bias=False, rngs=nnx.Rngs(0))


def add_adapters(model: LM) -> None:
    linear = model.transformer.h[0].mlp.c_fc
    adapted: Any = nnx.LoRA(8, 2, 32, base_module=linear, rngs=nnx.Rngs(0))
    model.transformer.h[0].mlp.c_fc = adapted


def drop_in_list(model: LM) -> None:
    """Modules in a plain list, which Flax finds too."""
    model.transformer.drops[0].rate = 0.3  # pyright: ignore


CHANGES: dict[str, Callable[[LM], object]] = {
    "submodule": replace_mlp,
    "block": lambda model: model.transformer.h.append(small_model(LM).transformer.h[0]),
    "order of blocks": lambda model: model.transformer.h.insert(0, model.transformer.h[1]),
    "dropout": lambda model: setattr(model.transformer.h[0].attn.attn_dropout, "rate", 0.5),
    "dropout in a list": drop_in_list,
    "vocabulary": lambda model: model.resize_token_embeddings(15, rngs=nnx.Rngs(0)),
    "config": lambda model: setattr(model, "config", small_config(n_positions=7)),
    "attention": lambda model: setattr(model.transformer.h[0].attn, "backend", "xla"),
    "rematerialisation": lambda model: setattr(model.transformer, "remat", "all"),
    "adapters": add_adapters,
    "head": untie_head,
    "metadata": lambda model: model.transformer.tokens_embed.embedding.set_metadata(note="new"),
    "new attribute": lambda model: setattr(model, "note", "new"),
    "kind of variable": lambda model: setattr(
        model.transformer.h[0].ln_1, "scale", nnx.BatchStat(jnp.ones(8))
    ),
    "shared variable": lambda model: setattr(
        model.transformer.h[0].ln_1, "scale", model.transformer.h[0].ln_2.scale
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_split_sees_each_change_of_a_model(change: Callable[[LM], object]) -> None:
    model = small_model(LM)
    setattr(model.transformer, "drops", nnx.data([nnx.Dropout(0.1)]))  # noqa: B010
    before, _ = split(model)
    assert split(model)[0] is before
    change(model)
    structure, params = split(model)
    assert structure != before
    assert structure.graphdef == nnx.graphdef(model)
    state = {tuple(map(str, p)): v.get_value() for p, v in nnx.to_flat_state(nnx.state(model))}
    found = flatten_dict(params)
    assert list(found) == list(state)
    assert all(found[path] is leaf for path, leaf in state.items())


def test_split_sees_values_of_unchanged_structure() -> None:
    model = small_model(LM)
    structure, params = split(model)
    table = model.transformer.tokens_embed
    doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
    ones = jnp.ones_like(table.embedding.get_value())
    for change in (
        lambda: model.load_params(doubled),
        lambda: table.embedding.set_value(ones),
        lambda: nnx.update(model, nnx.state(small_model(LM, seed=1))),
        lambda: setattr(table, "embedding", nnx.Param(ones, **table.embedding.get_metadata())),
    ):
        change()
        same, params = split(model)
        assert same == structure
        assert params["transformer"]["tokens_embed"]["embedding"] is table.embedding.get_value()
        assert leaves_equal(params, model.params)


@pytest.mark.nightly
def test_split_keeps_no_parameters_alive() -> None:
    model = small_model(LM)
    split(model)
    head = nnx.Linear(8, 13, use_bias=False, rngs=nnx.Rngs(0))
    model.lm_head = head
    split(model)
    dropped = weakref.ref(head.kernel.get_value())
    model.lm_head = nnx.Linear(8, 13, use_bias=False, rngs=nnx.Rngs(1))
    del head
    gc.collect()
    assert dropped() is None
    table = weakref.ref(model.transformer.tokens_embed.embedding.get_value())
    number = len(pure._prepared)
    del model
    gc.collect()
    assert table() is None
    assert len(pure._prepared) == number - 1


def test_split_gives_equal_models_equal_structures() -> None:
    (one, _), (other, params) = split(small_model(LM)), split(small_model(LM, seed=1))
    assert one == other
    assert hash(one) == hash(other)
    assert one != split(small_model(LM, afn="relu"))[0]
    assert one != one.graphdef

    @functools.partial(jax.jit, static_argnames="structure")
    def logits(structure: Any, params: Any) -> Any:
        return merge(structure, params)(IDS).logits

    assert count(lambda: logits(one, params)) == 1
    assert count(lambda: logits(other, params)) == 0


def test_params_do_not_change_when_model_is_updated() -> None:
    model = small_model(LM)
    _, params = gpt1.functional(model)
    before = jax.tree.map(np.array, params)
    model.load_params(jax.tree.map(lambda leaf: leaf + 1, params))
    assert leaves_equal(params, before)


def test_functional_is_shared_by_equal_models() -> None:
    fields: dict[str, Any] = {"vocab_size": 14, "n_layer": 1}
    one, other = small_model(LM, **fields), small_model(LM, seed=1, **fields)
    apply, params = gpt1.functional(one)
    same, other_params = gpt1.functional(other)
    assert same is apply
    assert count(lambda: apply(params, IDS)) > 0
    assert count(lambda: same(other_params, IDS)) == 0
    assert difference(apply(params, IDS).logits, apply(other_params, IDS).logits) > 0.1
    made, _ = gpt1.functional(LM(small_config(**fields), rngs=nnx.Rngs(5)))
    assert made is apply


@pytest.mark.parametrize(
    "fields",
    [
        {"n_head": 4},
        {"layer_norm_epsilon": 1e-3},
        {"resid_pdrop": 0.2},
        {"afn": "relu"},
        {"dtype": "bfloat16"},
        {"precision": "highest"},
    ],
    ids=str,
)
def test_functional_differs_between_configs_and_dtypes(fields: Any) -> None:
    apply, _ = gpt1.functional(small_model(LM))
    other, _ = gpt1.functional(small_model(LM, **fields))
    assert other is not apply


def test_functional_differs_between_architectures() -> None:
    assert len({gpt1.functional(small_model(cls))[0] for cls in MODELS}) == len(MODELS)


@pytest.mark.nightly
def test_apply_recompiles_for_shapes_but_not_values() -> None:
    apply, params = gpt1.functional(small_model(LM, n_layer=1))
    other = random_ids(2, 4, seed=1)
    apply(params, IDS, labels=IDS, attention_mask=np.ones((2, 4)), num_items_in_batch=3)
    for labels, mask, number in (
        (other, np.ones((2, 4)), 4),
        (IDS, np.asarray([[0, 1, 1, 1], [1, 1, 1, 1]], np.float64), 5),
        (np.full_like(IDS, -100), np.ones((2, 4)), 6),
    ):
        compiled = count(
            lambda labels=labels, mask=mask, number=number: apply(
                params, other, labels=labels, attention_mask=mask, num_items_in_batch=number
            )
        )
        assert compiled == 0
    # And one flag, or another length, is one more program.
    assert count(lambda: apply(params, IDS, logits_to_keep=1)) == 1
    assert count(lambda: apply(params, IDS, logits_to_keep=1)) == 0
    assert count(lambda: apply(params, IDS, logits_to_keep=2)) == 1
    assert count(lambda: apply(params, IDS[:, :3], logits_to_keep=1)) == 1


def test_apply_does_not_recompile_for_array_types() -> None:
    """Lists, numpy and JAX arrays of the same ids; arguments by place and by name."""
    apply, params = gpt1.functional(small_model(LM, n_layer=1))
    mask = np.ones((2, 4), np.int32)
    apply(params, IDS, mask)
    device_ids, device_mask = jnp.asarray(IDS), jnp.asarray(mask)
    assert count(lambda: apply(params, device_ids, device_mask)) == 0
    assert count(lambda: apply(params, input_ids=IDS, attention_mask=mask)) == 0
    assert count(lambda: apply(params, IDS, mask, labels=None)) == 0
    assert count(lambda: apply(params, IDS.tolist(), mask.tolist())) == 0


@pytest.mark.nightly
def test_apply_compiles_once_for_decode_steps() -> None:
    model = small_model(LM, n_layer=1)
    apply, params = gpt1.functional(model)
    cache = gpt1.Cache.empty(model.config, 2, 6)
    cache = apply(params, IDS[:, :1], cache=cache).cache
    for t in range(1, 4):
        with compilations() as found:
            cache = apply(params, IDS[:, t : t + 1], cache=cache).cache
        assert not found
    assert cache.index == 4


@pytest.mark.nightly
def test_apply_works_inside_jit_and_grad() -> None:
    apply, params = gpt1.functional(small_model(LM, n_layer=1))

    def loss(params: Any, ids: Any) -> Any:
        return apply(params, ids, labels=ids).loss

    compiled = jax.jit(jax.value_and_grad(loss))
    value, gradient = compiled(params, IDS)
    # Measured: equal.
    np.testing.assert_allclose(value, loss(params, IDS), rtol=1e-6)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    assert count(lambda: compiled(params, random_ids(2, 4, seed=1))) == 0


@pytest.mark.nightly
@pytest.mark.parametrize("cls", MODELS)
def test_apply_gradient_steps_lower_the_loss(cls: Any) -> None:
    model = small_model(cls, n_layer=1, pad_token_id=0)
    apply, params = gpt1.functional(model)
    ids, arguments = IDS, {}
    if cls is gpt1.OpenAIGPTForSequenceClassification:
        arguments = {"labels": np.asarray([0, 1])}
    elif cls is gpt1.OpenAIGPTDoubleHeadsModel:
        ids, arguments = IDS[None], {"labels": IDS[None], "mc_labels": np.asarray([1])}
    elif cls is LM:
        arguments = {"labels": IDS}
    optimizer = optax.adam(3e-3)

    def loss(params: Any) -> Any:
        out = apply(params, ids, deterministic=True, **arguments)
        if cls is gpt1.OpenAIGPTModel:
            return (out.last_hidden_state**2).sum()
        return out.loss + getattr(out, "mc_loss", 0)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        value, gradient = jax.value_and_grad(loss)(params)
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to its int32
            updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state = jax.jit(optimizer.init)(params)
    losses = []
    for _ in range(5):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == 5


@pytest.mark.nightly
def test_load_params_accepts_trained_params() -> None:
    model = small_model(LM, n_layer=1)
    apply, params = gpt1.functional(model)
    trained = jax.tree.map(lambda leaf: leaf * np.float32(1.5), params)
    model.load_params(trained)
    # Measured: 2e-7.
    assert difference(model(IDS).logits, apply(trained, IDS).logits) < 1e-6


@pytest.mark.nightly
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_names_the_first_parameter(value: float) -> None:
    model = small_model(LM, n_layer=11)
    assert first_non_finite(model.params) is None
    assert "all parameters are: a dtype of" in str(not_finite("the logits", model.params))
    for layer in (10, 2):  # as a string, 10 comes before 2
        spoil(model, f"transformer.h.{layer}.mlp.c_fc.bias", value)
    assert str(not_finite("the logits", model.params)) == (
        "the logits are not finite, because the parameter transformer.h.2.mlp.c_fc.bias holds NaN "
        "or inf"
    )


def test_apply_reports_mismatched_params() -> None:
    config = gpt1.OpenAIGPTConfig(vocab_size=11, n_positions=8, n_layer=1, n_embd=8, n_head=2)
    apply, params = gpt1.functional(gpt1.OpenAIGPTLMHeadModel(config, rngs=nnx.Rngs(0)))
    ids = np.array([[1, 2]])
    apply(params, ids)
    block = params["transformer"]["h"]["0"]
    block["ln_9"] = block.pop("ln_1")
    block["mlp"]["c_fc"]["bias"] = jax.numpy.zeros(1)  # which would broadcast
    with pytest.raises(ValueError, match="not the parameters of this") as error:
        apply(params, ids)
    message = str(error.value)
    assert "- transformer.h.0.ln_1.scale is missing" in message
    assert "+ transformer.h.0.ln_9.scale is unexpected" in message
    assert "! transformer.h.0.mlp.c_fc.bias has shape (1,), but must have (32,)" in message


def test_apply_rejects_cache_for_models_without_decoding() -> None:
    config = gpt1.OpenAIGPTConfig(vocab_size=11, n_positions=8, n_layer=1, n_embd=8, n_head=2)
    for cls in (gpt1.OpenAIGPTDoubleHeadsModel, gpt1.OpenAIGPTForSequenceClassification):
        apply, params = gpt1.functional(cls(config, rngs=nnx.Rngs(0)))
        cache = gpt1.Cache.empty(config, 1, 8)
        with pytest.raises(TypeError, match=f"{cls.__name__} takes no cache"):
            apply(params, np.array([[1, 2]]), cache=cache)
        assert not cache.index.is_deleted()


def test_split_rejects_plain_arrays_by_name() -> None:
    model = small_model(gpt1.OpenAIGPTLMHeadModel)
    mlp: Any = model.transformer.h[0].mlp
    mlp.scale = nnx.data(jnp.ones(8))
    with pytest.raises(ValueError, match=r"transformer\.h\.0\.mlp\.scale is a plain array"):
        gpt1.functional(model)
