"""Text as it comes: the pieces together are what ``generate`` returns."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from support.scripted_model import SIZES, scripted_model
from support.small_models import small_model
from support.small_tokenizer import SIZE, small_vocab, write_small

import gpt1_jax as gpt1
from gpt1_jax.generation.streaming import stream_detokenized
from gpt1_jax.text.detokenize import detokenized

TEXT = "the king is in the spring . this is it , the press in spring . the end is in the night ."
PROMPT = "the king"
CONTINUATION = TEXT.removeprefix(PROMPT).removesuffix("ht .")
NEW = 34  # and 60 share the compiled functions


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> gpt1.Tokenizer:
    return gpt1.Tokenizer.from_pretrained(write_small(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def writer(tokenizer: gpt1.Tokenizer) -> gpt1.OpenAIGPTLMHeadModel:
    """Its texts go on as TEXT does from the position that they have reached."""
    return scripted_model(tokenizer.encode(TEXT))


@pytest.fixture(scope="module")
def model() -> gpt1.OpenAIGPTLMHeadModel:
    return small_model(gpt1.OpenAIGPTLMHeadModel, **SIZES)


def expected_text(model: Any, tokenizer: gpt1.Tokenizer, prompt: str, **changes: Any) -> str:
    """What ``generate`` adds to the prompt."""
    ids = tokenizer.encode(prompt)
    if "stop_strings" in changes:
        changes["tokenizer"] = tokenizer
    out = gpt1.generate(model, [ids], **changes, return_dict_in_generate=True)
    # Drawn tokens have probabilities below 1; after the end of a text the scores are 0.
    length = len(ids) + (
        np.count_nonzero(out.transition_scores[0]) if "do_sample" in changes else NEW
    )
    return tokenizer.decode(out.sequences[0][:length])[len(tokenizer.decode(ids)) :]


def test_stream_yields_whole_words(writer: Any, tokenizer: gpt1.Tokenizer) -> None:
    pieces = gpt1.stream(writer, tokenizer, PROMPT, max_new_tokens=NEW, steps=1)
    # The last is as far as NEW tokens go.
    assert list(pieces) == [f" {word}" for word in CONTINUATION.split()]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, NEW - 1, NEW, 1000])
def test_stream_text_does_not_depend_on_steps(
    writer: Any, tokenizer: gpt1.Tokenizer, steps: int
) -> None:
    text = expected_text(writer, tokenizer, PROMPT, max_new_tokens=NEW)
    pieces = list(gpt1.stream(writer, tokenizer, PROMPT, max_new_tokens=NEW, steps=steps))
    assert "".join(pieces) == text == CONTINUATION
    assert all(piece.startswith(" ") for piece in pieces)
    # The last word is held back until it is known to be the last.
    assert (len(pieces) == 2) == (steps >= NEW - 1)


words = st.lists(st.sampled_from(["the", "king", "is", "spring", ".", "qx1"]), min_size=1)


@pytest.mark.nightly
@given(
    prompt=words.map(lambda words: " ".join(words[:8])).filter(lambda text: text != "the"),
    seed=st.integers(0, 999),
    steps=st.integers(1, 9),
    eos=st.sets(st.integers(0, SIZE - 1), max_size=4),
    stop=st.lists(st.sampled_from(["a", " b", "e ", "th", ". ", "\n"]), max_size=2),
)
@settings(max_examples=60)
def test_stream_pieces_join_to_generated_text(
    model: Any,
    tokenizer: gpt1.Tokenizer,
    prompt: str,
    seed: int,
    steps: int,
    eos: set[int],
    stop: list[str],
) -> None:
    """Of all tokens, drawn: seeds, end tokens and stop strings are those of ``generate``."""
    changes: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": True, "seed": seed}
    changes |= {"eos_token_id": sorted(eos)} | ({"stop_strings": stop} if stop else {})
    pieces = list(gpt1.stream(model, tokenizer, prompt, steps=steps, **changes))
    text = expected_text(model, tokenizer, prompt, **changes)
    assert "".join(pieces) == text
    # No piece is empty, and all begin where a word does.
    place = 0
    for piece in pieces:
        assert piece
        assert place == 0 or text[place] in " \n"
        place += len(piece)


@given(
    prompt=words.map(lambda words: " ".join(words[:8])),
    seed=st.integers(0, 999),
    steps=st.integers(1, 9),
)
@settings(max_examples=20)
def test_stream_detokenized_pieces_join_to_detokenized_text(
    model: Any, tokenizer: gpt1.Tokenizer, prompt: str, seed: int, steps: int
) -> None:
    changes: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": True, "seed": seed}
    ids = gpt1.generate(model, [tokenizer.encode(prompt)], **changes)
    pieces = list(stream_detokenized(model, tokenizer, prompt, steps=steps, **changes))
    assert "".join(pieces) == tokenizer.detokenize(ids[0])
    assert all(pieces)


def test_stream_detokenized_follows_the_text(writer: Any, tokenizer: gpt1.Tokenizer) -> None:
    pieces = stream_detokenized(writer, tokenizer, PROMPT, max_new_tokens=NEW, steps=1)
    expected = detokenized(TEXT.removesuffix("ht ."))
    assert len(found := list(pieces)) > 10
    assert "".join(found) == expected
    with pytest.raises(ValueError, match="num_beams is 2, but must be 1 to be streamed"):
        stream_detokenized(writer, tokenizer, PROMPT, num_beams=2)


@pytest.mark.nightly
def test_texts_leave_out_ids_beyond_the_tokenizer(tmp_path: Path) -> None:
    write_small(tmp_path)
    known = {token: id_ for token, id_ in small_vocab().items() if id_ < SIZE - 1}
    (tmp_path / "vocab.json").write_text(json.dumps(known))
    tokenizer = gpt1.Tokenizer.from_pretrained(tmp_path)
    script = tokenizer.encode("the king is in the spring . this is it")
    for place in (6, 3):  # from the end on
        script.insert(place, SIZE - 1)
    model = scripted_model(script)
    message = f"the model has {SIZE} ids, and the tokenizer tokens for the first {SIZE - 1}: decod"
    prompt = tokenizer.encode("the")
    with pytest.warns(UserWarning, match=message):
        pieces = list(gpt1.stream(model, tokenizer, "the", max_new_tokens=len(script) - 2))
    ids = gpt1.generate(model, [prompt], max_new_tokens=len(script) - 2)[0]
    assert list(ids).count(SIZE - 1) == 2
    assert "".join(pieces) == tokenizer.decode(ids)[3:]
    assert "".join(pieces).startswith(" king is in the spring .")
    with pytest.warns(UserWarning, match=message):
        stopped = gpt1.generate(
            model, [prompt], stop_strings="ring", tokenizer=tokenizer, max_new_tokens=40
        )
    assert tokenizer.decode(stopped[0]) == "the king is in the spring"


def test_stream_yields_newlines(tokenizer: gpt1.Tokenizer) -> None:
    ids, newline = tokenizer.encode(TEXT), small_vocab()["\n</w>"]
    writer = scripted_model([*ids[:4], newline, newline, *ids[4:30]])
    pieces = list(gpt1.stream(writer, tokenizer, PROMPT, max_new_tokens=9, steps=1))
    assert "".join(pieces) == " is \n \n in the spring"
    assert [piece.split() for piece in pieces] == [["is"], [], [], ["in"], ["the"], ["spring"]]


def test_stream_keywords_override_generation_config(model: Any, tokenizer: gpt1.Tokenizer) -> None:
    held = gpt1.GenerationConfig(max_new_tokens=NEW, do_sample=True, seed=3)
    one = "".join(gpt1.stream(model, tokenizer, PROMPT, held))
    other = "".join(gpt1.stream(model, tokenizer, PROMPT, held, seed=4))
    assert one == expected_text(
        model, tokenizer, PROMPT, max_new_tokens=NEW, do_sample=True, seed=3
    )
    assert other != one
    assert "".join(gpt1.stream(model, tokenizer, PROMPT, held, seed=(3,))) == one


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens decoded after every compiled call."""
    module = importlib.import_module("gpt1_jax.generation.api")
    decode, counts = module.decode, []

    def spy(*arguments: Any, **options: Any) -> Iterator[Any]:
        for progress in decode(*arguments, **options):
            counts.append(progress.tokens.shape[1])
            yield progress

    monkeypatch.setattr(module, "decode", spy)
    return counts


def test_stream_yields_first_piece_early(
    writer: Any, tokenizer: gpt1.Tokenizer, calls: list[int]
) -> None:
    """Before a tenth is decoded, with the steps that are the default; and a piece a call."""
    pieces = gpt1.stream(writer, tokenizer, PROMPT, max_new_tokens=60)
    assert calls == []  # nothing before it is asked for
    assert next(pieces) == " is in"
    assert calls == [4]
    assert next(pieces) == " the spring"
    assert calls == [4, 8]
    assert "".join(pieces).startswith(" . this is it ,")
    assert calls == list(range(4, 61, 4))


def test_stream_stops_decoding_when_closed(
    writer: Any, tokenizer: gpt1.Tokenizer, calls: list[int]
) -> None:
    pieces: Any = gpt1.stream(writer, tokenizer, PROMPT, max_new_tokens=60)
    next(pieces)
    pieces.close()
    assert list(pieces) == []
    for piece in gpt1.stream(writer, tokenizer, PROMPT, max_new_tokens=60):
        assert piece == " is in"
        break
    assert calls == [4, 4]


def test_stream_stops_decoding_when_text_ends(
    writer: Any, tokenizer: gpt1.Tokenizer, calls: list[int]
) -> None:
    options: dict[str, Any] = {"max_new_tokens": 60, "steps": 2}
    pieces = gpt1.stream(writer, tokenizer, PROMPT, eos_token_id=small_vocab()[".</w>"], **options)
    assert "".join(pieces) == " is in the spring ."
    assert calls == [2, 4, 6, 8]
    calls.clear()
    pieces = gpt1.stream(writer, tokenizer, PROMPT, stop_strings="is i", **options)
    assert "".join(pieces) == " is i"
    assert calls == [2]


@pytest.mark.nightly
def test_stream_supports_sliding_window(model: Any, tokenizer: gpt1.Tokenizer) -> None:
    """Longer than the model's positions."""
    changes: dict[str, Any] = {"max_new_tokens": 150, "sliding_window": 32}
    changes |= {"do_sample": True, "seed": 1}
    pieces = list(gpt1.stream(model, tokenizer, PROMPT, **changes))
    assert "".join(pieces) == expected_text(model, tokenizer, PROMPT, **changes)
    assert len(pieces) > 15


@pytest.mark.parametrize(
    ("prompt", "changes", "message"),
    [
        (PROMPT, {"temperature": 0.5}, "temperature=0.5 has no effect without do_sample=True"),
        (PROMPT, {"num_beams": 2}, "num_beams is 2, but must be 1 to be streamed"),
        (
            PROMPT,
            {"num_return_sequences": 2, "do_sample": True},
            "num_return_sequences is 2, but must be 1 to be streamed",
        ),
        (PROMPT, {"steps": 0}, "steps is 0, but must be an integer, at least 1"),
        (PROMPT, {"steps": 2.5}, "steps is 2.5, but must be an integer, at least 1"),
        (PROMPT, {"max_new_tokens": 63}, "3 tokens and max_new_tokens = 63 need 65"),
        (PROMPT, {"sliding_window": 65}, "sliding_window is 65"),
        (PROMPT, {"forced_eos_token_id": SIZE}, f"eos_token_id is {SIZE}, but must be in"),
        (PROMPT, {"do_sample": True, "seed": (1, 2)}, "seed is .* one a prompt, 1 in all"),
        ("", {}, "prompt 0 is empty"),
        (" \n ", {}, "prompt 0 is empty"),
        ("a\ud800", {}, "lone surrogate"),
    ],
)
def test_stream_raises_errors_at_the_call(
    writer: Any,
    tokenizer: gpt1.Tokenizer,
    calls: list[int],
    prompt: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        gpt1.stream(writer, tokenizer, prompt, **changes)
    assert calls == []


def test_stream_rejects_wrong_types(writer: Any, tokenizer: gpt1.Tokenizer) -> None:
    with pytest.raises(TypeError, match="model is Rngs, but must be OpenAIGPTLMHeadModel"):
        gpt1.stream(nnx.Rngs(0), tokenizer, PROMPT)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="max_lenght"):
        gpt1.stream(writer, tokenizer, PROMPT, max_lenght=3)
    with pytest.raises(TypeError, match="the text must be a string"):
        gpt1.stream(writer, tokenizer, [1, 2])  # type: ignore[arg-type]
