"""Many prompts in batches: each is continued as ``generate`` continues it alone."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flax import nnx
from support.small_tokenizer import SIZE, write_small

import gpt1_jax as gpt1
from gpt1_jax.generation import batches
from gpt1_jax.generation.batches import default_batch_size, generate_batches, reorder
from gpt1_jax.generation.prompts import Prompt

CONFIG = gpt1.OpenAIGPTConfig(
    vocab_size=SIZE, n_positions=64, n_layer=1, n_embd=12, n_head=2, initializer_range=0.5
)
LENGTHS = (3, 17, 1, 30, 3, 8, 3, 2, 30, 5, 1)


@pytest.fixture(scope="module")
def model() -> gpt1.OpenAIGPTLMHeadModel:
    return gpt1.OpenAIGPTLMHeadModel(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture
def tokenizer(tmp_path: Path) -> gpt1.Tokenizer:
    return gpt1.Tokenizer.from_pretrained(write_small(tmp_path))


@pytest.fixture
def prompts() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, SIZE, length).tolist() for length in LENGTHS]


def alone(
    model: gpt1.OpenAIGPTLMHeadModel, tokenizer: gpt1.Tokenizer, prompt: list[int], settings: Any
) -> gpt1.GenerateOutput:
    return gpt1.generate(
        model, [prompt], None, settings, tokenizer=tokenizer, return_dict_in_generate=True
    )


@pytest.mark.nightly
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"eos_token_id": tuple(range(20)), "pad_token_id": 0},
        {"stop_strings": ("a", "e", "i"), "pad_token_id": 0},
        {"do_sample": True, "temperature": 2.0, "seed": 5},
        {"do_sample": True, "seed": 2**32 - 3, "num_return_sequences": 2, "eos_token_id": 7},
        {"num_beams": 3, "num_return_sequences": 2, "eos_token_id": tuple(range(9))},
        {"num_beams": 2, "do_sample": True, "seed": 9},
    ],
    ids=lambda fields: " ".join(fields) or "greedy",
)
def test_generate_batches_matches_single_prompts(
    model: gpt1.OpenAIGPTLMHeadModel,
    tokenizer: gpt1.Tokenizer,
    prompts: list[list[int]],
    fields: dict[str, Any],
) -> None:
    settings = gpt1.GenerationConfig(**{"max_new_tokens": 6, **fields})
    each = settings.num_return_sequences
    found = dict(generate_batches(model, prompts, settings, batch_size=4, tokenizer=tokenizer))
    assert sorted(found) == list(range(len(prompts)))
    for i, prompt in enumerate(prompts):
        seed = (fields["seed"] + i * each) % 2**32 if settings.do_sample else None
        expected = alone(model, tokenizer, prompt, dataclasses.replace(settings, seed=seed))
        for j in range(each):
            row = found[i].sequences[j]
            width = len(row)
            np.testing.assert_array_equal(row, expected.sequences[j][:width])
            # What ``generate`` has beyond it is padding, whose scores are 0.
            new = width - len(prompt)
            assert not expected.transition_scores[j][new:].any()
            for name in ("transition_scores", "log_probs"):
                values = getattr(found[i], name)[j]
                assert values.shape == (new,)
                np.testing.assert_allclose(values, getattr(expected, name)[j][:new], atol=1e-5)
        totals: Any = [output.sequences_scores for output in (found[i], expected)]
        if settings.num_beams == 1:
            assert totals == [None, None]
        else:
            np.testing.assert_allclose(totals[0], totals[1], atol=1e-5)


@pytest.mark.nightly
def test_generate_batches_uses_one_seed_per_prompt(
    model: gpt1.OpenAIGPTLMHeadModel, tokenizer: gpt1.Tokenizer, prompts: list[list[int]]
) -> None:
    seeds = tuple(range(100, 100 + len(prompts)))
    draw = gpt1.GenerationConfig(max_new_tokens=5, do_sample=True, seed=seeds)
    found = dict(generate_batches(model, prompts, draw, batch_size=4))
    for i, prompt in enumerate(prompts):
        settings = gpt1.GenerationConfig(max_new_tokens=5, do_sample=True, seed=seeds[i])
        expected = alone(model, tokenizer, prompt, settings)
        np.testing.assert_array_equal(found[i].sequences[0], expected.sequences[0])


def test_generate_batches_groups_prompts_by_length(
    model: gpt1.OpenAIGPTLMHeadModel, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    inner = batches._continue

    def spy(model: Any, rows: list[Prompt], *rest: Any) -> Iterator[gpt1.GenerateOutput]:
        seen.append(sorted(len(row.ids) for row in rows))
        return inner(model, rows, *rest)

    monkeypatch.setattr(batches, "_continue", spy)
    settings = gpt1.GenerationConfig(max_new_tokens=2)
    assert len(list(generate_batches(model, prompts, settings, batch_size=5))) == len(prompts)
    # 11 prompts in three batches, which 4 suffice for: the last prompt is there twice.
    assert seen == [[8, 17, 30, 30], [3, 3, 3, 5], [1, 1, 1, 2]]
    seen.clear()
    monkeypatch.setattr(batches, "SORTED", 1)
    numbers = [i for i, _ in generate_batches(model, prompts, settings, batch_size=5)]
    assert seen == [[1, 3, 17, 30], [2, 3, 3, 8], [1, 1, 5, 30]]
    assert [sorted(numbers[i : i + 4]) for i in (0, 4, 8)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10],
    ]


@pytest.mark.parametrize(
    ("prompts", "fields", "batch_size", "message"),
    [
        ([[1]], {}, 0, "batch_size is 0, but must be an integer, at least 1"),
        ([[1]], {}, "8", "batch_size is '8', but must be an integer, at least 1"),
        ([], {}, 8, "no prompt"),
        ([[1], []], {}, 8, "prompt 1 is empty"),
        ([[1], [SIZE]], {}, 8, "prompt 1"),
        ([[1]], {"max_new_tokens": 65}, 8, "n_positions = 64"),
        ([[1]], {"stop_strings": "a"}, 8, "needs a tokenizer"),
        ([[1]], {"do_sample": True, "seed": (1, 2)}, 8, "one a prompt, 1 in all"),
    ],
)
def test_generate_batches_rejects_bad_input_at_the_call(
    model: gpt1.OpenAIGPTLMHeadModel,
    prompts: list[list[int]],
    fields: dict[str, Any],
    batch_size: int,
    message: str,
) -> None:
    settings = gpt1.GenerationConfig(**fields)
    with pytest.raises(ValueError, match=message):
        generate_batches(model, prompts, settings, batch_size=batch_size)


def test_reorder_yields_items_as_soon_as_possible() -> None:
    seen = []

    def numbered() -> Iterator[tuple[int, str]]:
        for number in (2, 0, 1, 4, 3):
            seen.append(f"made {number}")
            yield number, str(number)

    for item in reorder(numbered()):
        seen.append(f"got {item}")
    order = "made 2, made 0, got 0, made 1, got 1, got 2, made 4, made 3, got 3, got 4"
    assert ", ".join(seen) == order


def test_generate_batches_reads_few_rows_for_prompts_of_many_limits(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where max_length gives each of 16 prompts another number of new tokens."""
    rows = []

    def counted(model: Any, prompts: Any, *args: Any, **options: Any) -> Any:
        rows.append(len(prompts))
        return run(model, prompts, *args, **options)

    run = batches.run
    monkeypatch.setattr(batches, "run", counted)
    prompts = [list(range(1, n + 1)) for n in range(1, 17)]
    held = gpt1.GenerationConfig(max_length=20)
    assert len(list(generate_batches(model, prompts, held, batch_size=8))) == 16
    assert rows == [1] * 16


@pytest.mark.parametrize(
    ("lengths", "fields", "expected"),
    [
        (100 * [60], {}, 64),
        (100 * [400], {}, 28),  # 37.7 MB of cache each
        (100 * [400], {"num_return_sequences": 4, "do_sample": True}, 7),
        (100 * [400], {"num_beams": 4}, 3),
        (100 * [400], {"num_beams": 60}, 1),
        (100 * [60], {"num_beams": 4}, 14),  # 9.4 MB, and once more when beams change places
        ([5], {}, 8),
        (64 * [5], {}, 64),
        # A long one for eight short ones: these would be padded to it.
        (8 * [400] + 56 * [5], {}, 8),
        (640 * [80] + 640 * [5], {}, 64),
    ],
)
def test_default_batch_size_weighs_padding_and_memory(
    lengths: list[int], fields: dict[str, Any], expected: int
) -> None:
    config = gpt1.OpenAIGPTConfig()
    model: Any = SimpleNamespace(config=config, dtype=np.dtype("float32"))
    settings = gpt1.GenerationConfig(**{"max_new_tokens": 40, **fields})
    assert default_batch_size(model, settings, lengths) == expected
    by_length = gpt1.GenerationConfig(max_length=max(lengths) + 40, **fields)
    assert default_batch_size(model, by_length, lengths) == expected


def test_generate_batches_uses_the_default_batch_size(
    model: gpt1.OpenAIGPTLMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def counted(model: Any, prompts: Any, *args: Any, **options: Any) -> Any:
        seen.append(len(prompts))
        return run(model, prompts, *args, **options)

    run = batches.run
    monkeypatch.setattr(batches, "run", counted)
    settings = gpt1.GenerationConfig(max_new_tokens=1)
    assert len(list(generate_batches(model, [[1]] * 70, settings))) == 70
    assert seen == [35, 35]
