"""What computes the attention: the same at every token, and errors for what a backend cannot do."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.small_models import (
    MODELS,
    difference,
    leaves_equal,
    random_ids,
    small_config,
    small_model,
)

import gpt1_jax as gpt1
from gpt1_jax import model as model_module

Run = Callable[..., tuple[int, str, str]]
LM = gpt1.OpenAIGPTLMHeadModel
small = functools.partial(small_model, n_layer=1)
IDS = random_ids(4, 7)
# Whole, padded on the left, on the right, and in between.
MASK = np.array([[1] * 7, [0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0, 1]])


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backends that blocks were computed by, other than the formula."""
    calls = []

    def recorded(*arguments: Any) -> jax.Array:
        calls.append(arguments[-1])
        return original(*arguments)

    original = model_module.attend_fused
    monkeypatch.setattr(model_module, "attend_fused", recorded)
    return calls


def at_tokens(logits: Any, mask: np.ndarray = MASK) -> np.ndarray:
    return np.where(mask[..., None], np.asarray(logits), 0)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("dtype", "mask", "bound"),
    [("float32", None, 1e-6), ("float32", MASK, 1e-6), ("bfloat16", MASK, 3e-2)],
)
def test_xla_attention_matches_manual_at_tokens(
    dtype: str, mask: np.ndarray | None, bound: float, fused: list[str]
) -> None:
    manual, xla = (small(LM, dtype=dtype, attention=name) for name in ("manual", "xla"))
    where = np.ones_like(MASK) if mask is None else mask
    expected = at_tokens(manual(IDS, mask).logits, where)
    assert fused == []
    found = xla(IDS, mask).logits
    assert fused == ["xla"]
    assert np.isfinite(np.asarray(found)).all()
    # Measured: 1.4e-7, and 0 in bfloat16.
    assert difference(at_tokens(found, where), expected) <= bound


@pytest.mark.nightly
def test_xla_attention_gradients_match_manual() -> None:
    labels = np.where(MASK, IDS, -100)
    labels[1, 3] = labels[3, 4] = -100  # what would be predicted at padding
    apply, params = gpt1.functional(small(LM))
    fused_apply, _ = gpt1.functional(small(LM, attention="xla"))
    assert fused_apply is not apply

    def gradients(apply: Any) -> Any:
        return jax.jit(jax.grad(lambda params: apply(params, IDS, MASK, labels=labels).loss))(
            params
        )

    pairs = jax.tree.map(difference, gradients(fused_apply), gradients(apply))
    assert max(jax.tree.leaves(pairs)) <= 1e-6  # measured: 0


def test_xla_attention_ignores_unfilled_cache_slots() -> None:
    """Slots that are not filled are not seen."""
    model = small(LM, attention="xla")
    apply, params = gpt1.functional(model)
    whole = apply(params, IDS, MASK).logits
    cache, parts = gpt1.Cache.empty(model.config, batch=4, length=8), []
    for start, end in ((0, 4), (4, 5), (5, 7)):
        out = apply(params, IDS[:, start:end], MASK[:, start:end], cache=cache)
        cache = out.cache
        parts.append(out.logits)
    # Measured: 1.8e-7.
    assert difference(at_tokens(np.concatenate(parts, axis=1)), at_tokens(whole)) <= 1e-6


def test_generate_with_xla_matches_manual(fused: list[str]) -> None:
    prompts = [[1, 2, 3], [4], [5, 6]]
    expected, found = (
        gpt1.generate(small(LM, attention=name), prompts, max_new_tokens=4)
        for name in ("manual", "xla")
    )
    assert [row.tolist() for row in found] == [row.tolist() for row in expected]
    assert set(fused) == {"xla"}


@pytest.mark.nightly
@pytest.mark.parametrize("cls", MODELS)
def test_output_attentions_uses_manual_attention(cls: Any, fused: list[str]) -> None:
    ids = random_ids(1, 2, 5) if cls is gpt1.OpenAIGPTDoubleHeadsModel else random_ids(1, 5)
    manual, xla = (small(cls, attention=name) for name in ("manual", "xla"))
    assert leaves_equal(xla(ids, output_attentions=True), manual(ids, output_attentions=True))
    assert fused == []
    assert xla(ids).attentions is None
    assert fused == ["xla"]


@pytest.mark.nightly
def test_attention_dropout_uses_manual_attention(fused: list[str]) -> None:
    """Where there is some: a training without is computed by the backend."""
    how: Any = {"deterministic": False, "dropout_key": jax.random.key(1)}
    manual, xla = (small(LM, attention=name) for name in ("manual", "xla"))
    assert leaves_equal(xla(IDS, **how), manual(IDS, **how))
    assert fused == []
    small(LM, attention="xla", attn_pdrop=0.0)(IDS, **how)
    assert fused == ["xla"]


def test_attention_auto_selects_supported_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    assert small(LM, attention="auto").attention == "manual"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert small(LM, attention="auto").attention == "xla"
    assert small(LM, attention="auto", precision="highest").attention == "manual"
    assert small(LM, attention="auto", dtype="bfloat16", n_embd=16).attention == "xla"
    monkeypatch.setenv("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    assert small(LM, attention="auto", dtype="bfloat16", n_embd=16).attention == "cudnn"
    assert small(LM, attention="auto", dtype="bfloat16").attention == "xla"


def test_from_pretrained_sets_attention_backend(tmp_path: Path) -> None:
    small(LM).save_pretrained(tmp_path)
    assert LM.from_pretrained(tmp_path).attention == "manual"
    model = LM.from_pretrained(tmp_path, attention="xla")
    assert model.attention == model.transformer.attention == "xla"


@pytest.mark.nightly
def test_cli_generate_accepts_attention_flag(run: Run) -> None:
    texts = [
        run("generate", "He was", "--max-new-tokens", 5, "--attention", backend)
        for backend in ("manual", "xla")
    ]
    assert texts[0][0] == 0
    assert texts[0] == texts[1]
    status, _, err = run("generate", "He was", "--attention", "cudnn")
    assert status == 2
    assert "attention is 'cudnn', which computes in bfloat16 or float16" in err


@pytest.mark.parametrize(
    ("numerics", "message"),
    [
        (
            {"attention": "flash"},
            "attention is 'flash', but must be one of manual, cudnn, xla, auto",
        ),
        ({"attention": "xla", "precision": "highest"}, "'xla', which has no precision of its own"),
        ({"attention": "xla", "dtype": jnp.float16}, "on a CPU, so the dtype cannot be float16"),
        ({"attention": "cudnn"}, "computes in bfloat16 or float16, so the dtype cannot be float32"),
        ({"attention": "cudnn", "dtype": jnp.bfloat16}, "takes heads as wide as .*, not 4"),
        (
            {"attention": "cudnn", "dtype": jnp.bfloat16, "n_embd": 16},
            "needs an NVIDIA GPU, and JAX runs on a CPU here",
        ),
    ],
)
def test_attention_backend_rejects_unsupported_settings(
    numerics: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        small(LM, **numerics)


def test_xla_attention_rejects_float64() -> None:
    with jax.enable_x64(True), pytest.raises(ValueError, match="softmax in float32"):
        LM(small_config(), rngs=nnx.Rngs(0), dtype="float64", attention="xla")


@pytest.mark.nightly
def test_xla_attention_matches_manual_at_full_size() -> None:
    config = gpt1.OpenAIGPTConfig()
    apply, params = gpt1.functional(LM(config, rngs=nnx.Rngs(0)))
    shell = nnx.eval_shape(lambda: LM(config, rngs=nnx.Rngs(0), attention="xla"))
    fused_apply, _ = gpt1.functional(shell)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, config.vocab_size, (2, 64)).astype(np.int32)
    mask = (np.arange(64) < [[64], [50]]).astype(np.int32)
    labels = np.where(mask, ids, -100)

    def loss(apply: Any, params: Any) -> tuple[jax.Array, jax.Array]:
        out = apply(params, ids, mask, labels=labels)
        return out.loss, out.logits

    found, expected = (
        jax.jit(jax.value_and_grad(lambda params, apply=apply: loss(apply, params), has_aux=True))(
            params
        )
        for apply in (fused_apply, apply)
    )
    (_, logits), gradients = found
    (_, expected_logits), expected_gradients = expected
    # Measured: logits equal to the bit, gradients 3e-7.
    assert difference(at_tokens(logits, mask), at_tokens(expected_logits, mask)) <= 1e-5
    pairs = jax.tree.map(difference, gradients, expected_gradients)
    assert max(jax.tree.leaves(pairs)) <= 1e-5
