"""Token types in generation: given for the prompts, and fixed for the new tokens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.small_models import small_model

import gpt1_jax as gpt1
from gpt1_jax.generation import decode
from gpt1_jax.generation.batches import generate_batches, reorder
from gpt1_jax.generation.processors import DecodeContext, PromptEmbeds

V = 31
SIZES = {"vocab_size": V, "n_positions": 64, "n_layer": 2, "n_embd": 12, "n_head": 3}
NEW = 6
PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6, 5, 3]]
TYPES = [[7, 7, 7, 8, 8, 8, 7], [8, 8, 7]]


@pytest.fixture(scope="module")
def model() -> gpt1.OpenAIGPTLMHeadModel:
    return small_model(gpt1.OpenAIGPTLMHeadModel, **SIZES)


@pytest.fixture(scope="module")
def loop(model: gpt1.OpenAIGPTLMHeadModel) -> Callable[..., list[int]]:
    """Greedy decoding by a full forward for each token."""
    apply, params = gpt1.functional(model)

    def continue_(ids: list[int], types: list[int], new_type: int, new: int = NEW) -> list[int]:
        ids, types = list(ids), list(types)
        for _ in range(new):
            padded = np.zeros((2, 1, 64), np.int32)  # padding comes after what is looked at
            padded[0, 0, : len(ids)], padded[1, 0, : len(ids)] = ids, types
            logits = apply(params, padded[0], token_type_ids=padded[1]).logits
            ids.append(int(np.asarray(logits)[0, len(ids) - 1].argmax()))
            types.append(new_type)
        return ids

    return continue_


def generate(model: Any, *arguments: Any, **fields: Any) -> list[list[int]]:
    rows = gpt1.generate(model, *arguments, **{"max_new_tokens": NEW, **fields})
    return [np.asarray(row).tolist() for row in rows]


@pytest.mark.nightly
def test_generate_equals_a_loop_of_forwards(
    model: gpt1.OpenAIGPTLMHeadModel, loop: Callable[..., list[int]]
) -> None:
    for new_type, types in ((None, (7, 7)), (8, (8, 8)), ([9, None], (9, 7))):
        expected = list(map(loop, PROMPTS, TYPES, types))
        options: dict[str, Any] = {"token_type_ids": TYPES, "new_token_type_id": new_type}
        assert generate(model, PROMPTS, **options) == expected
        drafts = generate(model, PROMPTS, prompt_lookup_num_tokens=3, **options)
        assert drafts == expected
    other = [[9] * len(types) for types in TYPES]
    assert generate(model, PROMPTS, token_type_ids=other) != expected


@pytest.mark.nightly
def test_sliding_window_keeps_the_types_of_its_tokens(
    model: gpt1.OpenAIGPTLMHeadModel, loop: Callable[..., list[int]]
) -> None:
    rng = np.random.default_rng(0)
    ids, types = (rng.integers(0, V, 63).tolist() for _ in range(2))
    found = generate(
        model,
        [ids],
        token_type_ids=[types],
        new_token_type_id=8,
        sliding_window=40,
        max_new_tokens=4,
    )
    first = loop(ids, types, 8, 2)  # until all positions are used
    cut = first[-40:], [*types, 8, 8][-40:]
    assert found == [first[:-40] + loop(*cut, 8, 2)]


def test_padding_has_no_type(model: gpt1.OpenAIGPTLMHeadModel) -> None:
    expected = generate(model, PROMPTS, token_type_ids=TYPES)
    for pad in ((4, 0), (0, 4)):
        batch = [np.array([PROMPTS[0], np.pad(PROMPTS[1], pad)])]
        batch.append(np.array([TYPES[0], np.pad(TYPES[1], pad, constant_values=3)]))
        mask = np.array([[1] * 7, np.pad([1] * 3, pad)])
        rows = generate(model, batch[0], mask, token_type_ids=batch[1])
        assert [row[7:] for row in rows] == [expected[0][7:], expected[1][3:]]


def test_inputs_embeds_get_types(model: gpt1.OpenAIGPTLMHeadModel) -> None:
    zeros, types = np.zeros((1, 8), np.int32), np.arange(8, dtype=np.int32)[None]
    start, end = np.zeros(1, np.int32), np.int32(5)
    embeds = PromptEmbeds(np.ones((1, 8, 12), np.float32), start, end)  # type: ignore[arg-type]
    context = DecodeContext(zeros, start, end, np.int32(0), embeds, types)  # type: ignore[arg-type]
    inputs = context.inputs(model, jnp.int32(4), 2)
    assert inputs["input_ids"] is None
    np.testing.assert_array_equal(inputs["token_type_ids"], [[4, 5]])


def test_generate_batches_passes_types(model: gpt1.OpenAIGPTLMHeadModel) -> None:
    finished = generate_batches(
        model,
        PROMPTS,
        {"max_new_tokens": NEW},
        batch_size=2,
        token_type_ids=TYPES,
        new_token_type_id=[None, 9],
    )
    rows = [output.sequences[0].tolist() for output in reorder(finished)]
    assert rows == generate(model, PROMPTS, token_type_ids=TYPES, new_token_type_id=[7, 9])


@pytest.mark.nightly
@pytest.mark.parametrize("num_beams", [1, 3])
def test_generate_with_types_equals_transformers(num_beams: int) -> None:
    torch = pytest.importorskip("torch")
    from support.torch_reference import flax_model, torch_model

    theirs = torch_model("OpenAIGPTLMHeadModel", 0, **SIZES)
    options: dict[str, Any] = {"max_new_tokens": NEW, "num_beams": num_beams}
    found = generate(flax_model(theirs), PROMPTS, token_type_ids=TYPES, **options)
    for row, ids, types in zip(found, PROMPTS, TYPES, strict=True):
        expected = theirs.generate(
            torch.tensor([ids]),
            token_type_ids=torch.tensor([types]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            pad_token_id=0,
            do_sample=False,
            **options,
        )
        assert [row] == expected.tolist()


def test_program_without_types_is_that_of_ids_alone(
    model: gpt1.OpenAIGPTLMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = decode.Decoder.prepare(model, 1)
    settings = gpt1.GenerationConfig(max_new_tokens=3, pad_token_id=0)
    sampling = decode.SamplingParams.build(settings, V, np.zeros(1, np.uint32), decode.Extras())
    prompts = [decode.Prompt(np.ones(3, np.int32))]
    state, _ = decode._start(decoder, prompts, settings, sampling)

    def program() -> str:
        def decode_until(params: Any, state: decode.State) -> decode.State:  # not traced before
            run: Any = vars(decode._decode_until)["__wrapped__"]
            return run(decoder.structure, params, state, sampling, np.int32(3), num_draft_tokens=0)

        return jax.jit(decode_until).lower(decoder.params, state).as_text()

    def ids_alone(self: DecodeContext, model: Any, slot: jax.Array, tokens: int) -> dict[str, Any]:
        return {"input_ids": jax.lax.dynamic_slice_in_dim(self.tokens, slot, tokens, axis=1)}

    given = program()
    monkeypatch.setattr(DecodeContext, "inputs", ids_alone)
    assert program() == given


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"new_token_type_id": 1}, "new_token_type_id has no effect without token_type_ids"),
        ({"token_type_ids": TYPES[:1]}, r"token_type_ids has rows of \[\(7,\)\], but must have"),
        ({"token_type_ids": [[7] * 7, [7, 7, V]]}, r"token_type_ids\[1\]"),
        ({"token_type_ids": 3}, "token_type_ids must be a list or an array of rows"),
        ({"token_type_ids": TYPES, "new_token_type_id": V}, "new_token_type_id"),
        ({"token_type_ids": TYPES, "new_token_type_id": [1]}, "or one a prompt"),
        ({"token_type_ids": TYPES, "new_token_type_id": "a"}, "or one a prompt"),
    ],
)
def test_generate_refuses_wrong_types(
    model: gpt1.OpenAIGPTLMHeadModel, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(model, PROMPTS, **fields)


def test_cli_generate_reads_types_of_prompts(
    run: Callable[..., tuple[int, str, str]], model: gpt1.OpenAIGPTLMHeadModel, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "prompts.jsonl"
    flags = ["--prompts", file, "--model", tmp_path / "model", "--max-new-tokens", NEW]
    lines = [
        {"ids": ids, "token_type_ids": types, "new_token_type_id": 9, "name": name}
        for ids, types, name in zip(PROMPTS, TYPES, "ab", strict=True)
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    status, out, err = run("generate", *flags, "--output-format", "jsonl")
    assert (status, err) == (0, "")
    found = [json.loads(line) for line in out.splitlines()]
    expected = generate(model, PROMPTS, token_type_ids=TYPES, new_token_type_id=9)
    assert [each["ids"] for each in found] == expected
    assert [each["name"] for each in found] == ["a", "b"]
    file.write_text(json.dumps(lines[0]) + '\n{"ids": [1]}\n')
    status, _, err = run("generate", *flags)
    place = f"{file}, line"
    message = f'gpt1: {place} 2 must have "token_type_ids", as {place} 1 does\n'
    assert (status, err) == (2, message)
    file.write_text('{"ids": [1], "token_type_ids": [99]}\n')
    assert run("generate", *flags)[2] == f"gpt1: {place} 1: the id 99 is not in [0, {V})\n"
