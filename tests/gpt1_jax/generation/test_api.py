"""What ``generate`` takes and returns beside ids."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.compilations import compilations
from support.small_models import small_model
from support.small_tokenizer import write_small

import gpt1_jax as gpt1

V = 31
SIZES = {"vocab_size": V, "n_positions": 64, "n_layer": 2, "n_embd": 12, "n_head": 3}
OURS = small_model(gpt1.OpenAIGPTLMHeadModel, **SIZES)
PROMPT = [3, 1, 4, 1, 5]
RULES: dict[str, Any] = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}
PAD = 1


def double(logits: jax.Array, state: gpt1.GenerationState) -> jax.Array:
    """Change nothing that a greedy choice looks at."""
    return 2 * logits


def never(state: gpt1.GenerationState) -> jax.Array:
    """Let no text end."""
    return state.lengths < 0


def test_generate_keeps_no_scores_unless_asked() -> None:
    out = gpt1.generate(OURS, [PROMPT], max_new_tokens=2, return_dict_in_generate=True)
    assert out.scores is out.logits is out.beam_indices is out.sequences_scores is None


@pytest.mark.nightly
def test_generate_scores_of_draws_are_those_drawn_from() -> None:
    out = gpt1.generate(
        OURS,
        [PROMPT],
        max_new_tokens=5,
        do_sample=True,
        top_k=4,
        num_return_sequences=3,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert out.scores is not None
    assert [step.shape for step in out.scores] == [(3, V)] * 5
    for t, step in enumerate(out.scores):
        assert (np.isfinite(step).sum(axis=-1) == 4).all()
        log_p = np.asarray(jax.nn.log_softmax(step, axis=-1))
        chosen = np.take_along_axis(log_p, out.sequences[:, len(PROMPT) + t][:, None], axis=1)
        np.testing.assert_allclose(out.transition_scores[:, t], chosen[:, 0], rtol=0, atol=1e-6)


def test_state_of_ragged_prompts_has_each_text_from_place_0() -> None:
    seen: list[Any] = []

    def look(state: gpt1.GenerationState) -> jax.Array:
        jax.debug.callback(lambda *values: seen.append(values), state.tokens, state.lengths)
        return jnp.zeros(len(state.lengths), bool)

    rows = gpt1.generate(OURS, [[7], [1, 2, 3]], max_new_tokens=2, stopping_criteria=[look])
    jax.effects_barrier()
    tokens, lengths = map(np.asarray, max(seen, key=lambda values: int(values[1][0])))
    assert lengths.tolist() == [3, 5]
    for row, text, length in zip(rows, tokens, lengths, strict=True):
        assert text[:length].tolist() == row.tolist()
        assert not text[length:].any()


@pytest.mark.nightly
def test_functions_are_compiled_once_for_each_object() -> None:
    options: dict[str, Any] = {
        "max_new_tokens": 3,
        "logits_processor": [double],
        "stopping_criteria": [never],
    }
    gpt1.generate(OURS, [PROMPT], **options)
    with compilations() as compiled:
        gpt1.generate(OURS, [PROMPT[:3]], temperature=0.5, do_sample=True, **options)
    assert compiled == []


@pytest.mark.parametrize("name", ["logits_processor", "stopping_criteria"])
def test_functions_that_return_the_wrong_shape_are_named(name: str) -> None:
    def wrong(*_: object) -> jax.Array:
        return jnp.zeros((2, 2), bool)

    options: dict[str, Any] = {name: [wrong]}
    with pytest.raises(ValueError, match=rf"{name} .*wrong returned .*\(2, 2\), but must return"):
        gpt1.generate(OURS, [PROMPT], **options)


@pytest.mark.parametrize(
    "beams",
    [
        pytest.param({}, id="greedy"),
        pytest.param({"num_beams": 3}, id="beams", marks=pytest.mark.nightly),
    ],
)
def test_inputs_embeds_of_tokens_give_what_the_tokens_give(beams: dict[str, Any]) -> None:
    """Longer than one piece of the prefill; and without ids, rules hold for new tokens alone."""
    ids = np.random.default_rng(1).integers(0, V, size=(2, 40))
    table = np.asarray(OURS.params["transformer"]["tokens_embed"]["embedding"])
    options: dict[str, Any] = {"max_new_tokens": 6, **beams}
    expected = gpt1.generate(OURS, ids, **RULES, **options)
    got = gpt1.generate(OURS, ids, inputs_embeds=table[ids], **RULES, **options)
    np.testing.assert_array_equal(got, expected)
    expected = gpt1.generate(OURS, ids, **options)[:, 40:]
    got = gpt1.generate(OURS, inputs_embeds=table[ids], **options)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.nightly
def test_generate_continues_texts(tmp_path: Path) -> None:
    tokenizer = gpt1.Tokenizer.from_pretrained(write_small(tmp_path))
    model = gpt1.OpenAIGPTLMHeadModel(
        gpt1.OpenAIGPTConfig(vocab_size=len(tokenizer), n_embd=12, n_layer=1, n_head=2),
        rngs=nnx.Rngs(0),
    )
    texts = ["the king", "this is the end"]
    for given in (texts[0], texts):
        ids = [tokenizer.encode(text) for text in ([given] if isinstance(given, str) else given)]
        expected = gpt1.generate(model, ids, max_new_tokens=3)
        got = gpt1.generate(model, given, tokenizer=tokenizer, max_new_tokens=3)
        for row, right in zip(got, expected, strict=True):
            np.testing.assert_array_equal(row, right)
    with pytest.raises(ValueError, match="the prompts are texts, 'the king' for one, and need a"):
        gpt1.generate(model, texts)


@pytest.mark.nightly
def test_key_gives_each_prompt_a_seed() -> None:
    draw: dict[str, Any] = {"do_sample": True, "max_new_tokens": 12}
    one = gpt1.generate(OURS, [PROMPT] * 2, key=jax.random.key(1), **draw)
    np.testing.assert_array_equal(
        one, gpt1.generate(OURS, [PROMPT] * 2, key=jax.random.key(1), **draw)
    )
    assert (one[0] != one[1]).any()
    other = gpt1.generate(OURS, [PROMPT] * 2, key=jax.random.key(2), **draw)
    assert (one != other).any()


@pytest.mark.difference("padding on the right")
def test_padding_on_the_right_is_left_out() -> None:
    """Where transformers goes on behind it: the new tokens are those of the prompt alone."""
    alone = gpt1.generate(OURS, [[9, 8]], max_new_tokens=6)[0, 2:]
    out = gpt1.generate(OURS, [[9, 8, PAD, PAD], [4, 5, 6, 7]], max_new_tokens=6, pad_token_id=PAD)
    assert out[0].tolist() == [9, 8, PAD, PAD, *alone]


def test_padding_of_the_config_is_inferred() -> None:
    model = gpt1.OpenAIGPTLMHeadModel(
        gpt1.OpenAIGPTConfig.from_dict({**OURS.config.to_dict(), "pad_token_id": PAD}),
        rngs=nnx.Rngs(0),
    )
    model.load_params(OURS.params)
    np.testing.assert_array_equal(
        gpt1.generate(model, [[PAD, PAD, 9, 8]], max_new_tokens=6)[0, 4:],
        gpt1.generate(OURS, [[9, 8]], max_new_tokens=6)[0, 2:],
    )


@pytest.mark.difference("unequal prompts")
def test_prompts_of_unequal_lengths_keep_their_pad_tokens() -> None:
    rows = [[PAD, PAD, 9, 8], [4, 5]]
    free = gpt1.generate(OURS, rows, max_new_tokens=6)
    got = gpt1.generate(OURS, rows, max_new_tokens=6, pad_token_id=PAD)
    for row, expected in zip(got, free, strict=True):
        np.testing.assert_array_equal(row, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": jax.random.key(0)}, "key has no effect without do_sample=True"),
        ({"key": jax.random.key(0), "do_sample": True, "seed": 1}, "give either key or seed"),
        ({"streamer": object(), "num_beams": 2}, "a streamer needs num_beams = 1"),
        ({"inputs_embeds": np.zeros((1, 5, 11))}, r"inputs_embeds has shape \(1, 5, 11\)"),
        ({"inputs_embeds": np.zeros((1, 4, 12))}, r"input_ids has shape \(1, 5\), but must have"),
        ({"inputs_embeds": "text"}, "inputs_embeds must hold finite numbers; its dtype is <U4"),
        ({"inputs_embeds": np.full((1, 5, 12), np.nan)}, "inputs_embeds must hold finite numbers"),
        ({"inputs_embeds": [[1], [2, 3]]}, "inputs_embeds has rows of unequal length"),
        ({"key": 0, "do_sample": True}, r"key is 0, but must be one key: jax.random.key\(seed\)"),
        ({"logits_processor": [3]}, r"logits_processor has 3, but must have functions f\(logits,"),
        ({"stopping_criteria": ["a"]}, r"stopping_criteria has 'a', but must have functions f\(st"),
        (
            {"attention_mask": gpt1.GenerationConfig()},
            "attention_mask is a GenerationConfig; generation_config= takes settings",
        ),
        ({"output_scores": True}, "output_scores=True has no effect without"),
        ({"output_logits": True}, "output_logits=True has no effect without"),
    ],
)
def test_generate_refuses_arguments_without_effect(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gpt1.generate(OURS, [PROMPT], **options)


@pytest.mark.difference("outputs of generate")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_attentions": True}, "takes no output_attentions: the model's own call returns"),
        ({"return_dict": True}, "takes no return_dict: return_dict_in_generate= is its name"),
        ({"inputs": [[1]]}, "takes no inputs: input_ids= is its name"),
        ({"assistant_model": OURS}, "takes no assistant_model: prompt_lookup_num_tokens= drafts"),
        ({"max_new_token": 3}, r"takes no max_new_token: did you mean max_new_tokens\?"),
    ],
)
def test_generate_says_what_replaces_arguments_of_transformers(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=f"generate {message}"):
        gpt1.generate(OURS, [PROMPT], **options)


def test_generate_accepts_arguments_without_effect() -> None:
    options: dict[str, Any] = {"use_cache": False, "output_attentions": False, "synced_gpus": None}
    np.testing.assert_array_equal(
        gpt1.generate(OURS, [PROMPT], **options), gpt1.generate(OURS, [PROMPT])
    )


def test_functions_may_be_none_or_one() -> None:
    expected = gpt1.generate(OURS, [PROMPT])
    given: Any
    for given in (None, double, [double]):
        got = gpt1.generate(OURS, [PROMPT], logits_processor=given, stopping_criteria=None)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.nightly
def test_beams_compile_once_per_cache_length() -> None:
    """Whatever the number of new tokens, where no scores are kept."""
    options: dict[str, Any] = {"num_beams": 2}
    gpt1.generate(OURS, [PROMPT], max_new_tokens=4, **options)
    with compilations() as compiled:
        gpt1.generate(OURS, [PROMPT], max_new_tokens=30, **options)
    assert compiled == []


@pytest.mark.nightly
@pytest.mark.difference("rows that a criterion stops")
def test_stopped_rows_go_on_with_padding() -> None:
    def first_row(state: gpt1.GenerationState) -> jax.Array:
        return jnp.arange(len(state.lengths)) == 0

    rows = [PROMPT, PROMPT[::-1]]
    out = gpt1.generate(
        OURS, rows, max_new_tokens=4, pad_token_id=PAD, stopping_criteria=[first_row]
    )
    assert out[0, len(PROMPT) + 1 :].tolist() == [PAD] * 3


def test_generate_needs_prompts() -> None:
    with pytest.raises(ValueError, match="give prompts: input_ids, a text, or inputs_embeds"):
        gpt1.generate(OURS)
