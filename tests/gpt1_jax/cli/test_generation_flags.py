"""The settings of generation on the command line: all are there, and who has the last word."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docstring_parser
import pytest

from gpt1_jax import GenerationConfig
from gpt1_jax.cli.generation_flags import GROUPS, read_settings
from gpt1_jax.generation_config import DEFAULTS, RETURNED

Run = Callable[..., tuple[int, str, str]]

NONE_GIVEN: dict[str, Any] = {"stop_strings": (), "bad_words_ids": ()}


def config(folder: Path, fields: object) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(fields))
    return folder


def test_generation_flags_cover_every_setting() -> None:
    """But for those of what Python returns."""
    assert sorted(" ".join(GROUPS.values()).split()) == sorted(DEFAULTS.keys() - set(RETURNED))


def test_generation_flags_help_is_the_description_of_the_setting(run: Run) -> None:
    """Each flag in its group, with the words of ``GenerationConfig`` and nothing else."""
    status, out, _ = run("generate", "--help")
    assert status == 0
    described = docstring_parser.parse(GenerationConfig.__doc__ or "").params
    descriptions = {param.arg_name: param.description or "" for param in described}
    # The help without its line breaks, cut where a group begins.
    _, *shown = re.split(r"^(\w[\w ]*):$", out, flags=re.M)
    texts = {
        title: " ".join(text.split()) for title, text in zip(shown[::2], shown[1::2], strict=True)
    }
    for group, names in GROUPS.items():
        for name in names.split():
            description = " ".join(descriptions[name].split())
            assert "`" not in description, name
            title = "Speed and memory" if name == "prompt_lookup_num_tokens" else group
            flag = f"--{name.replace('_', '-')}"
            assert re.search(rf"{flag}\b.*{re.escape(description)}", texts[title])


def test_generation_flags_default_to_the_defaults_of_python(tmp_path: Path) -> None:
    assert read_settings(tmp_path, NONE_GIVEN) == GenerationConfig(max_new_tokens=20)
    (tmp_path / "config.json").write_text('{"eos_token_id": 3, "repetition_penalty": 2.0}')
    assert read_settings(tmp_path, NONE_GIVEN) == (
        GenerationConfig(eos_token_id=3, repetition_penalty=2.0)
    )
    config(tmp_path, {"max_new_tokens": None, "transformers_version": "5.23.0"})
    assert read_settings(tmp_path, NONE_GIVEN).given() == {}


def test_generation_flags_override_the_file(tmp_path: Path) -> None:
    own = {"max_new_tokens": 20, "do_sample": True, "top_k": 50, "eos_token_id": [3]}
    config(tmp_path, {**own, "stop_strings": ["."], "suppress_tokens": [8]})
    assert read_settings(tmp_path, NONE_GIVEN) == GenerationConfig(
        max_new_tokens=20,
        do_sample=True,
        top_k=50,
        eos_token_id=(3,),
        stop_strings=(".",),
        suppress_tokens=(8,),
    )
    length = {"max_new_tokens": 7, "eos_token_id": (), "stop_strings": ("!", "?")}
    constraints = {"suppress_tokens": (), "bad_words_ids": ((1, 2), (3,))}
    assert read_settings(tmp_path, length, {"top_k": None}, constraints) == GenerationConfig(
        max_new_tokens=7,
        do_sample=True,
        eos_token_id=(),
        stop_strings=("!", "?"),
        bad_words_ids=((1, 2), (3,)),
    )
    greedy = read_settings(tmp_path, NONE_GIVEN, {"do_sample": False})
    assert (greedy.do_sample, greedy.top_k) == (False, 50)


@pytest.mark.parametrize(
    ("own", "flags", "message"),
    [
        ({}, {"temperature": 0.5}, "temperature=0.5"),
        ({}, {"min_new_tokens": 21}, "min_new_tokens is 21, but must be at most max_new_tokens"),
        ({"max_new_tokens": 9}, {"min_new_tokens": 10}, "min_new_tokens is 10"),
        ({"temperature": 2.0, "do_sample": True}, {"temperature": -1.0}, "temperature is -1.0"),
        ({"guidance_scale": 2}, {}, "FILE: guidance_scale is 2, which is not supported"),
        ({"max_length": 0}, {}, "FILE: max_length is 0"),
        ([1], {}, "FILE must hold a JSON object, not list"),
    ],
)
def test_generation_flags_errors_name_flag_or_file(
    tmp_path: Path, own: object, flags: dict[str, Any], message: str
) -> None:
    config(tmp_path, own)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
        read_settings(tmp_path, NONE_GIVEN, flags)
    expected = message.replace("FILE", str(tmp_path / "generation_config.json"))
    assert str(caught.value).startswith(expected)


def test_generation_flags_reject_bad_length_in_file(tmp_path: Path) -> None:
    config(tmp_path, {"max_new_tokens": 0})
    with pytest.raises(ValueError, match="max_new_tokens is 0, but must be at least 1"):
        read_settings(tmp_path, NONE_GIVEN)


def test_generation_flags_can_clear_bad_words(tmp_path: Path) -> None:
    config(tmp_path, {"max_new_tokens": 5, "bad_words_ids": [[3]]})
    none: dict[str, Any] = {**NONE_GIVEN, "bad_words_ids": ((),)}
    assert read_settings(tmp_path, none) == GenerationConfig(max_new_tokens=5)


def test_generation_flags_none_leaves_the_limit_to_max_length(tmp_path: Path) -> None:
    folder = config(tmp_path, {"max_new_tokens": 40})
    none: dict[str, Any] = NONE_GIVEN | {"max_new_tokens": None, "max_length": 8}
    settings = read_settings(folder, none)
    assert ("max_new_tokens" in settings.given_names, settings.max_length) == (False, 8)
