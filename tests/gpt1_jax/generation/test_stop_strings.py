"""Stop strings: on a model that writes a known text, against plain Python, and transformers'."""

import re
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given, settings
from support.compilations import compilations
from support.scripted_model import SIZES, scripted_model
from support.small_models import small_model
from support.small_tokenizer import SIZE, small_vocab, write_small

import gpt1_jax as gpt1
from gpt1_jax.generation import stop_strings
from gpt1_jax.generation.batches import generate_batches

TEXT = "the king is in the spring . this is it , the press in spring . the end is in the night ."
NEW = 24


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> gpt1.Tokenizer:
    return gpt1.Tokenizer.from_pretrained(write_small(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def script(tokenizer: gpt1.Tokenizer) -> list[int]:
    return tokenizer.encode(TEXT)


@pytest.fixture(scope="module")
def writer(script: list[int]) -> gpt1.OpenAIGPTLMHeadModel:
    """Its texts go on as TEXT does from the position that they have reached."""
    return scripted_model(script)


@pytest.fixture(scope="module")
def model() -> gpt1.OpenAIGPTLMHeadModel:
    return small_model(gpt1.OpenAIGPTLMHeadModel, **SIZES)


def test_scripted_model_writes_its_script(writer: Any, script: list[int]) -> None:
    for row in gpt1.generate(writer, [script[:2], script[:5], script[:9]], max_new_tokens=NEW):
        assert row.tolist() == script[: len(row)]


@pytest.mark.parametrize(
    ("given_words", "stops", "end"),
    [
        # A word of one token, of several, and a part of a word: with the rest of its token.
        ("the king", "is", "the king is"),
        ("the king", "spring", "the king is in the spring"),
        ("the king", "sp", "the king is in the spr"),
        ("the king", "e pr", "the king is in the spring . this is it , the pres"),
        # Several words, the spaces between them, and one that only the next word brings.
        ("the king", "is in the", "the king is in the"),
        ("the king", "n t", "the king is in the"),
        ("the king", " ", "the king is"),
        ("the king", "this ", "the king is in the spring . this is"),
        ("the king", ".", "the king is in the spring ."),
        # Begun in the prompt, in the middle of a word too.
        ("the king", "king is", "the king is"),
        ("the king", "he king is", "the king is"),
        ("the king is", "king is in", "the king is in"),
        ("the", "the king", "the king"),
        # In the prompt only, at its very end too; what comes later counts.
        ("the king is", "king", None),
        ("the king is", "the king is", None),
        ("the king is", "is", "the king is in the spring . this"),
        ("the king is in the", "the", "the king is in the spring . this is it , the"),
        # The first of several, in whatever order; of two that one token completes, any.
        ("the king", ("spring", "in", "the"), "the king is in"),
        ("the king", ("zzz", "it"), "the king is in the spring . this is it"),
        ("the king", ("ing .", "."), "the king is in the spring ."),
        # Texts are compared as they are decoded.
        ("the king", "spring.", None),
    ],
)
def test_stop_strings_end_the_text(
    writer: Any,
    tokenizer: gpt1.Tokenizer,
    script: list[int],
    given_words: str,
    stops: Any,
    end: Any,
) -> None:
    prompt = tokenizer.encode(given_words)
    options: dict[str, Any] = {"max_new_tokens": NEW, "stop_strings": stops, "tokenizer": tokenizer}
    # As a list of rows, which have no padding.
    row, *_ = gpt1.generate(writer, [prompt, script[:12], script[:9]], **options)
    whole = tokenizer.decode(script[: len(prompt) + NEW])
    assert tokenizer.decode(row) == (whole if end is None else end)
    assert row.tolist() == script[: len(row)]


def test_stop_strings_end_each_row_separately(
    writer: Any, tokenizer: gpt1.Tokenizer, script: list[int]
) -> None:
    """The first long before the last, which goes on for several calls."""
    prompts = [script[:n] for n in (3, 8, 14)]
    out = gpt1.generate(
        writer, prompts, max_new_tokens=20, stop_strings="s in", tokenizer=tokenizer
    )
    texts = [tokenizer.decode(row) for row in out]
    assert texts[0] == "the king is in"
    assert texts[1] == texts[2] == "the king is in the spring . this is it , the press in"


def test_stop_strings_may_not_begin_in_the_prompt_unless_asked_for(
    writer: Any, tokenizer: gpt1.Tokenizer, script: list[int]
) -> None:
    found = {}
    for stop_in_prompt in (True, False):
        batches = generate_batches(
            writer,
            [tokenizer.encode("the king"), script[:12], script[:9]],
            {"max_new_tokens": NEW, "stop_strings": ["king is", "n the spring"]},
            tokenizer=tokenizer,
            stop_in_prompt=stop_in_prompt,
        )
        found[stop_in_prompt] = tokenizer.decode(dict(batches)[0].sequences[0])
    assert found == {True: "the king is", False: "the king is in the spring"}


def test_possible_stop_strings_are_those_that_a_text_can_hold(tokenizer: gpt1.Tokenizer) -> None:
    given = ["the king", "The", "\n\n", "\n", " ", "e k"]
    assert stop_strings.possible(tokenizer, given, SIZE) == ["the king", "\n", " ", "e k"]


def oracle(
    tokenizer: gpt1.Tokenizer, prompt: list[int], new: list[int], stops: tuple[str, ...]
) -> list[int]:
    """Plain Python: one token after the other, and a look at every place of the text.

    A string of white space alone also ends a text with the token that ends a word.
    """
    begin = len(tokenizer.decode(prompt))
    for n in range(1, len(new) + 1):
        text = tokenizer.decode(prompt + new[:n])
        with_space = tokenizer.decode([*prompt, *new[:n], tokenizer.convert_tokens_to_ids("a")])[
            :-1
        ]
        for stop in stops:
            whole = with_space if stop.isspace() else text
            for place in range(len(whole)):
                if whole[place:].startswith(stop) and place + len(stop) > begin:
                    return new[:n]
    return new


prompts = st.lists(
    st.lists(st.integers(0, SIZE - 1), min_size=2, max_size=12), min_size=3, max_size=3
)


@pytest.mark.nightly
@given(
    rows=prompts,
    seed=st.integers(0, 99),
    cuts=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 99), st.integers(1, 9)), min_size=1, max_size=3
    ),
    eos=st.sets(st.integers(0, SIZE - 1), max_size=3),
)
@settings(max_examples=60)
def test_stop_strings_match_plain_python(
    model: Any,
    tokenizer: gpt1.Tokenizer,
    rows: list[list[int]],
    seed: int,
    cuts: list[tuple[int, int, int]],
    eos: set[int],
) -> None:
    """Strings that do occur, prompts included: all three rows are drawn, with end tokens too."""
    draw: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": True, "temperature": 2.0}
    draw |= {"seed": seed, "eos_token_id": sorted(eos)}
    rows[0] = rows[0] + [0] * (len(rows[0]) == len(rows[1]))  # unequal: a list comes back
    free = gpt1.generate(model, rows, return_dict_in_generate=True, **draw)
    texts = [tokenizer.decode(row) for row in free.sequences]
    found = [texts[row][place % len(texts[row]) :][:width] for row, place, width in cuts]
    stops = tuple(found)
    assume(all(stops))
    got = gpt1.generate(
        model, rows, stop_strings=stops, tokenizer=tokenizer, return_dict_in_generate=True, **draw
    )
    for i, prompt in enumerate(rows):
        new = free.sequences[i][len(prompt) :].tolist()
        expected = oracle(tokenizer, prompt, new, stops)
        assert got.sequences[i].tolist() == prompt + expected
        n = len(expected)
        np.testing.assert_array_equal(got.transition_scores[i], free.transition_scores[i][:n])
        np.testing.assert_array_equal(got.log_probs[i], free.log_probs[i][:n])


@pytest.mark.difference("stop strings")
@pytest.mark.parametrize("stop", ["SAID", "The", "✿", "the\tking"])
def test_stop_strings_that_no_text_holds_are_refused(
    writer: Any, tokenizer: gpt1.Tokenizer, script: list[int], stop: str
) -> None:
    message = re.escape(f"stop_strings has {stop!r}, which no text of this tokenizer holds")
    options: dict[str, Any]
    for options in ({}, {"num_beams": 2}):
        with pytest.raises(ValueError, match=message):
            gpt1.generate(
                writer,
                [script[:3]],
                max_new_tokens=3,
                stop_strings=["is", stop],
                tokenizer=tokenizer,
                **options,
            )


@given(text=st.text(alphabet="ab \n", min_size=1, max_size=6), data=st.data())
def test_stop_strings_are_refused_only_where_no_tokens_make_them(
    text: str, data: st.DataObject
) -> None:
    """Against all texts of up to seven pieces of a few: each adds a character, or stands inside."""
    pieces = data.draw(st.lists(st.sampled_from(["a", "b ", "ab ", "ba", "\n "]), unique=True))
    texts = {""}
    for _ in range(len(text) + 1):
        texts |= {one[-8:] + piece for one in texts for piece in pieces}
    assert stop_strings._can_occur(text, [*pieces, None]) == any(text in one for one in texts)


def test_stop_string_of_a_space_ends_with_the_word(
    writer: Any, tokenizer: gpt1.Tokenizer, script: list[int]
) -> None:
    """After a prompt that ends within a word."""
    end = script.index(small_vocab()["ing</w>"])
    prompt = [*script[:end]]
    out = gpt1.generate(writer, [prompt], stop_strings=" ", tokenizer=tokenizer, max_new_tokens=5)
    assert out[0].tolist() == script[: end + 1]


def test_stop_strings_compile_once_for_many(tokenizer: gpt1.Tokenizer, model: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 5, "tokenizer": tokenizer}
    gpt1.generate(model, [[1, 2]], stop_strings="in", **options)
    with compilations() as compiled:
        for stops in ("th", ["is", "a"], " "):
            gpt1.generate(model, [[1, 2]], stop_strings=stops, **options)
    assert compiled == []


def test_stop_strings_apply_to_each_return_sequence(model: Any, tokenizer: gpt1.Tokenizer) -> None:
    draw: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": True, "num_return_sequences": 3}
    prompt = [7, 8, 9]
    free = gpt1.generate(model, [prompt], **draw)
    got = gpt1.generate(model, [prompt], stop_strings=("a", "e"), tokenizer=tokenizer, **draw)
    lengths = set()
    for row, whole in zip(got, free, strict=True):
        expected = oracle(tokenizer, prompt, whole[3:].tolist(), ("a", "e"))
        assert row[: 3 + len(expected)].tolist() == prompt + expected
        lengths.add(len(expected))
    assert len(lengths) > 1


def test_scores_end_at_stop_strings(model: Any, tokenizer: gpt1.Tokenizer) -> None:
    """In an array, where prompts are of one width, padding and zeros follow."""
    options: dict[str, Any] = {
        "max_new_tokens": NEW,
        "do_sample": True,
        "return_dict_in_generate": True,
    }
    free = gpt1.generate(model, [[5, 6], [7, 8], [9, 9]], **options)
    texts = [tokenizer.decode(row) for row in free.sequences]
    begin = len(tokenizer.decode(free.sequences[0][:5]))
    stop = texts[0][begin - 6 : begin]
    assert stop not in texts[1] + texts[2]
    got = gpt1.generate(
        model,
        [[5, 6], [7, 8], [9, 9]],
        pad_token_id=0,
        stop_strings=stop,
        tokenizer=tokenizer,
        **options,
    )
    new = len(oracle(tokenizer, [5, 6], free.sequences[0][2:].tolist(), (stop,)))
    assert 0 < new < NEW
    assert got.sequences[0].tolist() == free.sequences[0][: 2 + new].tolist() + [0] * (NEW - new)
    assert got.sequences[1].tolist() == free.sequences[1].tolist()
    for values, expected in (
        (got.transition_scores, free.transition_scores),
        (got.log_probs, free.log_probs),
    ):
        np.testing.assert_array_equal(values[0, :new], expected[0, :new])
        assert not values[0, new:].any()
        np.testing.assert_array_equal(values[1], expected[1])
        assert (expected < 0).all()


def test_stop_strings_trim_array_to_longest_text(
    writer: Any, tokenizer: gpt1.Tokenizer, script: list[int]
) -> None:
    out = gpt1.generate(
        writer,
        [script[:3]] * 3,
        max_new_tokens=NEW,
        stop_strings="is",
        tokenizer=tokenizer,
        return_dict_in_generate=True,
    )
    assert out.sequences.tolist() == [script[:4]] * 3
    assert out.transition_scores.shape == out.log_probs.shape == (3, 1)


def test_stop_strings_are_ignored_after_eos_token(
    writer: Any, tokenizer: gpt1.Tokenizer, script: list[int]
) -> None:
    options: dict[str, Any] = {"max_new_tokens": NEW, "tokenizer": tokenizer}
    is_, the = small_vocab()["is</w>"], small_vocab()["the</w>"]
    prompts = [script[:3], script[:2], script[:3]]
    out = gpt1.generate(writer, prompts, eos_token_id=is_, stop_strings="in the", **options)
    assert [tokenizer.decode(row) for row in out] == ["the king is"] * 3
    # The same token ends the text and completes the string.
    out = gpt1.generate(writer, prompts, eos_token_id=the, stop_strings="in the", **options)
    assert [tokenizer.decode(row) for row in out] == ["the king is in the"] * 3
    # What comes after the end is not looked at.
    out = gpt1.generate(
        writer, prompts, eos_token_id=is_, pad_token_id=the, stop_strings="is the", **options
    )
    assert [tokenizer.decode(row) for row in out] == ["the king is"] * 3


@pytest.mark.nightly
def test_stop_strings_may_contain_newlines(tokenizer: gpt1.Tokenizer, script: list[int]) -> None:
    newline = small_vocab()["\n</w>"]
    model = scripted_model([*script[:4], newline, *script[4:8]])
    for stops, count in ((("\n",), 5), (("is \n",), 5), (("\n i",), 6)):
        row, *_ = gpt1.generate(
            model,
            [script[:2], script[:3], script[:2]],
            max_new_tokens=7,
            stop_strings=stops,
            tokenizer=tokenizer,
        )
        assert len(row) == count


def test_stop_strings_require_a_tokenizer(writer: Any, script: list[int]) -> None:
    with pytest.raises(ValueError, match=r"stop_strings is \('is',\), which needs a tokenizer"):
        gpt1.generate(writer, [script[:3]], stop_strings="is")


def transformers_tokenizer(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.OpenAIGPTTokenizer.from_pretrained(write_small(folder))


@pytest.fixture(scope="module")
def twins() -> Any:
    """A model of transformers and ours, with equal weights."""
    pytest.importorskip("torch")
    from support.torch_reference import flax_model, torch_model

    theirs = torch_model("OpenAIGPTLMHeadModel", **SIZES)
    return theirs, flax_model(theirs)


def continue_both(
    twins: Any, tokenizer: Any, theirs: Any, prompt: list[int], stops: Any, **options: Any
) -> tuple[list[int], list[int]]:
    """The ids that ours and transformers' generate, without the prompt."""
    import torch

    row, *_ = gpt1.generate(
        twins[1],
        [prompt, [*prompt, 1], prompt],
        max_new_tokens=NEW,
        stop_strings=stops,
        tokenizer=tokenizer,
        **options,
    )
    ids = torch.tensor([prompt])
    out = twins[0].generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        do_sample=False,
        stop_strings=stops,
        tokenizer=theirs,
        **options,
    )
    return row[len(prompt) :].tolist(), out[0, len(prompt) :].tolist()


PARTS = [index for token, index in small_vocab().items() if not token.endswith("</w>")]
WHOLE = [index for token, index in small_vocab().items() if token.endswith("</w>")]


@pytest.mark.nightly
@given(
    prompt=st.lists(st.sampled_from(WHOLE), min_size=2, max_size=6),
    place=st.integers(0, 99),
    width=st.integers(1, 9),
)
@settings(max_examples=30)
def test_stop_strings_match_transformers_on_whole_words(
    twins: Any,
    tokenizer: gpt1.Tokenizer,
    tmp_path_factory: Any,
    prompt: list[int],
    place: int,
    width: int,
) -> None:
    theirs = transformers_tokenizer(tmp_path_factory.getbasetemp() / "theirs")
    words: dict[str, Any] = {"suppress_tokens": PARTS, "repetition_penalty": 1.5}
    free, *_ = gpt1.generate(twins[1], [prompt, [*prompt, 1], prompt], max_new_tokens=NEW, **words)
    text = tokenizer.decode(free)
    stop = text[place % len(text) :][:width]
    ours, expected = continue_both(twins, tokenizer, theirs, prompt, [stop], **words)
    assert ours == expected


@pytest.mark.nightly
@pytest.mark.difference("padding of beams")
@pytest.mark.parametrize("early_stopping", [True, False])
def test_stop_strings_end_beams_as_in_transformers(
    twins: Any, tokenizer: gpt1.Tokenizer, tmp_path: Path, early_stopping: bool
) -> None:
    import torch

    theirs = transformers_tokenizer(tmp_path / "theirs")
    options: dict[str, Any] = {
        "suppress_tokens": PARTS,
        "repetition_penalty": 1.5,
        "num_beams": 3,
        "num_return_sequences": 3,
        "early_stopping": early_stopping,
        "max_new_tokens": NEW,
        "pad_token_id": 0,
    }
    ended = 0
    for prompt in ([WHOLE[3], WHOLE[1]], WHOLE[4:8], WHOLE[-5:]):
        free = gpt1.generate(twins[1], [prompt], **options)
        text = tokenizer.decode(free[0])
        stops = [text[-9:-5], tokenizer.decode(free[1][-4:-3])]
        got = gpt1.generate(twins[1], [prompt], stop_strings=stops, tokenizer=tokenizer, **options)
        ids = torch.tensor([prompt])
        expected = (
            twins[0]
            .generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                stop_strings=stops,
                tokenizer=theirs,
                **options,
            )
            .numpy()
        )
        # Without an end token, transformers fills up with -1 whatever the pad token.
        np.testing.assert_array_equal(got, np.where(expected < 0, 0, expected))
        ended += int(got.shape != free.shape or (got != free).any())
    assert ended


@pytest.mark.difference("stop strings")
def test_stop_strings_differ_from_transformers_on_word_parts(
    twins: Any, tokenizer: gpt1.Tokenizer, tmp_path: Path
) -> None:
    """Where ours differs: to it, "s" + "pr" + "ing" is "s pr ing", whose spaces are not there."""
    theirs = transformers_tokenizer(tmp_path / "theirs")
    parts: dict[str, Any] = {"suppress_tokens": WHOLE, "repetition_penalty": 2.0}
    prompt = [1, 2]
    free, *_ = gpt1.generate(twins[1], [prompt, [*prompt, 1], prompt], max_new_tokens=NEW, **parts)
    new = free[2:].tolist()
    first, second = (tokenizer.decode([token]) for token in new[2:4])
    with pytest.raises(ValueError, match="unable to identify tokens matching"):
        continue_both(twins, tokenizer, theirs, prompt, first + second, **parts)
    # Beside another string, it looks for both, and does not find this one.
    stops = ["e t", first + second]
    ours, expected = continue_both(twins, tokenizer, theirs, prompt, stops, **parts)
    assert ours == oracle(tokenizer, prompt, new, tuple(stops))
    assert len(ours) <= 4
    assert expected == new
    # And it finds what the text does not hold.
    spaced = f"{first} {second}"
    ours, expected = continue_both(twins, tokenizer, theirs, prompt, spaced, **parts)
    assert ours == new
    assert expected == new[:4]
