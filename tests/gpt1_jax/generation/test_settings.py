from typing import Any

import pytest

from gpt1_jax import GenerationSettings, OpenAIGPTConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0, but must be at least 1"),
        ({"do_sample": True, "temperature": 0.0}, r"temperature is 0.0, but must be in \[1e-06"),
        ({"do_sample": True, "temperature": -1.0}, "temperature is -1.0"),
        ({"do_sample": True, "temperature": 1e-38}, "temperature is 1e-38"),
        ({"do_sample": "no"}, "do_sample is 'no', but must be True or False"),
        ({"do_sample": True, "top_k": 2.7}, "top_k is 2.7, but must be an integer"),
        ({"max_new_tokens": 3.0}, "max_new_tokens is 3.0, but must be an integer"),
        ({"max_new_tokens": None}, "max_new_tokens is None"),
        ({"eos_token_id": 1.7}, "eos_token_id is 1.7, but must be an id or several"),
        ({"do_sample": True, "temperature": "1"}, "temperature is '1', but must be a number"),
        ({"do_sample": True, "temperature": float("nan")}, "temperature is nan"),
        ({"do_sample": True, "top_p": 0.0}, r"top_p is 0.0, but must be in \(0, 1\]"),
        ({"do_sample": True, "top_p": 1.1}, "top_p is 1.1"),
        ({"do_sample": True, "top_k": 0}, "top_k is 0, but must be at least 1, or None"),
        ({"do_sample": True, "seed": -1}, "seed is -1"),
        ({"temperature": 0.5}, "temperature is 0.5, but must be left alone unless do_sample"),
        ({"top_k": 5}, "top_k is 5, but must be left alone"),
        ({"top_p": 0.5}, "top_p is 0.5, but must be left alone"),
        ({"seed": 1}, "seed is 1, but must be left alone"),
    ],
)
def test_wrong_settings_name_the_field_its_value_and_what_is_right(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationSettings(**settings)


def test_settings_are_checked_against_the_model() -> None:
    config = OpenAIGPTConfig(vocab_size=11, n_positions=16)
    GenerationSettings(max_new_tokens=6).check_for(config, 10)
    with pytest.raises(ValueError, match=r"prompt of 11 tokens and max_new_tokens = 6.* = 16"):
        GenerationSettings(max_new_tokens=6).check_for(config, 11)
    with pytest.raises(ValueError, match=r"eos_token_id is 11, but must be in \[0, 11\)"):
        GenerationSettings(max_new_tokens=1, eos_token_id=(3, 11)).check_for(config, 1)
    with pytest.raises(ValueError, match="pad_token_id is -1"):
        GenerationSettings(max_new_tokens=1, pad_token_id=-1).check_for(config, 1)
