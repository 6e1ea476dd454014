"""Logits that are not finite: an error that names the parameter, whatever the way of decoding."""

from typing import Any

import numpy as np
import pytest
from support.scripted_model import SIZES
from support.small_models import small_model, spoil
from support.small_tokenizer import write_small

import gpt1_jax as gpt1
from gpt1_jax.generation.batches import generate_batches

LM = gpt1.OpenAIGPTLMHeadModel
NAME = "transformer.h.0.ln_1.bias"
MESSAGE = rf"^the logits are not finite, because the parameter {NAME} holds NaN or inf$"
PROMPTS = [[1, 2, 3, 1, 2], [4, 5]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> gpt1.Tokenizer:
    return gpt1.Tokenizer.from_pretrained(write_small(tmp_path_factory.mktemp("tokenizer")))


def spoiled(path: str = NAME, value: float = np.nan) -> LM:
    model = small_model(LM, **SIZES)
    spoil(model, path, value)
    return model


@pytest.mark.nightly
@pytest.mark.difference("logits that are not finite")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_sample": True, "top_k": 3},
        {"num_beams": 2},
        {"num_beams": 2, "do_sample": True},
        {"prompt_lookup_num_tokens": 2},
        {"sliding_window": 32, "max_new_tokens": 90},
        {"stop_strings": "x"},
        {"suppress_tokens": [0, 1, 2], "repetition_penalty": 1.5},
    ],
    ids=str,
)
def test_generate_names_a_parameter_that_is_not_finite(
    settings: dict[str, Any], value: float, tokenizer: gpt1.Tokenizer
) -> None:
    model = spoiled(value=value)
    with pytest.raises(ValueError, match=MESSAGE):
        gpt1.generate(model, PROMPTS, tokenizer=tokenizer, **settings)


def test_stream_and_batches_name_a_parameter_that_is_not_finite(tokenizer: gpt1.Tokenizer) -> None:
    model = spoiled()
    pieces = gpt1.stream(model, tokenizer, "the king", max_new_tokens=9)
    batches = generate_batches(model, PROMPTS, gpt1.GenerationConfig(max_new_tokens=9))
    for iterator in (pieces, batches):
        with pytest.raises(ValueError, match=MESSAGE):
            next(iterator)


@pytest.mark.nightly
@pytest.mark.parametrize("beams", [1, 2])
def test_generate_notices_one_row_and_one_logit_that_are_not_finite(beams: int) -> None:
    """The embedding of a token that no text holds, and a position that one prompt reaches."""
    table = "transformer.tokens_embed.embedding"
    with pytest.raises(ValueError, match=table):
        gpt1.generate(spoiled(table), PROMPTS, num_beams=beams)
    positions = "transformer.positions_embed.embedding"
    model = small_model(LM, **SIZES)
    spoil(model, positions, row=20)
    with pytest.raises(ValueError, match=positions):
        gpt1.generate(model, [[1], [1] * 20], num_beams=beams, max_new_tokens=2)
    # These do not come as far.
    texts = gpt1.generate(model, [[1], [1] * 19], num_beams=beams, max_new_tokens=2)
    assert [len(text) for text in texts] == [3, 21]


@pytest.mark.nightly
def test_generate_says_that_half_precision_overflows() -> None:
    model = small_model(LM, **SIZES, dtype="float16")
    params = model.params
    params["transformer"]["h"]["0"]["mlp"]["c_fc"]["kernel"] *= np.float32(1e5)
    model.load_params(params)
    with pytest.raises(ValueError, match="not finite, though all parameters are: a dtype of a wid"):
        gpt1.generate(model, PROMPTS)


@pytest.mark.nightly
@pytest.mark.parametrize("beams", [1, 2])
def test_generate_accepts_infinities_of_its_own_rules(beams: int) -> None:
    """All tokens but two are forbidden, and in the end all but one."""
    model = small_model(LM, **SIZES)
    allowed = [5, 7]
    suppressed = [id_ for id_ in range(SIZES["vocab_size"]) if id_ not in allowed]
    texts = gpt1.generate(
        model,
        PROMPTS,
        num_beams=beams,
        suppress_tokens=suppressed,
        no_repeat_ngram_size=3,
        eos_token_id=allowed[1],
        forced_eos_token_id=allowed[1],
    )
    for text, prompt in zip(texts, PROMPTS, strict=True):
        assert {*text[len(prompt) :].tolist()} <= {*allowed}
