"""The loop, against a plain one: full forwards in Python, one token after the other."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from support.compilations import compilations

import gpt1_jax as gpt1
from gpt1_jax.generation import decode
from gpt1_jax.generation.prompts import Prompt
from gpt1_jax.pure import merge, split

CONFIG = gpt1.OpenAIGPTConfig(
    vocab_size=29, n_positions=64, n_layer=1, n_embd=12, n_head=2, initializer_range=0.5
)


@pytest.fixture(scope="module")
def model() -> gpt1.OpenAIGPTLMHeadModel:
    return gpt1.OpenAIGPTLMHeadModel(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def next_logits(model: gpt1.OpenAIGPTLMHeadModel) -> Callable[[list[int]], np.ndarray]:
    """The logits that follow a text, by a full forward; one compilation serves every length."""
    apply, params = gpt1.functional(model)

    def logits(ids: list[int]) -> np.ndarray:
        padded = np.zeros((1, CONFIG.n_positions), np.int32)
        padded[0, : len(ids)] = ids
        return np.asarray(apply(params, padded).logits[0, len(ids) - 1])

    return logits


def plain_greedy(next_logits: Any, prompt: list[int], new: int) -> list[int]:
    ids = list(prompt)
    for _ in range(new):
        ids.append(int(next_logits(ids).argmax()))
    return ids


prompts = st.lists(st.lists(st.integers(0, 28), min_size=1, max_size=20), min_size=3, max_size=3)


@given(rows=prompts, new=st.integers(1, 16))
@settings(max_examples=25)
def test_greedy_matches_full_forwards(
    model: gpt1.OpenAIGPTLMHeadModel, next_logits: Any, rows: list[list[int]], new: int
) -> None:
    got = gpt1.generate(model, rows, max_new_tokens=new)
    for row, prompt in zip(got, rows, strict=True):
        assert list(row) == plain_greedy(next_logits, prompt, new)


@pytest.mark.nightly
def test_generate_accepts_arrays_and_lists(model: gpt1.OpenAIGPTLMHeadModel) -> None:
    ids = np.array([[1, 2, 3], [4, 5, 6]])
    out = gpt1.generate(model, ids, max_new_tokens=5)
    assert isinstance(out, np.ndarray)
    assert out.shape == (2, 8)
    assert out.dtype == np.int32
    np.testing.assert_array_equal(out[:, :3], ids)
    np.testing.assert_array_equal(gpt1.generate(model, ids.tolist(), max_new_tokens=5), out)
    np.testing.assert_array_equal(gpt1.generate(model, [1, 2, 3], max_new_tokens=5), out[:1])
    ragged = gpt1.generate(model, [[1, 2, 3], [4]], max_new_tokens=5)
    assert isinstance(ragged, list)
    assert [len(row) for row in ragged] == [8, 6]
    assert all(row.dtype == np.int32 for row in ragged)


@pytest.mark.nightly
@pytest.mark.parametrize(  # two rows are decoded as three are
    ("longest", "rows"),
    [(33, 1), (64, 3), (65, 1), (161, 3), (200, 1), (257, 3)],
)
def test_prefill_matches_full_forward_on_long_prompts(longest: int, rows: int) -> None:
    """Whatever the pieces: 128 tokens at once, 64 and 32."""
    config = dataclasses.replace(CONFIG, n_positions=300, n_layer=1)
    model = gpt1.OpenAIGPTLMHeadModel(config, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(longest)
    prompts = [rng.integers(29, size=longest // (i + 1)).tolist() for i in range(rows)]
    out = gpt1.generate(model, prompts, max_new_tokens=2, return_dict_in_generate=True)
    apply, params = gpt1.functional(model)
    for ids, got in zip(out.sequences, out.log_probs, strict=True):
        expected = jax.nn.log_softmax(apply(params, ids[None]).logits[0, -3:-1])
        assert ids[-2:].tolist() == expected.argmax(axis=-1).tolist()
        # measured: 1.4e-6
        np.testing.assert_allclose(got, expected.max(axis=-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2])
def test_decode_step_matches_full_forward(model: gpt1.OpenAIGPTLMHeadModel, rows: int) -> None:
    """One token at a time, and several, whatever the shape that the cache is kept in."""
    ids = np.random.default_rng(0).integers(29, size=(rows, 7)).astype(np.int32)
    apply, params = gpt1.functional(model)
    expected = np.asarray(apply(params, ids).logits)
    structure, _ = split(model)
    step = jax.jit(lambda cache, ids: decode.decode_step(merge(structure, params), cache, ids))
    cache = gpt1.Cache.empty(CONFIG, rows, 8, squeeze=True)
    for start, end in ((0, 1), (1, 2), (2, 6), (6, 7)):
        logits, cache = step(cache, ids[:, start:end])
        # measured: 9.5e-7
        np.testing.assert_allclose(logits, expected[:, start:end], rtol=0, atol=5e-6)
    assert cache.index == 7


def test_generate_prepares_a_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However it decodes, until a module changes."""
    model = gpt1.OpenAIGPTLMHeadModel(CONFIG, rngs=nnx.Rngs(0))
    flax_split, calls = nnx.split, []
    monkeypatch.setattr(nnx, "split", lambda model: calls.append(1) or flax_split(model))
    for beams in (1, 1, 2):
        gpt1.generate(model, [[1, 2]], max_new_tokens=2, num_beams=beams)
    assert len(calls) == 1
    model.transformer.h[0] = gpt1.OpenAIGPTLMHeadModel(CONFIG, rngs=nnx.Rngs(5)).transformer.h[0]
    after = gpt1.generate(model, [[1, 2]], max_new_tokens=2, return_dict_in_generate=True)
    expected = jax.nn.log_softmax(np.asarray(model(after.sequences[:, :-1]).logits)[0, 1:])
    np.testing.assert_allclose(after.log_probs[0], expected.max(axis=-1), rtol=0, atol=5e-6)
    assert len(calls) == 2


def compiled_text(model: gpt1.OpenAIGPTLMHeadModel, rows: int, **options: Any) -> str:
    """What XLA makes of decoding with these settings, with a cache of 64 slots."""
    asked = gpt1.GenerationConfig(**options).for_model(CONFIG)
    decoder = decode.Decoder.prepare(model, rows)
    sampling = decode.SamplingParams.build(
        asked, CONFIG.vocab_size, asked.seeds(rows), decode.Extras()
    )
    state, _ = decode._start(decoder, [Prompt(np.ones(3, np.int32))] * rows, asked, sampling)
    assert state.cache.length == 64
    lowered = decode._decode_until.lower(
        decoder.structure,
        decoder.params,
        state,
        sampling,
        np.asarray(40, np.int32),
        num_draft_tokens=0,
    )
    text = lowered.compile().as_text()
    assert text is not None
    return text


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("options", "branches"),
    [
        ({}, False),
        ({"eos_token_id": [3, 4], "pad_token_id": 2}, False),
        ({"repetition_penalty": 1.5}, True),
        ({"do_sample": True}, True),
    ],
)
def test_plain_decode_step_has_no_branches(
    model: gpt1.OpenAIGPTLMHeadModel, options: dict[str, Any], branches: bool
) -> None:
    assert ("conditional(" in compiled_text(model, 2, **options)) == branches


@pytest.mark.parametrize("rows", [1, 2])
def test_decode_step_does_not_copy_the_cache(model: gpt1.OpenAIGPTLMHeadModel, rows: int) -> None:
    """No compiled loop copies an array of the cache to keep one and compute with the other.

    One copy of each may be there for form's sake: where it comes to lie in its own place.
    """
    text = compiled_text(model, rows)
    cached = rf"f32\[({rows},)?2,64,6\]"
    assert re.search(cached, text)
    loops = re.split(r"^}$", text, flags=re.MULTILINE)
    copies = [len(re.findall(rf"= {cached}\S* copy\(", loop)) for loop in loops]
    assert max(copies) <= 2 * CONFIG.n_layer


@pytest.mark.nightly
@pytest.mark.parametrize(
    "options",
    [
        {"output_scores": True},
        {"do_sample": True, "seed": 3},
        {"num_beams": 2},
        {"prompt_lookup_num_tokens": 3},
        {"sliding_window": 20, "max_new_tokens": 70},
    ],
)
def test_generate_gives_one_row_of_two_equal_ones(
    model: gpt1.OpenAIGPTLMHeadModel, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    asked: dict[str, Any] = {"max_new_tokens": 12, "eos_token_id": 5, **options}
    expected = gpt1.generate(model, [[7, 8, 9]], return_dict_in_generate=True, **asked)
    monkeypatch.setattr(decode, "least_rows", lambda platform: 2)
    found = gpt1.generate(model, [[7, 8, 9]], return_dict_in_generate=True, **asked)
    np.testing.assert_array_equal(found.sequences, expected.sequences)
    for name in ("transition_scores", "log_probs", "scores"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert np.shape(ours) == np.shape(theirs)
        if ours is not None:
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-6)


def test_decoder_pads_to_its_least_rows(model: gpt1.OpenAIGPTLMHeadModel) -> None:
    decoder = dataclasses.replace(decode.Decoder.prepare(model, 1), least_rows=2)
    prompts = [Prompt(np.full(3, token, np.int32)) for token in range(3)]

    def padded(number: int, **options: Any) -> tuple[int, Any]:
        asked = gpt1.GenerationConfig(**options)
        rows, asked = decoder.pad(prompts[:number], asked)
        assert rows == prompts[:number] + [prompts[number - 1]] * (len(rows) - number)
        return len(rows), asked.seed

    assert padded(1) == (2, None)
    assert padded(3) == (3, None)
    assert padded(1, num_beams=2) == (1, None)
    assert padded(1, do_sample=True) == (2, (0, 0))
    assert padded(1, do_sample=True, seed=[7]) == (2, (7, 7))
    assert padded(1, do_sample=True, seed=7, num_return_sequences=2) == (1, 7)


def test_least_rows_are_two_on_a_gpu() -> None:
    assert [decode.least_rows(name) for name in ("gpu", "cpu", "tpu")] == [2, 1, 1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_generate_accepts_left_and_right_padding(
    model: gpt1.OpenAIGPTLMHeadModel, side: str
) -> None:
    alone = gpt1.generate(model, [[7, 8]], max_new_tokens=6)[0, 2:]
    pad = [0, 0]
    rows = [[*pad, 7, 8] if side == "left" else [7, 8, *pad], [1, 2, 3, 4]]
    mask = [[0, 0, 1, 1] if side == "left" else [1, 1, 0, 0], [1, 1, 1, 1]]
    out = gpt1.generate(model, rows, mask, max_new_tokens=6)
    np.testing.assert_array_equal(out[0, :4], rows[0])  # as given, padding and all
    np.testing.assert_array_equal(out[0, 4:], alone)


def test_scores_are_log_probs_of_generated_tokens(
    model: gpt1.OpenAIGPTLMHeadModel, next_logits: Any
) -> None:
    out = gpt1.generate(model, [[3, 1, 4]], max_new_tokens=6, return_dict_in_generate=True)
    ids = list(out.sequences[0])
    for i in range(6):
        expected = jax.nn.log_softmax(next_logits(ids[: 3 + i]))[ids[3 + i]]
        assert abs(out.transition_scores[0, i] - expected) <= 1e-5  # measured: 1.0e-6


@pytest.mark.nightly
@pytest.mark.difference("draws")
def test_sampling_depends_only_on_the_row_seed(model: gpt1.OpenAIGPTLMHeadModel) -> None:
    rows = [[1, 2], [3], [4, 5, 6]]
    sample = {"max_new_tokens": 8, "do_sample": True, "top_k": 20, "top_p": 0.95}
    batch = gpt1.generate(model, rows, seed=7, **sample)
    again = gpt1.generate(model, rows, seed=7, **sample)
    other = gpt1.generate(model, rows, seed=8, **sample)
    with jax.default_prng_impl("rbg"):  # whose draws depend on the whole batch
        under_rbg = gpt1.generate(model, rows, seed=7, **sample)
    for i, prompt in enumerate(rows):
        np.testing.assert_array_equal(batch[i], again[i])
        np.testing.assert_array_equal(batch[i], under_rbg[i])
        np.testing.assert_array_equal(
            batch[i], gpt1.generate(model, [prompt], seed=7 + i, **sample)[0]
        )
    assert any(list(a) != list(b) for a, b in zip(batch, other, strict=True))


def test_sampling_follows_the_distribution(
    model: gpt1.OpenAIGPTLMHeadModel, next_logits: Any
) -> None:
    """2,000 first tokens, chi-square against the softmax at this temperature (29 tokens)."""
    temperature = 1.7
    out = gpt1.generate(
        model, [[3, 1]] * 2000, max_new_tokens=1, do_sample=True, temperature=temperature
    )
    expected = np.exp(jax.nn.log_softmax(next_logits([3, 1]) / temperature)) * 2000
    counts = np.bincount(out[:, 2], minlength=29)
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    statistic = ((observed - wanted) ** 2 / np.maximum(wanted, 1e-9)).sum()
    # The 99.9 % point for at most 29 degrees of freedom is 58.3.
    assert statistic < 58.3


def test_top_k_of_one_is_greedy(model: gpt1.OpenAIGPTLMHeadModel) -> None:
    greedy = gpt1.generate(model, [[5, 6]], max_new_tokens=9)
    sampled = gpt1.generate(model, [[5, 6]], max_new_tokens=9, do_sample=True, top_k=1)
    np.testing.assert_array_equal(greedy, sampled)


def test_eos_token_ends_each_row(model: gpt1.OpenAIGPTLMHeadModel) -> None:
    greedy = list(gpt1.generate(model, [[5, 6]], max_new_tokens=12)[0])
    end = greedy[5]
    first = greedy.index(end, 2)
    alone = gpt1.generate(model, [[5, 6]], max_new_tokens=12, eos_token_id=end)
    assert list(alone[0]) == greedy[: first + 1]  # the loop stops when all rows have ended

    other = list(gpt1.generate(model, [[9, 9]], max_new_tokens=12)[0])
    both = gpt1.generate(
        model, [[5, 6], [9, 9]], max_new_tokens=12, eos_token_id=(end, 28), pad_token_id=27
    )
    ends = [i for i, id_ in enumerate(other) if i >= 2 and id_ in (end, 28)]
    stop = ends[0] if ends else len(other) - 1
    assert list(both[0][: first + 1]) == greedy[: first + 1]
    assert set(both[0][first + 1 :]) <= {27}
    assert list(both[1][: stop + 1]) == other[: stop + 1]

    ragged = gpt1.generate(model, [[5, 6], [9]], max_new_tokens=12, eos_token_id=end)
    assert list(ragged[0]) == greedy[: first + 1]  # a list has no padding


def random_settings(rng: np.random.Generator) -> dict[str, Any]:
    """Settings of all kinds but those of beams."""
    new = int(rng.integers(1, 31))
    chosen: dict[str, Any] = {"max_new_tokens": new, "do_sample": bool(rng.integers(2))}
    if chosen["do_sample"]:
        chosen |= {"temperature": rng.uniform(0.5, 2), "seed": int(rng.integers(100))}
        chosen |= {name: rng.uniform(0.1, 1) for name in ("top_p", "min_p", "typical_p")}
        chosen["top_k"] = int(rng.integers(1, 40))
    words = [rng.integers(29, size=rng.integers(1, 4)).tolist() for _ in range(3)]
    optional: dict[str, Any] = {
        "repetition_penalty": rng.uniform(0.5, 2),
        "no_repeat_ngram_size": int(rng.integers(1, 5)),
        "min_new_tokens": int(rng.integers(1, new + 1)),
        "bad_words_ids": words,
        "suppress_tokens": rng.integers(20, size=4).tolist(),
        "forced_bos_token_id": 28,
        "forced_eos_token_id": 27,
        "eos_token_id": rng.integers(29, size=rng.integers(1, 4)).tolist(),
    }
    return chosen | {name: value for name, value in optional.items() if rng.integers(2)}


def test_generate_compiles_once_per_cache_length(model: gpt1.OpenAIGPTLMHeadModel) -> None:
    """100 prompts with settings of all kinds: two programs for every length of the cache."""
    decoder: Any = decode._decode_until
    decoder.clear_cache()
    twin = gpt1.OpenAIGPTLMHeadModel(CONFIG, rngs=nnx.Rngs(1))
    # Texts have at most 61 tokens and are read in pieces of 32: the cache has 32 or 64 slots.
    kinds: list[dict[str, Any]] = [{}, {"do_sample": True}]
    for options in kinds:
        for new in (1, 33):
            with compilations() as found:
                gpt1.generate(model, [[1]], max_new_tokens=new, **options)
            assert found, "compilations are not counted"
    rng = np.random.default_rng(0)
    with compilations() as found:
        for _ in range(100):
            prompt = rng.integers(29, size=rng.integers(1, 33)).tolist()
            gpt1.generate(model, [prompt], **random_settings(rng))
        kinds.append({"repetition_penalty": 2.0})
        for options in kinds:
            gpt1.generate(twin, [[1]], max_new_tokens=3, eos_token_id=[5, 6], **options)
    assert decoder._cache_size() == 4
    assert found == []


@pytest.mark.parametrize(
    ("rows", "mask", "options", "message"),
    [
        ([], None, {}, "no prompt"),
        ([[]], None, {}, "prompt 0 is empty"),
        ([[1, 2], []], None, {}, "prompt 1 is empty"),
        ([[1, 29]], None, {}, r"prompt 0\[1\] is 29, but must be in \[0, 29\)"),
        ([[1], [2, -1]], None, {}, r"prompt 1\[1\] is -1"),
        ([[1, 2]], [[0, 0]], {}, "prompt 0 is empty"),
        ([[1, 2]], [[1]], {}, r"attention_mask has rows of \[\(1,\)\], but must have \[\(2,\)\]"),
        ([[1], [1, 2]], [[1, 1], [1, 1]], {}, "attention_mask has rows of"),
        ([[[1]]], None, {}, r"the prompts have shapes \[\(1, 1\)\]"),
        ([[1.5]], None, {}, "dtype float64, but must be integer"),
        ([[1] * 50], None, {"max_new_tokens": 16}, "50 tokens and max_new_tokens = 16 .* 64"),
        ([[1]], [["a"]], {}, r"attention_mask\[0\] has dtype <U1, but must be bool"),
        ([[1], [2]], [[1], [2]], {}, r"attention_mask\[1\]\[0\] is 2, but must be 1"),
        ({"input_ids": [[1]]}, None, {}, "input_ids is a mapping of 'input_ids'"),
        ([[1]], None, {"temperature": 2.0}, "temperature=2.0 has no effect"),
        ([[1]], None, {"forced_eos_token_id": 29}, "forced_eos_token_id is 29"),
    ],
)
def test_generate_rejects_bad_input(
    model: gpt1.OpenAIGPTLMHeadModel, rows: Any, mask: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        gpt1.generate(model, rows, mask, **options)


def test_generate_rejects_unknown_setting(model: gpt1.OpenAIGPTLMHeadModel) -> None:
    with pytest.raises(TypeError, match=r"takes no max_lenght: did you mean max_length\?"):
        gpt1.generate(model, [[1]], max_lenght=3)


def test_cache_may_be_longer_than_n_positions() -> None:
    """The cache is longer than the model's positions: padding takes slots, but no positions."""
    config = gpt1.OpenAIGPTConfig(vocab_size=7, n_positions=10, n_layer=1, n_embd=8, n_head=2)
    small = gpt1.OpenAIGPTLMHeadModel(config, rngs=nnx.Rngs(0))
    assert gpt1.generate(small, [[1, 2, 3]], max_new_tokens=8).shape == (1, 11)
    with pytest.raises(ValueError, match="n_positions = 10"):
        gpt1.generate(small, [[1, 2, 3]], max_new_tokens=9)


def test_generate_accepts_ragged_attention_mask(model: gpt1.OpenAIGPTLMHeadModel) -> None:
    rows, masks = [[1, 2, 3], [4]], [[1, 1, 1], [1]]
    for a, b in zip(
        gpt1.generate(model, rows, masks, max_new_tokens=4),
        gpt1.generate(model, rows, max_new_tokens=4),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(TypeError, match="model is Rngs, but must be OpenAIGPTLMHeadModel"):
        gpt1.generate(nnx.Rngs(0), rows)  # pyright: ignore[reportArgumentType]
