"""The settings that a folder holds: what transformers makes of them, and what we make of them."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import transformers  # noqa: E402
from support.torch_reference import torch_model  # noqa: E402

import gpt1_jax as gpt1  # noqa: E402
from gpt1_jax.generation.batches import generate_batches  # noqa: E402

MakeFolder = Callable[..., Path]

FILE = "generation_config.json"
PROMPT = [3, 4, 5]
EVERY = list(range(23))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> MakeFolder:
    """Write the reference with these fields in its generation_config.json and config.json."""
    saved = tmp_path_factory.mktemp("reference")
    torch_model(
        "OpenAIGPTLMHeadModel", vocab_size=23, n_positions=16, n_layer=1, n_embd=8, n_head=2
    ).save_pretrained(saved)

    def write(held: dict[str, Any] | None = None, **config: Any) -> Path:
        made = shutil.copytree(saved, tmp_path_factory.mktemp("folder"), dirs_exist_ok=True)
        (made / FILE).unlink()
        if held is not None:
            (made / FILE).write_text(json.dumps(held))
        file = made / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
        return made

    return write


def theirs(folder: Path, rows: Any = (PROMPT,), **call: Any) -> Any:
    model: Any = transformers.OpenAIGPTLMHeadModel.from_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the default length, for one
        return model.generate(torch.tensor(rows), **call).numpy()


def ours(folder: Path, rows: Any = (PROMPT,), **call: Any) -> Any:
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(folder)
    return gpt1.generate(model, list(rows), **call)


def same(folder: Path, rows: Any = (PROMPT,), **call: Any) -> np.ndarray:
    """What both give."""
    found = ours(folder, rows, **call)
    np.testing.assert_array_equal(found, theirs(folder, rows, **call))
    return found


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("held", "call"),
    [
        ({"max_new_tokens": 4, "repetition_penalty": 3.0}, {}),
        ({"max_new_tokens": 4, "repetition_penalty": 3.0}, {"repetition_penalty": 1.0}),
        ({"eos_token_id": EVERY, "no_repeat_ngram_size": 1}, {"eos_token_id": None}),
        ({"num_beams": 3, "max_new_tokens": 5}, {}),
        ({"do_sample": True, "temperature": 0.7}, {"do_sample": False}),
        ({"do_sample": True, "top_k": 1}, {}),
        ({"do_sample": False, "top_k": 1, "temperature": 9.0}, {"do_sample": True}),
        ({"length_penalty": -3.0, "eos_token_id": EVERY[:12]}, {"num_beams": 4}),
        ({"do_sample": False, "temperature": 0.0}, {"temperature": None, "use_cache": True}),
    ],
)
def test_generate_starts_from_the_settings_of_the_folder(
    folder: MakeFolder, held: dict[str, Any], call: dict[str, Any]
) -> None:
    same(folder(held), **call)


@pytest.mark.difference("settings without effect")
def test_settings_without_effect_count_when_they_are_turned_on(folder: MakeFolder) -> None:
    draw: dict[str, Any] = {"do_sample": True, "top_k": None, "seed": 5}
    made = folder({"do_sample": False, "temperature": 0.7})
    plain = gpt1.OpenAIGPTLMHeadModel.from_pretrained(folder())
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(made)
    assert model.generation_config.temperature == 0.7
    np.testing.assert_array_equal(
        gpt1.generate(model, [PROMPT], **draw),
        gpt1.generate(plain, [PROMPT], temperature=0.7, **draw),
    )
    # By hand, what has no effect is an error all the same.
    with pytest.raises(ValueError, match=r"temperature=0\.5 has no effect without"):
        gpt1.generate(model, [PROMPT], temperature=0.5)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "given",
    [
        {"max_new_tokens": 4},
        {"max_new_tokens": 3, "do_sample": False},
        {"repetition_penalty": 1.0, "num_beams": 1},
        {"eos_token_id": None, "max_new_tokens": 5},
    ],
)
def test_generation_config_comes_before_the_settings_of_the_folder(
    folder: MakeFolder, tmp_path: Path, given: dict[str, Any]
) -> None:
    """In all forms: ours, transformers' object, a dict and the path of a checkpoint."""
    made = folder({"repetition_penalty": 2.0, "num_beams": 2, "eos_token_id": [2, 7]})
    config = transformers.GenerationConfig(**given)
    right = theirs(made, generation_config=config)
    config.save_pretrained(tmp_path)
    for form in (gpt1.GenerationConfig(**given), config, given, tmp_path, str(tmp_path)):
        np.testing.assert_array_equal(ours(made, generation_config=form), right)


@pytest.mark.nightly
def test_settings_in_config_json_count_without_the_other_file(folder: MakeFolder) -> None:
    old: dict[str, Any] = {"repetition_penalty": 3.0, "max_length": 9, "eos_token_id": 16}
    assert same(folder(None, **old)).shape == (1, 8)
    assert same(folder({}, **old)).shape == (1, 16)  # where there is one, it counts alone
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(folder(None, **old))
    assert model.generation_config == gpt1.GenerationConfig(**old)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("held", "prompt", "call", "length"),
    [
        ({"max_length": 6}, 3, {}, 6),
        ({"max_length": 20}, 3, {"max_length": 5}, 5),
        ({}, 3, {"max_length": 17}, 17),
        ({"max_length": 6, "num_beams": 2}, 3, {}, 6),
        ({"max_new_tokens": 2}, 3, {"max_new_tokens": None}, 16),
        ({"eos_token_id": EVERY[1:]}, 3, {}, 4),
        ({"min_length": 6, "eos_token_id": EVERY[1:]}, 3, {}, 7),
        ({"min_length": 9, "min_new_tokens": 2, "eos_token_id": EVERY[1:]}, 3, {}, 6),
        ({"min_new_tokens": 30, "eos_token_id": EVERY[1:]}, 3, {"max_new_tokens": 5}, 8),
        # The last token needs no position of its own; a default stays within the positions.
        ({}, 16, {"max_new_tokens": 1}, 17),
        ({}, 15, {"max_new_tokens": 2, "num_beams": 2}, 17),
        ({}, 10, {}, 16),
        ({"num_beams": 2}, 10, {}, 16),
        ({}, 15, {}, 16),
    ],
)
def test_generate_gives_as_many_tokens(
    folder: MakeFolder, held: dict[str, Any], prompt: int, call: dict[str, Any], length: int
) -> None:
    rows = [[1 + i % 3 for i in range(prompt)]]
    assert same(folder(held), rows, **call).shape == (1, length)


@pytest.mark.nightly
@pytest.mark.difference("lengths")
@pytest.mark.parametrize(
    ("held", "prompt", "call"),
    [
        ({"max_length": 3}, 3, {}),
        ({}, 16, {}),
        ({"max_new_tokens": 20}, 10, {}),
        ({}, 15, {"max_new_tokens": 3}),
        ({}, 3, {"max_length": 18}),
        ({"bad_words_ids": [[23]]}, 3, {}),
        ({"forced_eos_token_id": 23}, 3, {}),
        ({"temperature": 0.0}, 3, {"do_sample": True}),
    ],
)
def test_generate_refuses_what_transformers_fails_at(
    folder: MakeFolder, held: dict[str, Any], prompt: int, call: dict[str, Any]
) -> None:
    made, rows = folder(held), [[1] * prompt]
    with pytest.raises((ValueError, IndexError)):
        theirs(made, rows, **call)
    with pytest.raises(ValueError, match=r"room for new|positions|must be in"):
        ours(made, rows, **call)


def test_default_lengths_count_the_padding(folder: MakeFolder) -> None:
    made = folder({"pad_token_id": 0})
    rows, mask = [[0] * 9 + [3, 4], [5] * 11], [[0] * 9 + [1, 1], [1] * 11]
    for call in ({}, {"max_length": 13}):
        right = theirs(made, rows, attention_mask=torch.tensor(mask), **call)
        assert right.shape == (2, call.get("max_length", 16))
        np.testing.assert_array_equal(ours(made, rows, attention_mask=mask, **call), right)
        # Of a list of unequal prompts, the longest.
        for row, full in zip(ours(made, [[3, 4], [5] * 11], **call), right, strict=True):
            np.testing.assert_array_equal(row, full[len(full) - len(row) :])


@pytest.mark.nightly
@pytest.mark.parametrize(
    "fields", [{"max_length": 16}, {"min_length": 8, "eos_token_id": EVERY[1:]}, {}]
)
def test_generate_batches_counts_the_length_of_each_prompt(
    folder: MakeFolder, fields: dict[str, Any]
) -> None:
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(folder(fields))
    prompts = [[1, 2], [4, 5], [6] * 7, [8, 9], [1] * 14, [2] * 15]
    outputs = dict(generate_batches(model, prompts, batch_size=3))
    for i, prompt in enumerate(prompts):
        (row,) = outputs[i].sequences
        np.testing.assert_array_equal(row, gpt1.generate(model, [prompt])[0])


def test_max_length_with_a_window(folder: MakeFolder) -> None:
    """Up to the model's positions, the text is the same; without a window, more is an error."""
    out = ours(folder({"max_length": 40, "sliding_window": 8}))
    assert out.shape == (1, 40)
    np.testing.assert_array_equal(out[:, :16], ours(folder(), max_length=16))


def test_max_new_tokens_wins_over_max_length_with_a_warning(
    folder: MakeFolder, caplog: pytest.LogCaptureFixture
) -> None:
    made = folder({"max_length": 6})
    message = "max_new_tokens = 2 takes precedence over max_length = 6"
    with pytest.warns(UserWarning, match=message) as seen:
        found = ours(made, max_new_tokens=2)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    np.testing.assert_array_equal(found, theirs(made, max_new_tokens=2))
    model = gpt1.OpenAIGPTLMHeadModel.from_pretrained(made)
    settings = gpt1.GenerationConfig(max_new_tokens=2)
    with pytest.warns(UserWarning, match=message) as seen:
        list(generate_batches(model, [PROMPT, [1]], settings))
    assert len(seen) == 1


@pytest.mark.parametrize(
    "held",
    [
        {"epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "top_h": 0.5},
        {"eos_token_id": -1},
        {"eos_token_id": [99, -1, 17]},
        {"eos_token_id": 9.0},
        {"pad_token_id": -1},
        {"suppress_tokens": [-1, 99, 2]},
        {"do_sample": True, "top_p": 0.0},
        {"do_sample": True, "top_p": 0},
        {"num_beams": 1.0, "max_new_tokens": 5.0},
        {"temperature": 0.0},
        {"temperature": "low", "top_k": -3},
        {"no_repeat_ngram_size": -1, "min_new_tokens": -3, "min_length": -1},
        {"min_new_tokens": 30},
        {"min_length": 6},
        {"num_beam_groups": 2, "diversity_penalty": 0.5},
        {"diversity_penalty": 0.5, "num_beams": 2},
        {"dola_layers": "low", "num_beams": 2},
        {"penalty_alpha": 0.6, "top_k": 1},
        {"renormalize_logits": True, "remove_invalid_values": True, "no_repeat_ngram_size": 2},
        {"begin_suppress_tokens": [], "guidance_scale": 1},
        {"length_penalty": 1000.0, "early_stopping": True},
    ],
)
def test_generate_runs_what_transformers_runs(folder: MakeFolder, held: dict[str, Any]) -> None:
    same(folder(held))


def test_sampling_runs_what_transformers_leaves_out(folder: MakeFolder) -> None:
    """Values at which transformers makes no rule: the draws are those of our own defaults."""
    sample: dict[str, Any] = {"do_sample": True, "top_k": 0}
    plain = ours(folder(sample), seed=3)
    for held in ({"top_p": 1.5}, {"typical_p": 2.0}, {"epsilon_cutoff": 0.0}, {"penalty_alpha": 1}):
        made = folder({**sample, **held})
        assert theirs(made).shape == plain.shape
        np.testing.assert_array_equal(ours(made, seed=3), plain)


def test_prompt_lookup_has_no_effect_with_beams(folder: MakeFolder) -> None:
    made = folder({"prompt_lookup_num_tokens": 3, "num_beams": 2, "max_new_tokens": 5})
    with pytest.warns(UserWarning, match="prompt_lookup_num_tokens has no effect with num_beams"):
        found = ours(made)
    np.testing.assert_array_equal(found, theirs(made))


def test_padding_may_be_no_id_of_the_vocabulary(folder: MakeFolder) -> None:
    rows = [PROMPT, [9, 1, 14]]
    free = same(folder({}), rows, max_new_tokens=6)
    eos = int(free[0, 3])
    assert eos not in free[1, 3:]
    for pad in (-1, 99):  # which transformers would read, and fail at
        found = ours(folder({"eos_token_id": eos, "pad_token_id": pad}), rows, max_new_tokens=6)
        assert found[0].tolist() == [*PROMPT, eos, *[pad] * 5]
        np.testing.assert_array_equal(found[1], free[1])
