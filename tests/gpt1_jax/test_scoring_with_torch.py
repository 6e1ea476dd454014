"""Scores against a slow computation by torch: one text, one window, one token at a time."""

from typing import Any

import numpy as np
import pytest
from support.small_models import SIZES

import gpt1_jax as gpt1

torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")
from support.torch_reference import flax_model, torch_model  # noqa: E402


def check_against_torch(reference: Any, lengths: list[int], stride: int) -> None:
    """Token log-probabilities within 1e-5 of the largest logit, and the same greedy choices."""
    T, V = reference.config.n_positions, reference.config.vocab_size
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, V, n) for n in lengths]
    contexts = [int(rng.integers(0, min(n, T + 1))) for n in lengths]
    scores = gpt1.score(flax_model(reference), texts, contexts, stride=stride)
    for text, context, found in zip(texts, contexts, scores, strict=True):
        stop, first = min(T, len(text) - 1), max(1, context)
        assert np.isnan(found.log_probs[:first]).all()
        while first < len(text):
            start = max(0, stop - T)
            with torch.no_grad():
                logits = reference(torch.tensor(text[None, start:stop])).logits[0].double()
            places = torch.arange(first, stop + 1)
            own = logits[places - 1 - start]
            expected = own.log_softmax(-1)[
                torch.arange(len(own)), torch.tensor(text[first : stop + 1])
            ]
            ours = found.log_probs[first : stop + 1]
            assert np.abs(ours - expected.numpy()).max() <= 1e-5 * own.abs().max().item()
            greedy = own.argmax(-1).numpy() == text[first : stop + 1]
            assert found.is_greedy[first : stop + 1].tolist() == greedy.tolist()
            first, stop = stop + 1, min(stop + stride, len(text) - 1)


def test_score_equals_torch() -> None:
    reference = torch_model("OpenAIGPTLMHeadModel", **SIZES)
    check_against_torch(reference, [1, 2, 7, 8, 9, 10, 20, 33], stride=3)


@pytest.mark.nightly
def test_score_equals_torch_at_full_size() -> None:
    # Its own initial weights: those of ``torch_model`` are ten times as wide, and twelve blocks of
    # them amplify the rounding of any forward; torch's float32 logits are then 1e-3 from float64's.
    torch.manual_seed(0)
    reference = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig()).eval()
    check_against_torch(reference, [5, 30, 100, 700], stride=256)
