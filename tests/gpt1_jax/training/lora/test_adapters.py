"""Adapters: what they compute, what is saved of them, and that peft has the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from hypothesis import given, settings
from safetensors.numpy import load_file, save_file
from support.small_models import MODELS, difference, leaves_equal, random_ids, small_model

import gpt1_jax as gpt1
from gpt1_jax.pretrained import flatten
from gpt1_jax.training.lora.adapters import (
    CONFIG,
    WEIGHTS,
    LoraSettings,
    adapt,
    init_adapters,
    load_adapters,
    merge_adapters,
    save_adapters,
)

BASE, LM, DOUBLE, CLASSIFIER = MODELS
ALL = ("c_attn", "c_proj", "c_fc")
IDS = random_ids(2, 5)
TINY = LoraSettings(rank=3, alpha=4.0, target_modules=ALL)


def random_adapters(params: Any, chosen: LoraSettings = TINY, seed: int = 1) -> Any:
    """Adapters of which neither factor is zero, in numpy."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: init_adapters(chosen, params, jax.random.key(0)))
    return jax.tree.map(
        lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes
    )


def overlaid(params: Any, saved: Any) -> Any:
    """The parameters with those that were trained beside the adapters in their places."""
    assert flatten(saved).keys() <= flatten(params).keys()
    return unflatten_dict({**flatten(params), **flatten(saved)})


def save(folder: Path, adapters: Any, chosen: LoraSettings = TINY, **fields: Any) -> None:
    save_adapters(
        folder, chosen, adapters, **{"architecture": LM.__name__, "base": "base", **fields}
    )


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    """Change the arrays of a saved adapter."""
    arrays = load_file(folder / WEIGHTS)
    change(arrays)
    save_file(arrays, folder / WEIGHTS)


def reconfigure(folder: Path, **fields: Any) -> None:
    """Change the configuration of a saved adapter."""
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **fields}))


# What adapters compute.


def test_adapt_adds_scaled_product_of_factors() -> None:
    params = small_model(LM).params
    adapters = random_adapters(params)
    adapted = flatten(adapt(params, adapters, TINY))
    for path, kernel in flatten(params).items():
        expected = np.asarray(kernel, np.float64)
        if path[-1] == "kernel":
            factors = flatten(adapters)
            A, B = (factors[*path[:-1], name].astype(np.float64) for name in ("lora_A", "lora_B"))
            expected = expected + 4.0 / 3 * (A @ B)
            assert difference(adapted[path], kernel) > 0.1
            assert difference(adapted[path], expected) < 5e-7  # measured: 8e-8
        else:
            assert adapted[path] is kernel


def test_lora_settings_rslora_scales_by_root_of_rank() -> None:
    assert LoraSettings(rank=16, alpha=8.0).scale == 0.5
    assert LoraSettings(rank=16, alpha=8.0, rslora=True).scale == 2.0


def test_lora_settings_all_linear_names_every_layer_of_a_block() -> None:
    chosen = LoraSettings(target_modules=("all-linear",))
    params = small_model(DOUBLE, n_layer=1).params
    block = init_adapters(chosen, params, jax.random.key(0))
    assert {path[-3:-1] for path in flatten(block)} == {
        ("attn", "c_attn"),
        ("attn", "c_proj"),
        ("mlp", "c_fc"),
        ("mlp", "c_proj"),
    }
    assert chosen == LoraSettings(target_modules=ALL)


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_init_adapters_leave_weights_unchanged(dtype: str) -> None:
    params = small_model(LM, param_dtype=dtype).params
    adapters = init_adapters(TINY, params, jax.random.key(0))
    assert leaves_equal(adapt(params, adapters, TINY), params)
    assert leaves_equal(merge_adapters(params, adapters, TINY), params)


@pytest.mark.nightly
def test_init_adapters_matches_peft_distribution() -> None:
    params = small_model(LM, n_embd=64, n_layer=1).params
    chosen = LoraSettings(rank=64, target_modules=("c_fc", "mlp.c_proj"))
    block = init_adapters(chosen, params, jax.random.key(0))["transformer"]["h"]["0"]
    assert list(block) == ["mlp"]
    for name, n_in, n_out in (("c_fc", 64, 256), ("c_proj", 256, 64)):
        A, B = block["mlp"][name]["lora_A"], block["mlp"][name]["lora_B"]
        assert A.shape == (n_in, 64)
        assert A.dtype == B.dtype == jnp.float32
        np.testing.assert_array_equal(B, np.zeros((64, n_out)))
        bound = n_in**-0.5
        assert 0.99 * bound < np.abs(A).max() <= bound
        # Uniform: a variance of bound^2 / 3; 4096 draws, whose mean square is off by 1.4 %.
        assert abs(3 * np.mean(np.square(A)) / bound**2 - 1) < 0.06  # measured: 0.014
    first = init_adapters(TINY, params, jax.random.key(0))
    assert leaves_equal(first, init_adapters(TINY, params, jax.random.key(0)))
    assert not leaves_equal(first, init_adapters(TINY, params, jax.random.key(1)))


def test_init_adapters_ignores_parameter_order() -> None:
    params = small_model(LM, n_layer=1).params
    turned = unflatten_dict(dict(reversed(flatten(params).items())))
    key = jax.random.key(0)
    ours, theirs = (flatten(init_adapters(TINY, tree, key)) for tree in (params, turned))
    assert all(np.array_equal(theirs[path], leaf) for path, leaf in ours.items())


@pytest.mark.nightly
def test_adapt_gradient_follows_from_kernel_gradient() -> None:
    apply, params = gpt1.functional(small_model(LM, n_layer=1))
    adapters = random_adapters(params)

    def loss(adapters: Any, params: Any) -> jax.Array:
        return apply(adapt(params, adapters, TINY), IDS, labels=IDS).loss

    value, gradient = jax.jit(jax.value_and_grad(loss))(adapters, params)
    assert jax.tree.structure(gradient) == jax.tree.structure(adapters)
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(gradient))
    # d/dA of f(W + s A B) is s f' B^T, and d/dB is s A^T f'.
    merged = merge_adapters(params, adapters, TINY)
    same, whole = jax.jit(jax.value_and_grad(lambda params: apply(params, IDS, labels=IDS).loss))(
        merged
    )
    assert difference(same, value) < 1e-6  # what was trained is what is merged; measured: 0
    kernels, factors = flatten(whole), flatten(adapters)
    for (*module, name), leaf in flatten(gradient).items():
        G = TINY.scale * np.asarray(kernels[*module, "kernel"], np.float64)
        A, B = factors[*module, "lora_A"], factors[*module, "lora_B"]
        expected = G @ B.T if name == "lora_A" else A.T @ G
        assert difference(leaf, expected) < 5e-7  # measured: 3e-8


def test_merge_adapters_rounds_bfloat16_once() -> None:
    params = small_model(LM, param_dtype="bfloat16").params
    adapters = random_adapters(params)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    expected = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16), merge_adapters(wide, adapters, TINY)
    )
    assert leaves_equal(merge_adapters(params, adapters, TINY), expected)
    halved = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), adapters)
    assert leaves_equal(
        merge_adapters(params, halved, TINY),
        merge_adapters(params, jax.tree.map(lambda leaf: leaf.astype(np.float32), halved), TINY),
    )


@pytest.mark.nightly
@settings(max_examples=8)
@given(
    rank=st.sampled_from([1, 2, 9]),
    targets=st.sets(
        st.sampled_from(
            ["c_attn", "c_proj", "attn.c_proj", "mlp.c_proj", "mlp.c_fc", "h.1.mlp.c_fc"]
        ),
        min_size=1,
    ),
    rslora=st.booleans(),
)
def test_merge_adapters_matches_adapt_and_round_trips(
    rank: int, targets: set[str], rslora: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    params = small_model(LM).params
    chosen = LoraSettings(
        rank=rank, alpha=2.0, target_modules=tuple(sorted(targets)), rslora=rslora
    )
    adapters = random_adapters(params, chosen)
    merged = merge_adapters(params, adapters, chosen)
    changed = {
        ".".join(path[:-1])
        for path, leaf in flatten(params).items()
        if not np.array_equal(flatten(merged)[path], leaf)
    }
    modules = {".".join(path[:-1]) for path in flatten(params)}
    assert changed == {m for m in modules if any(m.endswith(f".{t}") for t in targets)}
    # Eagerly, the sum is rounded apart from the product.
    adapted = flatten(adapt(params, adapters, chosen))
    for path, leaf in flatten(merged).items():
        assert difference(leaf, adapted[path]) < 5e-7, path  # measured: 1.1e-7
    folder = tmp_path_factory.mktemp("adapter")
    save(folder, adapters, chosen)
    again, loaded, saved = load_adapters(folder)
    assert again == chosen
    assert leaves_equal(loaded, jax.tree.map(jnp.asarray, adapters))
    assert saved == {}


# What is saved.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("cls", MODELS)
def test_save_then_load_adapters_is_bit_exact(cls: Any, dtype: str, tmp_path: Path) -> None:
    params = small_model(cls, param_dtype=dtype, num_labels=3, tie_word_embeddings=False).params
    names = ("tokens_embed", "score", "summary", "lm_head")
    beside = {path: leaf for path, leaf in flatten(params).items() if path[-2] in names}
    adapters = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), random_adapters(params))
    whole = {"architecture": cls.__name__, "saved_modules": unflatten_dict(beside)}
    save(tmp_path / "new" / "folder", adapters, **whole)
    chosen, loaded, saved = load_adapters(tmp_path / "new" / "folder")
    assert chosen == TINY
    assert leaves_equal(loaded, adapters)
    assert leaves_equal(saved, unflatten_dict(beside))
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        CONFIG,
        WEIGHTS,
    ]


def test_save_adapters_writes_peft_layout(tmp_path: Path) -> None:
    params = small_model(CLASSIFIER, n_layer=1).params
    chosen = LoraSettings(rank=2, target_modules=("c_attn",))
    adapters = random_adapters(params, chosen)
    score = {"score": params["score"]}
    save(tmp_path, adapters, chosen, architecture=CLASSIFIER.__name__, saved_modules=score)
    arrays = load_file(tmp_path / WEIGHTS)
    layer = adapters["transformer"]["h"]["0"]["attn"]["c_attn"]
    prefix = "base_model.model.transformer.h.0.attn.c_attn"
    assert arrays.keys() == {
        f"{prefix}.lora_A.weight",
        f"{prefix}.lora_B.weight",
        "base_model.model.score.weight",
    }
    np.testing.assert_array_equal(arrays[f"{prefix}.lora_A.weight"], layer["lora_A"].T)
    np.testing.assert_array_equal(arrays[f"{prefix}.lora_B.weight"], layer["lora_B"].T)
    np.testing.assert_array_equal(
        arrays["base_model.model.score.weight"], params["score"]["kernel"].T
    )
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["peft_type"] == "LORA"
    assert config["task_type"] == "SEQ_CLS"
    assert config["base_model_name_or_path"] == "base"
    assert (config["r"], config["lora_alpha"], config["fan_in_fan_out"]) == (2, 16.0, True)
    assert (config["target_modules"], config["modules_to_save"]) == (["c_attn"], ["score"])


def test_save_adapters_failure_keeps_earlier_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = small_model(LM).params
    save(tmp_path, random_adapters(params))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(OSError, match=r"cannot write to .*: No space left on device"):
        save(tmp_path, random_adapters(params, seed=2))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# What peft reads and writes.


@pytest.fixture(scope="module")
def peft() -> Any:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return pytest.importorskip("peft")


# transformers warns of a name that peft uses; a head is a Linear, whatever fan_in_fan_out says.
with_peft = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:fan_in_fan_out is set to True but the target module is `torch.nn.Linear`:UserWarning",
)
# Of states and logits, relative to the largest; measured: 4e-7 at most.
TOLERANCE = 1e-5
FIELDS = {"num_labels": 3, "pad_token_id": 0, "n_layer": 1}


def inputs(cls: Any) -> dict[str, np.ndarray]:
    if cls is DOUBLE:
        return {"input_ids": random_ids(2, 3, 5), "mc_token_ids": random_ids(2, 3, size=5)}
    return {"input_ids": IDS}


def outputs(out: Any) -> list[np.ndarray]:
    """What a model of either side computes: states, or the logits of its one or two heads."""
    names = ("last_hidden_state", "logits", "mc_logits")
    arrays = [getattr(out, name) for name in names if getattr(out, name, None) is not None]
    return [np.asarray(array.detach() if hasattr(array, "detach") else array) for array in arrays]


def ours(cls: Any, params: Any) -> list[np.ndarray]:
    apply, _ = gpt1.functional(small_model(cls, **FIELDS))
    return outputs(apply(params, **inputs(cls)))


def theirs(model: Any, cls: Any) -> list[np.ndarray]:
    from support.torch_reference import to_torch

    model.eval()
    return outputs(model(**{name: to_torch(value) for name, value in inputs(cls).items()}))


def differ(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    return max(difference(one, other) for one, other in zip(a, b, strict=True))


def in_torch(cls: Any, params: Any, folder: Path) -> Any:
    """The model of transformers, read from what ``save_pretrained`` writes here."""
    import transformers

    model = small_model(cls, **FIELDS)
    model.load_params(params)
    model.save_pretrained(folder)
    return getattr(transformers, cls.__name__).from_pretrained(folder)


@pytest.mark.nightly
@with_peft
@pytest.mark.parametrize(
    ("cls", "rslora"), [(BASE, False), (LM, True), (DOUBLE, False), (CLASSIFIER, True)]
)
def test_save_adapters_loads_in_peft(peft: Any, cls: Any, rslora: bool, tmp_path: Path) -> None:
    import conversion

    params = small_model(cls, **FIELDS).params
    chosen = LoraSettings(rank=2, alpha=3.0, target_modules=("c_attn", "mlp.c_proj"), rslora=rslora)
    adapters = random_adapters(params, chosen)
    trained = small_model(cls, seed=5, **FIELDS).params
    beside = {
        path: leaf for path, leaf in flatten(trained).items() if path[-2] in ("score", "summary")
    }
    saved = unflatten_dict(beside)
    save(tmp_path / "adapter", adapters, chosen, architecture=cls.__name__, saved_modules=saved)

    reference = in_torch(cls, params, tmp_path / "base")
    model = peft.PeftModel.from_pretrained(reference, tmp_path / "adapter")
    merged = merge_adapters(overlaid(params, saved), adapters, chosen)
    expected = ours(cls, merged)
    assert differ(expected, ours(cls, params)) > 0.1
    assert differ(theirs(model, cls), expected) < TOLERANCE
    whole = model.merge_and_unload()
    assert differ(theirs(whole, cls), expected) < TOLERANCE
    weights = flatten(conversion.from_torch(whole)[1])
    for path, leaf in flatten(merged).items():
        assert difference(weights[path], leaf) < 5e-7, path  # measured: 1.2e-7


@with_peft
@pytest.mark.parametrize("cls", MODELS)
def test_load_adapters_reads_peft_files(peft: Any, cls: Any, tmp_path: Path) -> None:
    import torch

    params = small_model(cls, **FIELDS).params
    task = {BASE: "FEATURE_EXTRACTION", LM: "CAUSAL_LM", CLASSIFIER: "SEQ_CLS"}.get(cls)
    config = peft.LoraConfig(
        r=2,
        lora_alpha=3,
        lora_dropout=0.1,
        use_rslora=cls is LM,
        target_modules=["c_attn", "attn.c_proj"],
        modules_to_save=["multiple_choice_head"] if cls is DOUBLE else None,
        task_type=task,
        fan_in_fan_out=True,
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(in_torch(cls, params, tmp_path / "base"), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(tmp_path / "adapter")

    chosen, adapters, saved = load_adapters(tmp_path / "adapter")
    assert (chosen.rank, chosen.alpha, chosen.dropout) == (2, 3, 0.1)
    assert chosen.rslora == (cls is LM)
    assert sorted(chosen.target_modules) == ["attn.c_proj", "c_attn"]
    assert saved.keys() == {"multiple_choice_head", "score"} & params.keys()
    expected = ours(cls, merge_adapters(overlaid(params, saved), adapters, chosen))
    assert differ(theirs(model, cls), expected) < TOLERANCE

    save(tmp_path / "again", adapters, chosen, architecture=cls.__name__, saved_modules=saved)
    first, second = (load_file(tmp_path / name / WEIGHTS) for name in ("adapter", "again"))
    assert first.keys() == second.keys()
    assert all(np.array_equal(second[name], array) for name, array in first.items())


@with_peft
@pytest.mark.parametrize("cls", [LM, DOUBLE])
def test_save_adapters_embedding_ties_head_in_peft(peft: Any, cls: Any, tmp_path: Path) -> None:
    params = small_model(cls, **FIELDS).params
    adapters = random_adapters(params)
    tokens = small_model(cls, seed=5, **FIELDS).params["transformer"]["tokens_embed"]
    saved = {"transformer": {"tokens_embed": tokens}}
    whole = {"architecture": cls.__name__, "saved_modules": saved}
    save(tmp_path / "adapter", adapters, **whole)
    model = peft.PeftModel.from_pretrained(
        in_torch(cls, params, tmp_path / "base"), tmp_path / "adapter"
    )
    expected = ours(cls, merge_adapters(overlaid(params, saved), adapters, TINY))
    assert differ(expected, ours(cls, merge_adapters(params, adapters, TINY))) > 0.1
    assert differ(theirs(model, cls), expected) < TOLERANCE


@pytest.mark.nightly
@with_peft
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
def test_load_adapters_reads_resized_embedding_of_peft(peft: Any, tmp_path: Path) -> None:
    params = small_model(LM, **FIELDS).params
    reference = in_torch(LM, params, tmp_path / "base")
    reference.resize_token_embeddings(15, mean_resizing=False)
    config = peft.LoraConfig(
        r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True
    )
    model = peft.get_peft_model(reference, config)
    model.save_pretrained(tmp_path / "adapter")
    assert "base_model.model.lm_head.weight" in load_file(tmp_path / "adapter" / WEIGHTS)
    chosen, adapters, saved = load_adapters(tmp_path / "adapter")
    assert flatten(saved).keys() == {("transformer", "tokens_embed", "embedding")}
    resized = small_model(LM, vocab_size=15, **FIELDS)
    resized.load_params(merge_adapters(overlaid(params, saved), adapters, chosen))
    assert differ(theirs(model, LM), outputs(resized(IDS))) < TOLERANCE


@with_peft
def test_save_adapters_of_a_head_load_in_peft(peft: Any, tmp_path: Path) -> None:
    params = small_model(DOUBLE, **FIELDS).params
    chosen = LoraSettings(rank=2, alpha=3.0, target_modules=("c_fc", "summary"))
    adapters = random_adapters(params, chosen)
    save(tmp_path / "adapter", adapters, chosen, architecture=DOUBLE.__name__)
    model = peft.PeftModel.from_pretrained(
        in_torch(DOUBLE, params, tmp_path / "base"), tmp_path / "adapter"
    )
    expected = ours(DOUBLE, merge_adapters(params, adapters, chosen))
    assert differ(theirs(model, DOUBLE), expected) < TOLERANCE


@with_peft
def test_load_adapters_reads_all_linear_targets_of_peft(peft: Any, tmp_path: Path) -> None:
    params = small_model(DOUBLE, **FIELDS).params
    config = peft.LoraConfig(
        r=2,
        target_modules="all-linear",
        modules_to_save=["multiple_choice_head"],
        fan_in_fan_out=True,
    )
    model = peft.get_peft_model(in_torch(DOUBLE, params, tmp_path / "base"), config)
    model.save_pretrained(tmp_path / "adapter")
    chosen, adapters, saved = load_adapters(tmp_path / "adapter")
    assert len(chosen.target_modules) == 4
    assert jax.tree.structure(adapters) == jax.tree.structure(random_adapters(params))
    assert leaves_equal(
        saved["multiple_choice_head"], jax.tree.map(jnp.asarray, params["multiple_choice_head"])
    )


@with_peft
@pytest.mark.nightly
def test_adapt_gradient_matches_peft(peft: Any, tmp_path: Path) -> None:
    from support.torch_reference import to_torch

    params = small_model(LM, **FIELDS).params
    chosen = LoraSettings(rank=2, alpha=3.0, target_modules=ALL, rslora=True)
    adapters = random_adapters(params, chosen)
    save(tmp_path / "adapter", adapters, chosen)
    model = peft.PeftModel.from_pretrained(
        in_torch(LM, params, tmp_path / "base"), tmp_path / "adapter", is_trainable=True
    ).eval()
    model(to_torch(IDS), labels=to_torch(IDS)).loss.backward()
    theirs = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    apply, _ = gpt1.functional(small_model(LM, **FIELDS))
    gradient = jax.jit(
        jax.grad(lambda own: apply(adapt(params, own, chosen), IDS, labels=IDS).loss)
    )(adapters)
    assert len(flatten(gradient)) == len(theirs) == 8
    for path, leaf in flatten(gradient).items():
        name = f"base_model.model.{'.'.join(path)}.default.weight"
        assert difference(leaf, theirs[name].numpy().T) < 1e-6, path


# What is refused.

FLOATS = "float32 or bfloat16 or float16"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "rank is 0, but must be a positive integer"),
        ({"rank": 2.0}, "rank is 2.0, but must be a positive integer"),
        ({"rank": True}, "rank is True, but must be a positive integer"),
        ({"alpha": 0}, "alpha is 0, but must be a number above 0"),
        ({"alpha": float("nan")}, "alpha is nan, but must be a number above 0"),
        ({"alpha": float("inf")}, "alpha is inf, but must be a number above 0"),
        ({"alpha": "16"}, "alpha is '16', but must be a number above 0"),
        ({"target_modules": "c_attn"}, "target_modules is 'c_attn', but must be a tuple of names"),
        ({"target_modules": ()}, r"target_modules is \(\), but must hold names, each once"),
        ({"target_modules": ("a", "a")}, "but must hold names, each once"),
        ({"target_modules": ("",)}, "but must be a tuple of names"),
        ({"rslora": 1}, "rslora is 1, but must be true or false"),
    ],
)
def test_lora_settings_reject_invalid_values(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoraSettings(**fields)


@pytest.mark.parametrize("target", ["q_proj", "attn", "_attn", "h.2.mlp.c_fc", "lm_head"])
def test_init_adapters_rejects_unknown_target(target: str) -> None:
    params = small_model(LM).params
    chosen = LoraSettings(target_modules=("c_attn", target))
    there = "attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj"
    with pytest.raises(ValueError, match=f"has '{target}', but the linear layers are {there}$"):
        init_adapters(chosen, params, jax.random.key(0))


def test_adapt_and_merge_reject_adapters_of_another_model() -> None:
    params = small_model(LM).params
    adapters = flatten(random_adapters(small_model(LM, n_layer=3).params))
    del adapters["transformer", "h", "0", "mlp", "c_fc", "lora_A"]
    adapters["transformer", "h", "1", "attn", "c_attn", "lora_B"] = np.zeros((4, 24), np.float32)
    for function in (adapt, merge_adapters):
        with pytest.raises(ValueError, match="not the parameters of this LoRA adapter") as error:
            function(params, unflatten_dict(adapters), TINY)
        assert "- transformer.h.0.mlp.c_fc.lora_A is missing" in str(error.value)
        assert "+ transformer.h.2.mlp.c_fc.lora_B is unexpected" in str(error.value)
        assert "h.1.attn.c_attn.lora_B has shape (4, 24), but must have (3, 24)" in str(error.value)


def test_save_adapters_rejects_mismatched_tensors(tmp_path: Path) -> None:
    params = small_model(CLASSIFIER).params
    adapters = random_adapters(params)
    with pytest.raises(ValueError, match=r"cannot be saved:\n- score.kernel is missing$"):
        save(tmp_path, adapters, architecture=CLASSIFIER.__name__)
    chosen = LoraSettings(rank=4, target_modules=("attn.c_proj", "c_fc", "q_proj"))
    wrong = flatten(random_adapters(params, LoraSettings(rank=4, target_modules=("c_fc", "score"))))
    wrong["transformer", "h", "0", "mlp", "c_fc", "lora_A"] = np.zeros((8, 3), np.float32)
    wrong["transformer", "h", "0", "mlp", "c_fc", "lora_B"] = np.zeros((4, 32), np.float64)
    del wrong["transformer", "h", "1", "mlp", "c_fc", "lora_B"]
    with pytest.raises(ValueError, match="cannot be saved") as error:
        save(
            tmp_path,
            unflatten_dict(wrong),
            chosen,
            architecture=DOUBLE.__name__,
            saved_modules={
                "multiple_choice_head": {"summary": {"bias": np.zeros((1, 1), np.float32)}},
                "transformer": {"h": {"0": {"ln_1": {"scale": np.zeros(8, np.float32)}}}},
            },
        )
    assert set(str(error.value).splitlines()[1:]) == {
        "- attn.c_proj of target_modules has no adapter",
        "- q_proj of target_modules has no adapter",
        "- multiple_choice_head.summary.kernel is missing",
        "- transformer.h.1.mlp.c_fc.lora_B is missing",
        "! transformer.h.0.mlp.c_fc.lora_A has shape (8, 3), but must have (*, 4)",
        f"! transformer.h.0.mlp.c_fc.lora_B is float64, but must be {FLOATS}",
        "+ score.lora_A is unexpected",
        "+ score.lora_B is unexpected",
        "! multiple_choice_head.summary.bias has shape (1, 1), but must have (*)",
        "+ transformer.h.0.ln_1.scale is unexpected",
    }
    with pytest.raises(ValueError, match="the architecture is 'GPT'"):
        save(tmp_path, adapters, architecture="GPT")
    assert list(tmp_path.iterdir()) == []


def test_load_adapters_names_20_faults(tmp_path: Path) -> None:
    save(tmp_path, random_adapters(small_model(LM, n_layer=1).params))
    extra = {f"extra.{n}": np.zeros(1, np.float32) for n in range(30)}
    rewrite(tmp_path, lambda arrays: arrays.update(extra))
    with pytest.raises(ValueError, match=WEIGHTS) as error:
        load_adapters(tmp_path)
    assert str(error.value).splitlines()[21:] == ["... and 10 more"]


def test_load_adapters_rejects_mismatched_files(tmp_path: Path) -> None:
    params = small_model(LM, n_layer=1).params
    save(tmp_path, random_adapters(params))
    prefix = "base_model.model.transformer.h.0"

    def change(arrays: dict[str, np.ndarray]) -> None:
        del arrays[f"{prefix}.attn.c_attn.lora_A.weight"]
        arrays[f"{prefix}.mlp.c_fc.lora_B.weight"] = np.zeros((32, 4), np.float32)
        arrays[f"{prefix}.mlp.c_fc.lora_B.bias"] = np.zeros(32, np.float32)
        arrays[f"{prefix}.mlp.c_proj.lora_A.weight"] = np.zeros((3, 32), np.float64)
        arrays["transformer.h.0.mlp.c_fc.lora_A.weight"] = np.zeros((3, 8), np.float32)

    rewrite(tmp_path, change)
    reconfigure(tmp_path, modules_to_save=["classifier", "score"], target_modules=[*ALL, "wte"])
    with pytest.raises(ValueError, match=f"{WEIGHTS} does not fit {CONFIG} beside it") as error:
        load_adapters(tmp_path)
    assert set(str(error.value).splitlines()[1:]) == {
        "- wte of target_modules has no adapter",
        "- score.kernel is missing",
        "- transformer.h.0.attn.c_attn.lora_A is missing",
        "! transformer.h.0.mlp.c_fc.lora_B has shape (4, 32), but must have (3, *)",
        f"! transformer.h.0.mlp.c_proj.lora_A is float64, but must be {FLOATS}",
        f"+ {prefix}.mlp.c_fc.lora_B.bias is unexpected",
        "+ transformer.h.0.mlp.c_fc.lora_A.weight is unexpected",
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type must be 'LORA'"),
        ({"use_dora": True}, "asks for more than plain LoRA: use_dora is True"),
        (
            {"bias": "all", "rank_pattern": {"c_fc": 3}},
            "bias is 'all'; rank_pattern is {'c_fc': 3}",
        ),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"modules_to_save": ["tokens_embed"]}, "tokens_embed, which peft does not tie to lm_head"),
        ({"target_modules": ".*attn"}, "target_modules is '.*attn', but must be a list of names"),
        ({"target_modules": None}, "target_modules is None, but must be a list of names"),
        ({"modules_to_save": [3]}, "modules_to_save is .3., but must be a list of names"),
        ({"r": None}, f"{CONFIG}: rank is None, but must be a positive integer"),
        ({"lora_alpha": "1"}, f"{CONFIG}: alpha is '1', but must be a number above 0"),
    ],
)
def test_load_adapters_rejects_unsupported_config(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save(tmp_path, random_adapters(small_model(LM).params))
    reconfigure(tmp_path, **fields)
    with pytest.raises(ValueError, match=message):
        load_adapters(tmp_path)


def test_load_adapters_reports_missing_or_corrupt_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        load_adapters(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=f"has no {CONFIG}"):
        load_adapters(tmp_path)
    save(tmp_path, random_adapters(small_model(LM).params))
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=f"{WEIGHTS} is not a whole safetensors file"):
        load_adapters(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {WEIGHTS}"):
        load_adapters(tmp_path)
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(ValueError, match=f"{CONFIG} is not JSON"):
        load_adapters(tmp_path)
