"""GenerationConfig: what it accepts and rejects; the parity tests read transformers' own files."""

import dataclasses
import json
import os
import pickle
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from support.random_settings import valid_settings

from gpt1_jax import GenerationConfig, OpenAIGPTConfig
from gpt1_jax.generation_config import DEFAULTS, FILE

SAMPLE: dict[str, Any] = {"do_sample": True}
BEAMS: dict[str, Any] = {"num_beams": 2}
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        *(
            ({name: value}, f"{name} is {value!r}, but must be an integer")
            for name in (
                "max_new_tokens",
                "min_new_tokens",
                "no_repeat_ngram_size",
                "num_beams",
                "num_return_sequences",
            )
            for value in (None, 3.0, True, "3", NAN, [3])
        ),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, but must be at least 1"),
        ({"max_new_tokens": -5}, "max_new_tokens is -5, but must be at least 1"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1, but must be at least 0"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size is -1, but must be at least 0"),
        ({"num_beams": 0}, "num_beams is 0, but must be at least 1"),
        ({"max_new_tokens": 2**20 + 1}, "max_new_tokens is 1048577, but must be at most 1048576"),
        ({**SAMPLE, "num_return_sequences": 0}, "num_return_sequences is 0, but must be at least"),
        *(
            ({**SAMPLE, "top_k": value}, f"top_k is {value!r}, but must be an integer, or None")
            for value in (2.7, True, "5", NAN)
        ),
        ({**SAMPLE, "top_k": -1}, "top_k is -1, but must be at least 1, or None"),
        ({"sliding_window": 0}, "sliding_window is 0, but must be at least 1, or None"),
        ({"sliding_window": 9.0}, "sliding_window is 9.0, but must be an integer, or None"),
        *(
            ({**SAMPLE, **BEAMS, name: value}, f"{name} is {value!r}, but must be a number")
            for name in (
                "temperature",
                "top_p",
                "min_p",
                "typical_p",
                "repetition_penalty",
                "length_penalty",
            )
            for value in (None, "1", True, NAN, INF, [1.0])
        ),
        *(
            # An integer that no float holds.
            ({**SAMPLE, **BEAMS, name: 10**400}, "000, but must be a number")
            for name in ("temperature", "top_p", "min_p", "length_penalty")
        ),
        *(
            ({**SAMPLE, name: value}, f"{name} is {value!r}, but must be in [1e-06, 1e+06]")
            for name in ("temperature", "repetition_penalty")
            for value in (0.0, -1.0, 1e-38, 9e-7, 1.1e6)
        ),
        ({**BEAMS, "length_penalty": 101.0}, "length_penalty is 101.0, but must be in [-100, 100]"),
        ({**SAMPLE, "min_p": -0.1}, "min_p is -0.1, but must be in [0, 1]"),
        ({**SAMPLE, "min_p": 1.1}, "min_p is 1.1, but must be in [0, 1]"),
        *(
            ({**SAMPLE, "typical_p": value}, f"typical_p is {value!r}, but must be in (0, 1]")
            for value in (0, 0.0, -0.5, 1.1)
        ),
        ({**SAMPLE, "top_p": -0.5}, "top_p is -0.5, but must be in [0, 1]"),
        ({**SAMPLE, "top_p": 1.1}, "top_p is 1.1, but must be in [0, 1]"),
        ({"max_length": 0}, "max_length is 0, but must be at least 1, or None"),
        ({"max_length": 5.0}, "max_length is 5.0, but must be an integer, or None"),
        ({"min_length": -1}, "min_length is -1, but must be at least 0"),
        *(
            ({"do_sample": value}, f"do_sample is {value!r}, but must be True or False")
            for value in ("no", 1, None)
        ),
        *(
            ({**BEAMS, "early_stopping": value}, f"early_stopping is {value!r}, but must be True")
            for value in ("always", 1, None)
        ),
        *(
            ({name: value}, f"{name} is {value!r}, but must be an id, or None")
            for name in ("forced_bos_token_id", "pad_token_id")
            for value in (1.7, "1", True, (1,))
        ),
        *(
            ({name: value}, f"{name} is {value!r}, but must be an id or several")
            for name in ("eos_token_id", "forced_eos_token_id")
            for value in (1.7, "12", True, (1, 2.0), (None,), ((1,),))
        ),
        *(
            ({"suppress_tokens": value}, f"suppress_tokens is {value!r}, but must be ids")
            for value in (7, None, "12", (1.0,), (True,))
        ),
        *(
            ({"bad_words_ids": value}, f"bad_words_ids is {value!r}, but must be sequences of ids")
            for value in (7, None, "ab", ("ab", "c"), (1, 2), ((1, 2.0),), b"ab")
        ),
        ({"bad_words_ids": ((1,), ())}, "but must be sequences of at least one id"),
        *(
            ({"stop_strings": value}, f"stop_strings is {value!r}, but must be strings")
            for value in (7, None, b"ab")
        ),
        *(
            ({"stop_strings": value}, "but must be strings of at least one character")
            for value in ("", ("a", ""), (1,), (("a",),), (b"a",))
        ),
        *(
            ({**SAMPLE, "seed": value}, f"seed is {value!r}, but must be an integer in [0, 2**32)")
            for value in (-1, 2**32, 1.0, "1", True, (), (1, -1), (1, 2**32), (1.0,), NAN)
        ),
        # Settings that are without effect, or contradict each other.
        *(
            (fields, "has no effect without do_sample=True")
            for fields in (
                {"temperature": 0.5},
                {"top_k": 5},
                {"top_p": 0.5},
                {"min_p": 0.5},
                {"typical_p": 0.5},
                {"seed": 0},
                {"seed": (1, 2)},
                {"num_beams": 2, "temperature": 0.5},
            )
        ),
        *(
            (fields, "has no effect without num_beams above 1")
            for fields in (
                {"length_penalty": 0.5},
                {"early_stopping": True},
                {"early_stopping": "never"},
                {**SAMPLE, "length_penalty": 0.5},
            )
        ),
        (
            {**BEAMS, "sliding_window": 9},
            "sliding_window=9 has no effect with num_beams above 1",
        ),
        (
            {"max_new_tokens": 4, "min_new_tokens": 5},
            "min_new_tokens is 5, but must be at most max_new_tokens = 4",
        ),
        (
            {"num_beams": 3, "num_return_sequences": 4},
            "num_return_sequences is 4, but must be at most num_beams = 3",
        ),
        (
            {"num_return_sequences": 2},
            "num_return_sequences is 2, but must be 1 unless do_sample is True",
        ),
        (
            {"forced_bos_token_id": 3, "suppress_tokens": (2, 3)},
            "forced_bos_token_id is 3, but must be a token that suppress_tokens allows",
        ),
        (
            {"forced_eos_token_id": (2, 3), "suppress_tokens": (2, 3)},
            "forced_eos_token_id is (2, 3), but must be a token that suppress_tokens allows",
        ),
    ],
)
def test_generation_config_rejects_invalid_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the message is compared below)
        GenerationConfig(**fields)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": 1, "temperature": 1e-6, "top_p": 0, "typical_p": 1e-9, "min_p": 1},
        {"temperature": 1000000, "top_p": 1, "typical_p": 1, "min_p": 0, "top_k": None},
        {"seed": 0},
        {"seed": 2**32 - 1},
        {"seed": (0, 2**32 - 1)},
        {"num_beams": 2, "num_return_sequences": 2, "length_penalty": -4.6, "early_stopping": True},
        {"num_return_sequences": 9, "sliding_window": 1, "stop_strings": "x"},
        {"min_new_tokens": 20, "max_new_tokens": 20, "repetition_penalty": 1e-6},
        {"eos_token_id": (), "forced_eos_token_id": (3, 4), "suppress_tokens": (3,)},
    ],
)
def test_generation_config_accepts_boundary_values(fields: dict[str, Any]) -> None:
    GenerationConfig(do_sample=True, **fields)


@pytest.mark.difference("ranges")
@pytest.mark.parametrize("penalty", [-1.68, 11.07])
def test_generation_config_length_penalty_keeps_scores_distinct(penalty: float) -> None:
    """At the bounds, the score of the worst text is above -1e9 and that of a likely one no zero."""
    fields: dict[str, Any] = {**BEAMS, "max_new_tokens": 512}
    GenerationConfig(**fields, length_penalty=penalty)
    scores = np.asarray([-50 * 512, -0.01], np.float32) / np.float32(512) ** np.float32(penalty)
    assert -1e9 < scores[0] < scores[1] < -np.finfo(np.float32).tiny
    beyond = penalty * 1.02
    with pytest.raises(ValueError, match=r"in \[-1.69, 11.07\] for texts of max_new_tokens = 512"):
        GenerationConfig(**fields, length_penalty=beyond)
    GenerationConfig(**{**fields, "max_new_tokens": 1}, length_penalty=beyond)


@pytest.mark.parametrize("array", [np.array(3), jnp.int32(3), np.int64(3)])
def test_generation_config_accepts_scalar_arrays(array: Any) -> None:
    plain = GenerationConfig(eos_token_id=3, max_new_tokens=3, do_sample=True, seed=3, top_k=3)
    assert plain == GenerationConfig(
        eos_token_id=array, max_new_tokens=array, do_sample=True, seed=array, top_k=array
    )


EVERY = tuple(range(20))


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"suppress_tokens": EVERY}, "suppress_tokens"),
        ({"bad_words_ids": [[i] for i in EVERY]}, "bad_words_ids"),
        ({"suppress_tokens": EVERY[:19], "bad_words_ids": [[19], [1, 2]]}, "bad_words_ids"),
        (
            {"suppress_tokens": EVERY[1:], "min_new_tokens": 1, "eos_token_id": 0},
            "min_new_tokens",
        ),
    ],
)
def test_check_for_rejects_banning_every_token(fields: dict[str, Any], name: str) -> None:
    config = OpenAIGPTConfig(vocab_size=20)
    with pytest.raises(ValueError, match=f"{name} is .*, but must leave one of the 20 tokens"):
        GenerationConfig(**fields).check_for(config, 1)
    # Neither the beginning of a word is forbidden, nor an end token as a word.
    right: dict[str, Any] = {
        "suppress_tokens": EVERY[1:],
        "bad_words_ids": [[0, 1], [0]],
        "eos_token_id": 0,
    }
    GenerationConfig(**right).check_for(config, 1)


def test_check_for_limits_draft_tokens_and_beams() -> None:
    config = OpenAIGPTConfig()
    GenerationConfig(prompt_lookup_num_tokens=511).check_for(config, 1)
    with pytest.raises(
        ValueError, match="prompt_lookup_num_tokens is 512, but must be at most 511"
    ):
        GenerationConfig(prompt_lookup_num_tokens=512).check_for(config, 1)
    with pytest.raises(ValueError, match="num_beams is 53054, but must be below 53054"):
        GenerationConfig(num_beams=53054).check_for(config, 1)


def test_generation_config_normalizes_lists_and_arrays() -> None:
    from_lists = GenerationConfig(
        max_new_tokens=np.int64(7),  # type: ignore[arg-type]
        do_sample=True,
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        top_k=np.int32(3),  # type: ignore[arg-type]
        bad_words_ids=[[1, 2], np.array([3])],  # type: ignore[list-item]
        suppress_tokens=iter([4, np.int64(5)]),  # type: ignore[arg-type]
        eos_token_id=[6],
        forced_eos_token_id=range(2),
        pad_token_id=np.uint8(1),  # type: ignore[arg-type]
        stop_strings=["a", "b"],
        seed=np.arange(2),  # type: ignore[arg-type]
    )
    plain = GenerationConfig(
        max_new_tokens=7,
        do_sample=True,
        temperature=0.5,
        top_k=3,
        bad_words_ids=((1, 2), (3,)),
        suppress_tokens=(4, 5),
        eos_token_id=(6,),
        forced_eos_token_id=(0, 1),
        pad_token_id=1,
        stop_strings=("a", "b"),
        seed=(0, 1),
    )
    assert from_lists == plain
    assert hash(from_lists) == hash(plain)
    assert repr(from_lists) == repr(plain)  # no numpy in it
    assert json.dumps(from_lists.to_dict()) == json.dumps(plain.to_dict())
    assert GenerationConfig(stop_strings="ab").stop_strings == ("ab",)
    assert from_lists != dataclasses.replace(plain, temperature=0.25)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain.top_k = 3  # type: ignore[misc]


CONFIG = OpenAIGPTConfig(vocab_size=11, n_positions=16)


def test_check_for_accepts_settings_within_model_limits() -> None:
    asked = GenerationConfig(
        max_new_tokens=6,
        eos_token_id=(0, 10),
        pad_token_id=10,
        forced_bos_token_id=10,
        forced_eos_token_id=10,
        bad_words_ids=[[10, 0]],
        suppress_tokens=range(10),
        do_sample=True,
        seed=(1, 2, 3),
    )
    asked.for_model(CONFIG).check_for(CONFIG, 3)
    GenerationConfig(max_new_tokens=100, sliding_window=16).check_for(CONFIG, 1)


def test_for_prompts_counts_new_tokens() -> None:
    """CONFIG has 16 positions; the last new token needs none."""

    def new(longest: int, width: int | None = None, **fields: Any) -> tuple[int, int]:
        full = GenerationConfig(**fields).for_prompts(CONFIG, longest, width)
        return full.max_new_tokens, full.min_new_tokens

    assert new(10, max_new_tokens=7) == (7, 0)
    assert new(16, max_new_tokens=1) == (1, 0)
    assert new(10) == (6, 0)
    assert new(5, width=10) == (6, 0)
    assert new(5, width=10, max_new_tokens=12) == (12, 0)
    assert new(10, max_length=17) == (7, 0)
    assert new(5, width=10, max_length=12, min_length=11) == (2, 1)
    assert new(10, max_length=12, max_new_tokens=5, min_length=14, min_new_tokens=1) == (5, 1)
    assert new(200, max_new_tokens=100, sliding_window=16) == (100, 0)
    assert new(200, sliding_window=16, max_length=203) == (3, 0)
    assert new(200, sliding_window=16) == (20, 0)


@pytest.mark.parametrize(
    ("longest", "fields", "message"),
    [
        (
            10,
            {"max_new_tokens": 8},
            "a prompt of 10 tokens and max_new_tokens = 8 need 17 positions, more than the model's "
            "n_positions = 16; sliding_window = 8 would forget the oldest tokens",
        ),
        (10, {"max_length": 18}, "a prompt of 10 tokens and max_length = 18 need 17 positions"),
        (
            10,
            {"max_length": 10},
            "a prompt of 10 tokens leaves no room for new ones within max_length = 10; "
            "max_new_tokens would count the new ones alone",
        ),
        (
            16,
            {},
            "a prompt of 16 tokens leaves no room for new ones within n_positions = 16; "
            "sliding_window = 8 would forget the oldest tokens",
        ),
    ],
)
def test_for_prompts_rejects_lengths_that_do_not_fit(
    longest: int, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the message is compared below)
        GenerationConfig(**fields).for_prompts(CONFIG, longest)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sliding_window": 17}, "sliding_window is 17, but must be at most 16, the positions"),
        ({"forced_bos_token_id": 11}, "forced_bos_token_id is 11, but must be in [0, 11)"),
        ({"forced_eos_token_id": (0, 11)}, "forced_eos_token_id is 11, but must be in [0, 11)"),
        ({"bad_words_ids": ((1,), (2, -3))}, "bad_words_ids is -3, but must be in [0, 11)"),
        ({"suppress_tokens": (*range(-1, 99), 3)}, "but must leave one of the 11 tokens"),
        ({**SAMPLE, "seed": (1, 2)}, "seed is (1, 2), but must be one a prompt, 3 in all"),
        ({**SAMPLE, "seed": (1, 2, 3, 4)}, "but must be one a prompt, 3 in all"),
    ],
)
def test_check_for_rejects_settings_beyond_model_limits(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the message is compared below)
        GenerationConfig(**fields).for_model(CONFIG).check_for(CONFIG, 3)
    assert message in str(error.value)


def test_seeds_are_distinct_for_every_sequence() -> None:
    np.testing.assert_array_equal(GenerationConfig().seeds(3), [0, 1, 2])
    drawn = GenerationConfig(do_sample=True, seed=5, num_return_sequences=2)
    np.testing.assert_array_equal(drawn.seeds(2), [5, 6, 7, 8])
    each = dataclasses.replace(drawn, seed=(7, 100))
    np.testing.assert_array_equal(each.seeds(2), [7, 8, 100, 101])
    last = dataclasses.replace(drawn, seed=2**32 - 1)
    np.testing.assert_array_equal(last.seeds(1), [2**32 - 1, 0])
    assert last.seeds(1).dtype == np.uint32


def test_for_model_fills_padding_and_leaves_out_unknown_ids() -> None:
    def filled(**fields: Any) -> tuple[Any, Any]:
        settings = GenerationConfig(**fields).for_model(CONFIG)
        return settings.eos_token_id, settings.pad_token_id

    assert filled() == ((), 0)
    assert filled(eos_token_id=7) == ((7,), 7)
    assert filled(eos_token_id=(5, 6)) == ((5, 6), 5)
    assert filled(eos_token_id=5, pad_token_id=0) == ((5,), 0)
    assert filled(eos_token_id=()) == ((), 0)
    assert filled(eos_token_id=(-1, 11, 4)) == ((4,), -1)
    suppressed = GenerationConfig(suppress_tokens=(-1, 3, 11)).for_model(CONFIG)
    assert suppressed.suppress_tokens == (3,)


def test_from_model_config_reads_settings_of_old_files() -> None:
    config = OpenAIGPTConfig.from_dict(
        {"eos_token_id": [5, 6], "pad_token_id": 2, "repetition_penalty": 3.0, "max_length": 20}
    )
    assert GenerationConfig.from_model_config(config.to_dict()) == GenerationConfig(
        eos_token_id=(5, 6), pad_token_id=2, repetition_penalty=3.0, max_length=20
    )
    assert GenerationConfig.from_model_config({"sliding_window": 4, "n_embd": 8}).given() == {}


@given(asked=valid_settings())
def test_to_dict_then_from_dict_keeps_every_field(asked: GenerationConfig) -> None:
    fields = json.loads(json.dumps(asked.to_dict()))
    again = GenerationConfig.from_dict(fields)
    assert again == asked
    assert hash(again) == hash(asked)
    assert set(fields) <= set(DEFAULTS)
    assert {name for name in DEFAULTS if getattr(asked, name) != DEFAULTS[name]} <= set(fields)
    assert not asked.do_sample or "top_k" in fields
    assert again.to_dict() == asked.to_dict()


def test_to_dict_contains_what_is_given() -> None:
    assert GenerationConfig().to_dict() == {}
    given = GenerationConfig(max_new_tokens=20, do_sample=False, eos_token_id=None)
    assert given.to_dict() == {"max_new_tokens": 20, "do_sample": False}
    assert dataclasses.replace(given, min_new_tokens=2).to_dict() == {
        **given.to_dict(),
        "min_new_tokens": 2,
    }
    read = GenerationConfig.from_dict({"temperature": 0.7, "of_another_library": [1]})
    assert read.to_dict() == {"temperature": 0.7, "of_another_library": [1]}
    assert GenerationConfig.from_dict({}) == GenerationConfig()
    copied = pickle.loads(pickle.dumps(read))
    assert (copied, copied.to_dict()) == (read, read.to_dict())


@pytest.mark.difference("top_k by default")
def test_top_k_zero_and_missing_differ_when_sampling() -> None:
    """Transformers would take the 50 likeliest if its file did not say otherwise."""
    assert GenerationConfig(do_sample=True).to_dict() == {"do_sample": True, "top_k": 0}
    assert GenerationConfig(do_sample=True, top_k=0).top_k is None
    assert GenerationConfig.from_dict({"do_sample": True, "top_k": 0}).top_k is None
    # Which takes effect where the file turns sampling on, and nobody says otherwise.
    for held in ({"do_sample": True}, {"do_sample": True, "top_k": None}):
        assert GenerationConfig.from_dict(held).top_k == 50
        assert GenerationConfig.from_dict(held, do_sample=True).top_k == 50
        assert GenerationConfig.from_dict(held, top_k=None).top_k is None
        assert GenerationConfig.from_dict(held, top_k=7).top_k == 7
    assert GenerationConfig.from_dict({"do_sample": False}, do_sample=True).top_k is None


def test_from_dict_arguments_override_fields() -> None:
    held = {"do_sample": True, "temperature": 0.7, "max_new_tokens": 5, "eos_token_id": [1, 2]}
    read = GenerationConfig.from_dict(held, max_new_tokens=9, eos_token_id=3, top_k=None)
    assert read == GenerationConfig(
        do_sample=True, temperature=0.7, max_new_tokens=9, eos_token_id=3
    )
    # None stands for the default, as in transformers.
    unset = GenerationConfig.from_dict(
        held, do_sample=None, temperature=None, max_new_tokens=None, eos_token_id=None, top_k=None
    )
    assert (unset, unset.given()) == (GenerationConfig(), {"top_k": None})
    assert GenerationConfig.from_dict({"top_p": None, "eos_token_id": None}) == GenerationConfig()
    with pytest.raises(TypeError, match=r"takes no max_lenght: did you mean max_length\?"):
        GenerationConfig.from_dict({}, max_lenght=3)
    with pytest.raises(ValueError, match=r"temperature=0\.5 has no effect without"):
        GenerationConfig.from_dict({"do_sample": True}, do_sample=False, temperature=0.5)


def test_from_dict_keeps_settings_without_effect_until_they_have_one() -> None:
    held: dict[str, Any] = {
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.1,
        "typical_p": 0.8,
        "seed": 4,
    }
    beams: dict[str, Any] = {"length_penalty": 0.5, "early_stopping": True}
    idle = GenerationConfig.from_dict({**held, **beams})
    assert (idle.temperature, idle.length_penalty) == (0.7, 0.5)
    for fields, turned_on in ((held, SAMPLE), (beams, BEAMS)):
        right = GenerationConfig(**fields, **turned_on)
        assert GenerationConfig.from_dict(fields, **turned_on) == right
        assert GenerationConfig.from_dict({**fields, **turned_on}) == right
        assert idle.updated(**turned_on).for_model(CONFIG) == right.for_model(CONFIG)
        assert dataclasses.replace(idle, **turned_on).for_model(CONFIG) == right.for_model(CONFIG)
    assert idle.for_model(CONFIG) == GenerationConfig().for_model(CONFIG)
    off = GenerationConfig.from_dict({**held, "do_sample": True}).updated(do_sample=False)
    assert off.for_model(CONFIG) == GenerationConfig().for_model(CONFIG)
    # Their values are looked at when they count.
    wrong = GenerationConfig.from_dict({"temperature": 0.0, "top_p": "high"})
    assert wrong.for_model(CONFIG) == GenerationConfig().for_model(CONFIG)
    with pytest.raises(ValueError, match=r"temperature is 0\.0, but must be in"):
        wrong.updated(do_sample=True)


def test_length_penalty_of_a_file_is_checked_for_the_length_at_hand() -> None:
    held = GenerationConfig.from_dict({"num_beams": 2, "length_penalty": 50.0})
    config = OpenAIGPTConfig(n_positions=64)
    assert held.updated(max_new_tokens=3).for_prompts(config, 4).length_penalty == 50
    with pytest.raises(ValueError, match=r"length_penalty is 50\.0, but must be in .* = 20"):
        held.for_prompts(config, 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("use_cache", "it has no effect here"),
        ("bos_token_id", "it has no effect here"),
        ("epsilon_cutoff", "it is not supported here"),
    ],
)
def test_generation_config_says_why_it_lacks_a_field(name: str, message: str) -> None:
    fields: dict[str, Any] = {name: 1}
    with pytest.raises(TypeError, match=f"GenerationConfig takes no {name}: {message}"):
        GenerationConfig(**fields)


@pytest.mark.difference("frozen settings")
def test_generation_config_says_how_to_change_it() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match=r"updated\(pad_token_id=0\)"):
        GenerationConfig().pad_token_id = 0  # type: ignore[misc]
    assert GenerationConfig().updated(pad_token_id=0).pad_token_id == 0


def test_updated_lets_given_settings_come_first() -> None:
    own = GenerationConfig.from_dict({"do_sample": True, "top_k": 5, "eos_token_id": 3, "a": 1})
    assert own.updated() == own
    assert own.updated(GenerationConfig()) == own
    assert own.updated(GenerationConfig(do_sample=True)) == own
    assert own.updated(GenerationConfig(do_sample=False)).do_sample is False
    assert own.updated(GenerationConfig(top_k=None, do_sample=True)).top_k is None
    assert own.updated({"top_k": 7}, top_p=0.5, max_length=None) == GenerationConfig(
        do_sample=True, top_k=7, top_p=0.5, eos_token_id=3
    )
    assert own.updated(GenerationConfig(max_new_tokens=20)).given_names == (
        own.given_names | {"max_new_tokens"}
    )
    assert own.updated(num_beams=2).extra == {"a": 1}
    assert GenerationConfig().updated(GenerationConfig(do_sample=True)).top_k is None
    by_hand = GenerationConfig(do_sample=True, temperature=0.5)
    with pytest.raises(ValueError, match=r"temperature=0\.5 has no effect without"):
        own.updated(by_hand, do_sample=False)
    wrong: Any = 3
    with pytest.raises(TypeError, match="generation_config is a int, but must be a Generation"):
        own.updated(wrong)
    with pytest.raises(TypeError, match=r"takes no max_lenght: did you mean max_length\?"):
        own.updated({"max_lenght": 3})


@pytest.mark.difference("unsupported settings")
@pytest.mark.parametrize(
    ("name", "neutral", "wrong", "turns_on"),
    [
        ("max_time", [], 1.5, {}),
        ("num_beam_groups", [1, 2], 2, BEAMS),
        ("constraints", [], [], {}),
        ("force_words_ids", [], [[1]], {}),
        ("penalty_alpha", [0.0], 0.6, {}),
        ("dola_layers", [], "low", {}),
        ("sequence_bias", [], [[[1], 2.0]], {}),
        ("begin_suppress_tokens", [[], ()], [1], {}),
        ("exponential_decay_length_penalty", [], [5, 1.1], {}),
        ("epsilon_cutoff", [0.0, 1.0, 0.1, "low"], 0.1, SAMPLE),
        ("eta_cutoff", [0.0, 1.0, 0.1], 0.1, SAMPLE),
        ("top_h", [0.5], 0.5, SAMPLE),
        ("guidance_scale", [1, 1.0], 1.5, {}),
        ("renormalize_logits", [False, True], True, BEAMS),
        ("remove_invalid_values", [False, True], True, BEAMS),
        ("token_healing", [False], True, {}),
        ("watermarking_config", [], {"bias": 2.5}, {}),
        ("encoder_repetition_penalty", [1, 1.0], 1.5, {}),
        ("encoder_no_repeat_ngram_size", [0, -1], 2, {}),
    ],
)
def test_unsupported_fields_are_refused_where_they_would_change_the_text(
    name: str, neutral: list[Any], wrong: Any, turns_on: dict[str, Any]
) -> None:
    for value in (None, *neutral):
        GenerationConfig.from_dict({name: value}).for_model(CONFIG)
    held = GenerationConfig.from_dict({name: wrong, **turns_on})
    with pytest.raises(ValueError, match=f"^{name} is .*, which is not supported here$"):
        held.for_model(CONFIG)
    held.updated(**{name: None}).for_model(CONFIG)
    with pytest.raises(ValueError, match=f"^{name} is .*, which is not supported here$"):
        GenerationConfig().updated(**{name: wrong}, **turns_on).for_model(CONFIG)


def test_unsupported_penalty_alpha_needs_greedy_decoding_of_several_tokens() -> None:
    for fields in (SAMPLE, BEAMS, {"top_k": 1}, {"top_k": 0}):
        GenerationConfig.from_dict({"penalty_alpha": 0.6, **fields}).for_model(CONFIG)


def write(folder: Path, fields: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_text(fields if isinstance(fields, str) else json.dumps(fields))
    return folder


def test_from_pretrained_reads_file_and_applies_overrides(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        {
            "_from_model_config": True,
            "transformers_version": "5.23.0",
            "use_cache": True,
            "do_sample": True,
            "temperature": 0.5,
            "top_k": 7,
            "eos_token_id": [3, 4],
        },
    )
    read = GenerationConfig.from_pretrained(folder)
    assert read == GenerationConfig(do_sample=True, temperature=0.5, top_k=7, eos_token_id=(3, 4))
    changed = GenerationConfig.from_pretrained(str(folder), temperature=2.0, max_new_tokens=3)
    assert changed == dataclasses.replace(read, temperature=2.0, max_new_tokens=3)


def test_from_pretrained_uses_defaults_without_a_file(tmp_path: Path) -> None:
    assert GenerationConfig.from_pretrained(tmp_path) == GenerationConfig()
    assert GenerationConfig.from_pretrained(tmp_path, do_sample=True, top_k=3) == (
        GenerationConfig(do_sample=True, top_k=3)
    )
    with pytest.raises(FileNotFoundError, match="no folder"):
        GenerationConfig.from_pretrained(tmp_path / "missing")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"temperature": NaN, "do_sample": true}', "temperature is nan, but must be a number"),
        ('{"top_h": 3, "do_sample": true}', "top_h is 3, which is not supported here"),
        ('{"max_length": -3}', "max_length is -3, but must be at least 1"),
        ('{"max_new_tokens": "3"}', "max_new_tokens is '3', but must be an integer"),
        ('{"eos_token_id": {}}', "eos_token_id is {}, but must be an id or several"),
    ],
)
def test_from_pretrained_error_names_file_once(tmp_path: Path, content: str, message: str) -> None:
    file = write(tmp_path, content) / FILE
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the message is compared below)
        GenerationConfig.from_pretrained(tmp_path)
    assert str(error.value).startswith(f"{file}: ")
    assert message in str(error.value)
    assert str(error.value).count(FILE) == 1
    assert error.value.__cause__ is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON (Expecting value, character 1)"),
        ("{", "is not JSON (Expecting property name"),
        ('{"top_k": 1,}', "is not JSON ("),
        ("[" * 100_000, "is nested too deeply"),
        ('{"top_k": 1, "top_k": 2}', "has the key 'top_k' more than once"),
        ("[1, 2]", "must hold a JSON object, not list"),
        ("null", "must hold a JSON object, not NoneType"),
    ],
)
def test_from_pretrained_rejects_malformed_json(tmp_path: Path, content: str, message: str) -> None:
    file = write(tmp_path, content) / FILE
    with pytest.raises(ValueError, match=FILE) as error:
        GenerationConfig.from_pretrained(tmp_path)
    assert str(error.value).startswith(f"{file} {message}")


def test_from_pretrained_argument_error_omits_file_name(tmp_path: Path) -> None:
    write(tmp_path, '{"max_new_tokens": 3}')
    with pytest.raises(ValueError, match=r"^max_new_tokens is 0, but must be"):
        GenerationConfig.from_pretrained(tmp_path, max_new_tokens=0)


def test_from_pretrained_rejects_invalid_utf_8(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'{"stop_strings": "\xff"}')
    with pytest.raises(ValueError, match=FILE):
        GenerationConfig.from_pretrained(tmp_path)


@pytest.mark.nightly
@given(asked=valid_settings())
def test_save_then_from_pretrained_keeps_every_field(
    asked: GenerationConfig, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.getbasetemp() / "written"
    asked.save_pretrained(folder)
    assert GenerationConfig.from_pretrained(folder) == asked
    assert [path.name for path in folder.iterdir()] == [FILE]


def test_save_pretrained_creates_folder_and_replaces_file(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    GenerationConfig(max_new_tokens=3).save_pretrained(folder)
    (folder / "config.json").write_text("{}")
    GenerationConfig(max_new_tokens=4).save_pretrained(str(folder))
    assert GenerationConfig.from_pretrained(folder).max_new_tokens == 4
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", FILE]


def test_save_pretrained_keeps_old_file_on_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    GenerationConfig(max_new_tokens=3).save_pretrained(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for owner, name in ((os, "replace"), (Path, "write_text")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, refuse)
            with pytest.raises(OSError, match="No space left"):
                GenerationConfig(max_new_tokens=4).save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).max_new_tokens == 3
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_save_pretrained_refuses_to_replace_a_plain_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"cannot write to .*file"):
        GenerationConfig().save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
