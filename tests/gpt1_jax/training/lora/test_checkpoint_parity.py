"""Adapters that peft has trained, merged here, give peft's outputs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.small_models import difference
from support.small_training import write_checkpoint

import gpt1_jax as gpt1
from gpt1_jax.training.lora.checkpoint import merge_checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.filterwarnings(
        "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
        "ignore:Setting `save_embedding_layers` to `True`:UserWarning",
    ),
]

TOLERANCE = 1e-5  # measured: 5e-7
IDS = np.arange(12, dtype=np.int32).reshape(2, 6)


def train_in_peft(base: Path, out: Path, cls: Any, *, tokens: int | None, **fields: Any) -> Any:
    """Save an adapter of peft's whose parameters are all random; return its model."""
    torch.manual_seed(0)
    reference = cls.from_pretrained(base, **fields)
    if tokens is not None:
        reference.resize_token_embeddings(tokens)
    config = peft.LoraConfig(
        r=2,
        lora_alpha=3,
        lora_dropout=0.1,
        use_rslora=True,
        target_modules="all-linear",
        task_type="SEQ_CLS" if fields else "CAUSAL_LM",
        fan_in_fan_out=True,
    )
    model = peft.get_peft_model(reference, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(out)
    return model.eval()


@pytest.mark.parametrize("tokens", [None, 100])
def test_merge_checkpoint_of_peft_language_model(tokens: int | None, tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base")
    cls = transformers.OpenAIGPTLMHeadModel
    theirs = train_in_peft(base, tmp_path / "adapter", cls, tokens=tokens)
    merge_checkpoint(tmp_path / "adapter", tmp_path / "merged")
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        expected = theirs(torch.from_numpy(IDS.astype(np.int64))).logits
    assert expected.shape[-1] == model.config.vocab_size == (tokens or 94)
    assert difference(model(IDS).logits, expected) < TOLERANCE * float(expected.abs().max())


def test_merge_checkpoint_of_peft_classifier(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base")
    fields = {"num_labels": 3, "pad_token_id": 0}
    cls = transformers.OpenAIGPTForSequenceClassification
    theirs = train_in_peft(base, tmp_path / "adapter", cls, tokens=None, **fields)
    merge_checkpoint(tmp_path / "adapter", tmp_path / "merged")
    model = gpt1.OpenAIGPTForSequenceClassification.from_pretrained(tmp_path / "merged")
    ids = IDS[:1]  # since no pad token was ever set
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids.astype(np.int64))).logits
    assert difference(model(ids).logits, expected) < TOLERANCE * float(expected.abs().max())
    found = gpt1.predict(tmp_path / "merged", ["the king saw a cat"], task="classification")
    assert list(found[0]["scores"]) == ["LABEL_0", "LABEL_1", "LABEL_2"]
