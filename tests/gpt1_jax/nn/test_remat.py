"""What is computed again changes neither loss nor gradients, only what is kept meanwhile."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.small_models import difference, random_ids, small_config, small_model

import gpt1_jax as gpt1
from gpt1_jax.nn.remat import compiler_options
from gpt1_jax.pure import merge, split

LM = gpt1.OpenAIGPTLMHeadModel
KINDS: Any = ("none", "linear", "all")
RATES: dict[str, Any] = {"embd_pdrop": 0.1, "attn_pdrop": 0.3, "resid_pdrop": 0.5}
IDS = random_ids(3, 8)
MASK = np.ones((3, 8), np.float32)
MASK[0, 5:] = 0


@functools.cache
def gradients(remat: Any, dtype: str) -> Any:
    """The loss with dropout and its gradients, of one model, one batch and one key."""
    fields = {**RATES, "n_layer": 1}
    params = small_model(LM, param_dtype=dtype, **fields).params
    config = small_config(**fields)
    structure, _ = split(LM(config, rngs=nnx.Rngs(0), param_dtype=dtype, remat=remat))

    def loss(params: Any) -> jax.Array:
        key = jax.random.key(7)
        out = merge(structure, params).forward(
            IDS, MASK, labels=IDS, deterministic=False, dropout_key=key
        )
        return out.loss

    return jax.jit(jax.value_and_grad(loss), compiler_options=compiler_options())(params)


@pytest.mark.nightly
@pytest.mark.parametrize("remat", ["linear", "all"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-14)])
def test_remat_preserves_loss_and_gradients(remat: str, dtype: str, tolerance: float) -> None:
    with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion("standard"):
        expected = gradients("none", dtype)
        found = gradients(remat, dtype)
    for ours, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == right.dtype == jnp.dtype(dtype)
        # Measured: 7.5e-8 and 1.4e-16.
        assert difference(ours, right) < tolerance


@pytest.mark.parametrize("remat", ["linear", "all"])
def test_remat_preserves_hidden_states_and_attentions(remat: Any) -> None:
    config, params = small_config(), small_model(LM).params
    flags = {"output_hidden_states": True, "output_attentions": True}
    expected = gpt1.functional(LM(config, rngs=nnx.Rngs(0)))[0](params, IDS, MASK, **flags)
    apply, _ = gpt1.functional(LM(config, rngs=nnx.Rngs(0), remat=remat))
    found = apply(params, IDS, MASK, **flags)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        # Measured: 0.
        np.testing.assert_allclose(ours, right, atol=1e-5)


@pytest.mark.parametrize("remat", ["linear", "all"])
def test_remat_does_not_affect_decoding(remat: Any) -> None:
    model = LM(small_config(), rngs=nnx.Rngs(0), remat=remat)
    cache = gpt1.Cache.empty(model.config, 3, 8)
    decoding = jax.make_jaxpr(lambda ids, cache: model(ids, cache=cache).logits)(IDS, cache)
    training = jax.make_jaxpr(lambda ids: model(ids).logits)(IDS)
    assert "prevent_cse" not in str(decoding)
    assert str(training).count("prevent_cse") == model.config.n_layer


def kept(remat: Any) -> int:
    """The bytes that a compiled step of one training batch needs besides its arguments."""
    config = small_config(n_embd=16, n_positions=64, n_layer=4)
    model = nnx.eval_shape(lambda: LM(config, rngs=nnx.Rngs(0), remat=remat))
    structure, params = split(model)

    def loss(params: Any, ids: jax.Array) -> jax.Array:
        return merge(structure, params).forward(ids, labels=ids).loss

    ids = jax.ShapeDtypeStruct((16, 64), jnp.int32)
    step = jax.jit(jax.grad(loss), compiler_options=compiler_options())
    analysis = step.lower(params, ids).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


@pytest.mark.nightly
def test_remat_reduces_memory() -> None:
    none, linear, everything = (kept(remat) for remat in KINDS)
    # Measured: 21.5, 7.4 and 3.2 MB.
    assert linear < none / 2
    assert everything < linear / 1.5


@pytest.mark.nightly
def test_remat_uses_newly_loaded_params() -> None:
    ours, expected = (LM(small_config(), rngs=nnx.Rngs(0), remat=remat) for remat in KINDS[:2])
    for seed in range(2):
        params = small_model(LM, seed=seed).params
        ours.load_params(params)
        expected.load_params(params)
        assert difference(ours(IDS).logits, expected(IDS).logits) < 1e-6


def test_remat_rejects_unknown_policy() -> None:
    with pytest.raises(ValueError, match="remat is 'some', but must be one of none, linear, all"):
        LM(small_config(), rngs=nnx.Rngs(0), remat="some")  # pyright: ignore[reportArgumentType]


def test_from_pretrained_sets_remat(tmp_path: Any) -> None:
    small_model(LM).save_pretrained(tmp_path)
    model = LM.from_pretrained(tmp_path, remat="linear")
    assert model.remat == model.transformer.remat == "linear"
