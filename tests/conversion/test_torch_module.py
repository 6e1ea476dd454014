import sys

import numpy as np
import pytest

from conversion import ARCHITECTURES, from_torch, param_specs, read, to_torch, write
from conversion.match import DTYPES

BASE, LM_HEAD, DOUBLE_HEADS, CLASSIFICATION = ARCHITECTURES


def test_torch_extra_is_named_when_missing(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    made = checkpoint(LM_HEAD)
    need = r'needs torch, which is not installed: pip install "gpt1-jax\[torch\]"'
    with pytest.raises(ImportError, match="to_torch " + need):
        to_torch(made.config, made.params)
    with pytest.raises(ImportError, match=r"writing pytorch_model.bin " + need):
        write(tmp_path / "a", made.config, made.params, safe_serialization=False)
    assert not (tmp_path / "a").exists()
    made.save(tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").rename(tmp_path / "b" / "pytorch_model.bin")
    with pytest.raises(ImportError, match=r"reading .*pytorch_model.bin " + need):
        read(tmp_path / "b")


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def transformers(torch):
    return pytest.importorskip("transformers")


@pytest.fixture
def module(transformers, torch, checkpoint):
    """``module(architecture, dtype="float32", **config_changes)``: a random one of transformers."""

    def build(architecture, dtype="float32", **changes):
        config = transformers.OpenAIGPTConfig.from_dict(checkpoint(architecture, **changes).config)
        torch.manual_seed(0)
        built = getattr(transformers, architecture)(config).to(getattr(torch, dtype)).eval()
        with torch.no_grad():
            for parameter in built.parameters():
                parameter.copy_(torch.randn(parameter.shape))  # the biases too
        return built

    return build


def logits(module, torch):
    ids = torch.arange(14).reshape(1, 2, 7) % 20
    ids = ids if "Double" in type(module).__name__ else ids[0, :1]
    with torch.no_grad():
        output = module(ids)
    return [np.asarray(value.float()) for value in output.to_tuple() if hasattr(value, "float")]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False},
        {"summary_use_proj": False},
        {"summary_proj_to_labels": False},
        {"id2label": None},
    ],
    ids=str,
)
def test_param_specs_match_transformers(module, architecture, changes):
    built = module(architecture, **changes)
    found = {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}
    rows = param_specs(built.config.to_dict(), architecture)
    table = {row.torch: row.torch_shape for row in rows}
    if architecture in (LM_HEAD, DOUBLE_HEADS) and "tie_word_embeddings" not in changes:
        assert found.pop("lm_head.weight") == table["transformer.tokens_embed.weight"]
    assert found == table


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tied", [True, False])
def test_from_torch_then_to_torch_is_bit_exact(module, torch, architecture, dtype, tied, identical):
    built = module(architecture, dtype, tie_word_embeddings=tied)
    config, params = from_torch(built)
    assert config["architectures"] == [architecture]
    assert config["n_layer"] == 2
    tokens = params.get("transformer", params)["tokens_embed"]["embedding"]
    assert tokens.dtype == DTYPES[dtype]

    back = to_torch(config, params)
    assert type(back) is type(built)
    assert not back.training
    wanted, state = built.state_dict(), back.state_dict()
    assert wanted.keys() == state.keys()
    for name, tensor in wanted.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor)
    assert all(map(identical, logits(back, torch), logits(built, torch)))
    assert identical(from_torch(back)[1], params)


def test_from_torch_transposes_linear_but_not_conv1d(module):
    built = module(CLASSIFICATION)
    _, params = from_torch(built)
    score = built.score.weight.detach().numpy()
    assert np.array_equal(params["score"]["kernel"], score.T)
    c_attn = built.transformer.h[0].attn.c_attn.weight.detach().numpy()
    assert np.array_equal(params["transformer"]["h"]["0"]["attn"]["c_attn"]["kernel"], c_attn)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_from_torch_and_to_torch_share_no_memory(
    module, torch, checkpoint, architecture, identical
):
    # With one label the transpose of the kernel is contiguous as it stands.
    built = module(architecture, id2label={"0": "a"})
    config, params = from_torch(built)
    _, before = from_torch(built)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.zero_()
    assert identical(params, before)

    to_torch(config, params, built)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.zero_()
    assert identical(params, before)


@pytest.mark.parametrize("architecture", [LM_HEAD, DOUBLE_HEADS])
def test_to_torch_fills_in_place_and_keeps_ties(module, torch, checkpoint, architecture):
    built = module(architecture, "float16")
    pointers = {name: one.data_ptr() for name, one in built.state_dict().items()}
    made = checkpoint(architecture)
    assert to_torch(made.config, made.params, built) is built
    assert {name: one.data_ptr() for name, one in built.state_dict().items()} == pointers
    assert built.lm_head.weight is built.transformer.tokens_embed.weight
    wanted = made.params["transformer"]["tokens_embed"]["embedding"].astype(np.float16)
    assert np.array_equal(built.lm_head.weight.detach().numpy(), wanted)


def test_to_torch_fills_module_of_another_dtype(module, torch, checkpoint):
    built = module(LM_HEAD).to(torch.float64)
    made = checkpoint(LM_HEAD)
    to_torch(made.config, made.params, built)
    assert built.lm_head.weight.dtype == torch.float64
    with pytest.raises(ValueError, match=r"tokens_embed.weight is float64, expected float32"):
        from_torch(built)


def test_from_torch_maps_subclass_to_its_base(module, transformers):
    class Mine(transformers.OpenAIGPTLMHeadModel):
        pass

    config, _ = from_torch(Mine(module(LM_HEAD).config))
    assert config["architectures"] == [LM_HEAD]


def test_to_torch_rejects_mismatched_modules(module, torch, checkpoint):
    made = checkpoint(LM_HEAD)
    with pytest.raises(TypeError, match="the module is Linear; it must be one of OpenAIGPTModel"):
        from_torch(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="module is OpenAIGPTModel, the config's architecture"):
        to_torch(made.config, made.params, module(BASE))
    with pytest.raises(ValueError, match="the config says vocab_size 20, the weights show 21\n"):
        to_torch(made.config, made.params, module(LM_HEAD, vocab_size=21))
    built = module(LM_HEAD)
    before = {name: one.clone() for name, one in built.state_dict().items()}
    del made.params["transformer"]["h"]["1"]["ln_2"]["bias"]
    with pytest.raises(ValueError, match=r"missing     transformer.h.1.ln_2.bias \(12,\)"):
        to_torch(made.config, made.params, built)
    assert all(torch.equal(one, before[name]) for name, one in built.state_dict().items())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"max_shard_size": "2KB"}, {"safe_serialization": False}])
@pytest.mark.parametrize("tied", [True, False])
def test_write_output_loads_in_transformers(
    module, torch, transformers, tmp_path, identical, architecture, dtype, options, tied
):
    built = module(architecture, dtype, tie_word_embeddings=tied)
    config, params = from_torch(built)
    write(tmp_path, config, params, **options)
    loaded, info = getattr(transformers, architecture).from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values()), info
    assert loaded.dtype == built.dtype
    assert identical(from_torch(loaded)[1], params)
    for ours, expected in zip(logits(loaded, torch), logits(built, torch), strict=True):
        # Not bit for bit: some CPUs' products depend on where in memory the weights begin.
        np.testing.assert_allclose(ours, expected, rtol=1e-6)  # measured: 1e-7, one bit
    read_config, read_params = read(tmp_path)
    assert identical(read_params, params)
    assert read_config["architectures"] == [architecture]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_read_then_write_matches_save_pretrained(module, tmp_path, architecture, dtype, identical):
    built = module(architecture, dtype)
    built.save_pretrained(tmp_path / "theirs")
    config, params = read(tmp_path / "theirs")
    assert identical(params, from_torch(built)[1])
    write(tmp_path / "ours", config, params)
    for name in ("model.safetensors", "config.json"):
        ours, theirs = (tmp_path / who / name for who in ("ours", "theirs"))
        assert ours.read_bytes() == theirs.read_bytes()
