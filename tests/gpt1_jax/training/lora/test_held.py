"""Adapters that a model holds by name: what is in use, what it computes, and what is kept."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.compilations import compilations
from support.small_models import MODELS, difference, leaves_equal, random_ids, small_model

import gpt1_jax as gpt1
from gpt1_jax.pretrained import flatten
from gpt1_jax.training.lora import LoraSettings, init_adapters, merge_adapters, save_adapters

BASE, LM, DOUBLE, CLASSIFIER = MODELS
IDS = random_ids(2, 5)
FIELDS: dict[str, Any] = {"n_layer": 1}


def write_adapter(
    folder: Path, model: Any, *, seed: int, saved: Any = None, **fields: Any
) -> tuple[Any, LoraSettings]:
    """Save random adapters of a model, of which neither factor is zero."""
    chosen = LoraSettings(**{"rank": 2, "target_modules": ("c_attn", "mlp.c_proj"), **fields})
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: init_adapters(chosen, model.params, jax.random.key(0)))
    adapters = jax.tree.map(
        lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes
    )
    save_adapters(
        folder,
        chosen,
        adapters,
        architecture=type(model).__name__,
        base="base",
        saved_modules=saved,
    )
    return adapters, chosen


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters of one shape, of other scales."""
    folder = tmp_path_factory.mktemp("adapters")
    model = small_model(LM, **FIELDS)
    write_adapter(folder / "a", model, seed=1)
    write_adapter(folder / "b", model, seed=2, alpha=3.0, rslora=True)
    return {name: folder / name for name in "ab"}


def logits(model: Any) -> np.ndarray:
    apply, params = gpt1.functional(model)
    return np.asarray(apply(params, IDS).logits)


def test_load_adapter_merges_and_restores_every_bit(folders: dict[str, Path]) -> None:
    model = small_model(LM, **FIELDS)
    before = model.params
    assert model.active_adapters() == []
    model.load_adapter(folders["a"], "a")
    model.load_adapter(folders["b"], adapter_name="b")
    assert model.active_adapters() == ["b"]
    for name, seed, fields in (("a", 1, {}), ("b", 2, {"alpha": 3.0, "rslora": True})):
        model.set_adapter(name)
        adapters, chosen = write_adapter(folders["a"].parent / "c", model, seed=seed, **fields)
        expected = flatten(merge_adapters(before, adapters, chosen))
        for path, leaf in flatten(model.params).items():
            assert difference(leaf, expected[path]) < 5e-7, path  # measured: 1.2e-7
            if path[-1] != "kernel":
                assert leaf is flatten(before)[path]
    model.disable_adapters()
    assert model.active_adapters() == []
    assert leaves_equal(model.params, before)
    model.enable_adapters()
    assert model.active_adapters() == ["b"]
    model.delete_adapter("b")
    assert leaves_equal(model.params, before)
    with pytest.raises(ValueError, match=r"there is no adapter 'b'; loaded are 'a'$"):
        model.set_adapter("b")


@pytest.mark.parametrize("mode", [None, "int8"])
def test_set_adapter_compiles_nothing(mode: Any, folders: dict[str, Path]) -> None:
    model = gpt1.quantize(small_model(LM, **FIELDS)) if mode else small_model(LM, **FIELDS)
    before = logits(model)
    model.load_adapter(folders["a"], "a")
    first = logits(model)
    model.load_adapter(folders["b"], "b")
    with compilations() as compiled:
        second = logits(model)
        model.set_adapter("a")
        assert np.array_equal(logits(model), first)
        model.disable_adapters()
        assert np.array_equal(logits(model), before)
    assert compiled == []
    assert min(difference(first, second), difference(first, before)) > 0.01


@pytest.mark.nightly
def test_load_adapter_over_int8_adds_to_the_product(folders: dict[str, Path]) -> None:
    whole = small_model(LM, **FIELDS)
    model = gpt1.quantize(whole)
    expected = np.asarray(whole.params["transformer"]["h"]["0"]["attn"]["c_attn"]["kernel"])
    model.load_adapter(folders["a"])
    whole.load_adapter(folders["a"])
    # Nearer to the adapted floats than the floats without the adapter are: int8 errs by 1 %.
    assert difference(logits(model), logits(whole)) < 0.1
    layer: Any = model.transformer.h[0].attn.c_attn
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 3, 8)), jnp.float32)
    A, B = layer.lora_A.get_value(), layer.lora_B.get_value()
    assert difference(layer(x), layer.linear(x) + x @ A @ B) < 1e-5
    change = whole.params["transformer"]["h"]["0"]["attn"]["c_attn"]["kernel"] - expected
    assert difference(A @ B, change) < 1e-6
    assert gpt1.generate(model, IDS, max_new_tokens=2).shape == (2, 7)
    assert np.isfinite(gpt1.score(model, IDS.tolist())[0].sum)
    with pytest.raises(ValueError, match="cannot be saved with an adapter in use"):
        model.save_pretrained("nowhere")
    model.disable_adapters()
    assert gpt1.tree(model) == gpt1.tree(gpt1.quantize(small_model(LM, **FIELDS)))


def test_load_adapter_replaces_heads_and_resized_embedding(tmp_path: Path) -> None:
    for cls, resized in ((CLASSIFIER, 15), (LM, 15), (LM, 11)):
        fields = {**FIELDS, "num_labels": 3, "tie_word_embeddings": cls is CLASSIFIER}
        model, other = small_model(cls, **fields), small_model(cls, seed=5, **fields)
        other.resize_token_embeddings(resized, rngs=nnx.Rngs(0))
        names = ("tokens_embed", "score", "lm_head")
        saved: Any = {k: v for k, v in other.params.items() if k in names}
        saved["transformer"] = {"tokens_embed": other.params["transformer"]["tokens_embed"]}
        write_adapter(tmp_path / "adapter", model, seed=1, saved=saved)
        before = model.params
        model.load_adapter(tmp_path / "adapter", "new")
        assert model.config.vocab_size == resized
        for path, leaf in flatten(saved).items():
            assert np.array_equal(flatten(model.params)[path], leaf), path
        model.disable_adapters()
        assert model.config.vocab_size == 13
        assert leaves_equal(model.params, before)
        model.set_adapter("new")
        assert model.config.vocab_size == resized
    quantized = gpt1.quantize(small_model(LM, **FIELDS))
    del saved["lm_head"]
    write_adapter(tmp_path / "adapter", small_model(LM, **FIELDS), seed=1, saved=saved)
    with pytest.raises(
        ValueError, match=r"tokens_embed\.embedding, which is int8 here: merge it in"
    ):
        quantized.load_adapter(tmp_path / "adapter")


def test_load_adapter_rejects_adapters_of_another_model(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model = small_model(LM, **FIELDS)
    model.load_adapter(folders["a"], "a")
    adapted = model.params
    write_adapter(tmp_path / "deep", small_model(LM, n_layer=2), seed=1)
    write_adapter(tmp_path / "wide", small_model(LM, n_embd=16, **FIELDS), seed=1)
    head = small_model(CLASSIFIER, **FIELDS)
    write_adapter(tmp_path / "head", head, seed=1, saved={"score": head.params["score"]})
    write_adapter(tmp_path / "body", small_model(BASE, **FIELDS), seed=1)
    for name, fault in (
        ("deep", r"\+ transformer.h.1.attn.c_attn is unexpected"),
        ("wide", r"! transformer.h.0.attn.c_attn has shape \(16, 48\), but must have \(8, 24\)"),
        ("head", r"\+ score.kernel is unexpected"),
        ("body", r"\+ h.0.attn.c_attn is unexpected"),
    ):
        with pytest.raises(ValueError, match=f"(?s){name} is an adapter of another .*{fault}"):
            model.load_adapter(tmp_path / name, "other")
    with pytest.raises(ValueError, match="there is an adapter 'a' already"):
        model.load_adapter(folders["b"], "a")
    with pytest.raises(FileNotFoundError, match=r"has no adapter_config\.json"):
        model.load_adapter(tmp_path, "other")
    assert model.active_adapters() == ["a"]
    assert leaves_equal(model.params, adapted)


def test_load_params_forgets_adapters(folders: dict[str, Path]) -> None:
    model = small_model(LM, **FIELDS)
    model.load_adapter(folders["a"])
    adapted = model.params
    model.load_params(adapted)
    assert model.active_adapters() == []
    model.disable_adapters()
    assert leaves_equal(model.params, adapted)
    with pytest.raises(ValueError, match="there is no adapter None; loaded are none"):
        model.enable_adapters()
