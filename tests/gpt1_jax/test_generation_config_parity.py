"""Transformers' ``GenerationConfig`` and ours: one file, read and written by both."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

torch = pytest.importorskip("torch")
import transformers  # noqa: E402
from support.random_settings import valid_settings  # noqa: E402
from support.torch_reference import torch_model  # noqa: E402

from gpt1_jax import GenerationConfig  # noqa: E402
from gpt1_jax.generation_config import (  # noqa: E402
    DEFAULTS,
    OURS_ALONE,
    OUTPUTS,
    UNSUPPORTED,
    WITHOUT_EFFECT,
    as_generation_config,
)

HARMLESS = set((WITHOUT_EFFECT + OUTPUTS).split())


def test_generation_config_covers_every_transformers_field() -> None:
    theirs = {name for name in vars(transformers.GenerationConfig()) if not name.startswith("_")}
    assert theirs == (set(DEFAULTS) - set(OURS_ALONE)) | set(UNSUPPORTED) | HARMLESS


def test_generation_config_defaults_match_transformers() -> None:
    """Which take effect in ``generate`` where a field is None, as it is by default."""
    theirs = transformers.GenerationConfig._get_default_generation_params()
    assert theirs.pop("top_k") == 50  # ours is none: said in the docstring
    # Of new tokens, though it is called the default of max_length.
    assert theirs.pop("max_length") == 20 == DEFAULTS["max_new_tokens"]
    for name, value in theirs.items():
        if name in DEFAULTS:
            assert (DEFAULTS[name] or None) == (value or None), name
        elif name in UNSUPPORTED:
            assert value is None or not UNSUPPORTED[name](value, GenerationConfig()), name
        else:
            assert name in HARMLESS


@given(asked=valid_settings())
def test_save_pretrained_is_readable_by_transformers(
    asked: GenerationConfig, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.getbasetemp() / "ours"
    asked.save_pretrained(folder)
    theirs = transformers.GenerationConfig.from_pretrained(folder)
    held = asked.to_dict()
    for name in set(DEFAULTS) - set(OURS_ALONE):
        assert getattr(theirs, name) == held.get(name), name
    # And write again, with nothing lost.
    again = tmp_path_factory.getbasetemp() / "again"
    theirs.save_pretrained(again)
    assert GenerationConfig.from_pretrained(again) == asked


@given(asked=valid_settings())
def test_from_pretrained_reads_transformers_files(
    asked: GenerationConfig, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.getbasetemp() / "theirs"
    held = {name: value for name, value in asked.to_dict().items() if name not in OURS_ALONE}
    transformers.GenerationConfig(**held).save_pretrained(folder)
    read = GenerationConfig.from_pretrained(folder)
    for name in set(DEFAULTS) - set(OURS_ALONE):
        assert getattr(read, name) == getattr(asked, name), name
    assert as_generation_config(transformers.GenerationConfig(**held)) == read


def test_from_pretrained_missing_top_k_matches_transformers(tmp_path: Path) -> None:
    transformers.GenerationConfig(do_sample=True, temperature=0.5).save_pretrained(tmp_path)
    assert "top_k" not in (tmp_path / "generation_config.json").read_text()
    read = GenerationConfig.from_pretrained(tmp_path)
    assert read == GenerationConfig(do_sample=True, temperature=0.5, top_k=50)
    # Ours without a limit has none there either.
    GenerationConfig(do_sample=True).save_pretrained(tmp_path)
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
    model = torch_model("OpenAIGPTLMHeadModel", vocab_size=7, n_layer=1, n_embd=8, n_head=2)
    full, _ = model._prepare_generation_config(theirs)
    model._prepare_special_tokens(full, True, device="cpu")
    assert list(model._get_logits_processor(full, 3)) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_time", 1.5),
        ("num_beam_groups", 2),
        ("penalty_alpha", 0.6),
        ("dola_layers", "low"),
        ("sequence_bias", [[[1, 2], 0.5]]),
        ("begin_suppress_tokens", [1]),
        ("exponential_decay_length_penalty", [5, 1.1]),
        ("epsilon_cutoff", 0.1),
        ("eta_cutoff", 0.1),
        ("top_h", 0.5),
        ("guidance_scale", 1.5),
        ("renormalize_logits", True),
        ("remove_invalid_values", True),
        ("token_healing", True),
        ("watermarking_config", {"bias": 2.5}),
        ("encoder_repetition_penalty", 1.5),
        ("encoder_no_repeat_ngram_size", 2),
        ("force_words_ids", [[1]]),
    ],
)
def test_from_pretrained_rejects_unsupported_fields(tmp_path: Path, name: str, value: Any) -> None:
    fields = {name: value}
    if name in ("epsilon_cutoff", "eta_cutoff", "top_h"):
        fields["do_sample"] = True
    if name in ("num_beam_groups", "renormalize_logits", "remove_invalid_values"):
        fields["num_beams"] = 2
    transformers.GenerationConfig(**fields).save_pretrained(tmp_path)
    file = tmp_path / "generation_config.json"
    with pytest.raises(ValueError, match="is not supported here") as error:
        GenerationConfig.from_pretrained(tmp_path)
    assert str(error.value).startswith(f"{file}: {name} is ")


def test_transformers_encoder_penalties_apply_to_decoder_prompts() -> None:
    """Which is why they are not ignored."""
    model = torch_model("OpenAIGPTLMHeadModel", vocab_size=7, n_layer=1, n_embd=8, n_head=2)
    prompt = torch.tensor([[1, 2, 3]])
    for fields in ({"encoder_repetition_penalty": 1.5}, {"encoder_no_repeat_ngram_size": 2}):
        config = transformers.GenerationConfig(**fields)
        model._prepare_special_tokens(config, True, device="cpu")
        rules = model._get_logits_processor(config, 3, encoder_input_ids=prompt)
        assert len(rules) == 1


def test_from_pretrained_reads_config_saved_with_a_model(tmp_path: Path) -> None:
    """As the published checkpoint has it."""
    model = torch_model(
        "OpenAIGPTLMHeadModel", vocab_size=7, n_layer=1, n_embd=8, n_head=2, eos_token_id=3
    )
    model.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path) == GenerationConfig(eos_token_id=3)
