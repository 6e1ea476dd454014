"""Checks of checkpoints: a tiny model plays the published one."""

import importlib.util
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import conversion
import gpt1_jax as gpt1
from gpt1_jax.verify import GPT1, Check, Published, verify


@pytest.fixture(scope="module")
def model() -> gpt1.OpenAIGPTLMHeadModel:
    config = gpt1.OpenAIGPTConfig(
        vocab_size=7, n_positions=32, n_layer=2, n_embd=8, n_head=2, initializer_range=0.5
    )
    return gpt1.OpenAIGPTLMHeadModel(config, rngs=nnx.Rngs(0))


@pytest.fixture
def folder(model: gpt1.OpenAIGPTLMHeadModel, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path)
    vocabulary = {"<unk>": 0, "a": 1, "b": 2, "a</w>": 3, "b</w>": 4, "ab</w>": 5, "c</w>": 6}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    return tmp_path


@pytest.fixture
def published(model: gpt1.OpenAIGPTLMHeadModel) -> Published:
    """What the tiny model gives, as papers and tests would print it: rounded."""
    out = model(np.array([[1, 2, 3, 4]]), output_hidden_states=True)
    assert out.hidden_states is not None
    states = np.asarray(out.hidden_states[-1][0])
    logits = np.asarray(model(np.array([[5, 3]])).logits)[0, -1]
    row = model.params["transformer"]["tokens_embed"]["embedding"][3][:4]
    return Published(
        row=(3, [float(f"{x:.5g}") for x in row]),
        greedy=(2, gpt1.generate(model, [[1, 2]], max_new_tokens=6)[0].tolist()),
        next_token=("ab a", int(logits.argmax()), round(float(logits.max()), 4)),
        states=(
            (1, 2, 3, 4),
            [
                (i, states[i, :5].round(5).tolist(), float(np.linalg.norm(states[i])))
                for i in (0, 3)
            ],
        ),
    )


def outcomes(checks: list[Check]) -> dict[str, bool | None]:
    return {check.name: check.passed for check in checks}


@pytest.mark.nightly
def test_verify_passes_published_model(folder: Path, published: Published) -> None:
    checks = outcomes(list(verify(folder, published)))
    assert checks.pop("torch") in (True, None)  # None where torch is not installed
    assert checks == dict.fromkeys(
        [
            "layout",
            "values",
            "forward",
            "published outputs",
            "published greedy text",
            "published states",
            "published next token",
        ],
        True,
    )


def test_verify_fails_other_model_with_published_embedding(
    folder: Path, published: Published
) -> None:
    config, params = conversion.read(folder)
    kernel = params["transformer"]["h"]["1"]["mlp"]["c_fc"]["kernel"]
    kernel[:] = -kernel
    conversion.write(folder, config, params)
    checks = outcomes(list(verify(folder, published)))
    assert checks["published outputs"] is True
    assert checks["published states"] is False
    assert checks["published next token"] is False


def test_verify_skips_published_outputs_for_other_models(folder: Path) -> None:
    last = list(verify(folder, GPT1))[-1]
    assert str(last) == (
        "not run  published outputs: this is not the published GPT-1 (its embedding is another)"
    )


def test_verify_skips_next_token_without_a_tokenizer(folder: Path, published: Published) -> None:
    (folder / "merges.txt").unlink()
    last = list(verify(folder, published))[-1]
    assert (last.name, last.passed) == ("published next token", None)


def test_verify_names_non_finite_values(folder: Path, published: Published) -> None:
    config, params = conversion.read(folder)
    params["transformer"]["h"]["0"]["ln_1"]["bias"][2] = np.nan
    conversion.write(folder, config, params)
    checks = {check.name: check for check in verify(folder, published)}
    assert checks["values"].passed is False
    assert "transformer.h.0.ln_1.bias" in checks["values"].detail
    assert checks["forward"].passed is False
    assert checks["forward"].detail.endswith("not all finite")


def test_verify_skips_torch_check_without_torch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check = {check.name: check for check in verify(folder)}["torch"]
    assert check.passed is None
    assert 'pip install "gpt1-jax[torch]"' in check.detail


@pytest.mark.parametrize("format", ["huggingface", "openai"])
def test_verify_torch_check_detects_wrong_logits(
    folder: Path, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    target = tmp_path / "other"
    conversion.write(target, *conversion.read(folder), format=format)  # type: ignore[arg-type]
    checks = {check.name: check for check in verify(target)}
    assert checks["torch"].passed is True

    from gpt1_jax import verify as module

    # A forward that is wrong: the check must see it.
    apply_of = module.functional

    def shifted(model):
        apply, params = apply_of(model)
        return lambda *args, **kwargs: (apply(*args, **kwargs)[0] + jnp.float32(1e-3),), params

    monkeypatch.setattr(module, "functional", shifted)
    checks = [check for check in verify(target) if check.name == "torch"]
    assert checks[0].passed is False


@pytest.mark.nightly
def test_verify_passes_other_architectures(folder: Path, tmp_path: Path) -> None:
    config = gpt1.OpenAIGPTConfig(vocab_size=7, n_positions=8, n_layer=1, n_embd=8, n_head=2)
    for cls in (gpt1.OpenAIGPTModel, gpt1.OpenAIGPTDoubleHeadsModel):
        target = tmp_path / cls.__name__
        cls(config, rngs=nnx.Rngs(0)).save_pretrained(target)
        checks = outcomes(list(verify(target)))
        assert False not in checks.values()
        shutil.rmtree(target)
