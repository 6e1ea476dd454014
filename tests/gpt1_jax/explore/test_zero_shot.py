"""The paper's zero-shot heuristics against torch, one token at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.small_models import SIZES
from support.small_tokenizer import SIZE, write_small

import gpt1_jax as gpt1
from gpt1_jax.explore.zero_shot import acceptability, best_answers, best_referents, sentiment

torch: Any = pytest.importorskip("torch")
pytest.importorskip("transformers")
from support.torch_reference import flax_model, torch_model  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> gpt1.Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    return gpt1.Tokenizer.from_pretrained(write_small(folder))


@pytest.fixture(scope="module")
def reference() -> Any:
    return torch_model("OpenAIGPTLMHeadModel", **{**SIZES, "vocab_size": SIZE, "n_positions": 64})


def log_probs(reference: Any, tokenizer: gpt1.Tokenizer, context: str, text: str) -> list[float]:
    """Of the tokens of ``text``, each from a forward of its own."""
    ids, first = tokenizer.encode(context + text), len(tokenizer.encode(context))
    found = []
    for i in range(max(first, 1), len(ids)):
        with torch.no_grad():
            logits = reference(torch.tensor([ids[:i]])).logits[0, -1].double()
        found.append(logits.log_softmax(-1)[ids[i]].item())
    return found


@pytest.mark.nightly
def test_zero_shot_heuristics_equal_torch(tokenizer: gpt1.Tokenizer, reference: Any) -> None:
    model = flax_model(reference)

    def mean(context: str, text: str) -> float:
        return float(np.mean(log_probs(reference, tokenizer, context, text)))

    sentences = ["the press is in", "in the thing", "pressing"]
    expected = [mean("", each) for each in sentences]
    np.testing.assert_allclose(acceptability(model, tokenizer, sentences), expected, atol=1e-5)
    ours = sentiment(model, tokenizer, sentences, suffix="a", words=("thing", "press"))
    expected = [mean(f"{each} a", " thing") - mean(f"{each} a", " press") for each in sentences]
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    answers = [["the thing", "in"], ["press", "is", "a thing is pressing"], ["the", "a", "in"]]
    expected = [
        np.argmax([mean(context, f" {answer}") for answer in own])
        for context, own in zip(sentences, answers, strict=True)
    ]
    assert best_answers(model, tokenizer, sentences, answers).tolist() == expected
    winograd = [("the", own, "is in the press") for own in answers]
    expected = [
        np.argmax([mean(f"{before} {noun}", f" {rest}") for noun in nouns])
        for before, nouns, rest in winograd
    ]
    assert best_referents(model, tokenizer, winograd).tolist() == expected


def test_zero_shot_heuristics_of_nothing_are_empty(
    tokenizer: gpt1.Tokenizer, reference: Any
) -> None:
    model = flax_model(reference)
    for heuristic in (acceptability, sentiment, best_referents):
        assert heuristic(model, tokenizer, []).shape == (0,)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("contexts", "answers", "message"),
    [
        (["in"], [["a"], ["is"]], "there are 1 contexts, but 2 lists of answers"),
        (["in", "is"], [["a"], []], "answers 1 are empty, but must be at least one"),
        ([""], [["in the thing", "a"]], "answers 0 cannot be compared: number 1 is"),
    ],
)
def test_wrong_answers_are_one_clear_error(
    tokenizer: gpt1.Tokenizer,
    reference: Any,
    contexts: list[str],
    answers: list[list[str]],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        best_answers(flax_model(reference), tokenizer, contexts, answers)
