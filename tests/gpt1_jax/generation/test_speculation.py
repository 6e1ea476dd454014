"""Prompt lookup: the guesses, and texts that do not depend on them."""

import dataclasses
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from support.scripted_model import scripted_model

import gpt1_jax as gpt1
from gpt1_jax.generation import decode
from gpt1_jax.generation.processors import DecodeContext
from gpt1_jax.generation.speculation import draft

V = 23
CONFIG = gpt1.OpenAIGPTConfig(
    vocab_size=V, n_positions=64, n_layer=1, n_embd=12, n_head=2, initializer_range=0.5
)
IDS = st.integers(0, V - 1)


compiled_draft = jax.jit(draft, static_argnums=1)


def guessed(text: list[int], number: int, left: int) -> tuple[list[int], bool]:
    row = [text[-1]] * left + text + [text[-1]] * (24 - left - len(text))
    context = DecodeContext(
        tokens=jnp.asarray([row], jnp.int32),
        start=jnp.asarray([left], jnp.int32),
        length=jnp.int32(left + len(text)),
        new=jnp.int32(0),
    )
    tokens, found = compiled_draft(context, number)
    return tokens[0].tolist(), bool(found[0])


def slow_guess(text: list[int], number: int) -> list[int] | None:
    """The same, one token at a time."""
    for width in (2, 1):
        for end in range(len(text) - 1, width - 1, -1):
            if text[end - width : end] == text[-width:]:
                out = list(text)
                for _ in range(number):
                    out.append(out[end])
                    end += 1
                return out[len(text) :]
    return None


@given(
    text=st.lists(st.integers(0, 4), min_size=1, max_size=20),
    number=st.sampled_from([1, 9]),
    left=st.integers(0, 3),
)
def test_draft_matches_plain_python(text: list[int], number: int, left: int) -> None:
    """Padding and unused slots, which hold the last token too, count for nothing."""
    tokens, found = guessed(text, number, left)
    expected = slow_guess(text, number)
    assert found == (expected is not None)
    assert tokens == expected or not found


@pytest.fixture(scope="module")
def model() -> gpt1.OpenAIGPTLMHeadModel:
    return gpt1.OpenAIGPTLMHeadModel(CONFIG, rngs=nnx.Rngs(3))


@pytest.mark.nightly
@given(
    # Up to the model's last position; one length of the cache serves all.
    rows=st.lists(st.lists(IDS, min_size=2, max_size=20), min_size=2, max_size=2),
    fields=st.fixed_dictionaries(
        {},
        optional={
            "repetition_penalty": st.just(1.2),
            "no_repeat_ngram_size": st.just(3),
            "eos_token_id": st.just((1, 2)),
            "forced_eos_token_id": st.just(5),
            "do_sample": st.just(True),
        },
    ),
)
@settings(max_examples=40)
def test_prompt_lookup_does_not_change_output(
    model: gpt1.OpenAIGPTLMHeadModel,
    rows: list[list[int]],
    fields: dict[str, Any],
) -> None:
    asked = gpt1.GenerationConfig(max_new_tokens=44, **fields)
    plain = gpt1.generate(model, rows, generation_config=asked, return_dict_in_generate=True)
    asked = dataclasses.replace(asked, prompt_lookup_num_tokens=4)
    ours = gpt1.generate(model, rows, generation_config=asked, return_dict_in_generate=True)
    for name in ("sequences", "transition_scores", "log_probs"):
        for row, expected in zip(getattr(ours, name), getattr(plain, name), strict=True):
            np.testing.assert_allclose(row, expected, atol=5e-6)  # measured: 9.5e-7


@pytest.mark.nightly
def test_prompt_lookup_saves_forwards_on_repetitive_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 tokens that repeat 3 4 5, all but the first few come six at a time."""
    forwards = []

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        jax.debug.callback(lambda: forwards.append(1))
        return forward(self, *args, **kwargs)

    forward = gpt1.OpenAIGPTLMHeadModel.forward
    monkeypatch.setattr(gpt1.OpenAIGPTLMHeadModel, "forward", counted)
    decode_until: Any = decode._decode_until
    decode_until.clear_cache()
    script = [3, 4, 5] * 20
    asked = gpt1.GenerationConfig(max_new_tokens=40, prompt_lookup_num_tokens=5)
    out = gpt1.generate(scripted_model(script), [script[:1]], generation_config=asked)
    jax.effects_barrier()
    decode_until.clear_cache()
    assert out[0].tolist() == script[:41]
    # Three tokens one by one; then the fourth is like the first, and 37 more follow.
    assert len(forwards) == 3 + 7


def test_prompt_lookup_rejects_invalid_settings() -> None:
    with pytest.raises(
        ValueError, match="prompt_lookup_num_tokens=3 has no effect with a sliding_window"
    ):
        gpt1.GenerationConfig(prompt_lookup_num_tokens=3, sliding_window=8)
    with pytest.raises(ValueError, match="prompt_lookup_num_tokens is 0, but must be at least 1"):
        gpt1.GenerationConfig(prompt_lookup_num_tokens=0)
